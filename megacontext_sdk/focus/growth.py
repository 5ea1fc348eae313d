"""Which nodes a history starts with and which ones its growth adds.

The initial layout of a whole history, and the nodes for the part that is new: recent blocks raw, a
bulk append coarsely, within its share of the budget. Pure functions of lengths and the budget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import attrs
import numpy as np

from megacontext_sdk.errors import BudgetError
from megacontext_sdk.focus.entries import entries_from_nodes
from megacontext_sdk.focus.initial_layout import lay_out_blocks
from megacontext_sdk.focus.protection import YIELD_LADDER, protect
from megacontext_sdk.memory.lod import BLOCK_SIZE

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Indices, Lods
    from megacontext_sdk.contracts.focus import Budget, EntryArrays
    from megacontext_sdk.focus.protection import Protection
    from megacontext_sdk.memory.lod import Span

__all__ = ["Nodes", "initial_entries", "new_nodes"]

Nodes: TypeAlias = "tuple[Lods, Indices]"
"""Levels uint8[E] and indices int64[E]."""


def initial_entries(
    n_tokens: int, budget: Budget, pins: tuple[Span, ...]
) -> tuple[EntryArrays, Protection]:
    """Return the initial layout of a history and what it protects.

    Raises:
        BudgetError: it cannot fit even after sinks and recents over 128 tokens gave way.
    """
    refusal: BudgetError | None = None
    for yielded in YIELD_LADDER:
        protection = protect(n_tokens, budget, pins, yielded)
        try:
            nodes = _initial_nodes(n_tokens, budget, protection)
        except BudgetError as error:
            refusal = refusal or error
            continue
        entries = entries_from_nodes(*nodes, n_tokens, budget.gist_slots)
        protected, pinned = protection.mark(entries)
        return attrs.evolve(entries, protected=protected, pinned=pinned), protection
    raise refusal or ValueError("the ladder of protections is empty")


def new_nodes(old: int, new: int, cost: int, budget: Budget, pins: tuple[Span, ...]) -> Nodes:
    """Return nodes for the blocks between two lengths, and the tail, if there is one.

    Args:
        old: tokens before, whose entries cost `cost` rows.
        new: tokens after.
    """
    first, end = old // BLOCK_SIZE, new // BLOCK_SIZE
    free = budget.target - cost
    if (end - first) * BLOCK_SIZE <= max(free - BLOCK_SIZE, budget.recent_tokens):
        blocks = np.arange(first, end, dtype=np.int64)
        return _with_tail(np.zeros(end - first, dtype=np.uint8), blocks, new)
    # A bulk may claim its share of the rows; making room then takes it from the rest.
    share = budget.target * (new - old) // new
    lods, indices = lay_out_blocks(
        first * BLOCK_SIZE,
        end * BLOCK_SIZE,
        protect(new, budget, pins).held,
        max(free, share) - new % BLOCK_SIZE,
        budget.gist_slots,
        is_strict=False,
    )
    return _with_tail(lods, indices, new)


def _initial_nodes(n_tokens: int, budget: Budget, protection: Protection) -> Nodes:
    tail = n_tokens % BLOCK_SIZE
    lods, indices = lay_out_blocks(
        0,
        n_tokens - tail,
        protection.held,
        budget.target - tail,
        budget.gist_slots,
        is_strict=True,
    )
    return _with_tail(lods, indices, n_tokens)


def _with_tail(lods: Lods, indices: Indices, n_tokens: int) -> Nodes:
    """Add the partial tail, if there is one."""
    if n_tokens % BLOCK_SIZE == 0:
        return lods, indices
    return np.append(lods, np.uint8(0)), np.append(indices, n_tokens // BLOCK_SIZE)
