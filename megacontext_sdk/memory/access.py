"""How often each node was read into a working context, and how often expanded or collapsed.

Telemetry, not truth: counts are additive deltas, held back in memory, appended to `access.bin` on
`flush` in frames with a checksum each. A frame in doubt means starting again from zero, and saying
so; it never blocks or fails a commit.

File: 8 bytes of magic, then frames of `u32 count, u32 crc32`, `count` records of
`u64 packed node, u32 accesses, u32 mutations`. All little-endian.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Indices, Lods
    from megacontext_sdk.memory.lod import NodeId

__all__ = ["AccessCounts"]

MAGIC = b"MCACCES1"
RECORD = np.dtype([("node", "<u8"), ("access", "<u4"), ("mutation", "<u4")])
_FRAME = np.dtype([("count", "<u4"), ("crc", "<u4")])
_MAX_PENDING = 2**16
_COMPACT_RECORDS = 2**16

_log = logging.getLogger(__name__)


class AccessCounts:
    """Counts per node, on disk if there is a path.

    Args:
        path: the file, or None to count in this process only.
        read_only: count, but never write.

    Attributes:
        reset_reason: why the counts started again from zero; empty if they did not.
    """

    def __init__(self, path: Path | None, *, read_only: bool = False) -> None:
        self._path = path
        self._read_only = read_only
        self._stored: dict[int, tuple[int, int]] = {}
        self._deltas: dict[int, tuple[int, int]] = {}
        self._pending: list[tuple[NDArray[np.uint64], int]] = []
        self._n_pending = 0
        self._n_on_disk = 0
        self.reset_reason = ""

    def open(self) -> None:
        """Read what earlier sessions counted."""
        if self._path is None or not self._path.is_file():
            return
        raw = self._path.read_bytes()
        try:
            records = _parse(raw)
        except ValueError as error:
            self.reset_reason = str(error)
            _log.warning(
                "access counts start again from zero: %s is damaged (%s)", self._path, error
            )
            if not self._read_only:
                self._path.unlink(missing_ok=True)
            return
        self._n_on_disk = len(records)
        for node, access, mutation in records.tolist():
            _add(self._stored, node, access, mutation)

    def note_access(self, lods: Lods, indices: Indices) -> None:
        """Count nodes read into a working context."""
        self._note(lods, indices, 0)

    def note_mutation(self, lods: Lods, indices: Indices) -> None:
        """Count nodes that were expanded or collapsed."""
        self._note(lods, indices, 1)

    def counts(self, node: NodeId) -> tuple[int, int]:
        """Return `(access_count, mutation_access_count)` of a node."""
        self._fold()
        key = node.lod << 56 | node.index
        stored, delta = self._stored.get(key, (0, 0)), self._deltas.get(key, (0, 0))
        return stored[0] + delta[0], stored[1] + delta[1]

    def flush(self) -> None:
        """Append what was counted since the last flush; a full disk loses counts, nothing else."""
        self._fold()
        deltas, self._deltas = self._deltas, {}
        for node, (access, mutation) in deltas.items():
            _add(self._stored, node, access, mutation)
        if self._path is None or self._read_only or not deltas:
            return
        try:
            self._write(self._path, deltas)
        except OSError as error:
            _log.warning("access counts were not written: %s", error)

    def _write(self, path: Path, deltas: dict[int, tuple[int, int]]) -> None:
        """Append one frame, or write the whole file anew once it holds mostly old deltas."""
        self._n_on_disk += len(deltas)
        if self._n_on_disk > _COMPACT_RECORDS + 4 * len(self._stored):
            fresh = path.with_suffix(".new")
            with contextlib.suppress(FileNotFoundError):
                fresh.unlink()
            _append(fresh, MAGIC + _frame(self._stored))
            fresh.replace(path)
            self._n_on_disk = len(self._stored)
            return
        head = b"" if path.exists() else MAGIC
        _append(path, head + _frame(deltas))

    def _note(self, lods: Lods, indices: Indices, column: int) -> None:
        packed = np.asarray(lods, np.uint64) << np.uint64(56) | np.asarray(indices, np.uint64)
        self._pending.append((packed, column))
        self._n_pending += len(packed)
        if self._n_pending > _MAX_PENDING:
            self._fold()

    def _fold(self) -> None:
        """Turn noted nodes into deltas; noting itself must stay cheap."""
        for column in (0, 1):
            noted = [packed for packed, kind in self._pending if kind == column]
            if not noted:
                continue
            nodes, counts = np.unique(np.concatenate(noted), return_counts=True)
            for node, count in zip(nodes.tolist(), counts.tolist(), strict=True):
                _add(self._deltas, node, *((count, 0) if column == 0 else (0, count)))
        self._pending.clear()
        self._n_pending = 0


def _add(counts: dict[int, tuple[int, int]], node: int, access: int, mutation: int) -> None:
    before = counts.get(node, (0, 0))
    counts[node] = before[0] + access, before[1] + mutation


def _frame(counts: dict[int, tuple[int, int]]) -> bytes:
    rows = np.fromiter(
        ((node, *pair) for node, pair in counts.items()), RECORD, count=len(counts)
    ).tobytes()
    head = np.zeros(1, _FRAME)
    head["count"], head["crc"] = len(counts), zlib.crc32(rows)
    return head.tobytes() + rows


def _append(path: Path, raw: bytes) -> None:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    handle = os.open(path, flags, 0o600)
    try:
        size = os.fstat(handle).st_size
        if os.write(handle, raw) < len(raw):
            os.ftruncate(handle, size)  # half a frame would spoil the whole file
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(handle)


def _parse(raw: bytes) -> NDArray[np.void]:
    """Return RECORD[n] of a file.

    Raises:
        ValueError: anything in doubt.
    """
    if raw[: len(MAGIC)] != MAGIC:
        raise ValueError("unknown format")
    at, frames = len(MAGIC), [np.empty(0, RECORD)]
    while at < len(raw):
        if at + _FRAME.itemsize > len(raw):
            raise ValueError(f"torn frame at byte {at}")
        count, crc = np.frombuffer(raw, _FRAME, 1, at)[0].tolist()
        body = raw[at + _FRAME.itemsize : at + _FRAME.itemsize + count * RECORD.itemsize]
        if len(body) < count * RECORD.itemsize:
            raise ValueError(f"torn frame at byte {at}")
        if zlib.crc32(body) != crc:
            raise ValueError(f"wrong checksum at byte {at}")
        frames.append(np.frombuffer(body, RECORD))
        at += _FRAME.itemsize + len(body)
    return np.concatenate(frames)
