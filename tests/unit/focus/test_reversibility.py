"""Expand and collapse undo each other, and every swap is all or nothing (rows 54, 44)."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_sdk.contracts.focus import Move, Plan
from megacontext_sdk.focus.candidates import sibling_groups
from megacontext_sdk.memory.lod import NodeId, children
from megacontext_sdk.testing.focus import allocator_case

HISTORY = np.random.default_rng(54).integers(0, 2**31, 10**6 + 64).astype(np.int32)


def shape(wc):
    """What the model would read: per entry its node and the ids of its span."""
    entries = wc.entries
    return [
        (lod, index, HISTORY[start : start + n].tobytes())
        for lod, index, start, n in zip(
            entries.lod.tolist(), entries.index.tolist(), entries.start.tolist(),
            entries.n_tokens.tolist(), strict=True,
        )
    ]  # fmt: skip


def one(kind, node):
    return Plan(moves=(Move(kind=kind, node=node, score=0.0, delta_cost=0),))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(0, 2**16))
def test_row54_expand_then_collapse_restores_the_same_rows(seed, choice):
    wc = allocator_case(seed).wc
    room = wc.budget.w_max - wc.cost >= 31 * wc.budget.gist_slots
    gists = np.flatnonzero(wc.entries.lod)
    if not room or not len(gists):
        return
    at = gists[choice % len(gists)]
    node = NodeId(int(wc.entries.lod[at]), int(wc.entries.index[at]))
    before, epoch = shape(wc), wc.epoch
    wc.apply(one("expand", node))
    shown = {(lod, index) for lod, index, _ in shape(wc)}
    assert {(child.lod, child.index) for child in children(node)} <= shown
    wc.apply(one("collapse", node))
    assert before == shape(wc)
    assert epoch + 2 == wc.epoch


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(0, 2**16))
def test_row54_collapse_then_expand_restores_the_same_rows(seed, choice):
    wc = allocator_case(seed).wc
    groups = sibling_groups(wc.entries, np.zeros(len(wc.entries), dtype=np.float32))
    if not len(groups.at):
        return
    pick = choice % len(groups.at)
    node = NodeId(int(groups.lod[pick]), int(groups.index[pick]))
    before = shape(wc)
    wc.apply(one("collapse", node))
    wc.apply(one("expand", node))
    assert before == shape(wc)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_row54_undoing_a_plan_backwards_restores_the_same_rows(seed):
    wc = allocator_case(seed).wc
    before = shape(wc)
    groups = sibling_groups(wc.entries, np.zeros(len(wc.entries), dtype=np.float32))
    taken = groups.take(np.arange(0, len(groups.at), 2))
    wc.apply(Plan(moves=tuple(one("collapse", g.node).moves[0] for g in taken)))
    wc.apply(Plan(moves=tuple(one("expand", g.node).moves[0] for g in reversed(taken))))
    assert before == shape(wc)


def test_row54_user_actions_restore_the_same_rows(context):
    wc = context()
    wc.lay_out(100_000)
    before = shape(wc)
    wc.collapse(NodeId(2, 95))
    assert before != shape(wc)
    wc.expand(NodeId(2, 95).span)
    assert before == shape(wc)


def test_entries_handed_out_are_read_only_and_stay_as_they_were(context, fields_of):
    wc = context()
    wc.lay_out(100_000)
    held = wc.entries
    copy = fields_of(held)
    wc.extend(100_064)
    wc.tick(np.ones(len(wc.entries), dtype=np.float32))
    assert copy == fields_of(held)
    for name in copy:
        assert not getattr(held, name).flags.writeable
        assert not getattr(wc.entries, name).flags.writeable
