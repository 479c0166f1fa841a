"""Rows collected into Parquet objects of a bounded size, however many come."""

import pyarrow as pa

from raydistill.core.patience import patiently
from raydistill.core.records import Shard
from raydistill.dataset.layout import write_table

# One object of answers and one of examples for each 20,000 rows are together one for 10,000.
ROWS_PER_SHARD = 20_000
BYTES_PER_SHARD = 512 * 2**20  # of a table in memory: rows with soft labels are a thousand times larger than others


class ShardWriter:
    """Writes tables that are added one by one as objects of ROWS_PER_SHARD rows."""

    def __init__(self, folder: str, name: str) -> None:
        """Take the dataset's folder and the objects' name, with `{}` for a digest of the content."""
        self._folder = folder
        self._name = name
        self._tables: list[pa.Table] = []
        self._shards: list[Shard] = []
        self.rows = 0

    def add(self, table: pa.Table) -> None:
        """Take rows; they are written when there are enough."""
        self.rows += table.num_rows
        while table.num_rows:
            head = table.slice(0, ROWS_PER_SHARD - self._num_waiting())
            self._tables.append(head)
            table = table.slice(head.num_rows)
            if self._num_waiting() == ROWS_PER_SHARD or sum(part.nbytes for part in self._tables) >= BYTES_PER_SHARD:
                self._write()

    def close(self) -> list[Shard]:
        """Write what is left and return the objects."""
        if self._tables:
            self._write()
        return self._shards

    def _num_waiting(self) -> int:
        return sum(table.num_rows for table in self._tables)

    def _write(self) -> None:
        table = pa.concat_tables(self._tables)
        self._shards.append(patiently(lambda: write_table(self._folder, self._name, table)))
        self._tables = []
