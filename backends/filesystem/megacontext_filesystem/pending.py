"""Where the rows of the open log lie: what is not sealed yet, as offsets into one file.

Small arrays only; the rows themselves stay in the log. One thread adds, any thread looks up: a
column grows by copying, and nothing it says ever changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_filesystem.frames import HEADER_BYTES
from megacontext_sdk.contracts.storage import COMMIT, MESSAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from megacontext_filesystem.frames import BatchBody, GistsBody
    from megacontext_sdk.contracts.arrays import Bytes2D, Indices

__all__ = ["GistRuns", "Pending", "Runs", "Spans"]


class _Columns:
    """int64 columns that grow by doubling."""

    def __init__(self, width: int) -> None:
        self._rows = np.empty((16, width), np.int64)
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def _make_room(self, needed: int) -> None:
        if needed > len(self._rows):
            grown = np.empty((max(needed, 2 * len(self._rows)), self._rows.shape[1]), np.int64)
            grown[: self._n] = self._rows[: self._n]
            self._rows = grown

    def add(self, *row: int) -> None:
        self._make_room(self._n + 1)
        self._rows[self._n] = row
        self._n += 1

    def extend(self, rows: NDArray[np.int64]) -> None:
        needed = self._n + len(rows)
        self._make_room(needed)
        self._rows[self._n : needed] = rows
        self._n = needed

    @property
    def all(self) -> NDArray[np.int64]:
        n = self._n  # first: the rows may be replaced by a longer copy meanwhile
        return self._rows[:n]


def gathered(log: NDArray[np.uint8], offsets: Indices, stride: int) -> Bytes2D:
    """Return rows that lie anywhere in a file, uint8[n, stride]."""
    if not len(offsets) or not stride:
        return np.empty((len(offsets), stride), np.uint8)
    windows = np.lib.stride_tricks.as_strided(
        log, (len(log) - stride + 1, stride), (1, 1), writeable=False
    )
    rows: Bytes2D = windows[offsets]
    return rows


class Runs:
    """Rows of a fixed width in dense order.

    Args:
        first: number of the first row.
        stride: bytes of a row.
    """

    def __init__(self, first: int, stride: int) -> None:
        self.first = first
        self.stride = stride
        self.end = first
        self._runs = _Columns(2)  # first row, offset

    def add(self, n_rows: int, offset: int) -> None:
        """Note rows that follow the last ones."""
        if n_rows:
            self._runs.add(self.end, offset)
            self.end += n_rows

    def offsets(self, ids: Indices) -> Indices:
        """Return where rows lie; all of them are in `[first, end)`."""
        runs = self._runs.all
        at = np.searchsorted(runs[:, 0], ids, "right") - 1
        offsets: Indices = runs[at, 1] + (ids - runs[at, 0]) * self.stride
        return offsets

    def rows(self, log: NDArray[np.uint8], ids: Indices) -> Bytes2D:
        """Return rows, uint8[n, stride]."""
        return gathered(log, self.offsets(ids), self.stride)

    def pieces(self, log: memoryview, stop: int) -> Iterator[memoryview]:
        """Yield the bytes of rows `[first, stop)` in order."""
        runs = self._runs.all.tolist()
        ends = [run[0] for run in runs[1:]] + [self.end]
        for (first, offset), end in zip(runs, ends, strict=True):
            if first >= stop:
                break
            yield log[offset : offset + (min(end, stop) - first) * self.stride]


class Spans:
    """Byte strings of any length in dense order.

    Args:
        first: number of the first one.
    """

    def __init__(self, first: int) -> None:
        self.first = first
        self._spans = _Columns(2)  # offset, length

    def add(self, offset: int, lengths: NDArray[np.uint32]) -> None:
        """Note strings that lie one after the other from an offset on."""
        if len(lengths) == 1:
            self._spans.add(offset, int(lengths[0]))
            return
        spans = np.empty((len(lengths), 2), np.int64)
        spans[:, 1] = lengths
        spans[:, 0] = offset + np.cumsum(spans[:, 1]) - spans[:, 1]
        self._spans.extend(spans)

    def read(self, log: memoryview, numbers: list[int]) -> list[bytes]:
        """Return strings by number."""
        spans = self._spans.all
        found = []
        for number in numbers:
            offset, length = spans[number - self.first].tolist()
            found.append(bytes(log[offset : offset + length]))
        return found

    def lengths(self, stop: int) -> NDArray[np.int64]:
        """Return the lengths of `[first, stop)`."""
        return self._spans.all[: stop - self.first, 1]

    def pieces(self, log: memoryview, stop: int) -> Iterator[memoryview]:
        """Yield the bytes of `[first, stop)` in order, neighbours together."""
        spans = self._spans.all[: stop - self.first]
        ends = spans[:, 0] + spans[:, 1]
        cuts = np.flatnonzero(spans[1:, 0] != ends[:-1]) + 1
        firsts = np.concatenate(([0], cuts)).astype(np.int64)
        lasts = np.concatenate((cuts, [len(spans)])).astype(np.int64) - 1
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            if len(spans):
                yield log[int(spans[first, 0]) : int(ends[last])]


class GistRuns:
    """Gist rows of one version and level, and the trust of each.

    Args:
        first: number of the first node.
        stride: bytes of a row.
    """

    def __init__(self, first: int, stride: int) -> None:
        self.rows = Runs(first, stride)
        self.trust = Runs(first, 1)

    def add(self, body: GistsBody, base: int) -> None:
        """Note the rows of a frame whose body starts at an offset."""
        self.trust.add(body.n_rows, base + body.trust_at)
        self.rows.add(body.n_rows, base + body.rows_at)


class Pending:
    """Everything the open log holds.

    Args:
        first: numbers of the first commit, block and message it may hold.
        block_bytes: width of a block.
    """

    def __init__(self, first: tuple[int, int, int], block_bytes: int) -> None:
        commit, block, message = first
        self.commits = Runs(commit, COMMIT.itemsize)
        self.blocks = Runs(block, block_bytes)
        self.messages = Runs(message, MESSAGE.itemsize)
        self.bodies = Spans(message)
        self.gists: dict[tuple[int, int], GistRuns] = {}

    def add_batch(
        self, at: int, n_commits: int, body: BatchBody, lengths: NDArray[np.uint32]
    ) -> None:
        """Note a batch whose frame starts at an offset."""
        base = at + HEADER_BYTES
        self.bodies.add(base + body.bodies_at, lengths)
        self.messages.add(body.n_messages, base + body.messages_at)
        self.blocks.add(body.n_blocks, base + body.blocks_at)
        self.commits.add(n_commits, base + body.commits_at)

    def add_gists(self, at: int, body: GistsBody) -> None:
        """Note a frame of gist rows that starts at an offset."""
        key = (body.version, body.lod)
        runs = self.gists.get(key) or GistRuns(body.first, body.row_bytes)
        runs.add(body, at + HEADER_BYTES)
        self.gists[key] = runs  # last: a reader never meets an empty one
