"""Answers that are near copies of one another, whatever order they come in.

Two passes: `add` takes the texts of the answers that all other rules keep, table by table, and holds 300 bytes of each;
`find` then says which of them are copies. The answer with the smallest id stays: ids are digests, so that is an
unbiased choice, and the same one after a kill, a retry or a compaction of the ledger.
"""

import numpy as np
import pyarrow as pa

RUN_CHARS = 5
NUM_HASHES = 128  # the estimate's standard error is at most 0.044
# What datasketch is to weigh: 3 to 10 % of copies at the threshold are never compared, 2 % at most of those 0.05 above.
_MISSED, _COMPARED_IN_VAIN = 0.95, 0.05


class NearCopies:
    """Collects answers and finds those that are near copies of another.

    datasketch makes the signatures and says how to band them. Its index, dicts of sets, takes 5.8 KB a row (measured
    with 16 bands); here a row is in an index only where it shares a band with another one.
    """

    def __init__(self, threshold: float) -> None:
        """Take the similarity (Jaccard, of the sets of runs of 5 characters) from which two answers are copies."""
        from datasketch import MinHash  # with scipy, half of the time that a job's imports would take

        self._threshold = threshold
        self._empty = MinHash(num_perm=NUM_HASHES, hashfunc=int)
        self._ids: list[pa.Array] = []
        self._signatures: list[np.ndarray] = []

    def add(self, examples: pa.Table) -> None:
        """Take the answers of a table with the columns `id` and `response`."""
        texts = examples["response"].to_pylist()
        if texts:
            self._ids += examples["id"].chunks
            self._signatures.append(np.stack([self._sign(text) for text in texts]))

    def find(self) -> dict[str, str]:
        """Return the ids of the answers that are near copies, each with the answer of which, as a Drop's detail.

        An answer is compared with those that stay and have a smaller id; a copy of a copy, that is no copy of what
        stays, stays itself.
        """
        if not self._ids:
            return {}
        signatures = np.concatenate(self._signatures)
        ordered = pa.table({"id": pa.chunked_array(self._ids), "row": np.arange(len(signatures))}).sort_by("id")
        ids, signatures = ordered["id"], signatures[ordered["row"].to_numpy()]
        copies: dict[str, str] = {}
        groups = self._find_groups(signatures)
        staying: dict[int, list[int]] = {}  # by group: rows that stay, of which there may be copies
        for row in np.flatnonzero((groups >= 0).any(axis=1)).tolist():
            shared = [group for group in groups[row].tolist() if group >= 0]
            others = sorted({other for group in shared for other in staying.get(group, ())})
            kept, similarity = _find_nearest(signatures, row, others)
            if similarity >= self._threshold:
                copies[ids[row].as_py()] = f"a near copy of {ids[kept]} (similarity {similarity:.2f})"
                continue
            for group in shared:
                staying.setdefault(group, []).append(row)
        return copies

    def _sign(self, text: str) -> np.ndarray:
        """Return a text's signature, uint16 [NUM_HASHES]: of each hash the lower half, which alone differs enough."""
        signature = self._empty.copy()
        signature.update_batch(_hash_runs(text).tolist())
        return signature.hashvalues.astype(np.uint16)

    def _find_groups(self, signatures: np.ndarray) -> np.ndarray:
        """Return int32 [rows, bands]: the number of the group of rows that are equal in a band; -1 for a row alone."""
        num_bands, size = _choose_bands(self._threshold)
        groups = np.full((len(signatures), num_bands), -1, dtype=np.int32)
        num_groups = 0
        for band in range(num_bands):
            values = np.ascontiguousarray(signatures[:, band * size : (band + 1) * size])
            keys = values.view(f"V{values.itemsize * size}")[:, 0]
            _, group, counts = np.unique(keys, return_inverse=True, return_counts=True)
            number = np.where(counts > 1, np.cumsum(counts > 1) - 1 + num_groups, -1)
            groups[:, band] = number[group]
            num_groups += int((counts > 1).sum())
        return groups


def _choose_bands(threshold: float) -> tuple[int, int]:
    """Return (bands, hashes a band), so that few answers above the threshold share no band."""
    if threshold > 0.99:
        return 1, NUM_HASHES
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=NUM_HASHES, weights=(_COMPARED_IN_VAIN, _MISSED))
    return index.b, index.r


def _hash_runs(text: str) -> np.ndarray:
    """Return a hash (uint32) of each run of characters of a text, its case and amount of white space left out."""
    codes = np.frombuffer(" ".join(text.casefold().split()).encode("utf-32-le"), dtype=np.uint32)
    codes = np.pad(codes, (0, max(0, RUN_CHARS - len(codes))))
    runs = np.lib.stride_tricks.sliding_window_view(codes, RUN_CHARS)
    hashes = np.zeros(len(runs), dtype=np.uint64)
    for column in runs.T:
        hashes = (hashes ^ column) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(32)
    return np.unique(hashes.astype(np.uint32))


def _find_nearest(signatures: np.ndarray, row: int, others: list[int]) -> tuple[int, float]:
    """Return the row among others that is most similar to a row, the first of equals, and how similar it is."""
    if not others:
        return -1, 0.0
    similarities = (signatures[others] == signatures[row]).mean(axis=1)
    best = int(similarities.argmax())
    return others[best], float(similarities[best])
