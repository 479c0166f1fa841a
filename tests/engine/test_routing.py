"""Where a teacher's router sends a row, without a cluster: to replicas that are only names."""

import asyncio
import dataclasses
from typing import Any

from ray.serve._private.common import DeploymentHandleSource, DeploymentID, RequestMetadata
from ray.serve.request_router import PendingRequest, ReplicaID

from raydistill.engine.routing import AFTER, ElsewhereRouter

ENGINE = DeploymentID("engine", "teacher")


@dataclasses.dataclass(frozen=True)
class Replica:
    """What the router looks at in a replica."""

    replica_id: ReplicaID
    node_id: str = "n"
    availability_zone: str | None = None


def make_router(*names: str) -> ElsewhereRouter:
    router = ElsewhereRouter(deployment_id=ENGINE, handle_source=DeploymentHandleSource.UNKNOWN)
    router._replicas = {ReplicaID(name, ENGINE): Replica(ReplicaID(name, ENGINE)) for name in names}  # type: ignore
    router._replica_id_set = set(router._replicas)
    return router


def make_request(name: str, after: str | None = None) -> PendingRequest:
    metadata = RequestMetadata(request_id="the client's", internal_request_id=name)
    return PendingRequest([], {} if after is None else {AFTER: after}, metadata)


def choices(router: ElsewhereRouter, after: str | None = None, times: int = 40) -> set[str]:
    """Return the replicas that are ever offered to a request."""

    async def choose() -> list[Any]:
        return [await router.choose_replicas([], make_request("next", after)) for _ in range(times)]

    return {replica.replica_id.unique_id for ranks in asyncio.run(choose()) for rank in ranks for replica in rank}


def route(router: ElsewhereRouter, name: str, replica: str) -> None:
    async def note() -> None:  # a pending request holds a future, which wants a loop
        router.on_request_routed(make_request(name), ReplicaID(replica, ENGINE), None)

    asyncio.run(note())


def test_a_row_that_failed_goes_to_any_other_replica() -> None:
    router = make_router("a", "b", "c")
    route(router, "first", "b")
    assert choices(router) == {"a", "b", "c"}
    assert choices(router, after="first") == {"a", "c"}
    assert choices(router, after="forgotten") == {"a", "b", "c"}


def test_where_there_is_one_replica_it_is_asked_again() -> None:
    router = make_router("a")
    route(router, "first", "a")
    assert choices(router, after="first") == {"a"}
    assert choices(make_router(), after="first") == set()


def test_only_the_latest_requests_are_remembered() -> None:
    router = make_router("a", "b")
    router.max_known = 3
    for index in range(5):
        route(router, str(index), "a")
    assert choices(router, after="1") == {"a", "b"}
    assert choices(router, after="2") == {"b"}
