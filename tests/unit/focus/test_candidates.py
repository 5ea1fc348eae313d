"""Candidates against plain loops: groups, thresholds, cooldown, hysteresis, order."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_sdk.contracts.focus import Reveal
from megacontext_sdk.focus.candidates import openings, sibling_groups, willing_groups
from megacontext_sdk.focus.ledger import Ledger
from megacontext_sdk.memory.lod import NodeId
from megacontext_sdk.testing.focus import allocator_case


def plain_groups(entries):
    """Every node all of whose children are unprotected entries: {(lod, index): entry numbers}."""
    at = {
        (int(entries.lod[i]), int(entries.index[i])): i
        for i in range(len(entries))
        if not entries.protected[i] and entries.n_tokens[i] >= 32
    }
    found = {}
    for lod, index in at:
        if lod == 0:
            found[1, index] = [at[0, index]]
        elif index % 32 == 0:
            family = [at.get((lod, index + k)) for k in range(32)]
            if None not in family:
                found[lod + 1, index // 32] = family
    return found


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_sibling_groups_equal_a_plain_search(seed):
    case = allocator_case(seed)
    groups = sibling_groups(case.wc.entries, case.scores)
    expected = plain_groups(case.wc.entries)
    pairs = list(zip(groups.lod.tolist(), groups.index.tolist(), strict=True))
    assert set(expected) == set(pairs)
    assert len(expected) == len(pairs)
    for i, pair in enumerate(pairs):
        members = expected[pair]
        assert members == list(range(groups.at[i], groups.at[i] + groups.size[i]))
        mean = np.float32(case.scores[members].astype(np.float64).mean())
        assert groups.score[i] == pytest.approx(mean, abs=1e-7)
        assert int(groups.end[i]) == (pair[1] + 1) * 32 ** pair[0]


def plain_may_reverse(score, age, tau, budget):
    """The rule of spec section 1: blocked for `cooldown`, damped for `hysteresis_iterations`."""
    if age <= budget.cooldown:
        return False
    return age > budget.hysteresis_iterations or abs(score) >= np.float32(tau + budget.hysteresis)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_willing_groups_equal_the_plain_rule(seed):
    case = allocator_case(seed)
    entries, budget = case.wc.entries, case.wc.budget
    expected = []
    for (lod, index), members in plain_groups(entries).items():
        score = np.float32(case.scores[members].astype(np.float64).mean())
        ages = [int(entries.action_age[i]) for i in members if entries.last_action[i] > 0]
        willing = score < -np.float32(budget.tau_collapse)
        if willing and all(
            plain_may_reverse(score, age, budget.tau_collapse, budget) for age in ages
        ):
            expected.append((float(score), (index + 1) * 32**lod, members[0], NodeId(lod, index)))
    found = willing_groups(entries, case.scores, budget)
    assert [node for *_, node in sorted(expected)[:128]] == [g.node for g in found][:128]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_openings_equal_the_plain_rule(seed):
    case = allocator_case(seed)
    entries, budget = case.wc.entries, case.wc.budget
    expected = []
    for i in range(len(entries)):
        score = case.scores[i]
        late = entries.last_action[i] >= 0 or plain_may_reverse(
            score, int(entries.action_age[i]), budget.tau_expand, budget
        )
        if entries.lod[i] and score > np.float32(budget.tau_expand) and late:
            end = int(entries.start[i] + entries.n_tokens[i])
            expected.append((-float(score), -end, i))
    found = openings(entries, case.scores, (), budget)
    assert [i for *_, i in sorted(expected)] == [opening.at for opening in found]
    assert len(expected) == len(found)


def test_reveals_and_expands_share_one_order(tiled, scored):
    wc = tiled([(2, 0, 3), (1, 96, 100), (0, 100, 108)], 108 * 32)
    wishes = (Reveal(5, 0.6), Reveal(99, 0.8), Reveal(40, 0.7))
    queue = openings(wc.entries, scored(wc, {(2, 2): 0.75, (1, 97): 0.65}), wishes, wc.budget)
    assert [
        ("reveal", NodeId(0, 99)),
        ("expand", NodeId(2, 2)),
        ("reveal", NodeId(0, 40)),
        ("expand", NodeId(1, 97)),
        ("reveal", NodeId(0, 5)),
    ] == [(opening.kind, opening.node) for opening in queue]


def test_held_back_openings_are_reported_best_first_and_not_all(tiled, scored):
    wc = tiled([(0, 0, 64)], 64 * 32)
    wc.collapse(NodeId(1, 3))
    for block in range(4, 40):
        wc.collapse(NodeId(1, block))
    scores = scored(wc, {(1, block): 0.3 + block / 100 for block in range(3, 40)})
    held = openings(wc.entries, scores, (), wc.budget).held_back()
    assert [NodeId(1, block) for block in range(39, 23, -1)] == [skip.node for skip in held]


# --------------------------------------------------------------------------------- the ledger


@pytest.fixture
def ledger(tiled, golden_budget):
    wc = tiled([(2, 0, 2), (0, 64, 70)], 70 * 32, attrs.evolve(golden_budget, recent_tokens=0))
    return wc, Ledger(wc.entries, wc.budget)


def first(wc, scored_values, reveals=()):
    return next(iter(openings(wc.entries, scored_values, reveals, wc.budget)))


def test_a_ledger_books_cost_and_actions(ledger, scored):
    wc, book = ledger
    reveal = first(wc, scored(wc, {}), (Reveal(3, 0.9),))
    chain = book.chain(reveal)
    assert [NodeId(2, 0), NodeId(1, 3)] == chain
    assert 62 == book.price(chain)
    before = book.cost
    book.open(reveal, chain)
    assert (before + 62, 2, 2) == (book.cost, book.n_actions, book.actions_left)
    assert [] == book.chain(reveal), "what is open is not opened again"


def test_a_ledger_knows_what_a_collapse_takes_away(tiled, golden_budget, scored):
    wc = tiled([(1, 0, 64)], 64 * 32, attrs.evolve(golden_budget, recent_tokens=0))
    scores = scored(wc, {(1, i): -0.9 for i in range(32)} | {(1, 40): 0.9})
    book = Ledger(wc.entries, wc.budget)
    (group,) = willing_groups(wc.entries, scores, wc.budget)
    inside = first(wc, scored(wc, {(1, 5): 0.9}))
    assert book.is_open(group)
    book.close(group)
    assert not book.is_open(group)
    assert [] == book.chain(inside)
    assert [NodeId(1, 40)] == book.chain(first(wc, scores))


def test_a_ledger_finds_the_first_groups_that_make_an_opening_fit(ledger, scored):
    wc, _ = ledger
    tight = attrs.evolve(wc.budget, headroom=wc.budget.w_max - wc.cost)
    scores = scored(wc, {(0, i): -0.5 for i in range(64, 70)} | {(2, 1): 0.9})
    book = Ledger(wc.entries, tight)
    groups = willing_groups(wc.entries, scores, tight)
    opening = first(wc, scores)
    assert [NodeId(1, 64)] == [g.node for g in book.relief(opening, 31, groups)]
    assert [64, 65] == [g.node.index for g in book.relief(opening, 62, groups)]
    assert [] == book.relief(opening, 0, groups)
    assert book.relief(opening, 31 * 7, groups) is None


def test_a_ledger_keeps_its_report_short(ledger, scored):
    wc, book = ledger
    opening = first(wc, scored(wc, {(2, 1): 0.9}))
    for _ in range(100):
        book.skip(opening, "budget")
    assert 32 == len(book.plan().skipped)
