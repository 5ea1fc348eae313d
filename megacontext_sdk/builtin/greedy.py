"""The greedy allocator: best expand against least harmful collapse, alternately.

With S = 1 every action costs or refunds 31 rows, so this is optimal for one-step actions whose
utilities add up. It is pure and totally ordered: no randomness, clock, or dict order. Legality
lives in `focus.ledger` and `focus.candidates`, shared with the other strategies.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.contracts.focus import FocusAllocator, Plan
from megacontext_sdk.focus.candidates import openings, willing_groups
from megacontext_sdk.focus.ledger import Ledger
from megacontext_sdk.focus.mandatory import mandatory_collapses

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from megacontext_sdk.contracts.arrays import Floats
    from megacontext_sdk.contracts.focus import Budget, EntryArrays, Reveal
    from megacontext_sdk.focus.candidates import Group, Opening

__all__ = ["GreedyAllocator", "alternate"]


class GreedyAllocator(FocusAllocator):
    """The default allocator (spec section 7)."""

    name = "greedy"

    def plan(
        self, entries: EntryArrays, scores: Floats, reveals: Sequence[Reveal], budget: Budget
    ) -> Plan:
        """Return at most `n_diff` actions that keep the cost within the target."""
        if not len(entries):
            return Plan(moves=())
        scores = np.asarray(scores, dtype=np.float32)
        wanted = openings(entries, scores, reveals, budget)
        ledger = Ledger(entries, budget, wanted.held_back())
        alternate(ledger, wanted, willing_groups(entries, scores, budget))
        return ledger.plan()

    def make_room(self, entries: EntryArrays, budget: Budget) -> Plan:
        """Return the mandatory collapses.

        Raises:
            BudgetError: protected rows leave no legal collapse.
        """
        return mandatory_collapses(entries, budget)


def alternate(ledger: Ledger, opens: Iterable[Opening], closes: Sequence[Group]) -> None:
    """Write moves until the actions are used up or both queues are empty."""
    _Alternation(ledger, opens, closes).run()


class _Alternation:
    """Two queues that take turns; each step removes a candidate or acts, so it ends."""

    def __init__(self, ledger: Ledger, opens: Iterable[Opening], closes: Sequence[Group]) -> None:
        self._ledger = ledger
        self._opens = iter(opens)
        self._closes = deque(closes)
        self._hopeless = float("inf")

    def run(self) -> None:
        """Expand, collapse, expand, ...; an empty queue yields to the other."""
        turns = [self._open_best, self._close_best]
        while turns and self._ledger.actions_left > 0:
            if turns[0]():
                turns = turns[1:] + turns[:1]
            else:
                del turns[0]

    def _close_best(self) -> bool:
        """Collapse the first group that is still there; tell whether there was one."""
        while self._closes:
            group = self._closes.popleft()
            if self._ledger.is_open(group):
                self._ledger.close(group)
                return True
        return False

    def _open_best(self) -> bool:
        """Act on the first opening that can be had, dropping others; tell whether one could."""
        self._hopeless = float("inf")
        for opening in self._opens:
            if self._try(opening):
                return True
            if self._hopeless <= self._ledger.cheapest:
                return False  # nothing that is left can be had either
        return False

    def _try(self, opening: Opening) -> bool:
        ledger = self._ledger
        chain = ledger.chain(opening)
        if not chain:
            return False
        price = ledger.price(chain)
        # Nothing was written since a cheaper one failed, so this one must fail too.
        if price >= self._hopeless:
            ledger.skip(opening, "budget")
            return False
        relief = ledger.relief(opening, price, self._closes)
        refusal = self._refusal(opening, len(chain), relief)
        if relief is None or refusal:
            if not any(group.holds(opening.at) for group in self._closes) and (
                relief is None or len(chain) == 1
            ):
                self._hopeless = price
            ledger.skip(opening, refusal)
            return False
        for group in relief:
            ledger.close(group)
        ledger.open(opening, chain)
        return True

    def _refusal(self, opening: Opening, n_expands: int, relief: Sequence[Group] | None) -> str:
        """Return why an opening cannot be had, or nothing."""
        if relief is None:
            return "budget"
        # Only a reveal may exceed n_diff, and only when it opens the plan.
        is_unbounded = opening.kind == "reveal" and self._ledger.n_actions == 0
        if is_unbounded or n_expands + len(relief) <= self._ledger.actions_left:
            return ""
        return "n_diff"
