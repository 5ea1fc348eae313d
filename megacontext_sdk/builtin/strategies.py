"""Other allocation strategies on the same legality core: only the choice differs from `greedy`.

All write into a `focus.ledger.Ledger`, so none can plan an illegal or unaffordable move, and all
are pure: their randomness is seeded and their thresholds follow from the entries alone.
"""

from __future__ import annotations

from itertools import islice
from random import Random
from typing import TYPE_CHECKING, TypeVar

import attrs
import numpy as np

from megacontext_sdk.builtin.greedy import GreedyAllocator, alternate
from megacontext_sdk.contracts.focus import FocusAllocator, Plan
from megacontext_sdk.focus.candidates import Group, openings, willing_groups
from megacontext_sdk.focus.ledger import Ledger
from megacontext_sdk.focus.mandatory import mandatory_collapses

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from megacontext_sdk.contracts.arrays import Floats
    from megacontext_sdk.contracts.focus import Budget, EntryArrays, Move, Reveal
    from megacontext_sdk.focus.candidates import Opening

__all__ = [
    "AdaptiveTauAllocator",
    "HybridAllocator",
    "KnapsackAllocator",
    "StochasticAllocator",
    "plan_utility",
]

_T = TypeVar("_T")


def plan_utility(moves: Iterable[Move]) -> float:
    """Return what a plan promises: scores of expands and reveals less those of collapses."""
    return sum(-move.score if move.kind == "collapse" else move.score for move in moves)


class _Strategy(FocusAllocator):
    """A strategy that makes room as `greedy` does."""

    def make_room(self, entries: EntryArrays, budget: Budget) -> Plan:
        """Return the mandatory collapses.

        Raises:
            BudgetError: protected rows leave no legal collapse.
        """
        return mandatory_collapses(entries, budget)


class StochasticAllocator(_Strategy):
    """Takes any of the top four candidates of each queue next, seeded.

    Args:
        seed: same seed and same entries, same plan.
    """

    name = "stochastic"
    _WINDOW = 4

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def plan(
        self, entries: EntryArrays, scores: Floats, reveals: Sequence[Reveal], budget: Budget
    ) -> Plan:
        """Return at most `n_diff` actions that keep the cost within the target."""
        if not len(entries):
            return Plan(moves=())
        scores = np.asarray(scores, dtype=np.float32)
        wanted = openings(entries, scores, reveals, budget)
        ledger = Ledger(entries, budget, wanted.held_back())
        # A generator per call, and a new one as the entries change: no state, yet no repetition.
        rng = Random(f"{self._seed}/{len(entries)}/{ledger.cost}/{int(entries.start[-1])}")
        closes = willing_groups(entries, scores, budget)
        alternate(ledger, self._drawn(wanted, rng), tuple(self._drawn(closes, rng)))
        return ledger.plan()

    def _drawn(self, queue: Iterable[_T], rng: Random) -> Iterator[_T]:
        """Yield the queue, each time one of its first four."""
        rest = iter(queue)
        window = list(islice(rest, self._WINDOW))
        while window:
            yield window.pop(rng.randrange(len(window)))
            window.extend(islice(rest, 1))


@attrs.frozen(kw_only=True)
class _Item:
    """A candidate as the knapsack sees it."""

    what: Opening | Group
    rows: int
    n_actions: int
    utility: float


class KnapsackAllocator(_Strategy):
    """Chooses the set of candidates with the most utility for the rows and actions there are.

    Matters where candidates differ in price: reveals, or S > 1. Never worse than `greedy`, whose
    plan it keeps when that promises more.
    """

    name = "knapsack"
    _CANDIDATES = 100

    def plan(
        self, entries: EntryArrays, scores: Floats, reveals: Sequence[Reveal], budget: Budget
    ) -> Plan:
        """Return at most `n_diff` actions that keep the cost within the target."""
        greedy = GreedyAllocator().plan(entries, scores, reveals, budget)
        if not greedy.moves and not greedy.skipped:
            return greedy
        scores = np.asarray(scores, dtype=np.float32)
        ledger = Ledger(entries, budget, greedy.skipped)
        _write(ledger, _best_set(self._items(entries, scores, reveals, budget), ledger))
        plan = ledger.plan()
        return plan if plan_utility(plan.moves) > plan_utility(greedy.moves) else greedy

    def _items(
        self, entries: EntryArrays, scores: Floats, reveals: Sequence[Reveal], budget: Budget
    ) -> list[_Item]:
        ledger = Ledger(entries, budget)
        items: list[_Item] = []
        wanted = openings(entries, scores, reveals, budget)
        for opening in islice(wanted, self._CANDIDATES):
            chain = ledger.chain(opening)
            rows = ledger.price(chain)
            items.append(
                _Item(what=opening, rows=rows, n_actions=len(chain), utility=opening.score)
            )
        for group in willing_groups(entries, scores, budget)[: self._CANDIDATES]:
            rows = -ledger.refund(group)
            items.append(_Item(what=group, rows=rows, n_actions=1, utility=-group.score))
        items.sort(key=lambda item: -item.utility)  # stable: equal ones stay in queue order
        return items[: self._CANDIDATES]


class HybridAllocator(KnapsackAllocator):
    """Greedy narrows the field to the 50 best candidates, the knapsack chooses among them."""

    name = "hybrid"
    _CANDIDATES = 50


def _best_set(items: Sequence[_Item], ledger: Ledger) -> tuple[_Item, ...]:
    """Return the items of the greatest total utility whose rows and actions fit."""
    best: dict[tuple[int, int], tuple[float, tuple[_Item, ...]]] = {(0, 0): (0.0, ())}
    for item in items:
        for (n_actions, rows), (utility, chosen) in list(best.items()):
            key = (n_actions + item.n_actions, rows + item.rows)
            total = utility + item.utility
            if key[0] <= ledger.actions_left and total > best.get(key, (0.0, ()))[0]:
                best[key] = (total, (*chosen, item))
    fitting = [value for (_, rows), value in best.items() if ledger.excess + rows <= 0]
    return max(fitting, key=lambda value: value[0], default=(0.0, ()))[1]


def _write(ledger: Ledger, items: Sequence[_Item]) -> None:
    """Write collapses, then openings; those that others have made stale are left out."""
    for item in items:
        if isinstance(item.what, Group) and ledger.is_open(item.what):
            ledger.close(item.what)
    for item in items:
        if isinstance(item.what, Group):
            continue
        chain = ledger.chain(item.what)
        fits = ledger.excess + ledger.price(chain) <= 0
        if chain and fits and len(chain) <= ledger.actions_left:
            ledger.open(item.what, chain)


class AdaptiveTauAllocator(_Strategy):
    """Moves the thresholds until the plan brings the budget's use towards 80 to 95 percent.

    Under 80 percent use, `tau_expand` falls and `tau_collapse` rises by steps of 5 percent until
    the plan adds rows; over 95 percent the other way round. In between it is `greedy`.
    """

    name = "adaptive-tau"
    _LEAST_USE, _MOST_USE = 0.80, 0.95
    _DOWN, _UP = 0.95, 1.05
    _STEPS = 64

    def __init__(self) -> None:
        self._greedy = GreedyAllocator()

    def plan(
        self, entries: EntryArrays, scores: Floats, reveals: Sequence[Reveal], budget: Budget
    ) -> Plan:
        """Return at most `n_diff` actions that keep the cost within the target."""
        plan = self._greedy.plan(entries, scores, reveals, budget)
        use = int(entries.cost.sum()) / budget.w_max
        wanted = int(use < self._LEAST_USE) - int(use > self._MOST_USE)
        expand, collapse = (self._DOWN, self._UP) if wanted > 0 else (self._UP, self._DOWN)
        for _ in range(self._STEPS if wanted else 0):
            if sum(move.delta_cost for move in plan.moves) * wanted > 0:
                break
            budget = attrs.evolve(
                budget,
                tau_expand=budget.tau_expand * expand,
                tau_collapse=budget.tau_collapse * collapse,
            )
            plan = self._greedy.plan(entries, scores, reveals, budget)
        return plan
