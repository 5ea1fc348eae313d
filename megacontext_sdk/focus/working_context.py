"""The working context: what the model reads, as entries that tile the whole history.

Every mutation goes draft -> check -> swap: all of it or nothing, and the epoch rises. It is a pure
function of the history's length and the budget; it knows no tree, no model and no policy.
Not thread-safe: one session owns one working context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.contracts.positions import Layout
from megacontext_sdk.errors import BudgetError, ConfigError, InvariantError
from megacontext_sdk.focus import saved_layout
from megacontext_sdk.focus.applied import AppliedPlan, node_runs
from megacontext_sdk.focus.entries import freeze, no_entries
from megacontext_sdk.focus.growth import initial_entries, new_nodes
from megacontext_sdk.focus.invariants import check_entries, check_swap, check_tiling
from megacontext_sdk.focus.moves import Draft
from megacontext_sdk.focus.protection import YIELD_LADDER, protect, without
from megacontext_sdk.focus.settling import Settler
from megacontext_sdk.focus.wishes import (
    check_length,
    check_pins,
    check_span,
    legal,
    nodes_to_collapse,
    say,
)
from megacontext_sdk.memory.lod import BLOCK_SIZE, NodeId

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from megacontext_sdk.contracts.arrays import Floats, Indices
    from megacontext_sdk.contracts.focus import Budget, EntryArrays, FocusAllocator, Move, Plan
    from megacontext_sdk.focus.protection import Protection
    from megacontext_sdk.memory.lod import Span

__all__ = ["AppliedPlan", "WorkingContext"]

_ASKED = 1.0
"""Score that a user's wish leaves on the entries it made."""


@attrs.frozen(eq=False, kw_only=True)
class _State:
    """All that a mutation replaces at once."""

    entries: EntryArrays
    n_tokens: int
    pins: tuple[Span, ...]
    protection: Protection
    cost: int
    epoch: int


class WorkingContext:
    """Entries over one history, within one budget.

    Args:
        budget: the budget and its rules.
        allocator: makes room when the entries outgrow the budget.
        strict: raise on a plan that breaks an invariant, instead of reporting it.

    Raises:
        ConfigError: the budget leaves no rows.
    """

    def __init__(self, budget: Budget, *, allocator: FocusAllocator, strict: bool = False) -> None:
        if budget.target <= 0:
            raise ConfigError(
                f"w_max={budget.w_max} leaves no rows beside headroom={budget.headroom}: "
                "raise w_max or lower headroom",
                field="w_max",
                value=budget.w_max,
            )
        self.budget = budget
        self._allocator = allocator
        self._strict = strict
        self._state = _State(
            entries=no_entries(),
            n_tokens=0,
            pins=(),
            protection=protect(0, budget, ()),
            cost=0,
            epoch=0,
        )

    @property
    def entries(self) -> EntryArrays:
        """The entries in order: read-only arrays, which later changes leave alone."""
        return self._state.entries

    @property
    def epoch(self) -> int:
        """Number that rises with every change of the entries."""
        return self._state.epoch

    @property
    def n_tokens(self) -> int:
        """N: tokens the entries tile."""
        return self._state.n_tokens

    @property
    def cost(self) -> int:
        """Rows the entries cost."""
        return self._state.cost

    @property
    def pins(self) -> tuple[Span, ...]:
        """The user's pins."""
        return self._state.pins

    @property
    def protection(self) -> Protection:
        """What is held at LOD0 at present."""
        return self._state.protection

    def layout(self) -> Layout:
        """Return what the pager and position schemes need."""
        entries = self._state.entries
        return Layout(
            lod=entries.lod,
            index=entries.index,
            start=entries.start,
            n_tokens=entries.n_tokens,
            cost=entries.cost,
            gist_slots=self.budget.gist_slots,
            epoch=self._state.epoch,
        )

    def check(self) -> None:
        """Check I1-I5 and I10 on all entries.

        Raises:
            InvariantError: the subclass of the first broken invariant.
        """
        state = self._state
        check_entries(state.entries, state.n_tokens, self.budget, state.protection)

    def lay_out(self, n_tokens: int) -> AppliedPlan:
        """Replace everything by the initial layout; pins stay.

        Raises:
            ConfigError: a length no history can have.
            BudgetError: pins leave no tiling within the target.
        """
        check_length(n_tokens)
        entries, protection = initial_entries(n_tokens, self.budget, self.pins)
        check_entries(entries, n_tokens, self.budget, protection)
        origin: Indices = np.full(len(entries), -1, dtype=np.int64)
        applied = self._install(
            attrs.evolve(self._state, entries=entries, n_tokens=n_tokens, protection=protection),
            origin,
            (),
        )
        return attrs.evolve(applied, added=node_runs(entries.lod, entries.index))

    def extend(self, n_tokens: int) -> AppliedPlan:
        """Let the history grow to `n_tokens`: new blocks, then room for them, all at once.

        Raises:
            ConfigError: the history would shrink.
            BudgetError: pins leave no tiling within the target.
        """
        check_length(n_tokens)
        if n_tokens < self.n_tokens:
            raise ConfigError(
                f"the history has {self.n_tokens} tokens and only grows, got n_tokens={n_tokens}",
                field="n_tokens",
                value=n_tokens,
            )
        if n_tokens == self.n_tokens:
            return self._report()
        draft = self._draft()
        nodes = new_nodes(self.n_tokens, n_tokens, self.cost, self.budget, self.pins)
        draft.append(*nodes, n_tokens)
        # Between boundaries the tail may use the headroom; that is what it is for.
        is_boundary = n_tokens // BLOCK_SIZE > self.n_tokens // BLOCK_SIZE
        limit = self.budget.target if is_boundary else self.budget.w_max
        applied = self._settle(draft, limit=limit, may_yield=True)
        return applied if applied.rebuilt else attrs.evolve(applied, added=node_runs(*nodes))

    def make_room(self, reserve: int = 0) -> AppliedPlan:
        """Collapse until `headroom + reserve` rows are free.

        Raises:
            BudgetError: protected rows leave no legal collapse.
        """
        budget = attrs.evolve(self.budget, headroom=self.budget.headroom + reserve)
        if self.cost <= budget.target:
            return self._report()
        return self._settle(self._draft(), budget=budget, may_yield=not reserve)

    def apply(self, plan: Plan) -> AppliedPlan:
        """Apply a plan, all of it or nothing.

        A plan that breaks an invariant changes nothing and is reported in `violation`.

        Raises:
            InvariantError: the same, in strict mode.
        """
        if not plan.moves:
            return self._report()
        draft = self._draft()
        try:
            draft.play(plan.moves)
            return self._swap(draft, self.pins, self.protection, plan.moves)
        except InvariantError as error:
            return self._recover(error, self.n_tokens)

    def tick(self, scores: Floats) -> None:
        """Close the scoring of an iteration, before its plan is applied.

        Args:
            scores: float32[E] of the present entries; new entries inherit from them.

        Raises:
            ConfigError: another number of scores than entries.
        """
        entries = self._state.entries
        if np.shape(scores) != (len(entries),):
            raise ConfigError(
                f"tick takes one score for each of {len(entries)} entries, got "
                f"{np.shape(scores)}: call it before the plan is applied",
                field="scores",
                value=np.shape(scores),
            )
        older = attrs.evolve(
            entries,
            last_score=np.array(scores, dtype=np.float32),
            residency=entries.residency + 1,
            action_age=entries.action_age + 1,
        )
        self._state = attrs.evolve(self._state, entries=freeze(older))

    def pin(self, span: Span) -> AppliedPlan:
        """Hold a span at LOD0 until it is unpinned; its blocks are revealed at once.

        Raises:
            ConfigError: the span is empty or not inside the history.
            BudgetError: pins above `pin_share`, or no room for the span; nothing changes.
        """
        check_span("pin", span, self.n_tokens)
        pins = self.pins if span in self.pins else (*self.pins, span)
        check_pins(span, pins, self.n_tokens, self.budget)
        return self._wish(self._draft(), f"pin {say(span)}", pins=pins)

    def unpin(self, span: Span) -> AppliedPlan:
        """Give up the pins of a span; its detail stays until room is needed.

        Raises:
            ConfigError: nothing in the span is pinned.
        """
        if not any(pin.overlaps(span) for pin in self.pins):
            raise ConfigError(
                f"cannot unpin {say(span)}: nothing in it is pinned", field="span", value=span
            )
        return self._settle(self._draft(), pins=without(self.pins, span), limit=self.budget.w_max)

    def expand(self, target: Span | NodeId) -> AppliedPlan:
        """Show a span in full, or open one gist by one level, making room elsewhere.

        Raises:
            ConfigError: the span is not inside the history, or the node is no gist entry.
            BudgetError: it cannot fit; nothing changes.
        """
        draft = self._draft()
        if isinstance(target, NodeId):
            node = target
            moves = [legal(lambda: draft.expand(node, _ASKED), f"expand {node}")]
            return self._wish(draft, f"expand {node}", moves=moves, guard=node.span)
        check_span("expand", target, self.n_tokens)
        wanted = protect(self.n_tokens, self.budget, (target,)).pins
        moves = draft.open(wanted, _ASKED, "user")
        return self._wish(draft, f"expand {say(target)}", moves=moves, guard=target)

    def collapse(self, target: Span | NodeId) -> AppliedPlan:
        """Show a node, or the full blocks of a span, as coarsely as complete gists allow.

        Raises:
            ConfigError: there is no complete node to collapse into, or a part is protected.
        """
        draft = self._draft()
        nodes = nodes_to_collapse(target, self.n_tokens)
        moves = legal(
            lambda: [move for node in nodes for move in draft.fold(node, -_ASKED, "user")],
            f"collapse {say(target)}",
        )
        return self._settle(draft, moves=moves, limit=self.budget.w_max)

    def save(self) -> dict[str, object]:
        """Return the layout as integers and bytes, ready for msgpack."""
        state = self._state
        return saved_layout.pack(state.entries, state.n_tokens, state.pins, state.epoch)

    def restore(self, saved: Mapping[str, object]) -> AppliedPlan:
        """Take up a saved layout, checked, and fit it into the present budget.

        Raises:
            ConfigError: it is no saved layout.
            InvariantError: it does not tile its history.
            BudgetError: its pins do not fit the present budget.
        """
        layout = saved_layout.unpack(saved)
        entries = layout.entries(self.budget.gist_slots)
        check_tiling(entries, layout.n_tokens, self.budget.gist_slots)
        before = self._state
        self._state = _State(
            entries=freeze(entries),
            n_tokens=layout.n_tokens,
            pins=layout.pins,
            protection=protect(layout.n_tokens, self.budget, layout.pins),
            cost=int(entries.cost.sum()),
            epoch=max(layout.epoch, before.epoch + 1),
        )
        try:
            applied = self._settle(self._draft(), may_yield=True)
        except (BudgetError, InvariantError):
            self._state = before
            raise
        if applied.rebuilt:
            return applied
        return attrs.evolve(applied, added=node_runs(entries.lod, entries.index))

    def _draft(self) -> Draft:
        return Draft(self._state.entries, self.n_tokens, self.budget.gist_slots)

    def _finish(self, draft: Draft, protection: Protection) -> EntryArrays:
        """Turn a draft into entries: the one place where they are made after the first layout."""
        return draft.finish(protection)

    def _wish(
        self,
        draft: Draft,
        wish: str,
        *,
        pins: tuple[Span, ...] | None = None,
        moves: Sequence[Move] = (),
        guard: Span | None = None,
    ) -> AppliedPlan:
        """Settle what a user asked for, or refuse in the user's terms."""
        try:
            return self._settle(draft, pins=pins, moves=moves, guard=guard)
        except BudgetError as error:
            raise BudgetError(
                f"cannot {wish}: {error}", needed=error.needed, available=error.available
            ) from error

    def _settle(
        self,
        draft: Draft,
        *,
        budget: Budget | None = None,
        pins: tuple[Span, ...] | None = None,
        moves: Sequence[Move] = (),
        limit: int | None = None,
        guard: Span | None = None,
        may_yield: bool = False,
    ) -> AppliedPlan:
        """Open what is protected, make room above `limit` rows, check, swap."""
        budget = budget or self.budget
        pins = self.pins if pins is None else pins
        try:
            settler = Settler(
                budget=budget,
                allocator=self._allocator,
                limit=budget.target if limit is None else limit,
                guard=guard,
            )
            ladder = YIELD_LADDER if may_yield else (self.protection.yielded,)
            settled = settler.settle(draft, pins, ladder)
            done = (*moves, *settled.moves)
            return self._swap(settled.draft, pins, settled.protection, done)
        except InvariantError as error:
            return self._recover(error, draft.n_tokens)

    def _swap(
        self,
        draft: Draft,
        pins: tuple[Span, ...],
        protection: Protection,
        moves: Sequence[Move],
    ) -> AppliedPlan:
        """Check the edited entries as a whole and put them in place."""
        entries = self._finish(draft, protection)
        check_entries(entries, draft.n_tokens, self.budget, protection)
        check_swap(self._state.entries, entries, draft.origin)
        state = attrs.evolve(
            self._state,
            entries=entries,
            n_tokens=draft.n_tokens,
            pins=pins,
            protection=protection,
        )
        return self._install(state, draft.origin, tuple(moves))

    def _install(self, state: _State, origin: Indices, moves: tuple[Move, ...]) -> AppliedPlan:
        before, entries = self._state, freeze(state.entries)
        stayed = int((origin >= 0).sum())
        n_before = len(before.entries)
        changed = stayed < max(len(entries), n_before)
        tail = before.n_tokens % BLOCK_SIZE > 0 and state.n_tokens > before.n_tokens
        self._state = attrs.evolve(
            state, cost=int(entries.cost.sum()), epoch=before.epoch + int(changed)
        )
        return AppliedPlan(
            moves=moves,
            epoch_before=before.epoch,
            epoch_after=self.epoch,
            cost_before=before.cost,
            cost_after=self.cost,
            entries_before=n_before,
            entries_replaced=max(0, n_before - stayed - int(tail)),
            yielded=state.protection.yielded,
        )

    def _report(self, violation: str | None = None) -> AppliedPlan:
        """Return the report of a mutation that changed nothing."""
        return AppliedPlan(
            epoch_before=self.epoch,
            epoch_after=self.epoch,
            cost_before=self.cost,
            cost_after=self.cost,
            entries_before=len(self.entries),
            violation=violation,
            yielded=self.protection.yielded,
        )

    def _recover(self, error: InvariantError, n_tokens: int) -> AppliedPlan:
        """Go down the ladder of spec section 2: the last valid state, else the initial layout."""
        error.epoch = self.epoch
        if self._strict:
            raise error
        violation = f"{error.code}: {error.detail}"
        try:
            if n_tokens == self.n_tokens:
                self.check()
                return self._report(violation)
        except InvariantError:
            pass  # the state we would go back to is broken too: build a new one
        return attrs.evolve(self.lay_out(n_tokens), violation=violation, rebuilt=True)
