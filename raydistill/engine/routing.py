"""Serve's router for our engines: what failed at one replica is asked again at another, where there is another.

Serve's own takes two replicas at random and sends to the one with the shorter queue. A replica that refuses everything
at once has the shortest queue of all, so most of the first attempts go there, and of two replicas at least every second
further one. It also hands a chosen replica to whichever request has waited longest, so that a hint about one request
would be obeyed for another; the base class, which is used here, hands it to the request that it was chosen for.
"""

import random
from collections.abc import Iterable
from typing import Any

from ray.serve.request_router import LocalityMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

ROUTER = f"{__name__}.ElsewhereRouter"  # the import path that Serve wants
AFTER = "after"  # the argument with the id of the request that failed, of every method that is asked again


class ElsewhereRouter(LocalityMixin, RequestRouter):
    """Of two replicas the less busy one, but never the one at which the same row has just failed, if there is another.

    It runs in the process that asks: Serve sends it there with the deployment's settings.

    Attributes:
        max_known: of how many requests, the latest of a handle, it is known where they went: more than are ever under
            way, and what failed is asked again within seconds.
    """

    max_known = 10_000

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Begin without requests."""
        super().__init__(*args, **kwargs)
        self._replica_of: dict[str, ReplicaID] = {}  # by request id, the latest last

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return up to two replicas, of which Serve takes the one with the shorter queue."""
        ids = self.apply_locality_routing(pending_request)
        if pending_request is not None and AFTER in pending_request.kwargs:
            failed = self._replica_of.get(pending_request.kwargs[AFTER])
            ids = _without(ids, failed) or _without(self.curr_replicas, failed) or ids
        two = random.sample(sorted(ids, key=str), min(2, len(ids)))
        return [[self.curr_replicas[identifier] for identifier in two]] if two else []

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Remember which replica took a request."""
        self._replica_of[pending_request.metadata.internal_request_id] = replica_id
        if len(self._replica_of) > self.max_known:
            del self._replica_of[next(iter(self._replica_of))]


def router_id(response: Any) -> str:
    """Return the id by which the router knows a call of a handle, for AFTER.

    It is one that Serve makes: what `response.request_id` says is the client's, where that has sent an x-request-id.
    """
    return response._request_metadata.internal_request_id


def _without(ids: Iterable[ReplicaID], failed: ReplicaID | None) -> set[ReplicaID]:
    return {identifier for identifier in ids if identifier != failed}
