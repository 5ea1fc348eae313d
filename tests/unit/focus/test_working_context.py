"""Pins, user actions, ticks, saving and restoring of a working context."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from megacontext_sdk.contracts.focus import Budget, Plan
from megacontext_sdk.errors import BudgetError, ConfigError, CoverageError, InvariantError
from megacontext_sdk.focus.protection import pinned_rows, protect, without
from megacontext_sdk.focus.working_context import WorkingContext
from megacontext_sdk.memory.lod import NodeId, Span
from megacontext_sdk.testing.focus import plain_faults

BUDGET = Budget(w_max=1024)


@pytest.fixture
def full(context):
    """A context at its target over 60,000 tokens."""
    wc = context(BUDGET)
    wc.lay_out(60_000)
    return wc


def lods_in(wc, span):
    ends = wc.entries.start + wc.entries.n_tokens
    return wc.entries.lod[(wc.entries.start < span.end) & (ends > span.start)].tolist()


# ------------------------------------------------------------------------------------- pins


def test_a_pin_reveals_its_blocks_and_survives_making_room(full):
    span = Span(20_001, 20_070)
    applied = full.pin(span)
    assert [0, 0, 0] == lods_in(full, span)
    assert (span,) == full.pins
    assert applied.moves
    assert full.cost <= BUDGET.target
    for n_tokens in range(60_032, 70_000, 512):
        full.extend(n_tokens)
        full.tick(np.full(len(full.entries), -1.0, dtype=np.float32))
        assert [0, 0, 0] == lods_in(full, span)
    assert [] == plain_faults(full.entries, full.n_tokens, BUDGET)


def test_a_pin_above_the_share_is_refused_before_any_change(full):
    before = full.save()
    with pytest.raises(BudgetError, match=r"cannot pin \[1000, 1300\).*pin_share") as caught:
        full.pin(Span(1000, 1300))
    assert (320, 256) == (caught.value.needed, caught.value.available)
    assert before == full.save()


def test_pins_are_counted_together_and_overlaps_once(full):
    full.pin(Span(32, 32 + 128))
    full.pin(Span(64, 64 + 128))
    with pytest.raises(BudgetError):
        full.pin(Span(4096, 4096 + 128))
    assert 160 == pinned_rows(full.pins, full.n_tokens)


def test_a_pin_that_cannot_fit_is_refused_before_any_change(context):
    wc = context(Budget(w_max=512, recent_tokens=128, pin_share=0.5))
    wc.lay_out(32**5)
    before = wc.save()
    # One block, far from all others: its path down from LOD5 costs more than there is.
    with pytest.raises(BudgetError, match=r"cannot pin \[10000000, 10000001\)") as caught:
        wc.pin(Span(10**7, 10**7 + 1))
    assert caught.value.needed > caught.value.available == 448
    assert before == wc.save()


@pytest.mark.parametrize("span", [Span(5, 5), Span(9, 5), Span(-1, 5), Span(59_999, 60_001)])
def test_a_span_outside_the_history_is_refused(full, span):
    before = full.save()
    for action in (full.pin, full.expand, full.collapse):
        with pytest.raises(ConfigError, match=r"inside \[0, 60000\)") as caught:
            action(span)
        assert f"[{span.start}, {span.end})" in str(caught.value)
    assert before == full.save()


def test_unpinning_frees_the_span_without_changing_what_is_shown(full, nodes):
    span = Span(20_000, 20_064)
    full.pin(span)
    shown, epoch = nodes(full), full.epoch
    full.unpin(span)
    assert (shown, epoch, ()) == (nodes(full), full.epoch, full.pins)
    assert not full.entries.pinned.any()
    full.collapse(NodeId(1, 625))
    assert [1, 0] == lods_in(full, span)


def test_unpinning_a_part_keeps_the_rest_pinned(full):
    full.pin(Span(20_000, 20_128))
    full.unpin(Span(20_032, 20_064))
    assert (Span(20_000, 20_032), Span(20_064, 20_128)) == full.pins
    assert 3 == int(full.entries.pinned.sum())


def test_unpinning_what_is_not_pinned_is_refused(full):
    full.pin(Span(20_000, 20_064))
    with pytest.raises(ConfigError, match=r"cannot unpin \[0, 32\)"):
        full.unpin(Span(0, 32))


def test_a_pin_over_the_partial_tail_holds_the_block_it_becomes(context):
    wc = context(BUDGET)
    wc.extend(60_010)
    wc.pin(Span(60_005, 60_010))
    wc.extend(64_000)
    assert [0] == lods_in(wc, Span(60_005, 60_010))


def test_pinning_twice_is_pinning_once(full):
    full.pin(Span(20_000, 20_064))
    epoch = full.epoch
    assert () == full.pin(Span(20_000, 20_064)).moves
    assert (1, epoch) == (len(full.pins), full.epoch)


def test_pins_can_be_cut_out_of_pins():
    pins = (Span(0, 10), Span(20, 30))
    assert (Span(0, 5), Span(25, 30)) == without(pins, Span(5, 25))
    assert pins == without(pins, Span(10, 20))
    assert () == without(pins, Span(0, 30))


def test_protection_merges_what_touches():
    budget = Budget(w_max=8192, recent_tokens=64, sink_blocks=2)
    protection = protect(1000, budget, (Span(70, 71), Span(90, 130), Span(500, 501)))
    assert [[0, 160], [480, 512], [928, 1000]] == protection.held.tolist()
    assert [[64, 160], [480, 512]] == protection.pins.tolist()


@pytest.mark.parametrize("n_tokens", [0, 1, 31, 32, 40])
def test_protection_of_short_histories_covers_everything(n_tokens):
    held = protect(n_tokens, Budget(w_max=8192), ()).held
    assert ([[0, n_tokens]] if n_tokens else []) == held.tolist()


# ------------------------------------------------------------------------------ user actions


def test_expanding_a_span_shows_it_in_full_within_the_target(full):
    span = Span(30_000, 30_100)
    applied = full.expand(span)
    assert {0} == set(lods_in(full, span))
    assert full.cost <= BUDGET.target
    assert {"expand", "collapse"} == {move.kind for move in applied.moves}
    assert [] == plain_faults(full.entries, 60_000, BUDGET)


def test_expanding_a_node_opens_one_level(full):
    at = int(np.flatnonzero(full.entries.lod == 2)[0])
    node = NodeId(2, int(full.entries.index[at]))
    full.expand(node)
    assert {1} == set(lods_in(full, node.span))


def test_an_expand_that_cannot_fit_is_refused_before_any_change(full):
    before = full.save()
    with pytest.raises(BudgetError, match=r"cannot expand \[10000, 12000\)") as caught:
        full.expand(Span(10_000, 12_000))
    assert caught.value.needed > caught.value.available
    assert before == full.save()


def test_expanding_what_is_no_gist_entry_is_refused_by_name(full):
    before = full.save()
    for node, rule in ((NodeId(0, 3), "raw"), (NodeId(5, 0), "no entry"), (NodeId(1, -4), "no ")):
        with pytest.raises(ConfigError, match=rf"cannot expand {node}.*{rule}.*\(I9\)"):
            full.expand(node)
    assert before == full.save()


def test_collapsing_a_span_shows_it_as_coarsely_as_possible(full):
    span = NodeId(2, 57).span
    full.expand(Span(span.start, span.start + 320))
    full.collapse(span)
    assert [2] == lods_in(full, span)


def test_collapsing_part_of_a_block_is_refused(full):
    with pytest.raises(ConfigError, match=r"cannot collapse \[20001, 20031\).*no complete gist"):
        full.collapse(Span(20_001, 20_031))


@pytest.mark.parametrize("node", [NodeId(0, 7), NodeId(1, 1875), NodeId(4, 0), NodeId(1, -1)])
def test_collapsing_into_an_incomplete_or_raw_node_is_refused(full, node):
    with pytest.raises(ConfigError, match=f"cannot collapse {node}"):
        full.collapse(node)


def test_collapsing_a_protected_span_is_refused_by_name(full):
    full.pin(Span(20_000, 20_064))
    before = full.save()
    for target in (Span(19_968, 20_096), Span(59_900, 60_000), NodeId(1, 0), NodeId(1, 625)):
        with pytest.raises(ConfigError, match=r"cannot collapse .*protected.*\(I9\)"):
            full.collapse(target)
    assert before == full.save()


def test_collapsing_what_is_coarse_already_changes_nothing(full):
    at = int(np.flatnonzero(full.entries.lod == 2)[0])
    epoch = full.epoch
    assert () == full.collapse(NodeId(2, int(full.entries.index[at]))).moves
    assert epoch == full.epoch


# -------------------------------------------------------------------------- epochs and ticks


def test_every_change_raises_the_epoch_and_nothing_else_does(full):
    epochs = [full.epoch]
    full.extend(60_001)
    epochs.append(full.epoch)
    full.tick(np.zeros(len(full.entries), dtype=np.float32))
    full.apply(Plan(moves=()))
    epochs.append(full.epoch)
    full.expand(Span(30_000, 30_001))
    epochs.append(full.epoch)
    assert [0, 1, 1, 2] == [epoch - epochs[0] for epoch in epochs]


def test_ticks_age_entries_and_remember_scores(full):
    scores = np.linspace(-1, 1, len(full.entries)).astype(np.float32)
    full.tick(scores)
    full.tick(scores)
    assert {2} == set(full.entries.residency.tolist())
    assert scores.tolist() == full.entries.last_score.tolist()


def test_new_entries_inherit_the_score_that_made_them(full):
    full.expand(Span(30_000, 30_032))
    at = int(np.flatnonzero(full.entries.start == 29_984)[0])
    assert (1.0, 1, 0) == (
        full.entries.last_score[at], full.entries.last_action[at], full.entries.residency[at],
    )  # fmt: skip
    assert 1 == full.entries.action_age[at], "the next iteration is the first after it"


def test_a_tick_with_other_scores_than_entries_is_refused(full):
    with pytest.raises(ConfigError, match="one score for each"):
        full.tick(np.zeros(3, dtype=np.float32))


def test_the_layout_lists_what_the_entries_say(full):
    layout = full.layout()
    assert (full.cost, full.n_tokens, full.epoch) == (layout.n_rows, layout.end, layout.epoch)
    assert layout.start is full.entries.start


# ----------------------------------------------------------------------------- persistence


def test_a_saved_layout_comes_back_through_msgpack(full, context, fields_of):
    full.pin(Span(20_000, 20_064))
    full.tick(np.linspace(-1, 1, len(full.entries)).astype(np.float32))
    full.expand(Span(40_000, 40_032))
    packed = msgspec.msgpack.encode(full.save())
    other = context(BUDGET)
    applied = other.restore(msgspec.msgpack.decode(packed))
    assert () == applied.moves
    assert fields_of(full.entries) == fields_of(other.entries)
    assert (full.pins, full.n_tokens, full.cost) == (other.pins, other.n_tokens, other.cost)
    assert (full.epoch, full.save()) == (other.epoch, other.save())


def test_a_restored_layout_grows_like_the_original(full, context, nodes):
    other = context(BUDGET)
    other.restore(full.save())
    for wc in (full, other):
        wc.extend(60_500)
    assert nodes(full) == nodes(other)


def test_an_empty_layout_can_be_saved(context):
    wc = context(BUDGET)
    other = context(BUDGET)
    other.restore(wc.save())
    assert 0 == other.n_tokens == len(other.entries)


BROKEN = {
    "another version": {"version": 2},
    "no version": {"version": None},
    "a missing column": {"index": None},
    "a torn column": {"index": b"1234567"},
    "columns of different lengths": {"lod": b"\0"},
    "text for a column": {"lod": "abc"},
    "a negative length": {"n_tokens": -1},
    "a length of another type": {"n_tokens": 1.5},
    "a truth value for a length": {"n_tokens": True},
    "an immense length": {"n_tokens": 2**60},
    "pins of another type": {"pins": 7},
    "a pin that is no pair": {"pins": [[1]]},
    "a pin of text": {"pins": [["a", "b"]]},
    "a pin behind the end": {"pins": [[0, 60_001]]},
    "an empty pin": {"pins": [[5, 5]]},
    "no epoch": {"epoch": None},
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_saved_layout_is_refused_before_any_change(full, context, name):
    wc = context(BUDGET)
    wc.extend(100)
    before = wc.save()
    with pytest.raises(ConfigError, match="saved layout") as caught:
        wc.restore(full.save() | BROKEN[name])
    assert "layout" == caught.value.field
    assert before == wc.save()


@pytest.mark.parametrize("level", [11, 255])
def test_a_saved_level_that_does_not_exist_is_refused(full, context, level):
    saved = full.save()
    saved["lod"] = bytes([level]) + saved["lod"][1:]
    with pytest.raises(ConfigError, match="level above 10"):
        context(BUDGET).restore(saved)


def test_a_saved_layout_of_another_length_is_refused(full, context):
    wc = context(BUDGET)
    with pytest.raises(CoverageError):
        wc.restore(full.save() | {"n_tokens": 60_032})
    assert 0 == wc.n_tokens


def test_a_saved_layout_with_an_index_changed_is_refused(full, context):
    saved = full.save()
    index = np.frombuffer(saved["index"], dtype="<i8").copy()
    for wrong in (index[0] + 1, 10**12, -5):
        index[0] = wrong
        with pytest.raises((ConfigError, InvariantError)):
            context(BUDGET).restore(saved | {"index": index.tobytes()})


def test_restoring_opens_what_the_present_budget_protects(full, context):
    wide = Budget(w_max=4096, recent_tokens=1024, sink_blocks=3)
    small = context(Budget(w_max=512, recent_tokens=32, sink_blocks=0))
    small.lay_out(60_000)
    wc = context(wide)
    applied = wc.restore(small.save())
    assert {"protect"} == {move.reason for move in applied.moves}
    assert {0} == set(lods_in(wc, Span(59_000, 60_000)))
    assert {0} == set(lods_in(wc, Span(0, 96)))
    assert [] == plain_faults(wc.entries, 60_000, wide)


def test_pins_that_no_longer_fit_are_refused_on_restore(full, context):
    full.pin(Span(20_000, 20_250))
    wc = context(Budget(w_max=320, recent_tokens=32, sink_blocks=0))
    with pytest.raises(BudgetError):
        wc.restore(full.save())
    assert 0 == wc.n_tokens


def test_yielded_protections_return_when_there_is_room_again(context):
    small = Budget(w_max=512, recent_tokens=256)
    wc = context(small)
    applied = wc.extend(32**5 + 700)
    assert ("sinks",) == applied.yielded
    assert ("sinks",) == wc.protection.yielded
    wide = WorkingContext(
        Budget(w_max=2048, recent_tokens=256), allocator=wc._allocator, strict=True
    )
    assert () == wide.restore(wc.save()).yielded
    assert [0] == lods_in(wide, Span(0, 32))
