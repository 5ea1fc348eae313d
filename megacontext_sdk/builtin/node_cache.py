"""Remembers one number per tree node, for values that are pure functions of the node.

A policy sees mostly the same nodes in every iteration; this saves reading them again. Bounded, and
never a source of truth: an empty cache gives the same answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Floats, Indices

__all__ = ["NodeCache"]


class NodeCache:
    """Values of nodes by level and index.

    Args:
        limit: nodes kept per level; beyond it only the ones asked for last stay.
    """

    def __init__(self, limit: int = 8192) -> None:
        self._limit = limit
        self._levels: dict[int, tuple[Indices, Floats]] = {}

    def clear(self) -> None:
        """Forget all values."""
        self._levels.clear()

    def get(
        self, lod: int, nodes: Indices, compute: Callable[[Indices], Floats]
    ) -> NDArray[np.float32]:
        """Return the values of nodes, float32[n].

        Args:
            lod: their level.
            nodes: int64[n], in any order, repetitions allowed.
            compute: called once with the unknown nodes, ascending and distinct; returns float32.
        """
        known, values = self._levels.get(lod, (np.empty(0, np.int64), np.empty(0, np.float32)))
        missing = nodes[~_is_in(known, nodes)]
        if len(missing):
            missing = np.unique(missing)
            fresh = np.asarray(compute(missing), np.float32)
            if len(known) + len(missing) > self._limit:
                is_wanted = np.isin(known, nodes)
                known, values = known[is_wanted], values[is_wanted]
            place = np.searchsorted(known, missing)
            known = np.insert(known, place, missing)
            values = np.insert(values, place, fresh)
            self._levels[lod] = (known, values)
        return values[np.searchsorted(known, nodes)]


def _is_in(known: Indices, nodes: Indices) -> NDArray[np.bool_]:
    """Tell which nodes are known; `known` is ascending."""
    if not len(known):
        return np.zeros(len(nodes), np.bool_)
    place = np.minimum(np.searchsorted(known, nodes), len(known) - 1)
    is_in: NDArray[np.bool_] = known[place] == nodes
    return is_in
