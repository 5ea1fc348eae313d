"""The mandatory phase, and growth: room is made whatever the scores say, in a fixed order."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_sdk.builtin.greedy import GreedyAllocator
from megacontext_sdk.contracts.focus import Budget, FocusAllocator, Plan
from megacontext_sdk.errors import BudgetError, ConfigError
from megacontext_sdk.focus.candidates import NEVER, sibling_groups
from megacontext_sdk.focus.working_context import WorkingContext
from megacontext_sdk.memory.lod import NodeId, Span, min_cost
from megacontext_sdk.testing.focus import allocator_case, plain_faults


def tighten(budget, cost):
    """A budget whose target is `cost` rows."""
    return attrs.evolve(budget, headroom=budget.w_max - cost)


def plain_make_room(entries, budget):
    """The mandatory phase, one group at a time in plain Python: (lod, index) to collapse."""
    state = {}
    for i in range(len(entries)):
        score = float(np.nan_to_num(entries.last_score[i]))
        young = entries.last_action[i] > 0 and entries.action_age[i] <= budget.cooldown
        full = entries.n_tokens[i] >= 32
        state[int(entries.lod[i]), int(entries.index[i])] = (
            score, bool(young), bool(entries.protected[i]) or not full,
        )  # fmt: skip
    cost, done = int(entries.cost.sum()), []
    while cost > budget.target:
        options = []
        for lod, index in state:
            if lod and index % 32:
                continue
            family = [(lod, index + k) for k in range(32)] if lod else [(0, index)]
            if any(child not in state or state[child][2] for child in family):
                continue
            mean = sum(state[child][0] for child in family) / len(family)
            node = (lod + 1, index // 32 if lod else index)
            start = node[1] * 32 ** node[0]
            young = any(state[child][1] for child in family)
            options.append((young, mean, node[0], start, node, family))
        if not options:
            return None
        _, mean, lod, _, node, family = min(options)
        for child in family:
            del state[child]
        state[node] = (mean, False, False)
        cost -= (32 - budget.gist_slots) if lod == 1 else 31 * budget.gist_slots
        done.append(node)
    return done


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.floats(0.0, 1.0))
def test_row49_making_room_equals_the_plain_reference(seed, share):
    wc = allocator_case(seed).wc
    # Scores on a grid of 1/8 add up exactly in any order.
    coarse = np.round(np.nan_to_num(wc.entries.last_score) * 8) / 8
    entries = attrs.evolve(wc.entries, last_score=coarse.astype(np.float32))
    budget = tighten(wc.budget, max(1, int(wc.cost * share)))
    expected = plain_make_room(entries, budget)
    if expected is None:
        with pytest.raises(BudgetError):
            GreedyAllocator().make_room(entries, budget)
        return
    plan = GreedyAllocator().make_room(entries, budget)
    assert expected == [(m.node.lod, m.node.index) for m in plan.moves]


def test_row49_appending_to_a_full_context_keeps_budget_and_coverage(context):
    wc = context(Budget(w_max=768))
    random = np.random.default_rng(49)
    n_tokens = 0
    for _ in range(600):
        n_tokens += int(random.choice([1, 7, 31, 32, 33, 64, 500]))
        wc.extend(n_tokens)
        assert wc.cost <= 768
        assert n_tokens == wc.n_tokens
        assert [] == plain_faults(wc.entries, n_tokens, wc.budget)
        if random.random() < 0.5:
            wc.tick(random.uniform(-1, 1, len(wc.entries)).astype(np.float32))


def test_row49_at_a_boundary_the_headroom_is_free(context):
    wc = context(Budget(w_max=768, headroom=64))
    for n_tokens in range(32, 40_000, 32):
        wc.extend(n_tokens)
        assert wc.cost <= 768 - 64


def test_row49_between_boundaries_the_tail_uses_the_headroom(context):
    wc = context(Budget(w_max=768, headroom=64))
    wc.extend(32 * 100)
    full = wc.cost
    for tail in range(1, 32):
        applied = wc.extend(32 * 100 + tail)
        assert () == applied.moves
        assert full + tail == wc.cost


def test_row49_lowest_scores_go_first(tiled, golden_budget):
    wc = tiled([(0, 0, 40)], 40 * 32, attrs.evolve(golden_budget, recent_tokens=0))
    scores = np.linspace(0.5, 0.1, 40).astype(np.float32)
    wc.tick(scores)
    plan = GreedyAllocator().make_room(wc.entries, tighten(wc.budget, wc.cost - 62))
    assert [NodeId(1, 39), NodeId(1, 38)] == [m.node for m in plan.moves]


def test_row49_without_scores_finest_then_oldest_go_first(tiled, golden_budget):
    budget = attrs.evolve(golden_budget, recent_tokens=0)
    wc = tiled([(1, 0, 32), (0, 32, 34)], 34 * 32, budget)
    plan = GreedyAllocator().make_room(wc.entries, tighten(budget, wc.cost - 93))
    assert [NodeId(1, 32), NodeId(1, 33), NodeId(2, 0)] == [m.node for m in plan.moves]


def test_row49_groups_on_cooldown_go_last(tiled, golden_budget, scored):
    wc = tiled([(1, 0, 4), (0, 4, 8)], 8 * 32, attrs.evolve(golden_budget, recent_tokens=0))
    wc.expand(NodeId(1, 0))
    wc.tick(scored(wc, {(0, 0): -0.9, (0, 5): 0.9}))
    order = GreedyAllocator().make_room(wc.entries, tighten(wc.budget, wc.cost - 5 * 31))
    assert [4, 6, 7, 5, 0] == [m.node.index for m in order.moves]


def test_row49_a_collapse_may_complete_the_group_above(tiled, golden_budget):
    budget = attrs.evolve(golden_budget, recent_tokens=0)
    wc = tiled([(0, 0, 1), (1, 1, 32)], 1024, budget)
    plan = GreedyAllocator().make_room(wc.entries, tighten(budget, 1))
    assert [NodeId(1, 0), NodeId(2, 0)] == [m.node for m in plan.moves]


@pytest.mark.parametrize("n_tokens", [1024, 40_000, 32**4, 32**4 + 31])
def test_row49_making_room_reaches_the_minimal_cover(context, golden_budget, n_tokens):
    budget = attrs.evolve(golden_budget, recent_tokens=0)
    wc = context(budget)
    wc.lay_out(n_tokens)
    floor = min_cost(n_tokens)
    plan = GreedyAllocator().make_room(wc.entries, tighten(budget, floor))
    assert floor == wc.cost + sum(m.delta_cost for m in plan.moves)
    with pytest.raises(BudgetError) as caught:
        GreedyAllocator().make_room(wc.entries, tighten(budget, floor - 1))
    assert (floor, floor - 1) == (caught.value.needed, caught.value.available)


def test_row49_protected_entries_are_never_taken(context):
    wc = context(Budget(w_max=1024, recent_tokens=256))
    wc.lay_out(20_000)
    wc.pin(Span(5000, 5064))
    plan = GreedyAllocator().make_room(wc.entries, tighten(wc.budget, 640))
    touched = [m.node.span for m in plan.moves]
    held = [Span(int(a), int(b)) for a, b in wc.protection.held]
    assert not any(span.overlaps(other) for span in touched for other in held)


def test_row49_a_lowered_budget_is_met_on_restore(context):
    wide = context(Budget(w_max=4096))
    wide.lay_out(50_000)
    narrow = context(Budget(w_max=768))
    applied = narrow.restore(wide.save())
    assert narrow.cost <= narrow.budget.target
    assert applied.moves
    assert {"make_room"} == {m.reason for m in applied.moves}
    assert [] == plain_faults(narrow.entries, 50_000, narrow.budget)


def test_make_room_reserves_rows_for_a_reply(context):
    wc = context(Budget(w_max=1024, headroom=64))
    wc.lay_out(50_000)
    wc.make_room(reserve=200)
    assert wc.cost <= 1024 - 64 - 200
    assert () == wc.make_room(reserve=100).moves


def test_making_room_for_an_impossible_reply_changes_nothing(context):
    wc = context(Budget(w_max=1024))
    wc.lay_out(50_000)
    before = wc.save()
    with pytest.raises(BudgetError) as caught:
        wc.make_room(reserve=900)
    assert caught.value.needed > caught.value.available == 60
    assert before == wc.save()


def test_one_new_block_takes_one_collapse(context):
    wc = context(Budget(w_max=1024))
    wc.lay_out(50_016)
    wc.extend(50_016 + 32 * 20)
    epoch = wc.epoch
    applied = wc.extend(wc.n_tokens + 32)
    assert 1 <= len(applied.moves) <= 2
    assert epoch + 1 == applied.epoch_after == wc.epoch


def test_new_blocks_are_raw_and_unscored(context):
    wc = context(Budget(w_max=1024))
    wc.extend(320)
    wc.tick(np.full(len(wc.entries), 0.5, dtype=np.float32))
    wc.extend(352)
    assert np.isnan(wc.entries.last_score[-1])
    assert [1] * 10 + [0] == wc.entries.residency.tolist()


def test_old_entries_survive_growth(context, nodes):
    wc = context(Budget(w_max=2048))
    wc.lay_out(40_000)
    wc.make_room(reserve=400)
    before = nodes(wc)
    wc.extend(40_000 + 64)
    assert before == nodes(wc)[: len(before)]


def test_a_bulk_append_is_laid_out_coarsely_within_the_budget(context):
    wc = context(Budget(w_max=1024))
    wc.extend(5000)
    applied = wc.extend(300_000)
    assert wc.cost <= wc.budget.target
    assert [] == plain_faults(wc.entries, 300_000, wc.budget)
    assert (wc.entries.lod > 1).any()
    recent = wc.entries.start + wc.entries.n_tokens > 300_000 - 256
    assert not wc.entries.lod[recent].any()
    assert applied.epoch_before + 1 == applied.epoch_after


def test_a_bulk_append_that_fits_is_all_raw(context):
    wc = context(Budget(w_max=8192))
    for n_tokens in (500, 3000, 3001, 8000):
        wc.extend(n_tokens)
        assert not wc.entries.lod.any()
        assert n_tokens == wc.cost


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.lists(st.one_of(st.integers(1, 100), st.integers(1, 400_000)), min_size=1, max_size=12),
    st.integers(0, 2**32),
)
def test_row49_any_way_of_growing_keeps_every_promise(steps, seed):
    random = np.random.default_rng(seed)
    wc = WorkingContext(Budget(w_max=768), allocator=GreedyAllocator(), strict=True)
    n_tokens = 0
    for step in steps:
        n_tokens += step
        wc.extend(n_tokens)
        wc.check()
        assert [] == plain_faults(wc.entries, n_tokens, wc.budget)
        wc.tick(random.uniform(-1, 1, len(wc.entries)).astype(np.float32))


def test_growing_by_nothing_changes_nothing(context):
    wc = context()
    wc.extend(100)
    epoch = wc.epoch
    assert () == wc.extend(100).moves
    assert epoch == wc.epoch


def test_a_history_never_shrinks(context):
    wc = context()
    wc.extend(100)
    with pytest.raises(ConfigError, match="only grows"):
        wc.extend(99)
    assert 100 == wc.n_tokens


def test_recents_lose_protection_as_the_history_grows(context):
    wc = context(Budget(w_max=8192, recent_tokens=128, sink_blocks=0))
    wc.extend(320)
    assert [False] * 6 + [True] * 4 == wc.entries.protected.tolist()
    wc.extend(325)
    # 128 tokens before 325 begin in block 6; the tail is protected as well.
    assert [False] * 6 + [True] * 5 == wc.entries.protected.tolist()
    wc.extend(384)
    assert [False] * 8 + [True] * 4 == wc.entries.protected.tolist()


class Idle(FocusAllocator):
    """Claims that there is always room."""

    name = "idle"

    def plan(self, entries, scores, reveals, budget):
        return Plan(moves=())

    def make_room(self, entries, budget):
        return Plan(moves=())


def test_an_allocator_that_makes_no_room_is_found_out(context):
    wc = context(Budget(w_max=768), strict=False, allocator=Idle())
    wc.extend(640)
    applied = wc.extend(20_000)
    assert applied.violation.startswith("I1")
    assert applied.rebuilt
    assert wc.cost <= wc.budget.target
    assert [] == plain_faults(wc.entries, 20_000, wc.budget)


def test_sibling_groups_are_complete_unprotected_and_at_one_level(tiled, golden_budget):
    budget = attrs.evolve(golden_budget, recent_tokens=0)
    wc = tiled([(1, 0, 32), (0, 32, 33), (1, 33, 64), (0, 64, 66)], 65 * 32 + 9, budget)
    groups = sibling_groups(wc.entries, np.arange(len(wc.entries), dtype=np.float32))
    found = list(zip(groups.lod.tolist(), groups.index.tolist(), strict=True))
    # (2, 1) has a raw child and is no group; block 65 is the partial tail.
    assert [(2, 0), (1, 32), (1, 64)] == found
    assert [15.5, 32.0, 64.0] == groups.score.tolist()
    assert {NEVER} == set(groups.age.tolist())
