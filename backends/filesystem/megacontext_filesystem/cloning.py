"""Clones: another store that shares the sealed segments of this one up to a commit.

Segments that end at or below the cut get a second name; what crosses it, and what the log holds
below it, is written anew. Nothing sealed ever changes, so the two never see each other.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs
import msgspec
import numpy as np

from megacontext_filesystem.opening import create, first_manifest
from megacontext_filesystem.sealing import Cut, pending_parts, stated, write_parts
from megacontext_filesystem.tables import BodyTable
from megacontext_sdk.contracts.checks import check_interval
from megacontext_sdk.contracts.storage import NO_SETTING, StoreState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from megacontext_filesystem.careful import CarefulDisk
    from megacontext_filesystem.sealing import Part
    from megacontext_filesystem.segments import Segment, SegmentInfo
    from megacontext_filesystem.tables import Table
    from megacontext_filesystem.view import View

__all__ = ["EMPTY", "clone_view", "state_at"]

_NO_LINKS = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})
_COPY_BYTES = 4 * 2**20
_BLOCK_SIZE = 32

EMPTY = StoreState(
    seq=0,
    chain=bytes(16),
    n_tokens=0,
    n_blocks=0,
    n_messages=0,
    tail=b"",
    setting=NO_SETTING,
    gist_rows=(),
)
"""The state before the first commit."""


def state_at(view: View, seq: int) -> StoreState:
    """Return the state after an earlier commit, without gist counts.

    Raises:
        LookupError: there is no such commit, or its tail is not known any more.
    """
    if seq == 0:
        return EMPTY
    check_interval("commit", seq, seq + 1, view.state.seq + 1, first=1)
    if seq == view.state.seq:
        return view.state
    row = view.commits(seq, seq + 1)[0]
    n_tokens = int(row["start"]) + int(row["n_tokens"])
    n_blocks, n_left = divmod(n_tokens, _BLOCK_SIZE)
    width = view.manifest.block_bytes
    tail = b""
    if n_left:
        is_full = n_blocks < view.state.n_blocks
        start = (
            view.blocks(np.array([n_blocks], np.int64)).tobytes() if is_full else view.state.tail
        )
        tail = start[: n_left * width // _BLOCK_SIZE]
    return attrs.evolve(
        view.state,
        seq=seq,
        chain=row["chain"].tobytes(),
        n_tokens=n_tokens,
        n_blocks=n_blocks,
        n_messages=int(row["first_message"]) + int(row["n_messages"]),
        tail=tail,
        setting=int(row["setting"]),
    )


def clone_view(view: View, disk: CarefulDisk, target: Path, upto_seq: int) -> None:
    """Make a store at `target` that ends at a commit of a view, durably.

    Raises:
        CorruptError: what has to be rewritten is damaged.
        LookupError: there is no such commit.
        SessionClosedError: a flush failed.
        StorageFullError: no space; nothing is left at `target`.
    """
    cut = Cut(state_at(view, upto_seq), is_partial=True)
    with disk.writing(0):
        disk.mkdir(target)
        try:
            _fill(view, disk, target, cut)
            disk.sync_directory(target.parent)
        except BaseException:
            _remove(disk, target)
            raise


def _fill(view: View, disk: CarefulDisk, target: Path, cut: Cut) -> None:
    shared: list[SegmentInfo] = []
    parts: list[Part] = []
    for table in view.tables.values():
        for index, segment in enumerate(table.segments):
            stop = _stop(segment.info, cut)
            if stop >= segment.info.end:
                _share(disk, segment, target / segment.info.name)
                shared.append(segment.info)
            elif stop > segment.info.first:
                parts.append(_prefix(table, index, stop))
    made: list[Path] = []
    fresh = write_parts(disk, target, (*parts, *pending_parts(view, cut)), made)
    infos = sorted((*shared, *fresh), key=lambda info: (info.name.rsplit("-", 1)[0], info.first))
    manifest = msgspec.structs.replace(
        first_manifest(view.manifest.block_bytes), segments=tuple(infos), **stated(cut.state)
    )
    create(disk, target, manifest)


def _stop(info: SegmentInfo, cut: Cut) -> int:
    """Return the number after the last row of a segment's kind that the clone keeps."""
    if info.kind == "gist":
        return cut.gists(info.lod, info.end)
    state = cut.state
    counts = {"commit": state.seq + 1, "block": state.n_blocks}
    return counts.get(info.kind, state.n_messages)


def _share(disk: CarefulDisk, segment: Segment, target: Path) -> None:
    """Give a segment a second name; where the file system cannot, copy it."""
    segment.check_size()
    try:
        disk.link(segment.path, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _copy(disk, segment, target)


def _copy(disk: CarefulDisk, segment: Segment, target: Path) -> None:
    descriptor = disk.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with segment.path.open("rb") as source:
            while data := source.read(_COPY_BYTES):
                disk.write(descriptor, [data])
        disk.sync(descriptor)
    finally:
        disk.close(descriptor)


def _prefix(table: Table, index: int, stop: int) -> Part:
    """Return the first rows of a segment as a segment of its own."""
    info = table.segments[index].info
    n_rows = stop - info.first
    pieces: Iterator[memoryview]
    if isinstance(table, BodyTable):
        _start, n_text = table.span(index, n_rows - 1)
        n_old, n_new = 8 * (info.rows + 1), 8 * (n_rows + 1)
        pieces = iter((table.payload(index, 0, n_new), table.payload(index, n_old, n_old + n_text)))
        payload = n_new + n_text
    else:
        n_bytes = n_rows * info.stride
        trust_at = info.rows * info.stride
        n_trust = n_rows if info.kind == "gist" else 0
        pieces = iter(
            (
                table.payload(index, 0, n_bytes),
                table.payload(index, trust_at, trust_at + n_trust),
            )
        )
        payload = n_bytes + n_trust
    return msgspec.structs.replace(info, rows=n_rows, payload=payload, digest=""), pieces


def _remove(disk: CarefulDisk, target: Path) -> None:
    """Remove a clone that was not finished."""
    with suppress(OSError):
        for entry in list(os.scandir(target)):
            disk.unlink(target / entry.name)
        target.rmdir()
