"""One run under faults, and whether it came out as if nothing had happened."""

import dataclasses
import random
import time
from typing import Any

from jobs import data_plan
from jobs.data_config import CreateDataConfig
from raydistill.core.idset import unpack_ids
from raydistill.core.records import TokenRequest, TokenResult, Usage
from raydistill.dataset.layout import read_table
from raydistill.dataset.read import read_examples, read_manifest
from raydistill.teacher.attempt import AskSettings
from raydistill.teacher.converse import Conversation
from raydistill.teacher.rows import find_rows
from tests.chaos.arena import Arena
from tests.chaos.driver import REPLICAS
from tests.chaos.reader import LOOKS_PER_SECOND, reading
from tests.jsonl import write_jsonl
from tests.teacher.hash_teacher import hash_answer

KINDS = ("driver", "worker", "replica", "node", "control_store", "store")
ENGINE_KINDS = ("driver", "worker", "replica", "engine", "node", "control_store", "store")
MAY_END_THE_DRIVER = ("driver", "node")  # Ray may have given the driver a place on the node that is killed
POLL_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        faults: kind and the number of rows asked when it struck.
        num_starts: of the driver.
        num_asked: rows that the teacher was asked, those asked again included.
        num_looks: of the reader.
        wrong: everything that should not be.
    """

    faults: list[tuple[str, int]]
    num_starts: int
    num_asked: int
    num_looks: int
    seconds: float
    wrong: list[str]


def run(arena: Arena, model_dir: str, seed: int, kinds: tuple[str, ...] = KINDS, num_rows: int = 240) -> Outcome:
    """Create a dataset while every kind of fault strikes once, in an order and at moments that the seed gives."""
    start = time.monotonic()
    arena.begin(_configure(arena, model_dir, seed, num_rows))
    chooser = random.Random(seed)
    order = chooser.sample(kinds, len(kinds))
    moments = sorted(chooser.sample(range(num_rows // 20, num_rows * 9 // 10), len(kinds)))
    config = _config_of(arena)
    with reading(config.output_file) as reader:
        struck = _strike(arena, list(zip(order, moments, strict=True)))
    wrong = [*reader.faults, *_check(arena)]
    if late := set(kinds) - {kind for kind, num_asked in struck.faults if num_asked < num_rows}:
        wrong.append(f"not struck before the last row: {sorted(late)}")
    if reader.num_looks < LOOKS_PER_SECOND * reader.seconds:
        wrong.append(f"the reader looked {reader.num_looks} times only in {reader.seconds:.0f} s")
    spare = arena.num_asked() - num_rows
    allowed = sum(_count_allowed(kind, config) for kind in kinds)
    if spare > allowed:
        wrong.append(f"{spare} rows were asked again, {allowed} are allowed")
    allowed_starts = 1 + len(set(MAY_END_THE_DRIVER) & set(kinds))
    if struck.num_starts > allowed_starts:
        wrong.append(f"the driver was started {struck.num_starts} times, {allowed_starts} are allowed")
    seconds = round(time.monotonic() - start, 1)
    return Outcome(struck.faults, struck.num_starts, arena.num_asked(), reader.num_looks, seconds, wrong)


def _count_allowed(kind: str, config: CreateDataConfig) -> int:
    """Return how many rows a fault may have asked again: those that are asked, and not committed where it strikes."""
    at_one_replica = config.concurrency * REPLICAS.max_replicas  # at most, where the other one is away
    numbers = {
        "driver": config.commit_rows * config.num_actors,  # which end with it
        "node": config.commit_rows * config.num_actors,  # where it held them all
        "worker": config.commit_rows,
        "replica": at_one_replica,
        "engine": at_one_replica,
    }
    return numbers.get(kind, 0)


def _configure(arena: Arena, model_dir: str, seed: int, num_rows: int) -> CreateDataConfig:
    folder = arena.folder / f"seed-{seed}"
    folder.mkdir()
    texts = ({"text": f"Chaos {seed} {index} ü"} for index in range(num_rows))
    queries = write_jsonl(folder / "queries.jsonl", *texts)
    (folder / "prompt.md").write_text("Be brief.")
    return CreateDataConfig.model_validate(
        {
            "output_file": f"{arena.bucket}/data/seed-{seed}",
            "teacher_model": model_dir,
            "num_examples": num_rows,
            "queries": str(queries),
            "prompt": str(folder / "prompt.md"),
            "max_tokens": 40,
            "commit_rows": 8,  # few, so that a bound on what is asked again is far below asking all again
            "concurrency": 4,  # at each of two replicas
            "num_actors": 2,
            "max_attempts": 6,
            "timeout_seconds": 30,
            # Of a random model's answers none ends by itself.
            "max_dropped_share": 1.0,
            "smoke_rows": 16 if arena.teacher == "hash" else 0,
        }
    )


def _config_of(arena: Arena) -> CreateDataConfig:
    assert arena.config is not None
    return arena.config


@dataclasses.dataclass
class _Struck:
    faults: list[tuple[str, int]]
    num_starts: int = 0


def _strike(arena: Arena, plan: list[tuple[str, int]], timeout_seconds: float = 420) -> _Struck:
    """Run the driver until it ends well, starting it again where it does not, and strike at the moments of the plan."""
    struck = _Struck([])
    deadline = time.monotonic() + timeout_seconds
    faults = {
        "driver": arena.kill_driver,
        "worker": arena.kill_worker,
        "replica": arena.kill_replica,
        "engine": arena.kill_engine,
        "node": arena.kill_node,
        "control_store": arena.kill_control_store,
        "store": arena.shut_store,
    }
    plan = list(plan)
    while True:
        if arena.driver is None or arena.driver.poll() is not None:
            if arena.driver is not None and arena.driver.returncode == 0:
                return struck
            arena.start_driver()
            struck.num_starts += 1
        if plan and arena.num_asked() >= plan[0][1]:
            kind, num_asked = plan[0][0], arena.num_asked()
            if faults[kind]():  # else nothing of that kind runs just now, and it is tried again
                struck.faults.append((kind, num_asked))
                del plan[0]
        if time.monotonic() > deadline:
            log = (arena.folder / "driver.log").read_text(errors="replace")[-3000:]
            raise TimeoutError(f"after {timeout_seconds:g} s it is not done; struck: {struck.faults}\n{log}")
        time.sleep(POLL_SECONDS)


def _check(arena: Arena) -> list[str]:
    """Return how the dataset differs from what an undisturbed run gives."""
    config = _config_of(arena)
    plan = data_plan.make_plan(config)
    wanted = unpack_ids(plan.choice.row_ids())
    manifest = read_manifest(config.output_file)
    answers = [row for shard in manifest.answers for row in read_table(config.output_file, shard).to_pylist()]
    found = {row["id"] for row in answers}
    wrong = []
    if len(found) != len(answers):
        wrong.append(f"{len(answers) - len(found)} rows are in the ledger twice")
    if found != set(wanted):
        wrong.append(f"{len(set(wanted) - found)} rows are lost, {len(found - set(wanted))} are alien")
    counts = manifest.counts
    if not manifest.finished or counts["kept"] + sum(counts["dropped"].values()) != len(wanted):
        wrong.append(f"the manifest says {counts}")
    if counts["dropped"].get("failed"):
        wrong.append(f"rows failed: {counts}")
    if arena.teacher == "hash":
        examples, _ = read_examples(config.output_file)
        expected = _answer_all(config, plan)
        kept = {example.id: example.response for example in examples}
        other = [name for name in {*kept, *expected} if kept.get(name) != expected.get(name)]
        if other or len(kept) != len(examples):
            wrong.append(f"{len(other)} examples differ of {len(examples)}")
    return wrong


def _answer_all(config: CreateDataConfig, plan: data_plan.Plan) -> dict[str, str]:
    """Return the answer to each row, by asking the hash function directly."""
    settings = AskSettings(
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens,
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
    return {answer.id: answer.text for answer in conversation.answer(rows)}


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
