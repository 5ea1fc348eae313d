"""Reading sealed rows: many segments as one table, each page checked when first touched.

A table never changes; sealing makes a longer one that shares what was checked. Rows are gathered
for all segments at once, because a call costs more than a row. The open log is `pending`'s.
"""

from __future__ import annotations

import resource
import struct
from collections import deque
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from megacontext_filesystem.faults import corrupt
from megacontext_filesystem.segments import PAGE, n_pages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from megacontext_filesystem.segments import Segment
    from megacontext_sdk.contracts.arrays import Bytes2D, Indices

__all__ = ["BodyTable", "GistTable", "MapPool", "Table"]

_PAIR = struct.Struct("<QQ")


class MapPool:
    """Bounds how many segments are mapped at once: a mapping keeps a descriptor."""

    def __init__(self) -> None:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._limit = 512 if soft == resource.RLIM_INFINITY else min(512, max(8, soft // 4))
        self._mapped: deque[Segment] = deque()
        self._lock = Lock()

    def data(self, segment: Segment) -> NDArray[np.uint8]:
        """Return the payload of a segment, mapped."""
        data = segment.data
        if data is not None:
            return data
        with self._lock:
            data = segment.data
            if data is None:
                data = segment.map()
                self._mapped.append(segment)
                while len(self._mapped) > self._limit:
                    self._mapped.popleft().data = None  # whoever reads it keeps it alive
        return data

    def clear(self) -> None:
        """Unmap everything."""
        with self._lock:
            while self._mapped:
                self._mapped.popleft().data = None


class Table:
    """Rows of fixed width in dense order.

    Args:
        segments: in order.
        pool: maps them.
        checked: uint8 per page of all of them, 1 where it was checked.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        pool: MapPool,
        checked: NDArray[np.uint8] | None = None,
    ) -> None:
        self.segments = tuple(segments)
        self._pool = pool
        infos = [segment.info for segment in self.segments]
        self.starts = np.array([info.first for info in infos], np.int64)
        self.counts = np.array([info.rows for info in infos], np.int64)
        self.n_rows = int(self.counts.sum())
        self.end = infos[-1].end if infos else 0
        self.stride = infos[-1].stride if infos else 0
        self._rows_at = np.zeros(len(infos), np.int64)
        pages = np.array([n_pages(info.payload) for info in infos], np.int64)
        self._page_bases = np.cumsum(pages) - pages
        total = int(pages.sum())
        self._checked = np.zeros(total, np.uint8)
        if checked is not None:
            self._checked[: len(checked)] = checked

    def extended(self, segment: Segment) -> Table:
        """Return the table with one more segment."""
        return type(self)((*self.segments, segment), self._pool, self._checked)

    def rows(self, ids: Indices) -> Bytes2D:
        """Return rows by number, uint8[n, stride]; all of them are in the table.

        Raises:
            CorruptError: a page does not match its checksum.
        """
        which = np.searchsorted(self.starts, ids, "right") - 1
        return self._gather(which, ids - self.starts[which], self._rows_at, self.stride)

    def _gather(self, which: Indices, at: Indices, bases: Indices, stride: int) -> Bytes2D:
        """Return what lies at `bases[segment] + at * stride` in each row's segment."""
        rows = np.empty((len(which), stride), np.uint8)
        if not rows.size:
            return rows
        self._check(which, bases[which] + at * stride, stride)
        low, high = int(which.min()), int(which.max())
        if low == high:
            return self._take(low, at, bases, stride, rows)
        order = np.argsort(which, kind="stable")
        cuts = np.searchsorted(which[order], np.arange(low, high + 2)).tolist()
        at = at[order]
        for index in range(low, high + 1):
            first, stop = cuts[index - low], cuts[index - low + 1]
            if first < stop:
                self._take(index, at[first:stop], bases, stride, rows[first:stop])
        result = np.empty_like(rows)
        result[order] = rows
        return result

    def _take(self, index: int, at: Indices, bases: Indices, stride: int, out: Bytes2D) -> Bytes2D:
        base, n_rows = int(bases[index]), int(self.counts[index])
        data = self._pool.data(self.segments[index])[base : base + n_rows * stride]
        # Numbers were checked; "clip" lets numpy write to `out` without a copy between.
        return data.reshape(n_rows, stride).take(at, axis=0, out=out, mode="clip")

    def _check(self, which: Indices, offsets: Indices, stride: int) -> None:
        """Check the pages of rows that were never checked; says nothing where all were."""
        bases = self._page_bases[which]
        first, last = bases + offsets // PAGE, bases + (offsets + stride - 1) // PAGE
        if stride <= PAGE and self._checked[first].all() and self._checked[last].all():
            return
        touched = [np.minimum(first + at, last) for at in range(stride // PAGE + 2)]
        pages = np.unique(np.concatenate(touched))
        self._check_pages(pages[self._checked[pages] == 0].tolist())

    def _check_pages(self, pages: Sequence[int]) -> None:
        for page in pages:
            index = int(np.searchsorted(self._page_bases, page, "right")) - 1
            segment = self.segments[index]
            data = self._pool.data(segment)
            segment.check_pages(data, (page - int(self._page_bases[index]),))
            self._checked[page] = 1  # only ever set, so threads need no lock

    def _check_range(self, index: int, start: int, stop: int) -> None:
        """Check the pages of payload bytes `[start, stop)` of one segment."""
        base = int(self._page_bases[index])
        pages = range(base + start // PAGE, base + -(-stop // PAGE))
        unchecked = [page for page in pages if not self._checked[page]]
        if unchecked:
            self._check_pages(unchecked)

    def payload(self, index: int, start: int, stop: int) -> memoryview:
        """Return payload bytes `[start, stop)` of one segment, checked.

        Raises:
            CorruptError: a page does not match its checksum.
        """
        self._check_range(index, start, stop)
        return self._pool.data(self.segments[index])[start:stop].data


class BodyTable(Table):
    """Byte strings of any length in dense order."""

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Return strings by number; all of them are in the table.

        Raises:
            CorruptError: a page does not match its checksum.
        """
        where = np.searchsorted(self.starts, np.array(numbers, np.int64), "right") - 1
        return [
            self._body(index, number - self.segments[index].info.first)
            for index, number in zip(where.tolist(), numbers, strict=True)
        ]

    def span(self, index: int, at: int) -> tuple[int, int]:
        """Return where the string at a place in a segment lies in its blob."""
        start, stop = _PAIR.unpack(self.payload(index, 8 * at, 8 * at + 16))
        info = self.segments[index].info
        if not 0 <= start <= stop <= info.payload - 8 * (info.rows + 1):
            raise corrupt(self.segments[index].path, "holds offsets that cannot be")
        return start, stop

    def _body(self, index: int, at: int) -> bytes:
        start, stop = self.span(index, at)
        base = 8 * (self.segments[index].info.rows + 1)
        return bytes(self.payload(index, base + start, base + stop))


class GistTable(Table):
    """Gist rows of one version and level, dense from node 0 on, and the trust of each."""

    def trust(self, nodes: Indices) -> NDArray[np.uint8]:
        """Return the trust of rows; all of them are in the table.

        Raises:
            CorruptError: a page does not match its checksum.
        """
        which = np.searchsorted(self.starts, nodes, "right") - 1
        bases = self.counts * self.stride
        return self._gather(which, nodes - self.starts[which], bases, 1).reshape(-1)
