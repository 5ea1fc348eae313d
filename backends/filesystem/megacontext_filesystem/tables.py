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
    from collections.abc import Iterable, Sequence

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
        pages = np.array([n_pages(info.payload) for info in infos], np.int64)
        self._page_bases = np.cumsum(pages) - pages
        total = int(pages.sum())
        self._checked = np.zeros(total, np.uint8)
        # Pages whose successor was checked as well: a row that starts there needs no second look.
        self._paired = np.zeros(total, np.bool_)
        if checked is not None:
            self._checked[: len(checked)] = checked
            for index in range(len(infos)):
                self._pair(index)

    def extended(self, segment: Segment) -> Table:
        """Return the table with one more segment."""
        return type(self)((*self.segments, segment), self._pool, self._checked)

    def rows(self, ids: Indices) -> Bytes2D:
        """Return rows by number, uint8[n, stride]; all of them are in the table.

        Raises:
            CorruptError: a page does not match its checksum.
        """
        return self._gathered(ids, self.stride)[0]

    def _gathered(self, ids: Indices, *strides: int) -> list[Bytes2D]:
        """Return rows of columns that follow each other in the payload of each segment."""
        parts = [np.empty((len(ids), stride), np.uint8) for stride in strides]
        if not len(ids):
            return parts
        if len(self.segments) == 1:
            is_checked = self._are_checked(ids, strides[0])
            self._take(0, ids, strides, parts, is_checked=is_checked)
            return parts
        # Sorted, the rows of a segment lie together: one call per segment and column.
        order = ids.argsort()
        ascending = ids[order]
        is_checked = self._are_checked(ascending, strides[0])
        cuts = [*ascending.searchsorted(self.starts).tolist(), len(ids)]
        for index in range(len(self.segments)):
            first, stop = cuts[index], cuts[index + 1]
            if first < stop:
                outs = [part[first:stop] for part in parts]
                self._take(index, ascending[first:stop], strides, outs, is_checked=is_checked)
        found = []
        for part in parts:
            found.append(np.empty_like(part))
            found[-1][order] = part
        return found

    def _are_checked(self, ids: Indices, stride: int) -> bool:
        """Tell whether the pages of rows were checked before, for all segments at once."""
        if stride > PAGE:
            return False
        which = self.starts.searchsorted(ids, "right") - 1
        pages = self._page_bases[which] + (ids - self.starts[which]) * stride // PAGE
        return bool(self._paired[pages].all())

    def _take(
        self,
        index: int,
        ids: Indices,
        strides: Sequence[int],
        outs: Sequence[Bytes2D],
        *,
        is_checked: bool,
    ) -> None:
        """Copy rows of one segment."""
        segment = self.segments[index]
        n_rows, base, at = segment.info.rows, 0, ids - segment.info.first
        data = self._pool.data(segment)
        if not is_checked:
            self._check(index, at, strides)
        for stride, out in zip(strides, outs, strict=True):
            column = data[base : base + n_rows * stride].reshape(n_rows, stride)
            # Numbers were checked; "clip" lets numpy write to `out` without a copy between.
            column.take(at, axis=0, out=out, mode="clip")
            base += n_rows * stride

    def _check(self, index: int, at: Indices, strides: Sequence[int]) -> None:
        """Check the pages of rows of one segment, and neighbours that later rows will need.

        Raises:
            CorruptError: a page that these rows need does not match its checksum.
        """
        info = self.segments[index].info
        base, end, column = int(self._page_bases[index]), n_pages(info.payload), 0
        needed: list[Indices] = []
        for stride in strides:
            starts = column + at * stride
            first, last = starts // PAGE, (starts + stride - 1) // PAGE
            needed += [np.minimum(first + step, last) for step in range(stride // PAGE + 2)]
            column += info.rows * stride
        pages = np.unique(np.concatenate(needed))
        self._check_pages(index, base + pages[self._checked[base + pages] == 0])
        after = np.concatenate([np.minimum(pages + 1, end - 1), self._trailing(index)])
        for page in np.unique(after[self._checked[base + after] == 0]).tolist():
            segment = self.segments[index]
            self._checked[base + page] = segment.is_page_good(self._pool.data(segment), page)
        self._pair(index)

    def _trailing(self, index: int) -> Indices:
        """Return the pages of what follows the rows of a segment: a byte of trust per row."""
        info = self.segments[index].info
        return np.arange(info.rows * info.stride // PAGE, n_pages(info.payload), dtype=np.int64)

    def _pair(self, index: int) -> None:
        """Note which pages need no second look; none as long as the trailing ones do."""
        info, base = self.segments[index].info, int(self._page_bases[index])
        end = base + n_pages(info.payload)
        checked = self._checked[base:end] != 0
        if checked[self._trailing(index)].all():
            self._paired[base : end - 1] = checked[:-1] & checked[1:]
            self._paired[end - 1] = checked[-1]

    def _check_pages(self, index: int, pages: Iterable[int]) -> None:
        segment, base = self.segments[index], int(self._page_bases[index])
        data = self._pool.data(segment)
        for page in pages:
            segment.check_page(data, int(page) - base)
            self._checked[page] = 1  # only ever set, so threads need no lock

    def _check_range(self, index: int, start: int, stop: int) -> None:
        """Check the pages of payload bytes `[start, stop)` of one segment."""
        base = int(self._page_bases[index])
        pages = range(base + start // PAGE, base + -(-stop // PAGE))
        unchecked = [page for page in pages if not self._checked[page]]
        if unchecked:
            self._check_pages(index, unchecked)

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

    def read(self, nodes: Indices) -> tuple[Bytes2D, NDArray[np.uint8]]:
        """Return rows and the trust of each; all of them are in the table.

        Raises:
            CorruptError: a page does not match its checksum.
        """
        rows, trust = self._gathered(nodes, self.stride, 1)
        return rows, trust.reshape(-1)
