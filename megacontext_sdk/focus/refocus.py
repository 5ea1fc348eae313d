"""One refocus: score, plan, apply, a bounded number of times.

The policy proposes, the allocator plans, the working context checks and swaps. A policy that fails
costs its own opinion only: this refocus goes on with the fallback policy and says so. The window is
not touched here; the pager follows the layout afterwards.
"""

from __future__ import annotations

import logging
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import attrs
import numpy as np

from megacontext_sdk.contracts.focus import Reveal
from megacontext_sdk.errors import BudgetError, InvariantError
from megacontext_sdk.memory.lod import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megacontext_sdk.contracts.arrays import Floats
    from megacontext_sdk.contracts.focus import (
        FocusAllocator,
        FocusPolicy,
        FocusQuery,
        FocusView,
        Move,
        Plan,
        Skipped,
    )
    from megacontext_sdk.focus.view import QueryScope, ViewBuilder
    from megacontext_sdk.focus.working_context import AppliedPlan, WorkingContext

__all__ = ["RefocusRecord", "Refocuser"]

_log = logging.getLogger(__name__)
_REVEALS_PER_ITERATION = 64


class MutationSink(Protocol):
    """Who is told which nodes were expanded or collapsed (the tree's access counts)."""

    def note_moves(self, moves: Sequence[Move]) -> None:
        """Count the nodes of applied moves."""


@attrs.frozen(kw_only=True)
class RefocusRecord:
    """What one refocus did, enough to replay it over the tree.

    Attributes:
        trigger: "turn", "block", "append" or "user".
        iterations: iterations that were run.
        moves: applied moves in order.
        skipped: candidates of the last iteration that were not acted upon.
        epoch_before, epoch_after: of the working context.
        cost_before, cost_after: rows.
        entries_before: entries at the start.
        entries_replaced: entries that moves replaced, over all iterations.
        scores: of the last iteration, float32[E].
        score_seconds, plan_seconds, apply_seconds, scope_seconds: exclusive timers.
        fallbacks: reasons why the fallback policy had to serve.
        violations: invariants a plan broke (rolled back).
    """

    trigger: str
    iterations: int
    moves: tuple[Move, ...]
    skipped: tuple[Skipped, ...]
    epoch_before: int
    epoch_after: int
    cost_before: int
    cost_after: int
    entries_before: int
    entries_replaced: int
    scores: Floats = attrs.field(eq=False)
    scope_seconds: float
    score_seconds: float
    plan_seconds: float
    apply_seconds: float
    fallbacks: tuple[str, ...]
    violations: tuple[str, ...]


class Refocuser:
    """Runs refocus episodes for one working context.

    Args:
        wc: the working context.
        policy: scores entries and proposes reveals.
        fallback: serves one refocus when the policy fails; must not fail itself.
        allocator: turns scores into plans.
        views: builds what the policy sees.
        mutations: is told of applied moves.
    """

    def __init__(
        self,
        wc: WorkingContext,
        policy: FocusPolicy,
        fallback: FocusPolicy,
        allocator: FocusAllocator,
        views: ViewBuilder,
        mutations: MutationSink,
    ) -> None:
        self.wc = wc
        self.policy = policy
        self.fallback = fallback
        self._n_broken = 0
        self._allocator = allocator
        self._views = views
        self._mutations = mutations

    def run(
        self, query: FocusQuery, *, max_iterations: int, trigger: str, price: float = 0.0
    ) -> RefocusRecord:
        """Iterate until the plan is empty or `max_iterations` are done.

        Args:
            query: pending turn and last generated tokens.
            max_iterations: bound on the iterations.
            trigger: "turn", "block", "append" or "user".
            price: score beyond the thresholds that a move must be worth: each costs a forward
                pass, which a steady decode can ill afford (spec section 7, cost-aware extension).

        Raises:
            InvariantError: in strict mode when a plan breaks an invariant, else at the second one
                of a turn.
        """
        if trigger == "turn":
            self._n_broken = 0
        episode = _Episode(self, query, trigger, price)
        if trigger == "turn":
            episode.clear()
        for iteration in range(max_iterations):
            if not episode.iterate(iteration):
                break
        record = episode.record()
        self._count_broken(record)
        return record

    @property
    def active_policy(self) -> FocusPolicy:
        """The policy, or the fallback for the rest of a turn in which an invariant was broken."""
        return self.fallback if self._n_broken else self.policy

    def _count_broken(self, record: RefocusRecord) -> None:
        """Raise on the second broken invariant of a turn (the ladder of spec section 2)."""
        self._n_broken += len(record.violations)
        if self._n_broken > 1:
            detail = record.violations[-1] if record.violations else ""
            message = f"plans broke invariants twice in one turn ({detail}); please report this"
            raise InvariantError(
                message, code=detail.partition(":")[0], detail=detail, epoch=self.wc.epoch
            )

    def plan(
        self, view: FocusView, scores: Floats, reveals: Sequence[Reveal], price: float
    ) -> Plan:
        """Ask the allocator."""
        budget = view.budget
        if price:
            budget = attrs.evolve(
                budget,
                tau_expand=budget.tau_expand + price,
                tau_collapse=budget.tau_collapse + price,
            )
        return self._allocator.plan(view.entries, scores, reveals, budget)

    def apply(self, plan: Plan) -> AppliedPlan:
        """Apply a plan and count the touched nodes."""
        applied = self.wc.apply(plan)
        self.count(applied)
        return applied

    def count(self, applied: AppliedPlan) -> None:
        """Tell the tree which nodes were touched."""
        self._mutations.note_moves(applied.moves)

    def scope(self, query: FocusQuery) -> QueryScope:
        """Look up what the episode needs once."""
        return self._views.scope(query)

    def view(self, scope: QueryScope, iteration: int) -> FocusView:
        """Build the view of an iteration."""
        return self._views.view(scope, self.wc.entries, self.wc.budget, iteration)


class _Episode:
    """The running totals of one refocus."""

    def __init__(self, owner: Refocuser, query: FocusQuery, trigger: str, price: float) -> None:
        self._owner = owner
        self._trigger = trigger
        self._price = price
        self._policy = owner.active_policy
        wc = owner.wc
        self._epoch, self._cost, self._entries = wc.epoch, wc.cost, len(wc.entries)
        self._moves: list[Move] = []
        self._skipped: tuple[Skipped, ...] = ()
        self._scores: Floats = np.zeros(0, dtype=np.float32)
        self._replaced = 0
        self._iterations = 0
        self._fallbacks: list[str] = []
        self._violations: list[str] = []
        self._seconds = [0.0, 0.0, 0.0]
        start = perf_counter()
        self._scope = owner.scope(query)
        self._scope_seconds = perf_counter() - start

    def clear(self) -> None:
        """Make room for a new turn: give back what it scores low, before anything is asked for.

        A turn may change the topic. Rows the last one asked for are then held by hysteresis and by
        paths whose siblings are still shown, and a few actions per iteration cannot undo them. So
        detail the turn does not want goes at once, by the mandatory phase and its rules.
        """
        wc = self._owner.wc
        view = self._owner.view(self._scope, 0)
        if not len(view.entries):
            return
        scores, _ = self._opinion(view)
        wc.tick(scores)
        entries = wc.entries
        unwanted = (entries.lod == 0) & ~entries.protected & (scores < -wc.budget.tau_collapse)
        rows = int(unwanted.sum()) * (BLOCK_SIZE - wc.budget.gist_slots)
        free = wc.budget.target - wc.cost
        if rows <= free:
            return
        try:
            applied = wc.make_room(reserve=free + rows)
        except BudgetError:
            return
        self._owner.count(applied)
        self._keep(applied)

    def iterate(self, iteration: int) -> bool:
        """Run one iteration; return whether another may be worth it."""
        owner = self._owner
        self._iterations += 1
        view = owner.view(self._scope, iteration)
        if not len(view.entries):
            return False
        clock = [perf_counter()]
        self._scores, reveals = self._opinion(view)
        clock.append(perf_counter())
        plan = owner.plan(view, self._scores, reveals, self._price)
        clock.append(perf_counter())
        self._skipped = plan.skipped
        owner.wc.tick(self._scores)
        applied = owner.apply(plan) if plan.moves else None
        clock.append(perf_counter())
        for phase in range(3):
            self._seconds[phase] += clock[phase + 1] - clock[phase]
        return applied is not None and self._keep(applied)

    def _keep(self, applied: AppliedPlan) -> bool:
        if applied.violation is not None:
            self._violations.append(applied.violation)
            self._policy = self._owner.fallback
            return False
        self._moves.extend(applied.moves)
        self._replaced += applied.entries_replaced
        return bool(applied.moves)

    def _opinion(self, view: FocusView) -> tuple[Floats, Sequence[Reveal]]:
        """Ask the policy; on any failure ask the fallback for the rest of this refocus."""
        if self._policy is not self._owner.fallback:
            try:
                scores = self._policy.score(view)
                _check_scores(scores, len(view.entries))
                reveals = self._policy.reveals(view, _REVEALS_PER_ITERATION)
                _check_reveals(reveals)
                return scores, reveals
            except Exception as error:  # noqa: BLE001 - a plugin's failure may be of any kind
                _log.warning("focus policy %s failed (%s)", self._policy.name, type(error).__name__)
                self._fallbacks.append(f"{self._policy.name}: {type(error).__name__}")
                self._policy = self._owner.fallback
        return self._policy.score(view), self._policy.reveals(view, _REVEALS_PER_ITERATION)

    def record(self) -> RefocusRecord:
        """Return the totals."""
        wc = self._owner.wc
        score, plan, apply = self._seconds
        return RefocusRecord(
            trigger=self._trigger,
            iterations=self._iterations,
            moves=tuple(self._moves),
            skipped=self._skipped,
            epoch_before=self._epoch,
            epoch_after=wc.epoch,
            cost_before=self._cost,
            cost_after=wc.cost,
            entries_before=self._entries,
            entries_replaced=self._replaced,
            scores=self._scores,
            scope_seconds=self._scope_seconds,
            score_seconds=score,
            plan_seconds=plan,
            apply_seconds=apply,
            fallbacks=tuple(self._fallbacks),
            violations=tuple(self._violations),
        )


def _check_scores(scores: Floats, n_entries: int) -> None:
    # NaN compares as False, so it is refused here, too.
    if not isinstance(scores, np.ndarray) or scores.shape != (n_entries,):
        message = f"scores must be an array of {n_entries} numbers, got {type(scores).__name__}"
        raise TypeError(message)
    if not bool((np.abs(scores) <= 1.0).all()):
        message = "scores must be numbers in [-1, 1]"
        raise ValueError(message)


def _check_reveals(reveals: Sequence[Reveal]) -> None:
    for one in reveals:
        if not isinstance(one, Reveal) or not abs(one.utility) <= 1.0:
            message = f"reveals must be Reveal values with a utility in [-1, 1], got {one!r:.80}"
            raise TypeError(message)
