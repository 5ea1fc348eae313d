"""The other strategies: what each promises beyond legality."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_sdk.builtin.greedy import GreedyAllocator
from megacontext_sdk.builtin.strategies import (
    AdaptiveTauAllocator,
    HybridAllocator,
    KnapsackAllocator,
    StochasticAllocator,
    plan_utility,
)
from megacontext_sdk.contracts.focus import Budget, Reveal
from megacontext_sdk.memory.lod import NodeId
from megacontext_sdk.testing.focus import allocator_case


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.sampled_from([KnapsackAllocator, HybridAllocator]))
def test_row51_knapsack_promises_at_least_as_much_as_greedy(seed, strategy):
    case = allocator_case(seed)
    greedy = plan_utility(case.plan(GreedyAllocator()).moves)
    assert plan_utility(case.plan(strategy()).moves) >= greedy


@pytest.mark.parametrize("strategy", [KnapsackAllocator, HybridAllocator])
def test_row51_knapsack_beats_greedy_where_prices_differ(tiled, golden_budget, scored, strategy):
    budget = attrs.evolve(golden_budget, gist_slots=4, recent_tokens=0)
    wc = tiled([(2, 0, 2), (1, 64, 72)], 72 * 32, budget)
    # 124 rows are free: one LOD2 for 0.9, or four LOD1 of 28 rows for 0.8 each.
    tight = attrs.evolve(budget, headroom=8192 - wc.cost - 124)
    scores = scored(wc, {(2, 0): 0.9} | {(1, i): 0.8 for i in range(64, 68)})
    greedy = GreedyAllocator().plan(wc.entries, scores, (), tight)
    best = strategy().plan(wc.entries, scores, (), tight)
    assert [NodeId(2, 0)] == [m.node for m in greedy.moves]
    assert {NodeId(1, i) for i in range(64, 68)} == {m.node for m in best.moves}
    assert plan_utility(best.moves) == pytest.approx(3.2)


def test_row51_knapsack_pays_for_a_reveal_with_collapses(tiled, golden_budget, scored):
    budget = attrs.evolve(golden_budget, recent_tokens=0)
    wc = tiled([(2, 0, 1), (0, 32, 40)], 40 * 32, budget)
    full = attrs.evolve(budget, headroom=8192 - wc.cost)
    scores = scored(wc, {(0, i): -0.3 for i in range(32, 40)})
    plan = KnapsackAllocator().plan(wc.entries, scores, (Reveal(7, 0.9),), full)
    assert ["collapse", "collapse", "reveal"] == [m.kind for m in plan.moves]


def use_after_refocuses(allocator, budget, scale, n_tokens=60_000):
    """Share of w_max in use after refocusing on random scores of one magnitude."""
    wc = allocator_case(0).wc
    wc = type(wc)(budget, allocator=allocator, strict=True)
    wc.lay_out(n_tokens)
    random = np.random.default_rng(51)
    for _ in range(60):
        scores = random.uniform(-scale, scale, len(wc.entries)).astype(np.float32)
        plan = allocator.plan(wc.entries, scores, (), budget)
        wc.tick(scores)
        wc.apply(plan)
    return wc.cost / budget.w_max


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0])
def test_row51_adaptive_thresholds_use_80_to_95_percent(scale):
    budget = Budget(w_max=2048, headroom=64)
    assert 0.80 <= use_after_refocuses(AdaptiveTauAllocator(), budget, scale) <= 0.95


def half_empty(tiled, budget):
    return tiled([(2, 0, 30), (1, 960, 1000), (0, 1000, 1008)], 1008 * 32, budget)


def test_row51_adaptive_thresholds_fill_an_empty_budget(tiled):
    budget = Budget(w_max=1024, sink_blocks=0, recent_tokens=0)
    wc = half_empty(tiled, budget)
    allocator, random = AdaptiveTauAllocator(), np.random.default_rng(1)
    assert wc.cost / 1024 < 0.4
    for _ in range(30):
        scores = random.uniform(-0.1, 0.1, len(wc.entries)).astype(np.float32)
        assert () == GreedyAllocator().plan(wc.entries, scores, (), budget).moves
        wc.apply(allocator.plan(wc.entries, scores, (), budget))
    assert 0.80 <= wc.cost / 1024 <= 0.95


def test_row51_adaptive_thresholds_do_nothing_for_indifferent_scores(tiled):
    budget = Budget(w_max=1024, sink_blocks=0, recent_tokens=0)
    wc = half_empty(tiled, budget)
    scores = np.zeros(len(wc.entries), dtype=np.float32)
    assert () == AdaptiveTauAllocator().plan(wc.entries, scores, (), budget).moves


def test_row51_stochastic_plans_are_stable_per_seed_and_differ_between_seeds():
    cases = [allocator_case(seed) for seed in range(40)]
    plans = {seed: [c.plan(StochasticAllocator(seed)) for c in cases] for seed in range(4)}
    for seed, expected in plans.items():
        assert expected == [c.plan(StochasticAllocator(seed)) for c in cases]
    assert any(plans[0][i] != plans[1][i] for i in range(len(cases)))


def test_row51_stochastic_takes_from_the_top_four(tiled, scored):
    wc = tiled([(1, 0, 40), (0, 40, 48)], 48 * 32, Budget(w_max=8192, sink_blocks=0, n_diff=1))
    scores = scored(wc, {(1, i): 0.3 + i / 100 for i in range(40)})
    first = {
        StochasticAllocator(seed).plan(wc.entries, scores, (), wc.budget).moves[0].node.index
        for seed in range(60)
    }
    assert {36, 37, 38, 39} == first


def test_all_strategies_leave_the_names_the_catalogue_knows():
    strategies = (StochasticAllocator, KnapsackAllocator, HybridAllocator, AdaptiveTauAllocator)
    assert ["stochastic", "knapsack", "hybrid", "adaptive-tau"] == [s.name for s in strategies]
