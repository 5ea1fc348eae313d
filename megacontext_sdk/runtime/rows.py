"""Row keys: a stable name for every row a layout can have, so that equal rows are found again.

A raw token's key is its token index; a gist row's key packs level, node and slot. Keys say nothing
about positions or slots: the pager maps them. Everything here is a pure function of arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.memory.lod import BLOCK_SIZE

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Indices
    from megacontext_sdk.contracts.positions import Layout

__all__ = ["BlockGroup", "gist_parts", "is_token", "node_groups", "row_keys"]

_LOD_SHIFT = 56
_SLOT_BITS = 2
_FIRST_GIST_KEY = 1 << _LOD_SHIFT


def row_keys(layout: Layout, n_pending: int = 0) -> Indices:
    """Return int64[R + n_pending]: the key of each row, then of tokens not in the layout yet."""
    cost = layout.cost
    first = np.cumsum(cost) - cost
    offset = np.arange(int(cost.sum()), dtype=np.int64) - np.repeat(first, cost)
    lod = layout.lod.astype(np.int64)
    base = np.where(lod == 0, layout.start, (lod << _LOD_SHIFT) | (layout.index << _SLOT_BITS))
    keys = np.repeat(base, cost) + offset
    if n_pending:
        pending = np.arange(layout.end, layout.end + n_pending, dtype=np.int64)
        keys = np.concatenate([keys, pending])
    return keys


def is_token(keys: Indices) -> np.ndarray:
    """Return bool[n]: rows that are raw tokens."""
    return keys < _FIRST_GIST_KEY


def gist_parts(keys: Indices) -> tuple[Indices, Indices, Indices]:
    """Return level, node index and slot of gist keys, int64[n] each."""
    lod = keys >> _LOD_SHIFT
    rest = keys - (lod << _LOD_SHIFT)
    return lod, rest >> _SLOT_BITS, rest & ((1 << _SLOT_BITS) - 1)


@attrs.frozen(eq=False)
class BlockGroup:
    """Rows of one whole node among some rows: its name and where they stand in the array."""

    node: int
    at: Indices


def node_groups(keys: Indices) -> list[BlockGroup]:
    """Group rows by node; of blocks only those with all 32 rows (a partial tail is left out).

    A node is named by its first key. Gist nodes always come and go whole.
    """
    if not len(keys):
        return []
    token = is_token(keys)
    names = np.where(token, keys // BLOCK_SIZE * BLOCK_SIZE, keys >> _SLOT_BITS << _SLOT_BITS)
    order = np.lexsort((keys, names))
    ordered = names[order]
    cuts = np.flatnonzero(np.diff(ordered)) + 1
    parts = np.split(order, cuts)
    return [
        BlockGroup(int(names[at[0]]), at)
        for at in parts
        if len(at) == BLOCK_SIZE or not token[at[0]]
    ]
