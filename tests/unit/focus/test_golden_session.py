"""The golden coding session: three turns, exact plans, exact costs (spec section 8)."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from megacontext_sdk.contracts.focus import Reveal
from megacontext_sdk.memory.lod import NodeId, Span

TURN_1 = [(2, 0, 93), (1, 2976, 3077), (0, 3077, 3125)]
TURN_2 = {(1, 3000): 0.8, (1, 3001): 0.8, (0, 3077): -0.5, (0, 3078): -0.5}
TURN_3 = (
    {(1, block): 0.9 for block in range(3010, 3025)}
    | {(2, 40): 0.7}
    | {(1, block): 0.7 for block in range(1284, 1294)}
    | {(0, block): -0.6 for block in (3000, 3001, *range(3079, 3097))}
)


def letters(applied):
    return ["".join(move.kind[0].upper() for move in step.moves) for step in applied]


@pytest.fixture
def session(tiled, golden_budget):
    return lambda **changes: tiled(TURN_1, 100_000, attrs.evolve(golden_budget, **changes))


def test_row56_turn_1_costs_1730(session, lod_counts):
    wc = session()
    assert [48, 101, 93] == lod_counts(wc)
    assert (1730, 242) == (wc.cost, len(wc.entries))


def test_row56_turn_2_is_one_iteration_of_ecec(session, refocus, lod_counts):
    wc = session()
    applied = refocus(wc, TURN_2)
    assert ["ECEC"] == letters(applied)
    assert [NodeId(1, 3001), NodeId(1, 3077), NodeId(1, 3000), NodeId(1, 3078)] == [
        move.node for move in applied[0].moves
    ]
    assert [31, -31, 31, -31] == [move.delta_cost for move in applied[0].moves]
    assert [48, 101, 93] == lod_counts(wc)
    assert 1730 == wc.cost
    assert 4 / 242 == applied[0].swap_rate


def test_row45_turn_3_takes_46_actions_in_12_iterations(session, refocus):
    wc = session()
    refocus(wc, TURN_2)
    applied = refocus(wc, TURN_3)
    assert [*["ECEC"] * 10, "EEEE", "EE"] == letters(applied)
    assert 46 == sum(len(step.moves) for step in applied)
    assert 26 == "".join(letters(applied)).count("E")


def test_row56_turn_3_ends_at_1916(session, refocus, lod_counts):
    wc = session()
    refocus(wc, TURN_2)
    refocus(wc, TURN_3)
    assert [53, 128, 92] == lod_counts(wc)
    assert (1916, 273) == (wc.cost, len(wc.entries))
    per_level = [int(wc.entries.n_tokens[wc.entries.lod == lod].sum()) for lod in (2, 1, 0)]
    assert [94_208, 4_096, 1_696] == per_level


def test_row56_turn_3_expands_the_schema_for_31_rows(session, refocus):
    wc = session()
    refocus(wc, TURN_2)
    moves = [move for step in refocus(wc, TURN_3) for move in step.moves]
    schema = next(move for move in moves if move.node == NodeId(2, 40))
    assert 31 == schema.delta_cost
    expands = [move.node for move in moves if move.kind == "expand"]
    newest_first = [NodeId(1, block) for block in range(3024, 3009, -1)]
    children = [NodeId(1, block) for block in range(1293, 1283, -1)]
    assert [*newest_first, NodeId(2, 40), *children] == expands


def test_row56_children_of_an_expand_are_scorable_from_the_next_iteration(session, refocus):
    wc = session()
    refocus(wc, TURN_2)
    applied = refocus(wc, TURN_3)
    at = next(
        i for i, step in enumerate(applied) if any(m.node == NodeId(2, 40) for m in step.moves)
    )
    inside = [i for i, s in enumerate(applied) for m in s.moves if 1284 <= m.node.index < 1294]
    assert at + 1 == min(inside)


def test_row56_at_full_budget_turn_2_collapses_first(session, refocus, lod_counts):
    wc = session(headroom=8192 - 1730)
    assert ["CECE"] == letters(refocus(wc, TURN_2))
    assert [48, 101, 93] == lod_counts(wc)
    assert 1730 == wc.cost


def test_row56_at_full_budget_turn_3_takes_20_of_26_expands(session, refocus, lod_counts):
    wc = session(headroom=8192 - 1730)
    refocus(wc, TURN_2)
    applied = refocus(wc, TURN_3)
    assert ["CECE"] * 10 == letters(applied)
    assert [47, 134, 92] == lod_counts(wc)
    assert all(step.cost_after == 1730 for step in applied)
    expands = [m.node for step in applied for m in step.moves if m.kind == "expand"]
    assert [NodeId(1, block) for block in range(3024, 3009, -1)] == expands[:15]
    assert [NodeId(2, 40), *(NodeId(1, b) for b in range(1293, 1289, -1))] == expands[15:]


def test_row56_login_expands_again_to_the_same_bytes(session, refocus):
    history = np.random.default_rng(0).integers(0, 50_000, 100_000).astype(np.int32)

    def shown(wc, block):
        at = int(np.flatnonzero(wc.entries.start == block * 32)[0])
        assert 0 == wc.entries.lod[at]
        start = int(wc.entries.start[at])
        return history[start : start + int(wc.entries.n_tokens[at])].tobytes()

    wc = session()
    refocus(wc, TURN_2)
    before = [shown(wc, 3000), shown(wc, 3001)]
    refocus(wc, TURN_3)
    assert {1} == set(wc.entries.lod[np.isin(wc.entries.start, [3000 * 32, 3001 * 32])].tolist())
    refocus(wc, {(1, 3000): 0.8, (1, 3001): 0.8})
    assert before == [shown(wc, 3000), shown(wc, 3001)]


def test_row50_golden_reveal_of_block_5_costs_93(tiled, refocus, golden_budget, lod_counts):
    wc = tiled([(3, 0, 1)], 32**3, attrs.evolve(golden_budget, recent_tokens=0))
    assert 1 == wc.cost
    (applied,) = refocus(wc, {}, (Reveal(5, 0.9),), max_iterations=1)
    assert [("reveal", NodeId(0, 5), 93, 3)] == [
        (m.kind, m.node, m.delta_cost, m.n_actions) for m in applied.moves
    ]
    assert [1, 31, 31] == lod_counts(wc)
    assert (94, 63) == (wc.cost, len(wc.entries))


@pytest.mark.parametrize(
    ("gist_slots", "to_raw", "to_lod1"), [(1, 31, 31), (2, 30, 62), (4, 28, 124)]
)
def test_row56_delta_costs_with_several_slots(tiled, golden_budget, gist_slots, to_raw, to_lod1):
    budget = attrs.evolve(golden_budget, gist_slots=gist_slots, recent_tokens=0)
    wc = tiled([(2, 0, 3)], 3072, budget)
    assert to_lod1 == wc.expand(NodeId(2, 1)).moves[0].delta_cost
    assert to_raw == wc.expand(NodeId(1, 40)).moves[0].delta_cost
    assert 3 * gist_slots + to_lod1 + to_raw == wc.cost
    assert -to_raw == wc.collapse(NodeId(1, 40)).moves[0].delta_cost
    assert -to_lod1 == wc.collapse(Span(1024, 2048)).moves[0].delta_cost
    assert 3 * gist_slots == wc.cost
