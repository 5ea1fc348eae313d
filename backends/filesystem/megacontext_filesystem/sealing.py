"""Sealing: what the log holds becomes segments, and a new manifest and an empty log take over.

Everything is durable under its name before the manifest says so, the empty log included: whatever
manifest is in force, all it names exists. The same parts make a clone.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs
import msgspec
import numpy as np

from megacontext_filesystem import manifest as manifests
from megacontext_filesystem.faults import FULL
from megacontext_filesystem.log import Log
from megacontext_filesystem.pending import Pending
from megacontext_filesystem.segments import SegmentInfo, write_segment
from megacontext_filesystem.view import View, make_tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from megacontext_filesystem.careful import CarefulDisk
    from megacontext_filesystem.tables import MapPool
    from megacontext_sdk.contracts.storage import StoreState

    Part = tuple[SegmentInfo, Iterable[memoryview]]

__all__ = ["Cut", "new_pending", "pending_parts", "seal", "stated", "write_parts"]

_WIDTH = 32  # children of a node, tokens of a block


@attrs.frozen
class Cut:
    """Where rows end: the counts of a state, and whether gists above it are left out."""

    state: StoreState
    is_partial: bool = False

    def gists(self, lod: int, count: int) -> int:
        """Return how many of `count` gist rows of a level lie below the cut."""
        if not self.is_partial:
            return count
        return min(count, int(self.state.n_tokens // _WIDTH ** max(1, lod)))


def new_pending(state: StoreState, block_bytes: int) -> Pending:
    """Return the index of an empty log that follows a state."""
    return Pending((state.seq + 1, state.n_blocks, state.n_messages), block_bytes)


def pending_parts(view: View, cut: Cut) -> Iterator[Part]:
    """Yield what the log holds below a cut, as segments without a digest and their bytes."""
    log = view.log.data().data
    pending, state = view.pending, cut.state
    for kind, runs, stop in (
        ("block", pending.blocks, state.n_blocks),
        ("commit", pending.commits, state.seq + 1),
        ("message", pending.messages, state.n_messages),
    ):
        n_rows = stop - runs.first
        if n_rows > 0:
            info = SegmentInfo(
                kind=kind,
                first=runs.first,
                rows=n_rows,
                stride=runs.stride,
                payload=n_rows * runs.stride,
            )
            yield info, runs.pieces(log, stop)
    if state.n_messages > pending.bodies.first:
        yield _bodies(pending, log, state.n_messages)
    for version, lod in sorted(pending.gists):
        gists = pending.gists[version, lod]
        stop = cut.gists(lod, gists.rows.end)
        n_rows = stop - gists.rows.first
        if n_rows > 0:
            info = SegmentInfo(
                kind="gist",
                first=gists.rows.first,
                rows=n_rows,
                stride=gists.rows.stride,
                payload=n_rows * (gists.rows.stride + 1),
                version=version,
                lod=lod,
            )
            yield info, (*gists.rows.pieces(log, stop), *gists.trust.pieces(log, stop))


def _bodies(pending: Pending, log: memoryview, stop: int) -> Part:
    lengths = pending.bodies.lengths(stop)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype("<u8")
    info = SegmentInfo(
        kind="body",
        first=pending.bodies.first,
        rows=len(lengths),
        stride=0,
        payload=offsets.nbytes + int(offsets[-1]),
    )
    return info, (memoryview(offsets.tobytes()), *pending.bodies.pieces(log, stop))


def write_parts(
    disk: CarefulDisk, folder: Path, parts: Iterable[Part], made: list[Path]
) -> list[SegmentInfo]:
    """Write segments and make their content durable; `made` learns of each file first.

    Raises:
        OSError: as the disk does.
        SessionClosedError: a flush failed.
    """
    written: list[tuple[SegmentInfo, int]] = []
    try:
        for info, pieces in parts:
            path = folder / info.name
            if os.path.lexists(path):
                disk.unlink(path)  # left over by somebody who died; no manifest names it
            made.append(path)
            written.append(write_segment(disk, folder, info, pieces))
        for _info, descriptor in written:
            disk.sync(descriptor)  # all at the end: the first one takes the others along
    finally:
        for _info, descriptor in written:
            disk.close(descriptor)
    return [info for info, _descriptor in written]


def stated(state: StoreState) -> dict[str, object]:
    """Return a state in the words of a manifest."""
    return {
        "seq": state.seq,
        "chain": state.chain.hex(),
        "n_tokens": state.n_tokens,
        "n_blocks": state.n_blocks,
        "n_messages": state.n_messages,
        "setting": state.setting,
        "tail": state.tail.hex(),
    }


def seal(disk: CarefulDisk, folder: Path, view: View, pool: MapPool) -> View:
    """Seal what the log holds and return the view of the same content.

    Raises:
        SessionClosedError: the disk failed.
        StorageFullError: no space; everything is as it was.
    """
    before = view.manifest
    made: list[Path] = []
    log: Log | None = None
    with disk.writing(view.log.size):
        try:
            infos = write_parts(disk, folder, pending_parts(view, Cut(view.state)), made)
            made.append(folder / manifests.log_name(before.log + 1))
            if os.path.lexists(made[-1]):
                disk.unlink(made[-1])
            log = Log.create(disk, folder, before.log + 1)
            disk.sync_directory(folder)
            manifest = msgspec.structs.replace(
                before,
                number=before.number + 1,
                log=before.log + 1,
                segments=(*before.segments, *infos),
                **stated(view.state),
            )
            manifests.publish(disk, folder, manifest)
            disk.sync_directory(folder)
        except BaseException as error:
            if log is not None:
                log.close()
            if isinstance(error, OSError) and error.errno in FULL and disk.failure is None:
                _remove(disk, made)
            raise
    tables = make_tables(folder, pool, manifest.segments, view.tables)
    return View(
        state=view.state,
        manifest=manifest,
        tables=tables,
        pending=new_pending(view.state, before.block_bytes),
        log=log,
    )


def _remove(disk: CarefulDisk, made: Iterable[Path]) -> None:
    """Give back the space of a seal that did not fit."""
    for path in made:
        with suppress(OSError):  # what stays is removed by the next attempt or the next open
            disk.unlink(path)
