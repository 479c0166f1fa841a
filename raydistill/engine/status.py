"""What an application says of itself in `/status`: each replica's own words, and what all of them agree on."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from raydistill.engine.front import Front
from raydistill.engine.refusals import Refusal

TRIES, ANSWER_SECONDS, PAUSE_SECONDS = 3, 8, 0.5  # in all below the 30 s that askers wait


async def describe_application(front: Front) -> dict[str, Any]:
    """Return what `/status` answers: what the replicas serve, and how full the front is.

    Raises:
        Refusal: 503, no replica answers although there should be one.
    """
    rows = {"rows": front.rows, "max_rows": front.limits.max_rows}
    statuses = await ask_replicas(front.engine)
    if statuses:
        return merge_statuses(statuses) | {"front": rows}
    if front.limits.may_sleep:
        asleep = "no replica runs; the next request starts one"
        return {"base_model": None, "models": [], "aliases": {}, "replicas": [], "asleep": asleep, "front": rows}
    raise Refusal(503, "no_replica", "no replica answers; try again", headers={"Retry-After": "5"})


async def ask_replicas(engine: DeploymentHandle) -> list[dict[str, Any]]:
    """Return the status of each replica that Serve runs; none where nobody answers.

    A replica that has died is asked until Serve knows of it, and then left out: what takes its place loads the same
    versions before it counts as running.
    """
    answers: list[Any] = []
    for _ in range(TRIES):
        with contextlib.suppress(TimeoutError, DeploymentUnavailableError):
            asked = engine.broadcast("status")
            answers = await asked.results_async(timeout_s=ANSWER_SECONDS, return_exceptions=True)
            if answers and all(isinstance(answer, dict) for answer in answers):
                break
        await asyncio.sleep(PAUSE_SECONDS)
    return [answer for answer in answers if isinstance(answer, dict)]


def merge_statuses(statuses: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one status for all replicas, with the replicas' own below `replicas`.

    `aliases` holds those that every replica serves by the same version, so that a move which is not done yet shows as
    an alias that is missing there. `models`, `refused`, `unread` and `loading` hold what any replica names,
    `storage_error` the first.

    Args:
        statuses: of each replica that runs, as `TokenServer.status` gives it.
    """
    merged: dict[str, Any] = {"base_model": statuses[0].get("base_model"), "models": []}
    for status in statuses:
        merged["models"] += [name for name in status["models"] if name not in merged["models"]]
    if any("aliases" in status for status in statuses):
        every = [status.get("aliases", {}) for status in statuses]
        merged["aliases"] = {
            alias: exact for alias, exact in every[0].items() if all(other.get(alias) == exact for other in every)
        }
        for kind in ("refused", "unread", "loading"):
            merged[kind] = dict(sorted(item for status in statuses for item in status.get(kind, {}).items()))
        merged["storage_error"] = next((s["storage_error"] for s in statuses if s.get("storage_error")), None)
    return merged | {"replicas": sorted(statuses, key=lambda status: str(status.get("replica")))}
