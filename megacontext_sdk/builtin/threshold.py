"""From utilities to signed focus scores: where the budget draws the line.

Every focus policy ranks candidates by a utility of its own. This module fills the budget in that
order, on paper, and puts zero where it is full: candidates above ask for detail, entries below
offer theirs back. It looks at no text, gist or tree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.memory.lod import BLOCK_SIZE, top_lod, width

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bools, Floats, Indices
    from megacontext_sdk.contracts.focus import Budget, EntryArrays

__all__ = ["Candidates", "candidates", "focus_scores", "threshold"]

MIN_SCALE = 1e-3
"""Smallest spread of utilities that scores are measured in."""

SLACK_MARGIN = 0.25
"""Score scale units every candidate gets above zero when all of them fit."""


@attrs.frozen(eq=False, kw_only=True)
class Candidates:
    """What competes for rows: all entries in order, then blocks to reveal under coarse entries.

    Attributes:
        start: int64[C], first token index.
        end: int64[C], past the last one.
        lod: int64[C], level an entry has now; 1 for a block to reveal (its gist stands for it).
        n_entries: how many of them are entries (E); the others are blocks.
        is_free: bool[C]: takes part in the ranking (not protected).
    """

    start: Indices
    end: Indices
    lod: Indices
    n_entries: int
    is_free: Bools

    def __len__(self) -> int:
        """Number of candidates, C."""
        return len(self.start)

    @property
    def is_raw(self) -> Bools:
        """Entries at LOD0 now, bool[C]."""
        is_raw: Bools = self.lod == 0
        return is_raw


def candidates(entries: EntryArrays, blocks: Indices) -> Candidates:
    """Line up entries and blocks.

    Args:
        entries: the working context.
        blocks: int64[n], ascending block numbers, each under an entry of LOD2 or above.
    """
    n = len(entries)
    start = np.concatenate([entries.start, blocks * BLOCK_SIZE])
    n_tokens = np.concatenate([entries.n_tokens, np.full(len(blocks), BLOCK_SIZE, np.int64)])
    lod = np.concatenate([entries.lod.astype(np.int64), np.ones(len(blocks), np.int64)])
    is_free = np.concatenate([~entries.protected, np.ones(len(blocks), np.bool_)])
    return Candidates(start=start, end=start + n_tokens, lod=lod, n_entries=n, is_free=is_free)


def threshold(
    found: Candidates, utility: NDArray[np.float64], entries: EntryArrays, budget: Budget
) -> float | None:
    """Return the utility at which the budget is full, or None if every candidate fits.

    The budget is filled from the coarsest legal layout: protected rows stay, all else is a gist.
    A block at LOD0 costs `32 - S` rows more, and the first one below a gist of LOD2 or above also
    pays for the siblings that stay on every level of its path.

    Args:
        found: C candidates.
        utility: float64[C].
        entries: the working context the candidates come from.
        budget: its budget.
    """
    order = np.flatnonzero(found.is_free)
    if not len(order):
        return None
    order = order[np.lexsort((-found.end[order], -utility[order]))]
    paths = _paths(found, entries)
    rows = np.where(found.lod[order] <= 1, BLOCK_SIZE - budget.gist_slots, 0)
    rows = rows + budget.gist_slots * (BLOCK_SIZE - 1) * _first_needs(found, order, paths)
    free = budget.target - _coarsest_cost(found, entries, budget, paths)
    fits = np.cumsum(rows) <= free
    if fits.all():
        return None
    n_fit = int(np.argmin(fits))
    return float(utility[order[max(n_fit - 1, 0)]])


def focus_scores(
    found: Candidates, utility: NDArray[np.float64], entries: EntryArrays, budget: Budget
) -> Floats:
    """Return float32[C]: `tanh((utility - threshold) / spread)`, in [-1, 1].

    With slack every candidate is above the line, so slack never causes a collapse.
    """
    free = utility[found.is_free]
    scale = max(float(free.std()), MIN_SCALE) if len(free) else 1.0
    line = threshold(found, utility, entries, budget)
    if line is None:
        line = (float(free.min()) if len(free) else 0.0) - SLACK_MARGIN * scale
    scores = np.tanh((utility - line) / scale)
    return np.where(found.is_free, scores, 0.0).astype(np.float32)


def _paths(found: Candidates, entries: EntryArrays) -> list[tuple[int, Indices]]:
    """Return the levels above LOD1 with the complete nodes protected rows force open."""
    n_tokens = int(entries.start[-1] + entries.n_tokens[-1]) if len(entries) else 0
    held = found.start[: found.n_entries][entries.protected]
    return [(lod, np.unique(held // width(lod))) for lod in range(2, top_lod(n_tokens) + 1)]


def _first_needs(
    found: Candidates, order: Indices, paths: list[tuple[int, Indices]]
) -> NDArray[np.int64]:
    """Count the nodes each candidate is the first, in order, to need open, int64[n]."""
    needs = np.zeros(len(order), np.int64)
    n_tokens = int(found.end[: found.n_entries].max(initial=0))
    for lod, forced in paths:
        # An entry of this level or below it, or a block, needs this node open.
        user = np.flatnonzero(found.lod[order] <= lod)
        node = found.start[order[user]] // width(lod)
        distinct, first = np.unique(node, return_index=True)
        is_paid = ((distinct + 1) * width(lod) <= n_tokens) & ~np.isin(distinct, forced)
        needs[user[first[is_paid]]] += 1
    return needs


def _coarsest_cost(
    found: Candidates, entries: EntryArrays, budget: Budget, paths: list[tuple[int, Indices]]
) -> int:
    """Return the rows of the layout with nothing but protected rows at LOD0."""
    n_tokens = int(found.end[: found.n_entries].max(initial=0))
    raw = int(np.count_nonzero((entries.lod == 0) & ~entries.protected))
    cost = int(entries.cost.sum()) - raw * (BLOCK_SIZE - budget.gist_slots)
    for lod, forced in paths:
        below = entries.start[entries.lod < lod] // width(lod)
        is_open = np.unique(below[(below + 1) * width(lod) <= n_tokens])
        n_extra = np.count_nonzero(~np.isin(is_open, forced))
        cost -= budget.gist_slots * (BLOCK_SIZE - 1) * int(n_extra)
    return cost
