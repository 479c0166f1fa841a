"""The ledger, whatever is committed, joined and killed in between: each row once, the good answer before the failed."""

import tempfile

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.core import storage
from raydistill.core.answers import answer_to_row
from raydistill.core.records import Shard
from raydistill.core.uris import join
from raydistill.dataset import ledger
from raydistill.dataset.keep import Origin
from raydistill.dataset.ledger import LedgerWriter, choose_compaction, compact, find_unnamed, read_marks, replace_shards
from raydistill.dataset.pick import pick_rows
from tests.dataset.ledger import DRAFT, make_answer, make_id, pack

ORIGIN = Origin.of(DRAFT)
NAMES = "abcdefgh"
# What an asking actor commits: the object that it works on, and rows of it, failed or not.
COMMITS = st.tuples(
    st.sampled_from(["one", "two"]), st.lists(st.tuples(st.sampled_from(NAMES), st.booleans()), min_size=1, max_size=4)
)
STEPS = st.lists(st.one_of(COMMITS, st.sampled_from(["name", "join", "join and die", "restart"])), max_size=14)


class Driver:
    """Does to a ledger what the job does: names commits, and joins small objects of request objects that ended."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.named: list[Shard] = []
        self.reported: list[Shard] = []

    def name(self) -> None:
        self.named += self.reported
        self.reported = []

    def join(self, delete: bool = True) -> None:
        shards = choose_compaction(self.named, in_work={"two"})
        if shards:
            self.named = replace_shards(self.named, shards, compact(self.folder, shards))
            for shard in shards if delete else ():
                storage.delete(join(self.folder, shard.uri))

    def restart(self) -> None:
        """Find what was committed and not named, since the reports died with the driver."""
        self.reported = []
        self.named += [commit.shard for commit in find_unnamed(self.folder, self.named, ORIGIN)]


@settings(max_examples=20)
@given(STEPS)
def test_no_row_is_lost_or_doubled_by_commits_joins_and_kills(steps) -> None:
    good: set[str] = set()
    failed: set[str] = set()
    in_two: set[str] = set()
    before, ledger.COMPACT_ROWS = ledger.COMPACT_ROWS, 3
    try:
        with tempfile.TemporaryDirectory() as folder:
            writer, driver = LedgerWriter(folder, ORIGIN), Driver(folder)
            for step in steps:
                if isinstance(step, str):
                    {"name": driver.name, "join": driver.join, "restart": driver.restart}.get(
                        step, lambda: driver.join(delete=False)
                    )()
                    continue
                request, rows = step
                answers = [
                    make_answer(name, error="refused" if has_failed else None)
                    for name, has_failed in dict(rows).items()
                ]
                driver.reported.append(writer.write(request, list(map(answer_to_row, answers))).shard)
                good |= {name for name, has_failed in dict(rows).items() if not has_failed}
                failed |= {name for name, has_failed in dict(rows).items() if has_failed}
                in_two |= dict(rows).keys() if request == "two" else set()
            assert {make_id(name) for name in in_two} == writer.read_answered("two"), "its objects are not joined"
            driver.restart()
            marks = read_marks(folder, driver.named)
            assert marks.ids.tolist() == np.sort(pack(*(good | failed))).tolist()
            assert marks.ids[marks.failed].tolist() == np.sort(pack(*(failed - good))).tolist()
            picked = [row for table in pick_rows(folder, driver.named, marks.ids) for row in table.to_pylist()]
            assert {row["id"]: row["error"] is not None for row in picked} == {
                make_id(name): name not in good for name in good | failed
            }
            assert len(picked) == len(good | failed)
    finally:
        ledger.COMPACT_ROWS = before
