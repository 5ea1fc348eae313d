"""Which of the gists that the model is about to be fed are made before it is.

A gist of a block is one call of the encoder, one of 1,024 tokens 33 of them: so what is wanted at
once is bounded, cheapest first. The others stay provisional until the background gets there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.memory.lod import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from megacontext_sdk.contracts.arrays import Bools, Indices, Lods

__all__ = ["URGENT_BLOCKS", "affordable"]

URGENT_BLOCKS = 64
"""Nodes encoded at most for one change of the window: 2,048 tokens of blocks, about as many as a
window is wide, so the wait is of the order of the forward pass that follows it."""


def affordable(
    lods: Lods, nodes: Indices, lacking: Bools, count: Callable[[int], int]
) -> list[tuple[int, Indices]]:
    """Return level and ascending nodes of what can be made at once.

    Args:
        lods: uint8[n].
        nodes: int64[n].
        lacking: bool[n], those whose gist is not there.
        count: stored nodes of a level, from node 0 on.
    """
    at = np.flatnonzero(lacking)
    price = {i: _price(int(lods[i]), int(nodes[i]), count) for i in at.tolist()}
    chosen: dict[int, list[int]] = {}
    left = URGENT_BLOCKS
    # The cheapest first, of those the newest: most gists for the time.
    for i in sorted(price, key=lambda i: (price[i], -int(nodes[i]))):
        if price[i] > left:
            break
        left -= price[i]
        chosen.setdefault(int(lods[i]), []).append(int(nodes[i]))
    return [(lod, np.unique(np.array(found, np.int64))) for lod, found in sorted(chosen.items())]


def _price(lod: int, node: int, count: Callable[[int], int]) -> int:
    """Return how many nodes have to be encoded for one: itself and what is missing below."""
    total = 0
    for below in range(lod, 0, -1):
        size = BLOCK_SIZE ** (lod - below)
        first, stop = node * size, (node + 1) * size
        total += stop - min(stop, max(first, count(below)))
        if total > URGENT_BLOCKS:
            break
    return total
