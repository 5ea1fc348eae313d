"""Which rows stand in a window's place, exactly as a session would lay them out.

A layout is a list of entries, blocks and gists, in the order of the history. Each of its rows has a
key: a raw token's is its index, a gist row's packs level, node and slot, as the core's do. A gist
is its S rows one after the other, and positions run 0, 1, 2, ... without gaps. It reads no text and
runs no model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_gistnet.nets.mean import BLOCK
from megacontext_sdk import NodeId
from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from megacontext_sdk.contracts.arrays import Bools, Indices

__all__ = [
    "fewest_gists",
    "gist_parts",
    "gists_then_raw",
    "is_token",
    "keys_of",
    "rows_of_tokens",
    "tokens_only",
    "width",
]

_LOD_SHIFT = 56
_SLOT_BITS = 2


def width(lod: int) -> int:
    """Return how many tokens a node of a level covers; a raw block is one, too."""
    return NodeId(lod, 0).span.n_tokens


def keys_of(entries: Iterable[tuple[int, int]], gist_slots: int = 1) -> Indices:
    """Return the row keys of entries, int64[R].

    Args:
        entries: level and index of each node, in order; level 0 is a whole raw block.
        gist_slots: S, rows of a gist.

    Raises:
        ConfigError: entries that overlap or go back.
    """
    keys: list[int] = []
    end = 0
    for lod, index in entries:
        span = NodeId(lod, index).span
        if span.start < end:
            message = f"LOD{lod} node {index} begins before token {end}; give entries in order"
            raise ConfigError(message, field="entries", value=(lod, index))
        end = span.end
        first = span.start if lod == 0 else lod << _LOD_SHIFT | index << _SLOT_BITS
        keys += range(first, first + (BLOCK if lod == 0 else gist_slots))
    return np.array(keys, dtype=np.int64)


def is_token(keys: Indices) -> Bools:
    """Return bool[R]: rows that are raw tokens."""
    return keys < 1 << _LOD_SHIFT


def gist_parts(keys: Indices) -> tuple[Indices, Indices, Indices]:
    """Return level, node index and slot of gist keys, int64[n] each."""
    lod = keys >> _LOD_SHIFT
    rest = keys - (lod << _LOD_SHIFT)
    return lod, rest >> _SLOT_BITS, rest & ((1 << _SLOT_BITS) - 1)


def fewest_gists(n_tokens: int) -> list[tuple[int, int]]:
    """Return the fewest nodes that tile a history's first `n_tokens`, a multiple of 32."""
    cover: list[tuple[int, int]] = []
    at = 0
    while at < n_tokens:
        lod = 1
        while at % width(lod + 1) == 0 and at + width(lod + 1) <= n_tokens:
            lod += 1
        cover.append((lod, at // width(lod)))
        at += width(lod)
    return cover


def gists_then_raw(n_tokens: int, n_raw: int, *, lod: int = 1, gist_slots: int = 1) -> Indices:
    """Return the keys of a window whose last `n_raw` tokens are raw and all before them gists.

    Args:
        n_tokens: length of the window, a multiple of 32.
        n_raw: raw tokens at its end, a multiple of 32.
        lod: level of the gists; the part before the raw tokens is a multiple of its width.
        gist_slots: S.

    Raises:
        ConfigError: lengths that are no such multiples.
    """
    old = n_tokens - n_raw
    if old % width(lod) or n_raw % BLOCK:
        message = (
            f"{old} tokens before the last {n_raw} are no whole LOD{lod} nodes of {width(lod)}"
        )
        raise ConfigError(message, field="n_tokens", value=n_tokens)
    gists = [(lod, i) for i in range(old // width(lod))]
    raw = [(0, i) for i in range(old // BLOCK, n_tokens // BLOCK)]
    return keys_of([*gists, *raw], gist_slots)


def tokens_only(keys: Indices) -> Indices:
    """Return the keys without the gists: what is left when the gists are dropped."""
    tokens: Indices = keys[is_token(keys)]
    return tokens


def rows_of_tokens(keys: Indices, scored: Indices) -> Indices:
    """Return the row of each scored token, int64[m].

    A token is predicted from the row before it, which must be the token before it: a prediction
    out of a gist row never happens when a layout is served.

    Args:
        keys: rows of the layout, int64[R].
        scored: token indices, ascending, int64[m].

    Raises:
        ConfigError: a scored token that is no raw row, or whose predecessor is none.
    """
    order = np.argsort(keys)
    place = np.searchsorted(keys, scored, sorter=order)
    rows: Indices = np.full(len(scored), -1)
    if len(keys):
        rows = order[np.minimum(place, len(keys) - 1)]
    before = np.maximum(rows - 1, 0)
    there = (rows > 0) & (keys[rows] == scored) & (keys[before] == scored - 1)
    if not there.all():
        token = int(scored[~there][0])
        message = f"token {token} has no raw token before it in this layout; it cannot be scored"
        raise ConfigError(message, field="scored", value=token)
    return rows
