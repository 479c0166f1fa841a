"""What the chaos tests look with: a reader that sees what goes wrong, and results that are of the code as it is."""

import dataclasses
import json
from pathlib import Path

import pytest

from raydistill.core.records import Shard, to_json
from raydistill.dataset.layout import MANIFEST
from tests.chaos.reader import Reader
from tests.chaos.soak import read_results
from tests.dataset.ledger import DRAFT, commit, make_answer


def put(folder: Path, *answers: Shard) -> None:
    (folder / MANIFEST).write_text(to_json(dataclasses.replace(DRAFT, answers=list(answers))))


def test_a_reader_misses_no_answer_that_is_lost(tmp_path: Path) -> None:
    objects = [commit(tmp_path, name, [make_answer(name), make_answer("both")]) for name in ("a", "b", "c")]
    reader = Reader(str(tmp_path))
    reader.look()
    assert not reader.num_looks
    for named in (objects[:1], objects[:2], [*objects[:2], commit(tmp_path, "none", [make_answer("d")])]):
        put(tmp_path, *named)
        reader.look()
    assert (reader.num_looks, reader.faults) == (3, [])
    put(tmp_path, *objects)  # as many rows, and not the same
    reader.look()
    assert reader.faults == ["1 of 4 answers are not named any more"]


def test_a_reader_sees_what_is_torn_or_gone(tmp_path: Path) -> None:
    first, second = (commit(tmp_path, name, [make_answer(name)]) for name in ("a", "b"))
    reader = Reader(str(tmp_path))
    put(tmp_path, first, second)
    (tmp_path / second.uri).unlink()
    reader.look()
    put(tmp_path, first)
    reader.look()
    (tmp_path / MANIFEST).unlink()
    reader.look()
    faults = [f"{second.uri} is named and not there", "the manifest shrank from 2 to 1 rows", "the manifest is gone"]
    assert reader.faults == faults


def test_a_soak_goes_on_from_results_of_the_same_code_alone(tmp_path: Path) -> None:
    file = tmp_path / "soak.json"
    assert read_results(file, "abc") == {}
    file.write_text(json.dumps({"commit": "abc", "results": {"0": {"wrong": []}}}))
    assert read_results(file, "abc") == {"0": {"wrong": []}}
    with pytest.raises(SystemExit, match="a soak of abc, this is abd"):
        read_results(file, "abd")
    file.write_text(json.dumps({"commit": "abc-dirty", "results": {}}))
    with pytest.raises(SystemExit, match="abc-dirty"):
        read_results(file, "abc-dirty")
