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

__all__ = ["Settled", "settle"]


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


def settle(
    draft: Draft,
    budget: Budget,
    pins: Sequence[Span],
    allocator: FocusAllocator,
    *,
    ladder: Iterable[Yielded],
    limit: int,
    guard: Span | None = None,
) -> Settled:
    """Open what is protected and make room; the draft given stays as it is.

    Args:
        draft: the edited entries.
        budget: its `target` is where making room ends.
        pins: the user's pins.
        allocator: makes room.
        ladder: protections that may give way, tried in order.
        limit: make room only above this cost.
        guard: a span nothing may be collapsed in, this time.

    Raises:
        BudgetError: even the last rung of the ladder cannot fit.
        InvariantError: the allocator's plan is illegal or falls short.
    """
    refusal: BudgetError | None = None
    for yielded in ladder:
        trial = draft.copy()
        protection = protect(trial.n_tokens, budget, pins, yielded)
        try:
            moves = _open(trial, protection)
            moves += _make_room(trial, protection, budget, allocator, limit, guard)
        except BudgetError as error:
            refusal = refusal or error
            continue
        return Settled(draft=trial, protection=protection, moves=tuple(moves))
    if refusal is None:
        raise ValueError("the ladder of protections is empty")
    raise refusal


def _open(draft: Draft, protection: Protection) -> list[Move]:
    entries = draft.finish(protection)
    if not (entries.protected & (entries.lod > 0)).any():
        return []
    return draft.open(protection.held, 1.0, "protect")


def _make_room(
    draft: Draft,
    protection: Protection,
    budget: Budget,
    allocator: FocusAllocator,
    limit: int,
    guard: Span | None,
) -> list[Move]:
    if draft.cost <= limit:
        return []
    entries = _guarded(draft.finish(protection), guard)
    moves = list(allocator.make_room(entries, budget).moves)
    draft.guard(entries.protected)
    draft.play(moves)
    if draft.cost > budget.target:
        detail = f"{allocator.name} made room down to {draft.cost} rows of {budget.target}"
        raise BudgetExceededError(
            f"I1 is broken: {detail}. Please report this as a bug of the allocator.",
            code="I1",
            detail=detail,
            epoch=None,
        )
    return moves


def _guarded(entries: EntryArrays, guard: Span | None) -> EntryArrays:
    if guard is None:
        return entries
    end = entries.start + entries.n_tokens
    inside = (entries.start < guard.end) & (end > guard.start)
    return attrs.evolve(entries, protected=np.logical_or(entries.protected, inside))
