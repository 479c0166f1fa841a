"""What of a dataset's answers is kept: the rules, what a judge said, and what other answers say."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import pyarrow as pa

from raydistill.core.answers import answers_from_table
from raydistill.core.errors import NotFoundError
from raydistill.core.records import Drop, Manifest
from raydistill.core.uris import join
from raydistill.dataset.judge import Judgement, Rubric, read_judgements
from raydistill.dataset.keep import LEAST, Origin, keep_table
from raydistill.dataset.layout import DROP_SCHEMA, drop_to_row, read_table
from raydistill.dataset.ledger import find_unnamed
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

    def __init__(
        self, origin: Origin, terms: Terms, judgements: Mapping[str, Judgement], copies: Mapping[str, str]
    ) -> None:
        """Take what decides, and what is known of all answers; see `keep.keep_table`."""
        self._origin = origin
        self._terms = terms
        self._judgements = judgements
        self._copies = copies

    def sort_out(self, answers: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return (examples, drops) of a table of answers."""
        return keep_table(answers, self._origin, self._terms.rules, self._judgements, self._copies)

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
    judgements = read_judge(folder, terms.rubric, origin) if terms.rubric is not None else {}
    copies: dict[str, str] = {}
    if terms.rules.near_copies is not None:
        found = NearCopies(terms.rules.near_copies)
        for answers in tables():
            found.add(keep_table(answers, origin, terms.rules, judgements)[0])
        copies = found.find()
    return Sieve(origin, terms, judgements, copies)


def read_judge(folder: str, rubric: Rubric, origin: Origin) -> dict[str, Judgement]:
    """Return what a judge said of a dataset's answers by this rubric, by answer id."""
    place = join(folder, JUDGEMENTS)
    try:
        named = read_manifest(place).answers
    except NotFoundError:
        return {}
    shards = [*named, *(commit.shard for commit in find_unnamed(place, named, origin))]
    replies = (answer for shard in shards for answer in answers_from_table(read_table(place, shard)))
    return read_judgements(replies, rubric)
