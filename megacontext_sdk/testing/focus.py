"""What every focus allocator must keep, as a pytest class to inherit from.

    class TestAcme(AllocatorConformance):
        make = staticmethod(AcmeAllocator)

Checks the contract on random trees, scores and pins, not quality: whether a strategy chooses well
is measured elsewhere. `plain_faults` is the slow, plain twin of the invariant checks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np
import pytest

from megacontext_sdk.builtin.greedy import GreedyAllocator
from megacontext_sdk.contracts.focus import Budget, Move, Plan, Reveal
from megacontext_sdk.errors import BudgetError
from megacontext_sdk.focus.candidates import sibling_groups
from megacontext_sdk.focus.moves import Draft
from megacontext_sdk.focus.working_context import WorkingContext
from megacontext_sdk.memory.lod import NodeId, Span, width

if TYPE_CHECKING:
    from collections.abc import Callable

    from megacontext_sdk.contracts.arrays import Floats
    from megacontext_sdk.contracts.focus import EntryArrays, FocusAllocator

__all__ = ["AllocatorCase", "AllocatorConformance", "allocator_case", "plain_faults"]


@attrs.frozen(eq=False, kw_only=True)
class AllocatorCase:
    """A working context in some reachable state, and what an allocator is asked about it.

    Attributes:
        wc: strict, so an illegal plan raises.
        scores: float32[E].
        reveals: wishes, some of them useless.
    """

    wc: WorkingContext
    scores: Floats
    reveals: tuple[Reveal, ...]

    def plan(self, allocator: FocusAllocator) -> Plan:
        """Ask an allocator."""
        return allocator.plan(self.wc.entries, self.scores, self.reveals, self.wc.budget)


def allocator_case(seed: int, allocator: FocusAllocator | None = None) -> AllocatorCase:
    """Return a random case: history length, budget, layout, pins, ages, scores and reveals.

    Args:
        seed: same seed, same case.
        allocator: makes room in the working context.
    """
    random = np.random.default_rng(seed)
    n_tokens = int(10 ** random.uniform(1, 6))
    wc = WorkingContext(_budget(random), allocator=allocator or GreedyAllocator(), strict=True)
    wc.lay_out(n_tokens)
    for _ in range(int(random.integers(0, 3))):
        _shake(wc, random)
    if random.random() < 0.3:
        _pin(wc, random)
    for _ in range(int(random.integers(0, 4))):
        wc.tick(_scores(random, len(wc.entries)))
    blocks = random.integers(0, n_tokens // 32 + 2, int(random.integers(0, 6)))
    reveals = tuple(Reveal(int(b), float(random.uniform(-0.5, 1))) for b in blocks)
    return AllocatorCase(wc=wc, scores=_scores(random, len(wc.entries)), reveals=reveals)


def plain_faults(entries: EntryArrays, n_tokens: int, budget: Budget) -> list[str]:
    """Return the broken invariants I1 to I5, entry by entry in plain Python."""
    faults: list[str] = []
    at = rows = 0
    for i in range(len(entries)):
        lod, index, start, length, cost = (
            int(getattr(entries, name)[i]) for name in ("lod", "index", "start", "n_tokens", "cost")
        )
        is_tail = i == len(entries) - 1 and n_tokens % 32 > 0
        if start != at:
            faults.append(f"I3 at entry {i}")
        if start % width(lod) or length != (n_tokens % 32 if is_tail else width(lod)):
            faults.append(f"I4 at entry {i}")
        raw_cost, gist_cost = length, budget.gist_slots
        if start != index * width(lod) or cost != (gist_cost if lod else raw_cost):
            faults.append(f"I5 at entry {i}")
        at, rows = start + length, rows + cost
    if at != n_tokens:
        faults.append("I2")
    if rows > budget.w_max:
        faults.append("I1")
    return faults


class AllocatorConformance:
    """Standard tests of a `FocusAllocator`; set `make`."""

    make: Callable[[], FocusAllocator]
    keeps_thresholds = True
    """Whether scores inside the thresholds lead to no action; not so if it moves them."""
    n_cases = 60
    """Random cases per test."""

    @pytest.fixture(scope="class")
    @classmethod
    def cases(cls) -> list[AllocatorCase]:
        """Random cases whose working contexts make room through the allocator."""
        return [allocator_case(seed, cls.make()) for seed in range(cls.n_cases)]

    def test_plans_stay_within_the_budget(self, cases: list[AllocatorCase]) -> None:
        """Any prefix of the plan keeps the cost within the target, if it was so before."""
        for case in cases:
            cost, limit = case.wc.cost, max(case.wc.cost, case.wc.budget.target)
            for move in case.plan(self.make()).moves:
                cost += move.delta_cost
                assert cost <= limit, f"{cost} rows after {move}, the target is {limit}"

    def test_plans_keep_the_history_contiguous_aligned_and_level(
        self, cases: list[AllocatorCase]
    ) -> None:
        """Applied plans leave I1 to I5 intact, checked entry by entry."""
        for case in cases:
            entries = _played(case, case.plan(self.make()))
            faults = plain_faults(entries, case.wc.n_tokens, case.wc.budget)
            assert not faults, f"after the plan: {', '.join(faults)}"

    def test_moves_swap_a_node_against_all_its_children(self, cases: list[AllocatorCase]) -> None:
        """Each move is legal by itself, at the price it names: no partial swap."""
        for case in cases:
            budget = case.wc.budget
            draft = Draft(case.wc.entries, case.wc.n_tokens, budget.gist_slots)
            for move in case.plan(self.make()).moves:
                before = draft.cost
                draft.play([move])
                assert draft.cost - before == move.delta_cost, f"{move} changes another cost"

    def test_protected_entries_stay(self, cases: list[AllocatorCase]) -> None:
        """Neither a plan nor making room collapses a protected entry."""
        for case in cases:
            entries = _played(case, case.plan(self.make()))
            held = case.wc.protection.mark(entries)[0]
            assert not entries.lod[held].any(), "a protected span is not at LOD0"

    def test_plans_take_at_most_n_diff_actions(self, cases: list[AllocatorCase]) -> None:
        """More are allowed only for one reveal that opens the plan, with the collapses it needs."""
        for case in cases:
            moves = case.plan(self.make()).moves
            taken = sum(move.n_actions for move in moves)
            last = moves[-1].kind if moves else ""
            alone = last == "reveal" and all(m.kind == "collapse" for m in moves[:-1])
            assert taken <= case.wc.budget.n_diff or alone, f"{taken} actions in one plan"

    def test_the_same_input_gives_the_same_plan(self, cases: list[AllocatorCase]) -> None:
        """Also from a second instance, and asked twice."""
        for case in cases:
            allocator = self.make()
            first = case.plan(allocator)
            assert first == case.plan(allocator)
            assert first == case.plan(self.make())

    def test_planning_changes_nothing(self, cases: list[AllocatorCase]) -> None:
        """Entries and scores are read-only to an allocator."""
        for case in cases:
            case.scores.flags.writeable = False
            before = case.wc.save()
            case.plan(self.make())
            assert before == case.wc.save()

    def test_repeated_plans_come_to_an_end(self, cases: list[AllocatorCase]) -> None:
        """With scores bound to the content, a refocus stops by itself."""
        for seed in range(len(cases) // 4):
            wc = allocator_case(seed, self.make()).wc
            n_applied = 0
            # Everything is offered back, all the time.
            while (plan := _offer_all(wc, self.make())).moves:
                wc.apply(plan)
                n_applied += 1
                assert n_applied < 400, "collapsing everything never ends"

    def test_scores_inside_the_thresholds_lead_to_no_action(
        self, cases: list[AllocatorCase]
    ) -> None:
        """Scores at the thresholds themselves are inside."""
        if not self.keeps_thresholds:
            pytest.skip("this allocator moves the thresholds")
        for case in cases:
            budget = case.wc.budget
            inside = np.clip(case.scores, -budget.tau_collapse, budget.tau_expand)
            plan = self.make().plan(case.wc.entries, inside.astype(np.float32), (), case.wc.budget)
            assert not plan.moves, f"{plan.moves[0]} has a score inside the thresholds"

    def test_an_empty_history_needs_no_plan(self) -> None:
        """No entries, no moves, no error."""
        wc = WorkingContext(Budget(w_max=512), allocator=self.make(), strict=True)
        plan = self.make().plan(wc.entries, np.zeros(0, dtype=np.float32), (), wc.budget)
        assert not plan.moves
        assert not self.make().make_room(wc.entries, wc.budget).moves

    def test_making_room_reaches_the_target_or_refuses(self, cases: list[AllocatorCase]) -> None:
        """Collapses only, down to the target; `BudgetError` only when nothing is left to take."""
        for case in cases:
            wc = case.wc
            for share in (0.9, 0.5, 0.1):
                tight = attrs.evolve(wc.budget, headroom=wc.budget.w_max - int(wc.cost * share))
                plan = _room(self.make(), wc.entries, tight)
                if plan is None:
                    continue
                kinds = {move.kind for move in plan.moves}
                assert kinds <= {"collapse"}, f"making room must only collapse, not {kinds}"
                assert int(_played(case, plan).cost.sum()) <= tight.target


def _offer_all(wc: WorkingContext, allocator: FocusAllocator) -> Plan:
    scores = np.full(len(wc.entries), -0.9, dtype=np.float32)
    plan = allocator.plan(wc.entries, scores, (), wc.budget)
    wc.tick(scores)
    return plan


def _room(allocator: FocusAllocator, entries: EntryArrays, budget: Budget) -> Plan | None:
    """Return the plan, or None if the allocator rightly refuses."""
    try:
        return allocator.make_room(entries, budget)
    except BudgetError as error:
        if error.needed > error.available == budget.target:
            return None
        raise


def _played(case: AllocatorCase, plan: Plan) -> EntryArrays:
    wc = case.wc
    draft = Draft(wc.entries, wc.n_tokens, wc.budget.gist_slots)
    draft.play(plan.moves)
    return draft.finish(wc.protection)


def _budget(random: np.random.Generator) -> Budget:
    slots = int(random.choice([1, 1, 1, 2, 4]))
    w_max = int(random.integers(448, 1024)) * slots
    return Budget(
        w_max=w_max,
        headroom=int(random.integers(32, 65)),
        gist_slots=slots,
        recent_tokens=int(random.integers(0, 129)),
        sink_blocks=int(random.integers(0, 2)),
        n_diff=int(random.integers(1, 9)),
    )


def _scores(random: np.random.Generator, n_entries: int) -> Floats:
    scores = random.uniform(-1, 1, n_entries) * random.choice([0.0, 0.3, 1.0, 1.0])
    if random.random() < 0.3:
        scores = np.round(scores, 1)  # many ties
    out: Floats = scores.astype(np.float32)
    return out


def _shake(wc: WorkingContext, random: np.random.Generator) -> None:
    """Collapse some groups and expand some gists, whatever that is good for."""
    entries = wc.entries
    groups = sibling_groups(entries, np.zeros(len(entries), dtype=np.float32))
    taken = groups.take(np.flatnonzero(random.random(len(groups.at)) < random.random()))
    used = np.zeros(len(entries), dtype=np.bool_)
    moves: list[Move] = []
    for group in taken:
        used[group.at : group.at + group.size] = True
        moves.append(Move(kind="collapse", node=group.node, score=0.0, delta_cost=0))
    slots = wc.budget.gist_slots
    free = wc.budget.target - wc.cost + 28 * len(moves) * (slots == 1)
    gists = random.permutation(np.flatnonzero((entries.lod > 0) & ~used))
    for at in gists[: max(0, free // (31 * slots))].tolist():
        node = NodeId(int(entries.lod[at]), int(entries.index[at]))
        moves.append(Move(kind="expand", node=node, score=0.0, delta_cost=0))
    wc.apply(Plan(moves=tuple(moves)))


def _pin(wc: WorkingContext, random: np.random.Generator) -> None:
    """Pin a random span, if the budget has room for it."""
    start = int(random.integers(0, wc.n_tokens))
    try:
        wc.pin(Span(start, min(wc.n_tokens, start + int(random.integers(1, 80)))))
    except BudgetError:
        return
