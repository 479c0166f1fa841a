"""What a judge said is looked up table by table: nothing but ids is held of it."""

import dataclasses
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest

from raydistill.core.answers import ANSWER_SCHEMA, answer_to_row
from raydistill.core.records import Answer
from raydistill.dataset.judge import Rubric, judgement_id
from raydistill.dataset.keep import Origin
from raydistill.dataset.sieve import JUDGEMENTS, open_judge
from raydistill.dataset.write import open_dataset
from tests.dataset.ledger import DRAFT, commit, make_answer, make_id

RUBRIC = Rubric("brief", 1, 5, True, 64, 0.0)
ORIGIN = Origin.of(DRAFT)


def make_table(*names: str) -> pa.Table:
    return pa.Table.from_pylist([answer_to_row(make_answer(name)) for name in names], schema=ANSWER_SCHEMA)


def make_reply(name: str, text: str, rubric: Rubric = RUBRIC, **changes: object) -> Answer:
    identifier = judgement_id(make_id(name), rubric.digest)
    return make_answer(name, id=identifier, query_id=make_id(name), text=text, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset's folder with three objects of judgements, of which the manifest names one."""
    place = tmp_path / JUDGEMENTS
    other = dataclasses.replace(RUBRIC, text="long")
    first = commit(place, "one-a", [make_reply("a", "Score: 2"), make_reply("b", "", error="gone")])
    commit(place, "one-b", [make_reply("b", "Score: 4"), make_reply("c", "Score: 5", other)])
    commit(place, "two-a", [make_reply("d", "", error="gone"), make_reply("e", "Score: 3")])
    open_dataset(str(place), dataclasses.replace(DRAFT, answers=[first]))
    return tmp_path


def test_a_judge_tells_of_the_answers_of_a_table(folder: Path) -> None:
    judge = open_judge(str(folder), RUBRIC, ORIGIN)
    found = judge.read(make_table("a", "b", "c", "d"))
    assert {name: judgement.score for name, judgement in found.items()} == {
        make_id("a"): 2,
        make_id("b"): 4,
        make_id("d"): None,
    }


def test_what_is_not_judged_is_found_and_what_failed_when_told(folder: Path) -> None:
    judge = open_judge(str(folder), RUBRIC, ORIGIN)
    answers = make_table("f", "a", "d", "c")
    assert judge.find_unjudged(answers)["id"].to_pylist() == [make_id("f"), make_id("c")]
    assert judge.find_unjudged(answers, retry_failed=True)["id"].to_pylist() == list(map(make_id, "fdc"))


def test_where_nothing_was_judged_nothing_is_known(tmp_path: Path) -> None:
    judge = open_judge(str(tmp_path), RUBRIC, ORIGIN)
    for retry_failed in (False, True):
        assert judge.find_unjudged(make_table("a"), retry_failed) == make_table("a")
    assert judge.read(make_table("a")) == {}


def test_what_a_judge_said_takes_few_bytes_an_answer(tmp_path: Path) -> None:
    num_rows, reason = 4_000, "for it is long and says little " * 30
    place = tmp_path / JUDGEMENTS
    replies = [make_reply(str(index), f"{reason} {index} Score: 3") for index in range(num_rows)]
    open_dataset(str(place), dataclasses.replace(DRAFT, answers=[commit(place, "one-a", replies)]))
    open_judge(str(tmp_path), RUBRIC, ORIGIN)  # what is loaded once is loaded now
    tracemalloc.start()
    judge = open_judge(str(tmp_path), RUBRIC, ORIGIN)
    held_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held_bytes < 40 * num_rows  # 25 and a little; as records these replies take 2,000
    assert len(judge.read(make_table("0", "1"))) == 2
