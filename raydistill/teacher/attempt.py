"""A series of attempts for each row: what is refused, lost or too late is asked again, and given up with a reason."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaState

from raydistill.core.errors import EngineGoneError, ServiceError
from raydistill.core.records import TokenRequest, TokenResult, Usage
from raydistill.engine.routing import AFTER, router_id

FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 8.0
NOT_ASKED = (BackPressureError, EngineGoneError)  # it is too busy, or its engine gone, for whatever row comes


@dataclass(frozen=True)
class AskSettings:
    """How the teacher is asked.

    Attributes:
        top_logprobs: how many of the most likely tokens are recorded at each position; None for none.
        all_turns: whether every user turn of a query is answered, or the last one only.
        concurrency: rows at one replica at a time, of all actors.
        num_actors: that ask.
        max_replicas: that the teacher may come to have.
        rows_per_call: rows that go to a replica in one call.
        commit_rows: rows of one actor that are asked and not committed, at most.
        max_attempts: how often a row is asked before it becomes an Answer with an error.
        timeout_seconds: of one attempt, the wait for a replica included.
        context_tokens: the longest prompt plus completion that the teacher takes.
    """

    temperature: float
    top_p: float
    max_tokens: int
    stop: tuple[str, ...]
    top_logprobs: int | None
    all_turns: bool
    concurrency: int
    num_actors: int
    max_replicas: int
    rows_per_call: int
    commit_rows: int
    max_attempts: int
    timeout_seconds: float
    context_tokens: int

    def in_flight(self, num_replicas: int) -> int:
        """Return how many rows an actor keeps at the teacher: those of one replica more, where there may be one more.

        So there is always enough waiting to bring that one up.
        """
        replicas = min(num_replicas + 1, self.max_replicas)
        return -(-self.concurrency * replicas // self.num_actors)


class Attempts:
    """Asks a teacher's engine until each row is answered or has been asked max_attempts times.

    Serve never retries a request that a replica has accepted, so a dead replica, a timeout or an engine's refusal is
    met here, and a replica that is being replaced is waited for. A teacher that is too busy to accept a call, or whose
    engine is gone until Serve notices, answers nobody: that costs no attempt, only time.
    """

    def __init__(self, handle: DeploymentHandle, settings: AskSettings) -> None:
        """Take the engine's handle and how to ask.

        The method is looked up here, by one thread: what several threads look up at once gets several routers with
        one name, whose reports to Serve's autoscaler overwrite one another, and a busy teacher is taken for an idle
        one (seen: scaled to zero under 8 rows at a time).
        """
        self._generate = handle.generate
        self._settings = settings

    def ask(self, requests: Sequence[TokenRequest]) -> list[TokenResult]:
        """Return one result for each request, in order; what failed for good has an `error`."""
        results: list[TokenResult | None] = [None] * len(requests)
        errors = [_Failure("")] * len(requests)
        start = time.monotonic()
        for attempt in range(self._settings.max_attempts):
            missing = [index for index, result in enumerate(results) if result is None]
            if not missing:
                break
            if attempt:
                time.sleep(backoff_seconds(attempt))
            # Together at first; after a failure each alone, so that one bad row does not take others with it.
            groups = [missing] if not attempt else [[index] for index in missing]
            for group in groups:
                # Those of a group of several have not failed yet.
                called = self._call([requests[index] for index in group], errors[group[0]].request_id)
                for index, result in zip(group, called, strict=True):
                    if isinstance(result, _Failure):
                        errors[index] = result
                    else:
                        results[index] = result
        seconds = time.monotonic() - start
        return [
            result
            or failed_result(
                requests[index].tokens, f"asked {self._settings.max_attempts} times: {error.reason}", seconds
            )
            for index, (result, error) in enumerate(zip(results, errors, strict=True))
        ]

    def _call(self, requests: list[TokenRequest], after: str | None) -> "list[TokenResult | _Failure]":
        """Ask once.

        Args:
            requests: what to ask.
            after: the id of the request that failed before; another replica is asked, where there is one.
        """
        deadline = time.monotonic() + self._settings.timeout_seconds
        hint = {} if after is None else {AFTER: after}
        waits, why = 0, ""
        while True:
            response = self._generate.remote(requests, **hint)
            try:
                results = response.result(timeout_s=max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                response.cancel()
                reason = f"no answer within {self._settings.timeout_seconds:g} s{why}"
            except NOT_ASKED as failure:
                waits, why = waits + 1, f": {describe_failure(failure)}"
                wait_seconds = backoff_seconds(waits)
                if time.monotonic() + wait_seconds <= deadline:
                    if isinstance(failure, EngineGoneError):
                        hint = {AFTER: router_id(response)}
                    time.sleep(wait_seconds)
                    continue
                reason = f"no answer within {self._settings.timeout_seconds:g} s{why}"
            except (RayError, RayServeException) as failure:
                reason = describe_failure(failure)
            else:
                return [_check(result, router_id(response)) for result in results]
            return [_Failure(reason, router_id(response))] * len(requests)


@dataclass(frozen=True)
class _Failure:
    """Why there is no result, and which of Serve's requests failed."""

    reason: str
    request_id: str | None = None


def _check(result: TokenResult, request_id: str) -> TokenResult | _Failure:
    if result.error is None and result.finish_reason != "error":
        return result
    return _Failure(result.error or "the engine gave no reason", request_id)


def backoff_seconds(attempt: int) -> float:
    """Return how long to wait before a further attempt (1, 2, ...): twice as long each time, never all at once."""
    longest = min(FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1), LONGEST_BACKOFF_SECONDS)
    return longest * random.uniform(0.5, 1.0)


def read_context_tokens(handle: DeploymentHandle, timeout_seconds: float = 60.0) -> int:
    """Return the longest prompt plus completion that a teacher takes.

    Raises:
        ServiceError: it does not answer.
    """
    try:
        return handle.info.remote().result(timeout_s=timeout_seconds)["max_model_len"]
    except (TimeoutError, RayError, RayServeException) as error:
        raise ServiceError(f"the teacher does not answer ({type(error).__name__}: {error}). Is it running?") from error


def describe_failure(failure: Exception) -> str:
    """Return one line on what went wrong in the teacher: the cause, not Ray's traceback with its colours."""
    cause = getattr(failure, "cause", None) or failure
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1]}" if lines else type(cause).__name__


def failed_result(
    tokens: list[int], error: str, latency_seconds: float = 0.0, finish_reason: str = "error"
) -> TokenResult:
    """Return what stands in the ledger for a row without an answer."""
    return TokenResult(
        [], [], finish_reason, Usage(len(tokens), 0, 0), latency_seconds=latency_seconds, error=error[:2000]
    )


def count_replicas(handle: DeploymentHandle) -> int | None:
    """Return how many replicas of a teacher are running; None where Serve does not say, as while it is recovering."""
    try:
        application = serve.status().applications.get(handle.app_name)
    except (RayError, RayServeException):
        return None
    deployment = application.deployments.get(handle.deployment_name) if application else None
    return deployment.replica_states.get(ReplicaState.RUNNING, 0) if deployment else None
