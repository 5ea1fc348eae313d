"""The initial layout: the golden example, and properties of any other."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_sdk.builtin.greedy import GreedyAllocator
from megacontext_sdk.contracts.focus import Budget
from megacontext_sdk.errors import BudgetError, ConfigError
from megacontext_sdk.focus.initial_layout import lay_out_blocks
from megacontext_sdk.focus.protection import protect
from megacontext_sdk.focus.working_context import WorkingContext
from megacontext_sdk.memory.lod import Span, min_cost, minimal_cover
from megacontext_sdk.testing.focus import plain_faults


def phase_a(n_tokens, budget, target):
    held = protect(n_tokens, budget, ()).held
    return lay_out_blocks(0, n_tokens, held, target, budget.gist_slots, is_strict=False)


def test_row55_golden_layout_phase_a_costs_428_rows(golden_budget):
    lods, indices = phase_a(100_000, golden_budget, 428)
    assert [8, 77, 95] == np.bincount(lods).tolist()
    assert list(range(95)) == indices[:95].tolist()
    assert list(range(3117, 3125)) == indices[-8:].tolist()


def test_row55_golden_layout_is_exact(context, lod_counts):
    wc = context()
    wc.lay_out(100_000)
    assert [250, 27, 89] == lod_counts(wc)
    assert 8116 == wc.cost
    per_level = [int(wc.entries.n_tokens[wc.entries.lod == lod].sum()) for lod in (2, 1, 0)]
    assert [91_136, 864, 8_000] == per_level


def test_row55_golden_layout_spends_newest_first(context, nodes):
    wc = context()
    wc.lay_out(100_000)
    tail = [(2, 88)]
    tail += [(1, block) for block in range(89 * 32, 89 * 32 + 27)]
    tail += [(0, block) for block in range(89 * 32 + 27, 3125)]
    assert tail == nodes(wc)[-len(tail) :]


@pytest.mark.parametrize(
    ("extra", "lods"),
    [(30, [8, 77, 95]), (31, [9, 76, 95]), (77 * 31 + 30, [85, 0, 95]), (78 * 31, [85, 32, 94])],
)
def test_row55_free_rows_open_lod1_before_lod2(golden_budget, extra, lods):
    assert lods == np.bincount(phase_a(100_000, golden_budget, 428 + extra)[0]).tolist()


def test_row55_higher_levels_appear_when_phase_a_exceeds_the_target(golden_budget):
    lods, _ = phase_a(100_000, golden_budget, 427)
    assert 2 == int((lods == 3).sum())
    assert 8 <= int((lods == 0).sum())


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    n_tokens=st.one_of(st.integers(0, 5000), st.integers(0, 2**40)),
    w_max=st.integers(768, 9000),
    recent=st.sampled_from([0, 32, 100, 128, 256]),
    sinks=st.integers(0, 2),
)
def test_row55_random_layouts_tile_within_the_target_with_recents_raw(
    n_tokens, w_max, recent, sinks
):
    budget = Budget(w_max=w_max, recent_tokens=recent, sink_blocks=sinks)
    wc = WorkingContext(budget, allocator=GreedyAllocator(), strict=True)
    applied = wc.lay_out(n_tokens)
    entries = wc.entries
    assert [] == plain_faults(entries, n_tokens, budget)
    assert wc.cost <= budget.target
    kept = min(recent, 128) if "recents" in applied.yielded else recent
    kept = min(kept, 32) if "newest" in applied.yielded else kept
    ends = entries.start + entries.n_tokens
    assert not entries.lod[ends > n_tokens - kept].any()
    if "sinks" not in applied.yielded:
        assert not entries.lod[entries.start < sinks * 32].any()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(n_tokens=st.integers(0, 8128))
def test_row55_a_history_that_fits_is_all_raw(n_tokens):
    wc = WorkingContext(Budget(w_max=8192), allocator=GreedyAllocator(), strict=True)
    wc.lay_out(n_tokens)
    assert n_tokens == wc.cost
    assert not wc.entries.lod.any()


@pytest.mark.parametrize("gist_slots", [1, 2, 4])
@pytest.mark.parametrize("n_tokens", [1, 31, 32, 33, 1024, 40_000, 32**4 + 77])
def test_row55_layouts_with_several_slots_stay_within_the_target(context, gist_slots, n_tokens):
    wc = context(Budget(w_max=2048, gist_slots=gist_slots))
    wc.lay_out(n_tokens)
    assert wc.cost <= wc.budget.target
    free = wc.budget.target - wc.cost
    if wc.entries.lod.any():
        assert free < 31 * gist_slots, "rows were left unspent"


def test_row55_pins_stay_raw_in_a_new_layout(context):
    wc = context(Budget(w_max=1024))
    wc.lay_out(50_000)
    wc.pin(Span(20_000, 20_050))
    wc.lay_out(60_000)
    assert (Span(20_000, 20_050),) == wc.pins
    inside = (wc.entries.start < 20_050) & (wc.entries.start + wc.entries.n_tokens > 20_000)
    assert [0, 0] == wc.entries.lod[inside].tolist()
    assert wc.entries.pinned[inside].all()


def test_row03_minimal_cover_costs_the_base32_digit_sum():
    random = np.random.default_rng(3)
    for exponent in range(1, 7):
        for n_tokens in [32**exponent - 1, 32**exponent, *random.integers(1, 32**exponent, 50)]:
            full = int(n_tokens) // 32 * 32
            assert min_cost(int(n_tokens)) == len(minimal_cover(0, full)) + int(n_tokens) % 32


def depths():
    random = np.random.default_rng(32)
    edges = [32**e + d for e in range(1, 7) for d in (-1, 0, 1, 63, 700)]
    return [*edges, *(int(32 ** random.uniform(1, 6)) for _ in range(60))]


def test_row03_contexts_are_valid_at_any_depth_with_1024_rows(context):
    wc = context(Budget(w_max=1024))
    for n_tokens in depths():
        applied = wc.lay_out(n_tokens)
        assert () == applied.yielded
        assert [] == plain_faults(wc.entries, n_tokens, wc.budget)


@pytest.mark.parametrize(
    ("w_max", "rungs"),
    [(512, {(), ("sinks",)}), (440, {(), ("sinks",), ("sinks", "recents")})],
)
def test_row03_protection_yields_in_small_budgets(context, w_max, rungs):
    wc = context(Budget(w_max=w_max, recent_tokens=256))
    seen = set()
    for n_tokens in depths():
        applied = wc.lay_out(n_tokens)
        seen.add(applied.yielded)
        assert [] == plain_faults(wc.entries, n_tokens, wc.budget)
        assert wc.cost <= wc.budget.target
        ends = wc.entries.start + wc.entries.n_tokens
        assert not wc.entries.lod[ends > n_tokens - 128].any(), "128 recent tokens never yield"
    assert rungs == seen


def test_row03_the_least_budget_gives_up_recents_rather_than_the_append(context):
    wc = context(Budget(w_max=256, recent_tokens=128))
    seen = set()
    for n_tokens in (n for n in depths() if n < 32**5):
        applied = wc.lay_out(n_tokens)
        seen.add(applied.yielded)
        assert [] == plain_faults(wc.entries, n_tokens, wc.budget)
        assert wc.cost <= wc.budget.target
        ends = wc.entries.start + wc.entries.n_tokens
        assert not wc.entries.lod[ends > n_tokens - 32].any(), "the newest block never yields"
    assert ("sinks", "recents", "newest") in seen


@pytest.mark.parametrize("w_max", [512, 1024])
def test_row03_growing_to_the_sixth_power_keeps_the_context_valid(context, w_max):
    wc = context(Budget(w_max=w_max, recent_tokens=128 if w_max < 1024 else 256))
    n_tokens = 1
    while n_tokens < 32**6:
        wc.extend(n_tokens)
        assert [] == plain_faults(wc.entries, n_tokens, wc.budget)
        n_tokens = n_tokens * 3 + 17
    wc.extend(32**6)
    assert [] == plain_faults(wc.entries, 32**6, wc.budget)


def test_pins_that_leave_no_tiling_are_refused_before_any_change(context):
    wc = context(Budget(w_max=512, recent_tokens=64, pin_share=1.0))
    wc.extend(320)
    wc.pin(Span(32, 256))
    before = wc.save()
    with pytest.raises(BudgetError) as caught:
        wc.lay_out(32**5)
    assert caught.value.needed > caught.value.available
    assert before == wc.save()


def test_a_budget_without_rows_is_refused():
    with pytest.raises(ConfigError) as caught:
        WorkingContext(Budget(w_max=64), allocator=GreedyAllocator())
    assert ("w_max", 64) == (caught.value.field, caught.value.value)


@pytest.mark.parametrize("n_tokens", [-1, 2**48 + 1])
def test_a_length_no_history_has_is_refused(context, n_tokens):
    wc = context()
    for change in (wc.lay_out, wc.extend):
        with pytest.raises(ConfigError, match="n_tokens"):
            change(n_tokens)
    assert 0 == wc.n_tokens


def test_one_layout_never_sees_the_budget_of_another(context, golden_budget):
    wide, narrow = context(), context(attrs.evolve(golden_budget, w_max=1024))
    wide.lay_out(100_000)
    narrow.lay_out(100_000)
    assert wide.cost > 8000
    assert narrow.cost <= 960
