"""One run under faults, and whether it came out as if nothing had happened."""

import dataclasses
import random
import time
from pathlib import Path
from typing import Any

from jobs import data_plan
from raydistill.core.idset import unpack_ids
from raydistill.core.records import TokenRequest, TokenResult, Usage
from raydistill.dataset.read import read_examples
from raydistill.teacher.attempt import AskSettings
from raydistill.teacher.converse import Conversation
from raydistill.teacher.rows import find_rows
from tests.chaos.arena import Arena, open_arena
from tests.chaos.reader import reading
from tests.jsonl import write_jsonl
from tests.teacher.hash_teacher import hash_answer

KINDS = ("driver", "worker", "replica", "node", "control_store", "store")
POLL_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        faults: kind and the number of rows asked when it struck.
        num_starts: of the driver.
        num_asked: rows that the teacher was asked, those asked again included.
        wrong: everything that should not be.
    """

    faults: list[tuple[str, int]]
    num_starts: int
    num_asked: int
    seconds: float
    wrong: list[str]


def run(folder: Path, model_dir: str, seed: int, kinds: tuple[str, ...] = KINDS, num_rows: int = 240) -> Outcome:
    """Create a dataset while every kind of fault strikes once, in an order and at moments that the seed gives."""
    queries = write_jsonl(folder / "queries.jsonl", *({"text": f"Chaos {index} ü"} for index in range(num_rows)))
    (folder / "prompt.md").write_text("Be brief.")
    config = {
        "teacher_model": model_dir,
        "num_examples": num_rows,
        "queries": str(queries),
        "prompt": str(folder / "prompt.md"),
        "max_tokens": 40,
        "commit_rows": 16,
        "concurrency": 8,
        "num_actors": 2,
        "max_attempts": 6,
        "timeout_seconds": 30,
    }
    chooser = random.Random(seed)
    order = chooser.sample(kinds, len(kinds))
    moments = sorted(chooser.sample(range(num_rows // 20, num_rows * 9 // 10), len(kinds)))
    start = time.monotonic()
    with open_arena(folder, config, delay_seconds=0.4) as arena, reading(arena.config.output_file) as reader:
        struck = _strike(arena, list(zip(order, moments, strict=True)))
        wrong = [*reader.faults, *_check(arena)]
        if reader.num_looks < 10:
            wrong.append(f"the reader looked {reader.num_looks} times only")
        spare = arena.num_asked() - num_rows
        allowed = len(kinds) * arena.config.commit_rows * arena.config.num_actors
        if spare > allowed:
            wrong.append(f"{spare} rows were asked again, {allowed} are allowed")
        return Outcome(struck.faults, struck.num_starts, arena.num_asked(), round(time.monotonic() - start, 1), wrong)


@dataclasses.dataclass
class _Struck:
    faults: list[tuple[str, int]]
    num_starts: int = 0


def _strike(arena: Arena, plan: list[tuple[str, int]], timeout_seconds: float = 420) -> _Struck:
    """Run the driver until it ends well, starting it again where it does not, and strike at the moments of the plan."""
    struck = _Struck([])
    deadline = time.monotonic() + timeout_seconds
    plan = list(plan)
    while True:
        if arena.driver is None or arena.driver.poll() is not None:
            if arena.driver is not None and arena.driver.returncode == 0:
                return struck
            arena.start_driver()
            struck.num_starts += 1
        if plan and arena.num_asked() >= plan[0][1]:
            kind, _ = plan.pop(0)
            struck.faults.append((kind, arena.num_asked()))
            {
                "driver": arena.kill_driver,
                "worker": arena.kill_worker,
                "replica": arena.kill_replica,
                "node": arena.kill_node,
                "control_store": arena.kill_control_store,
                "store": arena.shut_store,
            }[kind]()
        if time.monotonic() > deadline:
            log = (arena.folder / "driver.log").read_text(errors="replace")[-3000:]
            raise TimeoutError(f"after {timeout_seconds:g} s it is not done; struck: {struck.faults}\n{log}")
        time.sleep(POLL_SECONDS)


def _check(arena: Arena) -> list[str]:
    """Return how the dataset differs from what an undisturbed run gives."""
    examples, manifest = read_examples(arena.config.output_file)
    expected = _answer_all(arena)
    found = {example.id: example.response for example in examples}
    wrong = []
    if len(found) != len(examples):
        wrong.append(f"{len(examples) - len(found)} rows are there twice")
    if found != expected:
        lost, alien = set(expected) - set(found), set(found) - set(expected)
        other = [name for name in set(found) & set(expected) if found[name] != expected[name]]
        wrong.append(f"{len(lost)} rows are lost, {len(alien)} alien, {len(other)} have another answer")
    if manifest is None or not manifest.finished or manifest.counts["kept"] != len(expected):
        wrong.append(f"the manifest says {manifest and manifest.counts}")
    return wrong


def _answer_all(arena: Arena) -> dict[str, str]:
    """Return the answer to each row, by asking the hash function directly."""
    plan = data_plan.make_plan(arena.config)
    settings = AskSettings(
        temperature=arena.config.temperature,
        top_p=arena.config.top_p,
        max_tokens=arena.config.max_tokens,
        stop=(),
        top_logprobs=None,
        all_turns=False,
        concurrency=1,
        num_actors=1,
        max_replicas=1,
        rows_per_call=1,
        commit_rows=1,
        max_attempts=1,
        timeout_seconds=1,
        context_tokens=640,
    )
    conversation = Conversation(plan.prompt, plan.renderer, _Hash(plan.renderer), settings)
    rows = list(find_rows(plan.source(), plan.choice, plan.choice.ids[:0]))
    answers = conversation.answer(rows)
    assert {answer.id for answer in answers} == set(unpack_ids(plan.choice.row_ids()))
    return {answer.id: answer.text for answer in answers}


class _Hash:
    """Answers as the hash teacher does, without a cluster."""

    def __init__(self, renderer: Any) -> None:
        self._renderer = renderer

    def ask(self, requests: Any) -> list[TokenResult]:
        """Return the answers."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: TokenRequest) -> TokenResult:
        tokens = self._renderer.encode_response(hash_answer(request))
        return TokenResult(tokens, [], "stop", Usage(len(request.tokens), 0, len(tokens)))
