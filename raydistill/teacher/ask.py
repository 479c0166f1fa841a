"""The Ray Data stage that asks the teacher: rows of token ids in, one Answer a row out, whatever happens."""

import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from raydistill.core.answers import ANSWER_SCHEMA, TOO_LONG, answer_to_row, row_seed
from raydistill.core.errors import ServiceError
from raydistill.core.records import Answer, TokenRequest, TokenResult, Usage
from raydistill.renderers import Renderer

BLOCKS_IN_WORK = 2  # of an actor: the next one's rows fill the places that the last slow rows of a block leave empty
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 8.0


@dataclass(frozen=True)
class AskSettings:
    """How the teacher is asked.

    Attributes:
        in_flight: rows that one actor keeps at the teacher at a time.
        max_attempts: how often a row is asked before it becomes an Answer with an error.
        timeout_seconds: of one attempt, the wait for a replica included.
        context_tokens: the longest prompt plus completion that the teacher takes.
    """

    temperature: float
    top_p: float
    max_tokens: int
    in_flight: int
    max_attempts: int
    timeout_seconds: float
    context_tokens: int


def ask_rows(
    paths: list[str],
    filesystem: Any,
    asker: tuple[DeploymentHandle, Renderer, AskSettings],
    num_actors: int,
    commit_rows: int,
) -> Dataset:
    """Return the lazy Ray Dataset of the answers to request objects, in blocks that are committed one by one.

    Args:
        paths: of the objects of `rows.write_requests`.
        filesystem: pyarrow's, that the paths are of.
        asker: the engine's handle, the teacher's renderer and how to ask.
        num_actors: actors that ask; each holds one logical CPU.
        commit_rows: rows that an actor has in work, in BLOCKS_IN_WORK blocks; a kill loses at most this many of each.
    """
    block_rows = math.ceil(commit_rows / BLOCKS_IN_WORK)
    # From Parquet few rows are one block and would be one commit: `override_num_blocks` is ignored there.
    rows = ray.data.read_parquet(paths, filesystem=filesystem).repartition(target_num_rows_per_block=block_rows)
    return rows.map_batches(
        AskTeacher,
        fn_constructor_args=asker,
        batch_size=block_rows,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            size=num_actors,
            max_concurrent_calls_per_actor=BLOCKS_IN_WORK,
            max_tasks_in_flight_per_actor=BLOCKS_IN_WORK,
            enable_true_multi_threading=True,
        ),
        num_cpus=1,
    )


class AskTeacher:
    """Asks a teacher's engine for every row of a batch; each row is an attempt series of its own.

    Serve never retries a request that a replica has accepted, so a dead replica, a timeout or an engine's
    refusal is met here: the row is asked again, and a replica that is being replaced is waited for.
    """

    def __init__(self, handle: DeploymentHandle, renderer: Renderer, settings: AskSettings) -> None:
        """Take the engine's handle, the teacher's renderer (for the text of an answer) and how to ask."""
        self._handle = handle
        self._renderer = renderer
        self._settings = settings
        self._stop = renderer.get_stop_sequences()
        self._threads = ThreadPoolExecutor(settings.in_flight)  # one for all blocks in work

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Return the batch's answers, in order, as a table of ANSWER_SCHEMA; several threads call it at a time."""
        rows = batch.to_pylist()
        answers = list(self._threads.map(self._answer, rows))
        table = [answer_to_row(answer, row["ask_id"]) for answer, row in zip(answers, rows, strict=True)]
        yield pa.Table.from_pylist(table, schema=ANSWER_SCHEMA)

    def _answer(self, row: dict[str, Any]) -> Answer:
        room = self._settings.context_tokens - len(row["tokens"])
        if room < 1:
            error = f"the prompt has {len(row['tokens'])} tokens, the teacher takes {self._settings.context_tokens}"
            return self._to_answer(row, failed_result(row["tokens"], error, TOO_LONG))
        request = TokenRequest(
            tokens=row["tokens"],
            max_tokens=min(self._settings.max_tokens, room),
            temperature=self._settings.temperature,
            top_p=self._settings.top_p,
            seed=row_seed(row["id"]),
            stop_token_ids=self._stop,
        )
        return self._to_answer(row, self._ask(request))

    def _ask(self, request: TokenRequest) -> TokenResult:
        error = ""
        start = time.monotonic()
        for attempt in range(self._settings.max_attempts):
            if attempt:
                time.sleep(min(FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1), LONGEST_BACKOFF_SECONDS))
            response = self._handle.generate.remote([request])
            try:
                (result,) = response.result(timeout_s=self._settings.timeout_seconds)
            except TimeoutError:
                response.cancel()
                error = f"no answer within {self._settings.timeout_seconds:g} s"
            except (RayError, RayServeException) as failure:
                error = describe_failure(failure)
            else:
                if result.error is None and result.finish_reason != "error":
                    return result
                error = result.error or "the engine gave no reason"
        seconds = time.monotonic() - start
        return failed_result(request.tokens, f"asked {self._settings.max_attempts} times: {error}", "error", seconds)

    def _to_answer(self, row: dict[str, Any], result: TokenResult) -> Answer:
        text = self._renderer.parse_response(result.tokens)[0]["content"] if result.tokens else ""
        return Answer(
            id=row["id"],
            query_id=row["query_id"],
            sample_index=row["sample_index"],
            messages=json.loads(row["messages"]),
            text=text,
            tokens=list(result.tokens),
            finish_reason=result.finish_reason,
            usage=result.usage,
            latency_seconds=result.latency_seconds,
            error=result.error,
            top_ids=result.top_ids,
            top_logprobs=result.top_logprobs,
        )


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


def failed_result(tokens: list[int], error: str, finish_reason: str, latency_seconds: float = 0.0) -> TokenResult:
    """Return what stands in the ledger for a row without an answer."""
    return TokenResult(
        [], [], finish_reason, Usage(len(tokens), 0, 0), latency_seconds=latency_seconds, error=error[:2000]
    )
