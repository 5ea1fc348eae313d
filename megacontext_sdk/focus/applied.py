"""What one mutation of a working context did: a value for events, reports and counters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Indices, Lods
    from megacontext_sdk.contracts.focus import Move

__all__ = ["AppliedPlan", "node_runs"]


@attrs.frozen(kw_only=True)
class AppliedPlan:
    """What one mutation did.

    Attributes:
        moves: moves that were applied, in order.
        added: runs (lod, first index, count) of nodes that took the place of all that began where
            the first of them begins or behind it, before the moves.
        epoch_before, epoch_after: equal if the entries did not change.
        cost_before, cost_after: rows.
        entries_before: entries there were.
        entries_replaced: of these, how many gave way to others (the partial tail never counts).
        violation: code and detail of the invariant that was broken; the moves were not applied.
        rebuilt: the initial layout had to replace everything, because of the violation.
        yielded: protections that have given way, as the history outgrew the budget.
    """

    moves: tuple[Move, ...] = ()
    added: tuple[tuple[int, int, int], ...] = ()
    epoch_before: int
    epoch_after: int
    cost_before: int
    cost_after: int
    entries_before: int
    entries_replaced: int = 0
    violation: str | None = None
    rebuilt: bool = False
    yielded: tuple[str, ...] = ()

    @property
    def swap_rate(self) -> float:
        """Entries replaced divided by entries before."""
        return self.entries_replaced / self.entries_before if self.entries_before else 0.0


def node_runs(lods: Lods, indices: Indices) -> tuple[tuple[int, int, int], ...]:
    """Return nodes as runs of neighbours of one level: (lod, first index, count) each.

    Example:
        >>> node_runs(np.array([1, 1, 0]), np.array([4, 5, 6]))
        ((1, 4, 2), (0, 6, 1))
    """
    levels, numbers = np.asarray(lods, dtype=np.int64), np.asarray(indices, dtype=np.int64)
    if not len(levels):
        return ()
    cuts = np.flatnonzero((np.diff(levels) != 0) | (np.diff(numbers) != 1)) + 1
    first = np.concatenate([[0], cuts])
    count = np.diff([*first.tolist(), len(levels)])
    return tuple(zip(levels[first].tolist(), numbers[first].tolist(), count.tolist(), strict=True))
