"""Reveals: a chain of expands down to one block, at a known price, all or nothing."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from megacontext_sdk.builtin.greedy import GreedyAllocator
from megacontext_sdk.contracts.focus import Move, Plan, Reveal
from megacontext_sdk.errors import ProtectionError
from megacontext_sdk.memory.lod import NodeId


@pytest.fixture
def bare(golden_budget):
    return attrs.evolve(golden_budget, recent_tokens=0)


def plan(wc, reveals, budget=None, scores=None):
    scores = np.zeros(len(wc.entries), dtype=np.float32) if scores is None else scores
    return GreedyAllocator().plan(wc.entries, scores, reveals, budget or wc.budget)


@pytest.mark.parametrize("lod", [1, 2, 3, 4, 5, 6])
def test_row50_a_reveal_costs_31_rows_per_level(tiled, bare, lod, lod_counts):
    n_tokens = 32**lod
    wc = tiled([(lod, 0, 1)], n_tokens, attrs.evolve(bare, n_diff=6))
    block = n_tokens // 32 - 1
    (move,) = plan(wc, (Reveal(block, 0.9),)).moves
    assert (31 * lod, lod) == (move.delta_cost, move.n_actions)
    wc.apply(Plan(moves=(move,)))
    assert 1 + 31 * lod == wc.cost
    # 31 siblings stay on every level, but LOD1 has no sibling of its own.
    assert [1] + [31] * (lod - 1) == lod_counts(wc)


@pytest.mark.parametrize(("gist_slots", "price"), [(1, 62), (2, 92), (4, 152)])
def test_row50_a_reveal_costs_the_sum_of_its_steps(tiled, bare, gist_slots, price):
    wc = tiled([(2, 0, 1)], 1024, attrs.evolve(bare, gist_slots=gist_slots))
    (move,) = plan(wc, (Reveal(7, 0.9),)).moves
    assert price == move.delta_cost


def test_row50_a_shared_path_is_counted_once(tiled, bare):
    wc = tiled([(3, 0, 1)], 32**3, attrs.evolve(bare, n_diff=8))
    wishes = (Reveal(5, 0.9), Reveal(6, 0.8), Reveal(40, 0.7))
    moves = plan(wc, wishes).moves
    assert [(5, 93, 3), (6, 31, 1), (40, 62, 2)] == [
        (m.node.index, m.delta_cost, m.n_actions) for m in moves
    ]
    wc.apply(Plan(moves=moves))
    assert 1 + 93 + 31 + 62 == wc.cost


def test_row50_an_expand_pays_for_a_later_reveal_below_it(tiled, bare, scored):
    wc = tiled([(2, 0, 2)], 2048, bare)
    moves = plan(wc, (Reveal(3, 0.5),), scores=scored(wc, {(2, 0): 0.9})).moves
    assert [("expand", 31), ("reveal", 31)] == [(m.kind, m.delta_cost) for m in moves]


def test_row50_a_reveal_that_cannot_fit_is_refused_whole(tiled, bare):
    wc = tiled([(3, 0, 1)], 32**3, bare)
    tight = attrs.evolve(bare, headroom=8192 - 93)
    refused = plan(wc, (Reveal(5, 0.9),), tight)
    assert () == refused.moves
    assert [("reveal", NodeId(0, 5), "budget")] == [
        (s.kind, s.node, s.reason) for s in refused.skipped
    ]
    enough = attrs.evolve(bare, headroom=8192 - 94)
    assert 1 == len(plan(wc, (Reveal(5, 0.9),), enough).moves)


def test_row50_a_reveal_of_62_rows_takes_two_collapses(tiled, bare, scored):
    wc = tiled([(2, 0, 1), (0, 32, 40)], 40 * 32, bare)
    full = attrs.evolve(bare, headroom=8192 - wc.cost)
    scores = scored(wc, {(0, i): -0.5 for i in range(32, 40)})
    moves = plan(wc, (Reveal(7, 0.9),), full, scores).moves
    assert ["collapse", "collapse", "reveal"] == [m.kind for m in moves]
    assert 0 == sum(m.delta_cost for m in moves)
    assert 4 == sum(m.n_actions for m in moves)


def test_row50_only_the_first_action_may_exceed_n_diff(tiled, bare, scored):
    wc = tiled([(3, 0, 2), (1, 2048, 2056)], 2056 * 32, attrs.evolve(bare, n_diff=2))
    assert [3] == [m.n_actions for m in plan(wc, (Reveal(7, 0.9), Reveal(1024, 0.9))).moves]
    later = plan(wc, (Reveal(7, 0.5),), scores=scored(wc, {(1, 2050): 0.9}))
    assert ["expand"] == [m.kind for m in later.moves]
    assert [("reveal", "n_diff")] == [(s.kind, s.reason) for s in later.skipped]


def test_row50_the_first_reveal_may_exceed_n_diff_with_its_collapses(tiled, bare, scored):
    wc = tiled([(4, 0, 1), (0, 32768, 32776)], 32776 * 32, bare)
    full = attrs.evolve(bare, headroom=8192 - wc.cost)
    scores = scored(wc, {(0, i): -0.5 for i in range(32768, 32776)})
    moves = plan(wc, (Reveal(7, 0.9),), full, scores).moves
    assert ["collapse"] * 4 + ["reveal"] == [m.kind for m in moves]


@pytest.mark.parametrize("block", [-1, 3, 40, 41, 10**9])
def test_row50_blocks_that_are_no_gist_are_passed_over(tiled, bare, block):
    # Block 3 is raw, block 40 is the partial tail, the others do not exist.
    wc = tiled([(0, 0, 32), (1, 32, 40), (0, 40, 41)], 40 * 32 + 5, bare)
    assert () == plan(wc, (Reveal(block, 0.9),)).moves


def test_row50_the_best_of_several_wishes_for_a_block_counts(tiled, bare):
    wc = tiled([(2, 0, 1)], 1024, bare)
    (move,) = plan(wc, (Reveal(3, 0.3, "a"), Reveal(3, 0.8, "b"), Reveal(3, 0.5, "c"))).moves
    assert (pytest.approx(0.8), "b") == (move.score, move.reason)


def test_a_recently_collapsed_cover_blocks_a_reveal(tiled, bare):
    wc = tiled([(1, 0, 32)], 1024, bare)
    wc.collapse(NodeId(2, 0))
    held = plan(wc, (Reveal(3, 0.9),))
    assert () == held.moves
    assert ["cooldown"] == [s.reason for s in held.skipped]


@pytest.mark.parametrize("block", [3, 40, 99])
def test_applying_an_impossible_reveal_is_illegal(tiled, bare, block):
    wc = tiled([(0, 0, 32), (1, 32, 40), (0, 40, 41)], 40 * 32 + 5, bare)
    move = Move(kind="reveal", node=NodeId(0, block), score=0.9, delta_cost=31)
    with pytest.raises(ProtectionError) as caught:
        wc.apply(Plan(moves=(move,)))
    assert "I9" == caught.value.code
