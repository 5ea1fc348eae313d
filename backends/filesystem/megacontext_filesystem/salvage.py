"""Salvage: the longest prefix of commits that damaged files can still give.

Every page of every segment is read, so it takes as long as reading the whole store. It changes
nothing; what it shows is checked by core before anything is built from it.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_filesystem import manifest as manifests
from megacontext_filesystem.cloning import EMPTY, state_at
from megacontext_filesystem.faults import corrupt
from megacontext_filesystem.log import Log
from megacontext_filesystem.opening import newest_number, scan_of
from megacontext_filesystem.sealing import Cut, new_pending
from megacontext_filesystem.segments import PAGE, Segment, n_pages, read_header
from megacontext_filesystem.view import View, make_tables, sealed_state
from megacontext_sdk.errors import MegaContextError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from megacontext_filesystem.manifest import Manifest
    from megacontext_filesystem.segments import SegmentInfo
    from megacontext_filesystem.tables import MapPool

    Key = tuple[str, int, int]

__all__ = ["salvaged_view"]

logger = logging.getLogger(__name__)

_BLOCK_SIZE = 32


def salvaged_view(folder: Path, pool: MapPool, block_bytes: int) -> View:
    """Return the longest readable prefix of what a folder holds.

    Raises:
        CorruptError: there is none.
    """
    newest_number(folder)  # says so if there is nothing at all
    manifest = _newest_readable(folder, block_bytes)
    sealed = _sealed_view(folder, pool, manifest)
    best = _feasible(sealed)
    if sealed.state.seq >= manifest.seq:  # nothing sealed is missing: the log may follow
        for number in reversed(manifests.numbers(folder)[1]):
            found = _followed(sealed, folder, number)
            if found is not None and found.state.seq > best.state.seq:
                best = found
    cut = Cut(best.state, is_partial=True)
    stops = {
        (version, lod): cut.gists(lod, best.gist_count((version, lod)))
        for version, lod, _count in best.full_state().gist_rows
    }
    return attrs.evolve(best, gist_stop=stops)


def _newest_readable(folder: Path, block_bytes: int) -> Manifest:
    for number in reversed(manifests.numbers(folder)[0]):
        with suppress(MegaContextError, FileNotFoundError):
            manifest = manifests.read_manifest(folder, number)
            if manifest.block_bytes == block_bytes:
                return manifest
        logger.warning("%s cannot be used", folder / manifests.manifest_name(number))
    raise corrupt(folder / manifests.manifest_name(1), "and every other manifest is damaged")


def _unlisted(folder: Path, manifest: Manifest) -> list[SegmentInfo]:
    """Return segments that a lost manifest named, as far as they follow what is listed."""
    listed = {info.name for info in manifest.segments}
    found: dict[tuple[Key, int], SegmentInfo] = {}
    for entry in sorted(os.scandir(folder), key=lambda one: one.name):
        if entry.name.endswith(".mcs") and entry.name not in listed:
            with suppress(MegaContextError):
                info = read_header(folder / entry.name)
                if info is not None and info.name == entry.name:
                    found[(info.kind, info.version, info.lod), info.first] = info
    ends: dict[Key, int] = {}
    for info in manifest.segments:
        ends[info.kind, info.version, info.lod] = info.end
    more: list[SegmentInfo] = []
    for key in sorted({key for key, _first in found}):
        end = ends.get(key, 1 if key[0] == "commit" else 0)
        while (key, end) in found:
            more.append(found[key, end])
            end = more[-1].end
    return more


# --- segments --------------------------------------------------------------------------------


def _sealed_view(folder: Path, pool: MapPool, manifest: Manifest) -> View:
    """Return the view of what the segments alone can give; its tail may be unknown."""
    usable: list[SegmentInfo] = []
    ends: dict[Key, int] = {("commit", 0, 0): 1}
    broken: set[Key] = set()
    for info in (*manifest.segments, *_unlisted(folder, manifest)):
        key = (info.kind, info.version, info.lod)
        if key in broken:
            continue
        n_rows = _good_rows(Segment(folder / info.name, info))
        if n_rows:
            usable.append(info)
            ends[key] = info.first + n_rows
        if n_rows < info.rows:
            broken.add(key)
            logger.warning("%s is readable up to row %d of %d", info.name, n_rows, info.rows)
    tables = make_tables(folder, pool, usable, {})
    n_messages = min(ends.get(("message", 0, 0), 0), ends.get(("body", 0, 0), 0))
    n_blocks = ends.get(("block", 0, 0), 0)
    state = sealed_state(manifest)
    view = View(
        state=attrs.evolve(state, seq=ends["commit", 0, 0] - 1, n_blocks=n_blocks),
        manifest=manifest,
        tables=tables,
        pending=new_pending(state, manifest.block_bytes),
        log=Log(folder / manifests.log_name(manifest.log), -1, None),
        gist_stop={key[1:]: ends.get(key, 0) for key in broken if key[0] == "gist"},
    )
    # Reads ask the log for what is beyond the segments; here there is nothing beyond.
    view = attrs.evolve(
        view, pending=new_pending(attrs.evolve(view.state, n_messages=n_messages), 0)
    )
    rows = view.commits(1, view.state.seq + 1)
    token_ends, message_ends = rows["start"] + rows["n_tokens"], rows["first_message"]
    message_ends = message_ends + rows["n_messages"]
    is_held = (token_ends // _BLOCK_SIZE <= n_blocks) & (message_ends <= n_messages)
    seq = len(rows) if is_held.all() else int(np.argmin(is_held))
    return _ended(view, seq, n_blocks)


def _ended(view: View, seq: int, n_blocks: int) -> View:
    """Return the view with the counts of a commit; its tail is known only at the manifest's."""
    state = view.state
    if seq == view.manifest.seq:
        state = sealed_state(view.manifest)
    elif seq:
        row = view.commits(seq, seq + 1)[0]
        n_tokens = int(row["start"]) + int(row["n_tokens"])
        state = attrs.evolve(
            state,
            seq=seq,
            chain=row["chain"].tobytes(),
            n_tokens=n_tokens,
            n_blocks=min(n_tokens // _BLOCK_SIZE, n_blocks),
            n_messages=int(row["first_message"]) + int(row["n_messages"]),
            tail=b"",
            setting=int(row["setting"]),
        )
    else:
        state = EMPTY
    return attrs.evolve(view, state=state, pending=new_pending(state, view.manifest.block_bytes))


def _good_rows(segment: Segment) -> int:
    """Return how many leading rows of a segment lie on pages that match their checksums."""
    info = segment.info
    try:
        segment.check_size()
        data = segment.map()
    except MegaContextError:
        return 0
    bad = [page for page in range(n_pages(info.payload)) if not segment.is_page_good(data, page)]
    segment.data = None
    return min((_rows_before(data, info, page * PAGE) for page in bad), default=info.rows)


def _rows_before(data: NDArray[np.uint8], info: SegmentInfo, offset: int) -> int:
    """Return how many leading rows need nothing of the page at an offset of the payload."""
    if info.kind == "body":
        blob_at = 8 * (info.rows + 1)
        if offset < blob_at:
            return max(0, offset // 8 - 1)
        ends = data[8:blob_at].view("<u8")
        return int(np.searchsorted(ends, offset - blob_at, "right"))
    rows_end = info.rows * info.stride
    return offset // info.stride if offset < rows_end else offset - rows_end


# --- the state at the end --------------------------------------------------------------------


def _feasible(view: View) -> View:
    """Return the view cut at its newest commit whose tail is known."""
    state, manifest = view.state, view.manifest
    n_left = state.n_tokens % _BLOCK_SIZE
    known = n_left * manifest.block_bytes // _BLOCK_SIZE == len(state.tail)
    if known:
        return view
    rows = view.commits(1, state.seq + 1)
    token_ends = rows["start"] + rows["n_tokens"]
    blocks, rest = token_ends // _BLOCK_SIZE, token_ends % _BLOCK_SIZE
    is_known = (rest == 0) | (blocks < state.n_blocks)
    if manifest.seq < state.seq and manifest.seq:
        is_known[manifest.seq - 1] = True
    seq = int(np.flatnonzero(is_known)[-1]) + 1 if is_known.any() else 0
    found = sealed_state(manifest) if seq == manifest.seq else state_at(view, seq)
    return attrs.evolve(view, state=found)


def _followed(sealed: View, folder: Path, number: int) -> View | None:
    """Return what the segments and one log give together, None if the log cannot be read."""
    try:
        log = Log.open(None, folder, number)
    except (MegaContextError, FileNotFoundError):
        return None
    state = sealed.state
    view = attrs.evolve(sealed, log=log, pending=new_pending(state, sealed.manifest.block_bytes))
    scan = scan_of(view, is_tolerant=True)
    try:
        scan.run(log.size_on_disk())
        log.size = scan.position.offset
        log.retire()  # nothing is cut below what was read
    finally:
        log.close()
    return attrs.evolve(view, state=scan.position.state)
