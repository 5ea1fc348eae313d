"""Settling: bring a draft to a state that keeps its promises, or refuse.

Protected ranges are opened to LOD0, then the allocator makes room. If the history has outgrown the
budget, sinks and then recents over 128 tokens give way. It works on drafts and swaps nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.errors import BudgetError, BudgetExceededError
from megacontext_sdk.focus.protection import protect

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from megacontext_sdk.contracts.focus import Budget, EntryArrays, FocusAllocator, Move
    from megacontext_sdk.focus.moves import Draft
    from megacontext_sdk.focus.protection import Protection, Yielded
    from megacontext_sdk.memory.lod import Span

__all__ = ["Settled", "Settler"]


@attrs.frozen(eq=False, kw_only=True)
class Settled:
    """A draft that keeps its promises.

    Attributes:
        draft: the draft.
        protection: what it holds at LOD0.
        moves: moves that settling took.
    """

    draft: Draft
    protection: Protection
    moves: tuple[Move, ...]


@attrs.frozen(eq=False, kw_only=True)
class Settler:
    """The terms on which drafts are settled.

    Attributes:
        budget: its `target` is where making room ends.
        allocator: makes room.
        limit: make room only above this cost.
        guard: a span nothing may be collapsed in, this time.
    """

    budget: Budget
    allocator: FocusAllocator
    limit: int
    guard: Span | None = None

    def settle(self, draft: Draft, pins: Sequence[Span], ladder: Iterable[Yielded]) -> Settled:
        """Open what is protected and make room; the draft given stays as it is.

        Args:
            draft: the edited entries.
            pins: the user's pins.
            ladder: protections that may give way, tried in order.

        Raises:
            BudgetError: even the last rung of the ladder cannot fit.
            InvariantError: the allocator's plan is illegal or falls short.
        """
        refusal: BudgetError | None = None
        for yielded in ladder:
            trial = draft.copy()
            protection = protect(trial.n_tokens, self.budget, pins, yielded)
            try:
                moves, entries = _open(trial, protection)
                moves += self._make_room(trial, entries)
            except BudgetError as error:
                refusal = refusal or error
                continue
            return Settled(draft=trial, protection=protection, moves=tuple(moves))
        raise refusal or ValueError("the ladder of protections is empty")

    def _make_room(self, draft: Draft, entries: EntryArrays) -> Sequence[Move]:
        if int(entries.cost.sum()) <= self.limit:
            return ()
        entries = self._guarded(entries)
        moves = self.allocator.make_room(entries, self.budget).moves
        draft.guard(entries.protected)
        draft.play(moves)
        if draft.cost > self.budget.target:
            detail = (
                f"{self.allocator.name} made room down to {draft.cost} rows of {self.budget.target}"
            )
            raise BudgetExceededError(
                f"I1 is broken: {detail}. Please report this as a bug of the allocator.",
                code="I1",
                detail=detail,
                epoch=None,
            )
        return moves

    def _guarded(self, entries: EntryArrays) -> EntryArrays:
        if self.guard is None:
            return entries
        end = entries.start + entries.n_tokens
        inside = (entries.start < self.guard.end) & (end > self.guard.start)
        return attrs.evolve(entries, protected=np.logical_or(entries.protected, inside))


def _open(draft: Draft, protection: Protection) -> tuple[list[Move], EntryArrays]:
    """Expand what is protected, but no LOD0; return the moves and the entries after them."""
    entries = draft.finish(protection)
    if not (entries.protected & (entries.lod > 0)).any():
        return [], entries
    return draft.open(protection.held, 1.0, "protect"), draft.finish(protection)
