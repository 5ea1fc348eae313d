"""What still holds of a damaged store: the longest verified prefix, and its readable gists.

It reads only, in bounded memory, and takes whatever a store raises for damage. What is done about
it is decided in `memory.directory.recovery`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.errors import (
    ConfigError,
    CorruptError,
    ReadOnlyError,
    SessionLockedError,
    StorageFullError,
)
from megacontext_sdk.memory.directory.probe import counts_problem
from megacontext_sdk.memory.directory.stores import header_of
from megacontext_sdk.memory.directory.stretch import Place, read_stretch, stretches
from megacontext_sdk.memory.lod import n_nodes

if TYPE_CHECKING:
    from collections.abc import Callable

    from megacontext_sdk.contracts.storage import OpenMode, Storage, StoreState
    from megacontext_sdk.memory.directory.manifest import MemoryMeta

__all__ = ["Survivors", "find_survivors", "readable_gists"]

_NO_DAMAGE = (SessionLockedError, ReadOnlyError, StorageFullError, ConfigError, PermissionError)
_GIST_BYTES = 4 * 2**20
_FIRST_NODES = 256


@attrs.frozen(kw_only=True)
class Survivors:
    """What of a store holds.

    Attributes:
        place: the end of the longest verified prefix.
        levels: readable gist rows by `(version, lod)`, from node 0 on.
        is_open: the store is open, for copying.
        reasons: what is wrong, one phrase each; empty if nothing is.
    """

    place: Place
    levels: tuple[tuple[tuple[int, int], int], ...]
    is_open: bool
    reasons: tuple[str, ...]


def find_survivors(
    storage: Storage,
    meta: MemoryMeta,
    progress: Callable[[int, int], None] | None = None,
) -> Survivors:
    """Open a store, to be closed by the caller, and find what of it holds.

    Raises:
        ConfigError: the store cannot be used here at all.
        ReadOnlyError: no permission to read.
        SessionLockedError: another process has it.
    """
    nothing = Place(0, meta.root, 0, 0)
    state, reasons = _opened(storage, meta)
    if state is None:
        return Survivors(place=nothing, levels=(), is_open=False, reasons=tuple(reasons))
    wrong = counts_problem(state, meta.token_bytes)
    place, what = _verified(storage, meta, state, progress)
    reasons += [one for one in (wrong, what) if one]
    levels = []
    for version, lod, count in state.gist_rows:
        wanted = min(count, n_nodes(place.n_tokens, lod))
        found, _width = readable_gists(storage, (version, lod), wanted)
        if found < wanted:
            reasons.append(f"gists of version {version}, LOD{lod} end at node {found}")
        levels.append(((version, lod), found))
    return Survivors(place=place, levels=tuple(levels), is_open=True, reasons=tuple(reasons))


def _opened(storage: Storage, meta: MemoryMeta) -> tuple[StoreState | None, list[str]]:
    """Open a store for reading, or for salvage if it refuses; None if it gives nothing at all."""
    reasons: list[str] = []
    modes: tuple[OpenMode, ...] = ("read", "salvage")
    for mode in modes:
        try:
            storage.open(mode, header_of(meta))
            return storage.state(), reasons
        except _NO_DAMAGE:
            storage.close()
            raise
        except Exception as error:  # noqa: BLE001 - garbled bytes may make a store raise anything
            storage.close()
            what = "be read" if mode == "read" else "be salvaged"
            reasons.append(f"the store refuses to {what} ({_name(error)})")
    return None, reasons


def _name(error: Exception) -> str:
    """Return what an error is about without what it says, which might be content."""
    where = error.where if isinstance(error, CorruptError) and "where" in vars(error) else ""
    return f"{type(error).__name__}{': ' + where if where else ''}"


def _verified(
    storage: Storage,
    meta: MemoryMeta,
    state: StoreState,
    progress: Callable[[int, int], None] | None,
) -> tuple[Place, str]:
    """Return the end of the longest prefix that holds, and what is wrong with the commit after."""
    place = Place(0, meta.root, 0, 0)
    try:
        for stretch in stretches(storage, state, meta.token_bytes):
            place, what = stretch.check(place)
            if what:
                return place, what
            if progress is not None:
                progress(place.n_tokens, state.n_tokens)
    except Exception:  # noqa: BLE001 - see above; now one by one, up to the commit at fault
        return _one_by_one(storage, meta, state, place)
    return place, ""


def _one_by_one(
    storage: Storage, meta: MemoryMeta, state: StoreState, place: Place
) -> tuple[Place, str]:
    """Go on behind a place in steps of one commit, up to the first that cannot be read."""
    what = ""
    while place.seq < state.seq and not what:
        seq = place.seq + 1
        try:
            rows = storage.read_commits(seq, seq + 1)
            place, what = read_stretch(storage, state, rows, meta.token_bytes).check(place)
        except Exception as error:  # noqa: BLE001 - see above
            what = f"commit {seq} cannot be read ({_name(error)})"
    return place, what


def readable_gists(storage: Storage, key: tuple[int, int], stop: int) -> tuple[int, int]:
    """Return how many gist rows from node 0 on can be read, and how wide they are."""
    at, n_chunk, width = 0, _FIRST_NODES, 0
    while at < stop:
        nodes = np.arange(at, min(at + n_chunk, stop), dtype=np.int64)
        try:
            found = storage.read_gists(*key, nodes)
        except Exception:  # noqa: BLE001 - see above
            if n_chunk == 1:
                break
            n_chunk = 1  # up to the one that cannot be read
            continue
        if width not in {0, found.rows.shape[1]}:
            break
        n = len(nodes) if found.present.all() else int(np.argmin(found.present))
        at, width = at + n, found.rows.shape[1]
        if n < len(nodes):
            break
        if n_chunk > 1:
            n_chunk = max(2, _GIST_BYTES // max(1, width))
    return at, width
