"""The asking actor without Ray: an object that it is sent twice at a time is asked once."""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raydistill.core.records import TokenResult, digest
from raydistill.dataset.keep import Origin
from raydistill.dataset.ledger import LedgerWriter
from raydistill.renderers import get_renderer, load_tokenizer
from raydistill.teacher import ask
from raydistill.teacher.ask import AskTeacher, Desk
from raydistill.teacher.rows import write_requests
from raydistill.teacher.tally import Tally
from tests.jobs.asking_here import HashHere, Method
from tests.teacher.test_converse import PROMPT, SETTINGS, make_row

NUM_ROWS = 24


class SlowHash(HashHere):
    """Answers after a while."""

    def answer(self, row: Any) -> TokenResult:
        time.sleep(0.02)
        return super().answer(row)


def test_an_object_that_comes_a_second_time_while_it_is_in_work_is_not_asked_twice(
    tmp_path: Path, tokenizer_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask.ray, "get", lambda method: method.result())
    tally, handle = Tally(), SlowHash(tokenizer_dir)
    rows = [make_row([{"role": "user", "content": f"Row {index}"}]) for index in range(NUM_ROWS)]
    rows = [{**row, "query_id": digest(row["id"])} for row in rows]
    (name,) = write_requests(rows, NUM_ROWS, str(tmp_path / "requests"))
    methods = {method: Method(getattr(tally, method)) for method in ("begin", "end", "report")}
    desk = Desk(
        handle=handle,  # pyright: ignore[reportArgumentType] - what is called of it is there
        prompt=PROMPT,
        renderer=get_renderer("chat", load_tokenizer(tokenizer_dir)),
        settings=dataclasses.replace(SETTINGS, rows_per_call=1, context_tokens=640),
        requests=str(tmp_path / "requests"),
        ledger=LedgerWriter(str(tmp_path), Origin("m@r", PROMPT.digest)),
        tally=SimpleNamespace(**methods),
        first=frozenset([name]),
    )
    actor = AskTeacher(desk)
    with ThreadPoolExecutor(2) as threads:
        done = list(threads.map(actor._work, [name, name]))
    assert sorted(done) == [0, NUM_ROWS]
    assert handle.num_asked == NUM_ROWS
