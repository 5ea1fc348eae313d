"""Drafts: each move against a plain list of nodes, and what survives an edit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_sdk.contracts.focus import Budget, Move
from megacontext_sdk.errors import ProtectionError
from megacontext_sdk.focus.entries import entries_from_nodes, no_entries
from megacontext_sdk.focus.moves import Draft, delta_of_collapse, delta_of_expand
from megacontext_sdk.focus.protection import protect
from megacontext_sdk.memory.lod import NodeId, Span, children

NOTHING = Budget(w_max=10**6, recent_tokens=0, sink_blocks=0)


def draft_of(nodes, n_tokens, gist_slots=1):
    lods, indices = zip(*nodes, strict=True) if nodes else ((), ())
    return Draft(entries_from_nodes(lods, indices, n_tokens, gist_slots), n_tokens, gist_slots)


def shown(draft):
    entries = draft.finish(protect(draft.n_tokens, NOTHING, ()))
    return list(zip(entries.lod.tolist(), entries.index.tolist(), strict=True))


def plain_expand(nodes, node):
    """The reference: swap one pair of a list for the pairs of its children."""
    at = nodes.index((node.lod, node.index))
    return [*nodes[:at], *((c.lod, c.index) for c in children(node)), *nodes[at + 1 :]]


def plain_collapse(nodes, node):
    family = [(c.lod, c.index) for c in children(node)]
    at = nodes.index(family[0])
    assert family == nodes[at : at + len(family)]
    return [*nodes[:at], (node.lod, node.index), *nodes[at + len(family) :]]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_random_edits_equal_edits_of_a_plain_list(seed):
    random = np.random.default_rng(seed)
    nodes, n_tokens = [(3, 0), (1, 1024), (0, 1025)], 1025 * 32 + 9
    draft = draft_of(nodes, n_tokens)
    undo = []
    for _ in range(25):
        gists = [NodeId(*pair) for pair in nodes if pair[0]]
        if undo and random.random() < 0.4:
            node = undo.pop()
            nodes = plain_collapse(nodes, node)
            draft.collapse(node, 0.0)
        elif gists:
            node = gists[int(random.integers(len(gists)))]
            nodes = plain_expand(nodes, node)
            draft.expand(node, 0.0)
            undo = [*undo, node]
        assert nodes == shown(draft)
    lods = [lod for lod, _ in nodes]
    assert 9 + 32 * (lods.count(0) - 1) + len(lods) - lods.count(0) == draft.cost


@pytest.mark.parametrize(
    ("gist_slots", "lod", "rows"),
    [(1, 1, 31), (1, 2, 31), (1, 7, 31), (2, 1, 30), (2, 2, 62), (4, 1, 28), (4, 3, 124)],
)
def test_a_swap_costs_what_the_specification_says(gist_slots, lod, rows):
    assert (rows, -rows) == (delta_of_expand(lod, gist_slots), delta_of_collapse(lod, gist_slots))


def test_a_new_entry_takes_score_and_action_from_its_move():
    draft = draft_of([(2, 0), (1, 32)], 1056)
    draft.expand(NodeId(2, 0), 0.75)
    draft.collapse(NodeId(2, 0), -0.5)
    draft.expand(NodeId(1, 32), 0.25)
    entries = draft.finish(protect(1056, NOTHING, ()))
    assert [-0.5, 0.25] == entries.last_score.tolist()
    assert [-1, 1] == entries.last_action.tolist()
    assert [1, 1] == entries.action_age.tolist()


def test_an_entry_that_stays_keeps_what_it_remembers():
    draft = draft_of([(2, 0), (2, 1)], 2048)
    before = draft.finish(protect(2048, NOTHING, ()))
    before.last_score[:] = [0.125, 0.5]
    before.residency[:] = [7, 9]
    before.last_action[:] = [-1, 1]
    before.action_age[:] = [3, 4]
    again = Draft(before, 2048, 1)
    again.expand(NodeId(2, 1), 0.0)
    after = again.finish(protect(2048, NOTHING, ()))
    assert (0.125, 7, -1, 3) == (
        after.last_score[0], after.residency[0], after.last_action[0], after.action_age[0],
    )  # fmt: skip
    assert {0} == set(after.residency[1:].tolist())


def test_origins_tell_what_stayed():
    draft = draft_of([(1, 0), (1, 1), (1, 2)], 96)
    draft.expand(NodeId(1, 1), 0.0)
    assert [0, -1, 2] == draft.origin.tolist()


def test_a_copy_is_edited_apart():
    draft = draft_of([(1, 0), (1, 1)], 64)
    twin = draft.copy()
    twin.expand(NodeId(1, 0), 0.5)
    twin.append([0], [2], 96)
    assert [(1, 0), (1, 1)] == shown(draft)
    assert [(0, 0), (1, 1), (0, 2)] == shown(twin)
    assert (64, 96) == (draft.n_tokens, twin.n_tokens)


def test_growth_replaces_the_partial_tail():
    draft = draft_of([(1, 0), (0, 1)], 40)
    draft.append([0, 0], [1, 2], 70)
    entries = draft.finish(protect(70, NOTHING, ()))
    assert [32, 32, 6] == entries.n_tokens.tolist()
    assert [1, 32, 6] == entries.cost.tolist()
    assert [0, -1, -1] == draft.origin.tolist()


def test_growth_from_nothing_starts_at_zero():
    draft = Draft(no_entries(), 0, 1)
    draft.append([0], [0], 3)
    assert [(0, 0)] == shown(draft)
    assert 3 == draft.cost


def test_opening_a_range_stops_at_its_blocks():
    draft = draft_of([(3, 0)], 32**3)
    moves = draft.open(np.array([[32 * 70, 32 * 72]]), 1.0, "pin")
    assert [(3, 0), (2, 2), (1, 70), (1, 71)] == [(m.node.lod, m.node.index) for m in moves]
    assert {"pin"} == {m.reason for m in moves}
    assert [(0, 70), (0, 71)] == [node for node in shown(draft) if node[0] == 0]
    assert [] == draft.open(np.array([[32 * 70, 32 * 72]]), 1.0, "pin")


def test_folding_a_node_undoes_all_that_was_opened_below_it():
    draft = draft_of([(3, 0), (1, 1024)], 1025 * 32)
    draft.open(np.array([[32 * 5, 32 * 6], [32 * 900, 32 * 901]]), 1.0, "x")
    moves = draft.fold(NodeId(3, 0), 0.0, "user")
    assert [(3, 0), (1, 1024)] == shown(draft)
    assert [1, 1, 2, 2, 3] == [m.node.lod for m in moves]
    assert {-31} == {m.delta_cost for m in moves}


def test_folding_a_guarded_node_is_illegal():
    draft = draft_of([(0, 0), (0, 1)], 64)
    draft.guard(np.array([False, True]))
    draft.fold(NodeId(1, 0), 0.0, "user")
    with pytest.raises(ProtectionError, match="protected child"):
        draft.fold(NodeId(1, 1), 0.0, "user")


def test_an_illegal_move_leaves_the_draft_as_it_was():
    draft = draft_of([(1, 0), (0, 1)], 64)
    for kind, node in (
        ("expand", NodeId(0, 1)),
        ("collapse", NodeId(2, 0)),
        ("reveal", NodeId(0, 1)),
    ):
        with pytest.raises(ProtectionError) as caught:
            draft.play([Move(kind=kind, node=node, score=0.0, delta_cost=0)])
        assert ("I9", True) == (caught.value.code, bool(caught.value.detail))
        assert [(1, 0), (0, 1)] == shown(draft)


def test_the_cover_of_a_token_is_the_entry_over_it():
    draft = draft_of([(2, 0), (1, 32), (0, 33)], 33 * 32 + 5)
    assert [NodeId(2, 0), NodeId(2, 0), NodeId(1, 32), NodeId(0, 33)] == [
        draft.cover(token) for token in (0, 1023, 1024, 33 * 32 + 4)
    ]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.integers(1, 4000),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 300)), max_size=5),
    st.integers(0, 300),
    st.integers(0, 3),
)
def test_protection_equals_marking_token_by_token(n_tokens, pins, recent, sinks):
    spans = [Span(a, min(a + n, n_tokens)) for a, n in pins if a < n_tokens]
    budget = Budget(w_max=8192, recent_tokens=recent, sink_blocks=sinks)
    protection = protect(n_tokens, budget, spans)
    raw = np.zeros(n_tokens + 64, dtype=bool)
    user = np.zeros(n_tokens + 64, dtype=bool)
    raw[: sinks * 32] = True
    raw[n_tokens - n_tokens % 32 : n_tokens] = True
    if recent:
        raw[max(0, n_tokens - recent) // 32 * 32 :] = True
    for span in spans:
        user[span.start // 32 * 32 : -(-span.end // 32) * 32] = True
    expected = [bool((raw | user)[i : min(i + 32, n_tokens)].any()) for i in range(0, n_tokens, 32)]
    blocks = -(-n_tokens // 32)
    entries = entries_from_nodes([0] * blocks, range(blocks), n_tokens, 1)
    protected, pinned = protection.mark(entries)
    assert expected == protected.tolist()
    assert [bool(user[i]) for i in range(0, n_tokens, 32)] == pinned.tolist()
