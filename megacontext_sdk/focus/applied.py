"""What one mutation of a working context did: a value for events, reports and counters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from megacontext_sdk.contracts.focus import Move

__all__ = ["AppliedPlan"]


@attrs.frozen(kw_only=True)
class AppliedPlan:
    """What one mutation did.

    Attributes:
        moves: moves that were applied, in order.
        epoch_before, epoch_after: equal if the entries did not change.
        cost_before, cost_after: rows.
        entries_before: entries there were.
        entries_replaced: of these, how many gave way to others (the partial tail never counts).
        violation: code and detail of the invariant that was broken; the moves were not applied.
        rebuilt: the initial layout had to replace everything, because of the violation.
        yielded: protections that have given way, as the history outgrew the budget.
    """

    moves: tuple[Move, ...] = ()
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
