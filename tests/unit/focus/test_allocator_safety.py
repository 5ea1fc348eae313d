"""The greedy allocator: safe on any tree, damped, totally ordered, never spinning."""

from __future__ import annotations

import os
import subprocess
import sys
from time import perf_counter

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_sdk.builtin.greedy import GreedyAllocator
from megacontext_sdk.contracts.focus import Reveal
from megacontext_sdk.memory.lod import NodeId
from megacontext_sdk.testing.focus import allocator_case, plain_faults

CASES_PER_EXAMPLE = 25
ROUNDS = 4


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_row44_random_plans_keep_all_invariants(seed):
    # 100 examples x 25 trees with pins, 4 plans each with new scores, and each plan applied makes
    # a new tree: 10,000. `wc` is strict: applying checks I1-I5 and I8-I10 and raises.
    allocator = GreedyAllocator()
    random = np.random.default_rng(seed)
    for number in range(CASES_PER_EXAMPLE):
        case = allocator_case(seed + number)
        wc, scores, reveals = case.wc, case.scores, case.reveals
        for _ in range(ROUNDS):
            plan = allocator.plan(wc.entries, scores, reveals, wc.budget)
            wc.tick(scores)
            applied = wc.apply(plan)
            assert applied.cost_before + sum(m.delta_cost for m in plan.moves) == wc.cost
            assert wc.cost <= max(applied.cost_before, wc.budget.target)
            taken = sum(m.n_actions for m in plan.moves)
            kinds = [m.kind for m in plan.moves]
            # A reveal may exceed n_diff only as the first action, with the collapses it needs.
            alone = kinds[-1:] == ["reveal"] and set(kinds[:-1]) <= {"collapse"}
            assert taken <= wc.budget.n_diff or alone
            scores = random.uniform(-1, 1, len(wc.entries)).astype(np.float32)
            reveals = ()
        if number % 10 == 0:
            assert [] == plain_faults(wc.entries, wc.n_tokens, wc.budget)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_row44_refocus_terminates_when_scores_follow_content(seed):
    case = allocator_case(seed)
    wc, allocator = case.wc, GreedyAllocator()
    wanted = np.random.default_rng(seed).integers(0, wc.n_tokens, 3)
    for _ in range(2000):
        entries = wc.entries
        hit = np.zeros(len(entries), dtype=bool)
        hit[np.searchsorted(entries.start, wanted, side="right") - 1] = True
        scores = np.where(hit, 0.9, -0.9).astype(np.float32)
        plan = allocator.plan(entries, scores, (), wc.budget)
        wc.tick(scores)
        if not plan.moves and not plan.skipped:
            break
        wc.apply(plan)
    else:
        pytest.fail("a refocus with stable wishes never came to rest")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.floats(0.01, 0.9))
def test_row45_scores_inside_the_thresholds_cause_no_action(seed, tau):
    case = allocator_case(seed)
    budget = attrs.evolve(case.wc.budget, tau_expand=tau, tau_collapse=tau)
    scores = np.clip(case.scores, -np.float32(tau), np.float32(tau))
    reveals = [attrs.evolve(reveal, utility=tau) for reveal in case.reveals]
    plan = GreedyAllocator().plan(case.wc.entries, scores, reveals, budget)
    assert () == plan.moves


def test_row45_all_zero_scores_cause_no_action(tiled, refocus):
    wc = tiled([(2, 0, 10), (1, 320, 350), (0, 350, 360)], 360 * 32)
    assert [] == refocus(wc, {})


def alternate_scores(wc, magnitude, iterations):
    """Ask for block 10 and offer it back in turn; return the signs of the actions, 0 for none."""
    signs = []
    for iteration in range(iterations):
        sign = 1 if iteration % 2 == 0 else -1
        at = int(np.flatnonzero(wc.entries.start == 320)[0])
        scores = np.zeros(len(wc.entries), dtype=np.float32)
        scores[at] = sign * magnitude
        plan = GreedyAllocator().plan(wc.entries, scores, (), wc.budget)
        wc.tick(scores)
        wc.apply(plan)
        signs.append({"expand": 1, "collapse": -1}[plan.moves[0].kind] if plan.moves else 0)
    return signs


def test_row46_alternating_strong_scores_reverse_at_most_once_per_3_iterations(tiled):
    wc = tiled([(1, 0, 40), (0, 40, 48)], 48 * 32)
    signs = alternate_scores(wc, 0.9, 30)
    acted = [i for i, sign in enumerate(signs) if sign]
    assert [1, -1] * (len(acted) // 2) == [signs[i] for i in acted][: len(acted) // 2 * 2]
    assert {3} == set(np.diff(acted).tolist()), "blocked for 2 iterations, then free"


def test_row46_alternating_weak_scores_do_not_reverse_within_8_iterations(tiled):
    wc = tiled([(1, 0, 40), (0, 40, 48)], 48 * 32)
    signs = alternate_scores(wc, 0.25, 30)
    acted = [i for i, sign in enumerate(signs) if sign]
    assert 0 == acted[0]
    assert {9} == set(np.diff(acted).tolist()), "8 iterations of hysteresis, then free"


def test_row46_the_same_direction_is_never_blocked(tiled, refocus):
    wc = tiled([(3, 0, 1), (0, 1024, 1032)], 1032 * 32)
    applied = refocus(wc, {(3, 0): 0.9, (2, 7): 0.9, (1, 7 * 32 + 3): 0.9})
    assert [NodeId(3, 0), NodeId(2, 7), NodeId(1, 7 * 32 + 3)] == [
        step.moves[0].node for step in applied
    ]


def test_row46_collapsing_a_group_waits_for_its_youngest_member(tiled, refocus, scored):
    wc = tiled([(2, 0, 2), (0, 64, 72)], 72 * 32)
    refocus(wc, {(2, 0): 0.9}, max_iterations=1)
    offered = {(1, block): -0.9 for block in range(32)}
    acted = []
    for _ in range(4):
        plan = GreedyAllocator().plan(wc.entries, scored(wc, offered), (), wc.budget)
        wc.tick(scored(wc, offered))
        acted.append(len(plan.moves))
    assert [0, 0, 1, 1] == acted


def test_row47_equal_scores_expand_nearest_to_the_cursor_first(tiled, scored):
    wc = tiled([(2, 0, 3), (1, 96, 104), (0, 104, 112)], 112 * 32)
    same = {(2, i): 0.5 for i in range(3)} | {(1, i): 0.5 for i in range(96, 104)}
    plan = GreedyAllocator().plan(wc.entries, scored(wc, same), (), wc.budget)
    assert [NodeId(1, i) for i in (103, 102, 101, 100)] == [m.node for m in plan.moves]


def test_row47_equal_scores_collapse_farthest_from_the_cursor_first(tiled, scored):
    wc = tiled([(0, 0, 40)], 40 * 32)
    same = {(0, i): -0.5 for i in range(40)}
    plan = GreedyAllocator().plan(wc.entries, scored(wc, same), (), wc.budget)
    assert [NodeId(1, i) for i in range(4)] == [m.node for m in plan.moves]


def test_row47_an_expand_goes_before_the_reveal_of_the_same_tokens(tiled, scored):
    wc = tiled([(1, 0, 40), (0, 40, 48)], 48 * 32)
    plan = GreedyAllocator().plan(
        wc.entries, scored(wc, {(1, 5): 0.5}), (Reveal(5, 0.5),), wc.budget
    )
    assert ["expand"] == [m.kind for m in plan.moves]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_row47_the_order_of_reveals_does_not_matter(seed, shuffler):
    case = allocator_case(seed)
    shuffled = list(case.reveals)
    shuffler.shuffle(shuffled)
    again = GreedyAllocator().plan(case.wc.entries, case.scores, shuffled, case.wc.budget)
    assert case.plan(GreedyAllocator()).moves == again.moves


PLANS = """
import hashlib
from megacontext_sdk.builtin.greedy import GreedyAllocator
from megacontext_sdk.testing.focus import allocator_case
plans = [repr(allocator_case(seed).plan(GreedyAllocator())) for seed in range(40)]
print(hashlib.sha256("".join(plans).encode()).hexdigest())
"""


def test_row47_plans_do_not_depend_on_hash_order():
    digests = set()
    for hash_seed in ("0", "1234"):
        env = os.environ | {"PYTHONHASHSEED": hash_seed}
        out = subprocess.run(
            [sys.executable, "-c", PLANS], env=env, capture_output=True, text=True, check=True
        )
        digests.add(out.stdout)
    assert 1 == len(digests)


def wish_everything(wc):
    return np.where(wc.entries.lod > 0, 0.9, 0.0).astype(np.float32)


def test_row48_a_blocked_best_expand_with_no_collapse_returns_at_once(tiled, golden_budget):
    runs = [(2, 0, 93), (1, 2976, 3077), (0, 3077, 3125)]
    wc = tiled(runs, 100_000, attrs.evolve(golden_budget, headroom=8192 - 1730))
    start = perf_counter()
    plan = GreedyAllocator().plan(wc.entries, wish_everything(wc), (), wc.budget)
    assert () == plan.moves
    assert {"budget"} == {skipped.reason for skipped in plan.skipped}
    assert perf_counter() - start < 0.5


def test_row48_cooldown_with_an_empty_collapse_queue_returns_at_once(tiled):
    wc = tiled([(0, 0, 48)], 48 * 32)
    wc.collapse(NodeId(1, 3))
    plan = GreedyAllocator().plan(wc.entries, wish_everything(wc), (), wc.budget)
    assert () == plan.moves
    assert [("expand", NodeId(1, 3), "cooldown")] == [
        (s.kind, s.node, s.reason) for s in plan.skipped
    ]


def test_row48_a_dropped_expand_lets_a_cheaper_one_through(tiled, golden_budget, scored):
    budget = attrs.evolve(golden_budget, gist_slots=4, recent_tokens=0)
    wc = tiled([(2, 0, 2), (1, 64, 72)], 72 * 32, budget)
    tight = attrs.evolve(budget, headroom=8192 - wc.cost - 30)
    scores = scored(wc, {(2, 0): 0.9, (1, 70): 0.5})
    plan = GreedyAllocator().plan(wc.entries, scores, (), tight)
    assert [NodeId(1, 70)] == [m.node for m in plan.moves]
    assert [(NodeId(2, 0), "budget")] == [(s.node, s.reason) for s in plan.skipped]


def test_an_expand_pops_as_many_collapses_as_it_needs(tiled, golden_budget, scored):
    budget = attrs.evolve(golden_budget, gist_slots=4, recent_tokens=0, n_diff=6)
    wc = tiled([(2, 0, 2), (0, 64, 72)], 72 * 32, budget)
    tight = attrs.evolve(budget, headroom=8192 - wc.cost)
    offered = {(0, i): -0.5 - i / 1000 for i in range(64, 72)}
    plan = GreedyAllocator().plan(wc.entries, scored(wc, offered | {(2, 1): 0.9}), (), tight)
    # LOD2 to LOD1 costs 124 rows at S = 4, a collapsed block refunds 28.
    assert ["collapse"] * 5 + ["expand"] == [m.kind for m in plan.moves]
    assert [NodeId(1, i) for i in (71, 70, 69, 68, 67)] == [m.node for m in plan.moves[:5]]


def test_an_expand_whose_collapses_exceed_n_diff_is_dropped(tiled, golden_budget, scored):
    budget = attrs.evolve(golden_budget, gist_slots=4, recent_tokens=0, n_diff=4)
    wc = tiled([(2, 0, 2), (0, 64, 72)], 72 * 32, budget)
    tight = attrs.evolve(budget, headroom=8192 - wc.cost)
    offered = {(0, i): -0.5 for i in range(64, 72)}
    plan = GreedyAllocator().plan(wc.entries, scored(wc, offered | {(2, 1): 0.9}), (), tight)
    assert ["collapse"] * 4 == [m.kind for m in plan.moves]
    assert [(NodeId(2, 1), "n_diff")] == [(s.node, s.reason) for s in plan.skipped]


def test_a_group_is_not_collapsed_to_make_room_for_its_own_member(tiled, scored, golden_budget):
    budget = attrs.evolve(golden_budget, recent_tokens=0)
    wc = tiled([(1, 0, 64)], 64 * 32, budget)
    tight = attrs.evolve(budget, headroom=8192 - wc.cost)
    scores = scored(wc, {(1, i): -0.9 for i in range(32)} | {(1, 3): 0.9})
    plan = GreedyAllocator().plan(wc.entries, scores, (), tight)
    assert [("collapse", NodeId(2, 0))] == [(m.kind, m.node) for m in plan.moves]
    assert [(NodeId(1, 3), "budget")] == [(s.node, s.reason) for s in plan.skipped]


@pytest.mark.parametrize("n_diff", [0, 1, 2, 3, 5, 64])
def test_n_diff_bounds_an_iteration(tiled, scored, golden_budget, n_diff):
    wc = tiled([(1, 0, 40), (0, 40, 80)], 80 * 32, attrs.evolve(golden_budget, n_diff=n_diff))
    wishes = {(1, i): 0.9 for i in range(40)} | {(0, i): -0.9 for i in range(40, 60)}
    plan = GreedyAllocator().plan(wc.entries, scored(wc, wishes), (), wc.budget)
    assert min(n_diff, 60) == len(plan.moves)


def test_scores_that_are_no_numbers_ask_for_nothing(tiled):
    wc = tiled([(1, 0, 40), (0, 40, 48)], 48 * 32)
    scores = np.full(len(wc.entries), np.nan, dtype=np.float32)
    assert () == GreedyAllocator().plan(wc.entries, scores, (), wc.budget).moves
