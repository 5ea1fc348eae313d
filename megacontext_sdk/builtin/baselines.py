"""Policies to compare with: chance, shared words alone, similarity alone.

They are floors for benchmarks and labels, not choices for a session that should remember.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.builtin.heuristic import HeuristicFocus, HeuristicWeights
from megacontext_sdk.builtin.threshold import choose, focus_scores
from megacontext_sdk.contracts.focus import FocusPolicy
from megacontext_sdk.memory.lod import BLOCK_SIZE

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Floats, Nodes
    from megacontext_sdk.contracts.focus import FocusView

__all__ = ["Bm25Focus", "CosineFocus", "RandomFocus"]


class Bm25Focus(HeuristicFocus):
    """Words shared with the query decide alone; reveals what they hit."""

    name = "bm25"

    def __init__(self) -> None:
        super().__init__(
            HeuristicWeights(lexical=1.0, cosine=0.0, recency=0.0, stickiness=0.0, precision=0.0),
            shows_context=False,
        )


class CosineFocus(HeuristicFocus):
    """Similarity of gist and query decides alone; sees only what entries show, reveals nothing."""

    name = "cosine"

    def __init__(self) -> None:
        super().__init__(
            HeuristicWeights(lexical=0.0, cosine=1.0, recency=0.0, stickiness=0.0, precision=0.0)
        )


class RandomFocus(FocusPolicy):
    """Gives every block a fixed number drawn by lot; stable over iterations and platforms.

    Args:
        seed: another seed, another lot.
    """

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self._offset = np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)

    def score(self, view: FocusView) -> Floats:
        """Return float32[E]: chance, with zero where the budget is full."""
        entries = view.entries
        block = (entries.start // BLOCK_SIZE).astype(np.uint64)
        utility = _mix(block + self._offset) / 2.0**64
        choice = choose(entries, utility, (), view.budget)
        return focus_scores(entries, utility, choice, view.budget)


def _mix(x: Nodes) -> Nodes:
    """Scramble 64-bit numbers (the finaliser of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Nodes = x ^ (x >> np.uint64(31))
    return mixed
