"""Entry arrays: building them from nodes, and what each field follows from.

An entry list is a handful of parallel arrays; this module derives span and cost from level and
index. It decides nothing and checks nothing: see `moves` and `invariants`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.contracts.focus import EntryArrays
from megacontext_sdk.memory.lod import widths

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from megacontext_sdk.contracts.arrays import Bools, Indices, Lods

__all__ = ["entries_from_nodes", "freeze", "no_entries", "row_costs", "span_lengths"]

_FIELDS = tuple(field.name for field in attrs.fields(EntryArrays))


def span_lengths(lods: Lods | Indices, starts: Indices, n_tokens: int) -> Indices:
    """Return the token count of each node, int64[E]; a block that reaches past N is the tail."""
    lengths = widths(lods)
    if len(lengths) and lods[-1] == 0:
        lengths[-1] = min(int(lengths[-1]), n_tokens - int(starts[-1]))
    return lengths


def row_costs(lods: Lods | Indices, lengths: Indices, gist_slots: int) -> Indices:
    """Return rows per entry, int64[E]: tokens at LOD0, S for a gist."""
    return np.where(lods == 0, lengths, gist_slots)


def freeze(entries: EntryArrays) -> EntryArrays:
    """Make every array of the entries refuse writes, and return them."""
    for name in _FIELDS:
        getattr(entries, name).flags.writeable = False
    return entries


def entries_from_nodes(
    lods: ArrayLike, indices: ArrayLike, n_tokens: int, gist_slots: int
) -> EntryArrays:
    """Return entries for nodes in order, with the state of entries nobody has scored yet.

    The last LOD0 node may be the partial tail: it ends at `n_tokens`.
    """
    lod = np.array(lods, dtype=np.uint8)
    index = np.array(indices, dtype=np.int64)
    start = index * widths(lod)
    lengths = span_lengths(lod, start, n_tokens)
    n = len(lod)
    unset: Bools = np.zeros(n, dtype=np.bool_)
    return EntryArrays(
        lod=lod,
        index=index,
        start=start,
        n_tokens=lengths,
        cost=row_costs(lod, lengths, gist_slots),
        protected=unset,
        pinned=unset.copy(),
        residency=np.zeros(n, dtype=np.int64),
        last_score=np.full(n, np.nan, dtype=np.float32),
        last_action=np.zeros(n, dtype=np.int64),
        action_age=np.zeros(n, dtype=np.int64),
    )


def no_entries() -> EntryArrays:
    """Return the entries of an empty history."""
    return freeze(entries_from_nodes((), (), 0, 1))
