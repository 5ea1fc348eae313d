"""The invariants of a working context that need no tree and no model: I1-I5, I8-I10.

Each check is a few vectorised comparisons over the whole entry list and raises the typed error of
its row in section 2 of the specification. Checking never repairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.contracts.focus import EntryArrays
from megacontext_sdk.errors import (
    AlignmentError,
    BudgetExceededError,
    ContiguityError,
    CoverageError,
    InvariantError,
    LodError,
    ProtectionError,
)
from megacontext_sdk.focus.entries import row_costs
from megacontext_sdk.memory.lod import BLOCK_SIZE, MAX_LOD, widths

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Bools, Indices
    from megacontext_sdk.contracts.focus import Budget
    from megacontext_sdk.focus.protection import Protection

__all__ = ["check_budget", "check_entries", "check_protection", "check_swap", "check_tiling"]

_FIELDS = tuple(field.name for field in attrs.fields(EntryArrays))


def check_entries(
    entries: EntryArrays, n_tokens: int, budget: Budget, protection: Protection
) -> None:
    """Check I1-I5 and I10 of an entry list.

    Raises:
        InvariantError: the subclass of the first broken invariant.
    """
    check_tiling(entries, n_tokens, budget.gist_slots)
    check_protection(entries, protection)
    check_budget(entries, budget)


def check_budget(entries: EntryArrays, budget: Budget) -> None:
    """Check I1: the entries cost at most `w_max` rows.

    Raises:
        BudgetExceededError: they cost more.
    """
    cost = int(entries.cost.sum())
    if cost > budget.w_max:
        _fail(BudgetExceededError, "I1", f"{cost} rows exceed w_max {budget.w_max}")


def check_tiling(entries: EntryArrays, n_tokens: int, gist_slots: int) -> None:
    """Check I2-I5: whole blocks and gists that tile `[0, n_tokens)`, each at its right cost.

    Raises:
        CoverageError: the list does not start at 0 or end at N.
        ContiguityError: there is a gap or an overlap.
        AlignmentError: an entry is not on a boundary of its level.
        LodError: level, width and cost disagree, or a gist covers a partial block.
    """
    _check_lengths(entries)
    _check_coverage(entries, n_tokens)
    _check_contiguity(entries)
    _check_levels(entries, n_tokens)
    _check_alignment(entries, n_tokens)
    wrong = entries.index * widths(entries.lod) != entries.start
    _reject(LodError, "I5", entries, wrong, "does not start where its index says")
    expected = row_costs(entries.lod, entries.n_tokens, gist_slots)
    _reject(LodError, "I5", entries, entries.cost != expected, "costs what its level does not")


def check_protection(entries: EntryArrays, protection: Protection) -> None:
    """Check I10: protected ranges are at LOD0, and the flags say so.

    Raises:
        ProtectionError: one is not.
    """
    held, pinned = protection.mark(entries)
    _reject(ProtectionError, "I10", entries, held & (entries.lod > 0), "is protected, but no LOD0")
    wrong = (held != entries.protected) | (pinned != entries.pinned)
    _reject(ProtectionError, "I10", entries, wrong, "has wrong protection flags")


def check_swap(before: EntryArrays, after: EntryArrays, origin: Indices) -> None:
    """Check I8: what came covers exactly the tokens of what left, but for growth at the end.

    Args:
        before: entries before the swap.
        after: entries after it.
        origin: int64[E after], index in `before` or negative for entries that came.

    Raises:
        InvariantError: half a swap.
    """
    if len(origin) != len(after):
        _fail(InvariantError, "I8", f"{len(after)} entries, but {len(origin)} origins")
    left = np.ones(len(before), dtype=np.bool_)
    left[origin[origin >= 0]] = False
    came = origin < 0
    end = _end(before)
    lost = int(before.n_tokens[left].sum())
    inside = np.minimum(after.start + after.n_tokens, end) - after.start
    gained = int(np.maximum(inside[came], 0).sum())
    if lost != gained:
        _fail(InvariantError, "I8", f"entries of {lost} tokens left, entries of {gained} came")


def _check_lengths(entries: EntryArrays) -> None:
    if len({len(getattr(entries, name)) for name in _FIELDS}) != 1:
        _fail(InvariantError, "I8", "the entry arrays differ in length")


def _check_coverage(entries: EntryArrays, n_tokens: int) -> None:
    start = int(entries.start[0]) if len(entries) else 0
    if start or _end(entries) != n_tokens:
        detail = f"entries cover [{start}, {_end(entries)}) of [0, {n_tokens})"
        _fail(CoverageError, "I2", detail)


def _check_contiguity(entries: EntryArrays) -> None:
    ends = entries.start + entries.n_tokens
    gaps = np.flatnonzero(ends[:-1] != entries.start[1:])
    if len(gaps):
        at = int(gaps[0])
        detail = f"an entry ends at {ends[at]}, the next starts at {entries.start[at + 1]}"
        _fail(ContiguityError, "I3", detail)


def _check_alignment(entries: EntryArrays, n_tokens: int) -> None:
    width = widths(entries.lod)
    partial = n_tokens % BLOCK_SIZE
    full = entries.n_tokens == width
    if partial and len(entries):
        full[-1] = entries.lod[-1] == 0 and entries.n_tokens[-1] == partial
    wrong = (entries.start % width != 0) | ~full
    _reject(AlignmentError, "I4", entries, wrong, "is not aligned to its level")


def _check_levels(entries: EntryArrays, n_tokens: int) -> None:
    _reject(LodError, "I5", entries, entries.lod > MAX_LOD, "is above the highest level")
    blocks_end = n_tokens - n_tokens % BLOCK_SIZE
    wrong = (entries.lod > 0) & (entries.start + entries.n_tokens > blocks_end)
    _reject(LodError, "I5", entries, wrong, "is a gist over a partial block")


def _end(entries: EntryArrays) -> int:
    return int(entries.start[-1] + entries.n_tokens[-1]) if len(entries) else 0


def _reject(
    kind: type[InvariantError], code: str, entries: EntryArrays, wrong: Bools, what: str
) -> None:
    """Raise for the first entry of the mask."""
    if wrong.any():
        at = int(np.argmax(wrong))
        _fail(kind, code, f"entry {at}, LOD{entries.lod[at]}:{entries.index[at]}, {what}")


def _fail(kind: type[InvariantError], code: str, detail: str) -> None:
    message = f"{code} is broken: {detail}. Please report this as a bug."
    raise kind(message, code=code, detail=detail, epoch=None)
