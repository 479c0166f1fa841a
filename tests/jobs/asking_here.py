"""A teacher and its asking in this process, without Ray: what create_data does to storage, in one fixed order."""

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import pytest

import raydistill.renderers
from jobs import asking
from jobs.asking import Work, make_settings
from jobs.watching import Asker
from raydistill.core.answers import answer_to_row
from raydistill.core.records import TokenRequest, TokenResult, Usage
from raydistill.core.uris import join
from raydistill.renderers import load_tokenizer
from raydistill.teacher.attempt import Attempts
from raydistill.teacher.converse import Conversation
from raydistill.teacher.rows import REQUESTS, clear_requests, read_requests
from tests.teacher.hash_teacher import hash_answer


@dataclasses.dataclass
class HashHere:
    """The hash teacher's handle, answers and all; where `fault` is set, every row is refused with it."""

    model_dir: str
    num_asked: int = 0
    fault: str | None = None

    @property
    def info(self) -> "Method":
        """What asking wants to know."""
        return Method(lambda: {"max_model_len": 640})

    @property
    def generate(self) -> "Method":
        """Answers rows."""
        return Method(lambda rows, after=None: [self.answer(row) for row in rows])

    def answer(self, row: TokenRequest) -> TokenResult:
        """Return the answer to a row."""
        self.num_asked += 1
        if self.fault is not None:
            return TokenResult([], [], "error", Usage(len(row.tokens), 0, 0), error=self.fault)
        tokenizer, answer = load_tokenizer(self.model_dir), hash_answer(row)
        if "Score: N" in tokenizer.decode(row.tokens):
            answer = f"Score: {int(answer, 16) % 10}"
        tokens = [*tokenizer.encode(answer, add_special_tokens=False), row.stop_token_ids[0]]
        return TokenResult(tokens, [], "stop", Usage(len(row.tokens), 0, len(tokens)))


class Method:
    """A method of a handle: what it gives is there at once."""

    _request_metadata = SimpleNamespace(internal_request_id="1")

    def __init__(self, do: Any) -> None:
        self._do = do

    def remote(self, *arguments: Any, **options: Any) -> "Method":
        return Method(functools.partial(self._do, *arguments, **options))

    def result(self, timeout_s: float | None = None) -> Any:
        return self._do()


def ask_here(asker: Asker, work: Work) -> None:
    """Do what jobs.asking.ask_missing does, row by row; of two commits the first is named together with the second.

    Small objects are joined where the ledger asks for it, at once and in this process.
    """
    requests = join(work.writer.folder, REQUESTS)
    clear_requests(requests)
    first, names = asking._write_requests(asker, work, num_actors=1)
    settings = make_settings(asker.config, asker.teacher, num_actors=1)
    conversation = Conversation(work.prompt, work.renderer, Attempts(asker.teacher.handle, settings), settings)
    commits = []
    names = [*(first.names if first else ()), *names]
    in_work = set(names)
    for name in names:
        rows = read_requests(requests, name)
        for start in range(0, len(rows), asker.config.commit_rows):
            answers = conversation.answer(rows[start : start + asker.config.commit_rows])
            answers = [dataclasses.replace(answer, latency_seconds=0.0) for answer in answers]
            commits.append(work.writer.write(name, list(map(answer_to_row, answers))))
            if len(commits) == 2:
                asker.ledger.add(commits)
                commits = []
        in_work.remove(name)
        for _ in range(2):  # begins to join, and names what is joined
            asker.ledger.compact(in_work)
    asker.ledger.add(commits)
    clear_requests(requests)


@pytest.fixture
def teacher_here(model_dir: str, monkeypatch: pytest.MonkeyPatch) -> HashHere:
    """A teacher in this process, which create_data asks without Ray."""
    monkeypatch.setattr("jobs.asking.ask_missing", ask_here)
    monkeypatch.setattr("jobs.judging.ask_missing", ask_here)
    here = SimpleNamespace(remote=lambda **_: Method, wait=lambda futures, timeout: (futures, []), get=Method.result)
    monkeypatch.setattr("raydistill.dataset.appending.ray", here)
    cached = functools.cache(load_tokenizer)
    monkeypatch.setattr(raydistill.renderers, "load_tokenizer", cached)
    monkeypatch.setattr(f"{__name__}.load_tokenizer", cached)
    return HashHere(model_dir)
