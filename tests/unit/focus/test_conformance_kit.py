"""The kit is tested too: each standard test has a broken allocator that it must catch."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from megacontext_sdk.builtin.greedy import GreedyAllocator
from megacontext_sdk.contracts.focus import Budget, Move, Plan
from megacontext_sdk.focus.entries import entries_from_nodes
from megacontext_sdk.memory.lod import NodeId
from megacontext_sdk.testing.focus import AllocatorConformance, allocator_case, plain_faults


class Double(GreedyAllocator):
    """Greedy, but for one thing."""


class Spender(Double):
    def plan(self, entries, scores, reveals, budget):
        rich = attrs.evolve(budget, w_max=10**6)
        return super().plan(entries, np.abs(scores), reveals, rich)


class PartialSwapper(Double):
    def plan(self, entries, scores, reveals, budget):
        plan = super().plan(entries, scores, reveals, budget)
        torn = [m for m in plan.moves for _ in range(2)]  # the second one has no children left
        return attrs.evolve(plan, moves=tuple(torn))


class WrongPrice(Double):
    def plan(self, entries, scores, reveals, budget):
        plan = super().plan(entries, scores, reveals, budget)
        return attrs.evolve(plan, moves=tuple(attrs.evolve(m, delta_cost=0) for m in plan.moves))


class Trespasser(Double):
    def plan(self, entries, scores, reveals, budget):
        naked = attrs.evolve(entries, protected=np.zeros_like(entries.protected))
        return super().plan(naked, np.full_like(scores, -0.9), reveals, budget)


class Glutton(Double):
    def plan(self, entries, scores, reveals, budget):
        return super().plan(entries, scores, reveals, attrs.evolve(budget, n_diff=64))


class Moody(Double):
    calls = 0

    def plan(self, entries, scores, reveals, budget):
        Moody.calls += 1
        plan = super().plan(entries, scores, reveals, budget)
        return attrs.evolve(plan, moves=plan.moves[: Moody.calls % 3])


class Scribbler(Double):
    def plan(self, entries, scores, reveals, budget):
        scores[:] = 0
        return super().plan(entries, scores, reveals, budget)


class Seesaw(Double):
    def plan(self, entries, scores, reveals, budget):
        up = entries.lod > 0
        free = attrs.evolve(budget, cooldown=-1, hysteresis_iterations=-1)
        return super().plan(entries, np.where(up, 0.9, scores).astype(np.float32), reveals, free)


class Restless(Double):
    def plan(self, entries, scores, reveals, budget):
        eager = attrs.evolve(budget, tau_expand=-2.0, tau_collapse=-2.0)
        return super().plan(entries, scores, reveals, eager)


class Crasher(Double):
    def plan(self, entries, scores, reveals, budget):
        entries.lod[0]  # an empty history has no first entry
        return super().plan(entries, scores, reveals, budget)


class Lazy(Double):
    def make_room(self, entries, budget):
        return attrs.evolve(super().make_room(entries, budget), moves=())


CATCHES = {
    "test_plans_stay_within_the_budget": Spender,
    "test_plans_keep_the_history_contiguous_aligned_and_level": PartialSwapper,
    "test_moves_swap_a_node_against_all_its_children": WrongPrice,
    "test_protected_entries_stay": Trespasser,
    "test_plans_take_at_most_n_diff_actions": Glutton,
    "test_the_same_input_gives_the_same_plan": Moody,
    "test_planning_changes_nothing": Scribbler,
    "test_repeated_plans_come_to_an_end": Seesaw,
    "test_scores_inside_the_thresholds_lead_to_no_action": Restless,
    "test_an_empty_history_needs_no_plan": Crasher,
    "test_making_room_reaches_the_target_or_refuses": Lazy,
}


@pytest.mark.parametrize("name", CATCHES)
def test_a_standard_test_catches_its_broken_double(name):
    kit = AllocatorConformance()
    kit.make = CATCHES[name]
    arguments = []
    if "empty" not in name:
        arguments = [[allocator_case(seed) for seed in range(40)]]
    with pytest.raises(Exception):  # noqa: B017 - an assertion, or our typed error
        getattr(kit, name)(*arguments)
    kit.make = GreedyAllocator
    if "empty" not in name:
        arguments = [[allocator_case(seed) for seed in range(40)]]
    getattr(kit, name)(*arguments)


def test_every_standard_test_has_a_broken_double():
    assert set(CATCHES) == {name for name in dir(AllocatorConformance) if name.startswith("test_")}


def test_the_same_seed_gives_the_same_case():
    first, second = allocator_case(7), allocator_case(7)
    assert first.wc.save() == second.wc.save()
    assert first.scores.tolist() == second.scores.tolist()
    assert first.reveals == second.reveals


def test_plain_faults_names_each_broken_invariant():
    budget = Budget(w_max=8)
    good = entries_from_nodes([1, 1, 0], [0, 1, 2], 70, 1)
    assert [] == plain_faults(good, 70, budget)
    assert ["I2"] == plain_faults(good, 71, budget)[-1:]
    assert ["I1"] == plain_faults(good, 70, attrs.evolve(budget, w_max=7))
    moved = attrs.evolve(good, start=np.array([0, 31, 64]))
    assert "I3 at entry 1" in plain_faults(moved, 70, budget)
    assert "I4 at entry 1" in plain_faults(moved, 70, budget)
    assert ["I5 at entry 0"] == plain_faults(
        attrs.evolve(good, cost=np.array([2, 1, 6])), 70, attrs.evolve(budget, w_max=10)
    )


def test_moves_of_cases_are_reproducible_values():
    move = Move(kind="expand", node=NodeId(1, 2), score=0.5, delta_cost=31)
    assert Plan(moves=(move,)) == Plan(moves=(attrs.evolve(move),))
