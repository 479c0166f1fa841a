"""What of a dataset's answers is kept: the rules, what a judge said, and what other answers say."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from raydistill.core.answers import answers_from_table
from raydistill.core.errors import NotFoundError
from raydistill.core.idset import find_positions, pack_ids
from raydistill.core.records import Drop, Manifest
from raydistill.core.uris import join
from raydistill.dataset.judge import Judgement, Rubric, judgement_id, read_judgements
from raydistill.dataset.keep import LEAST, Origin, keep_table
from raydistill.dataset.layout import DROP_SCHEMA, drop_to_row
from raydistill.dataset.ledger import find_unnamed
from raydistill.dataset.pick import RowIndex, index_rows
from raydistill.dataset.read import read_manifest
from raydistill.dataset.rules import Rules
from raydistill.dataset.similar import NearCopies

JUDGEMENTS = "judgements"  # in a dataset's folder: the ledger of what a judge said


@dataclasses.dataclass(frozen=True)
class Terms:
    """What decides which answers are kept, and what was not asked at all.

    Attributes:
        rules: what an answer must be.
        rubric: by which a judge graded the answers, where the rules have a threshold.
        not_asked: drops of queries that were not asked.
        max_dropped_share: of the answers.
    """

    rules: Rules = LEAST
    rubric: Rubric | None = None
    not_asked: Sequence[Drop] = ()
    max_dropped_share: float = 1.0


class Sieve:
    """Sorts tables of answers out, the same way whatever the order in which they come."""

    def __init__(self, origin: Origin, terms: Terms, judge: "Judge | None", copies: Mapping[str, str]) -> None:
        """Take what decides, what was judged, and which answers are near copies; see `keep.keep_table`."""
        self._origin = origin
        self._terms = terms
        self._judge = judge
        self._copies = copies

    def sort_out(self, answers: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return (examples, drops) of a table of answers."""
        judgements = self._judge.read(answers) if self._judge is not None else {}
        return keep_table(answers, self._origin, self._terms.rules, judgements, self._copies)

    def not_asked(self) -> pa.Table:
        """Return the drops of queries that were not asked."""
        return pa.Table.from_pylist([drop_to_row(drop) for drop in self._terms.not_asked], schema=DROP_SCHEMA)


def make_sieve(folder: str, draft: Manifest, terms: Terms, tables: Callable[[], Iterable[pa.Table]]) -> Sieve:
    """Return what sorts a dataset's answers out.

    Args:
        folder: the dataset's.
        draft: its manifest.
        terms: what decides.
        tables: gives all answers, once more; they are gone through only where near copies are dropped.
    """
    origin = Origin.of(draft)
    judge = open_judge(folder, terms.rubric, origin) if terms.rubric is not None else None
    sieve = Sieve(origin, terms, judge, {})
    if terms.rules.near_copies is None:
        return sieve
    found = NearCopies(terms.rules.near_copies)
    for answers in tables():
        found.add(sieve.sort_out(answers)[0])
    return Sieve(origin, terms, judge, found.find())


class Judge:
    """What a judge said of a dataset's answers by one rubric: the ledger's ids are held, its replies are read."""

    def __init__(self, index: RowIndex, rubric: Rubric) -> None:
        """Take where each reply stands."""
        self._index = index
        self._rubric = rubric

    def read(self, answers: pa.Table) -> dict[str, Judgement]:
        """Return the judgements on a table of answers, by answer id.

        Answers are judged in the order of their ledger, so a table's replies are in few objects.
        """
        replies = (reply for table in self._index.take(self._reply_ids(answers)) for reply in answers_from_table(table))
        return read_judgements(replies, self._rubric)

    def find_unjudged(self, answers: pa.Table, retry_failed: bool = False) -> pa.Table:
        """Return the rows of a table of answers to which there is no reply.

        Args:
            answers: to be judged.
            retry_failed: whether a reply that did not come is none.
        """
        places = find_positions(self._index.ids, self._reply_ids(answers))
        is_judged = places >= 0
        if retry_failed and len(self._index.ids):
            is_judged &= ~self._index.failed[places]
        return answers.filter(pa.array(~is_judged))

    def _reply_ids(self, answers: pa.Table) -> np.ndarray:
        rubric_digest = self._rubric.digest
        return pack_ids(judgement_id(identifier, rubric_digest) for identifier in answers["id"].to_pylist())


def open_judge(folder: str, rubric: Rubric, origin: Origin) -> Judge:
    """Return what a judge said of a dataset's answers so far; nothing where it was not asked yet."""
    place = join(folder, JUDGEMENTS)
    try:
        named = read_manifest(place).answers
    except NotFoundError:
        named = []
    shards = [*named, *(commit.shard for commit in find_unnamed(place, named, origin))]
    return Judge(index_rows(place, shards), rubric)
