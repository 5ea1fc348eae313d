"""What steers the focus and what does not: rows 33, 35, 43, 48 and 58 through real sessions."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from megacontext_sdk.builtin.greedy import GreedyAllocator
from megacontext_sdk.builtin.heuristic import HeuristicFocus, HeuristicWeights
from megacontext_sdk.builtin.strategies import (
    AdaptiveTauAllocator,
    HybridAllocator,
    KnapsackAllocator,
    StochasticAllocator,
)
from megacontext_sdk.contracts.focus import FocusPolicy
from megacontext_sdk.testing.policy import RandomTree, policy_view

FACT = "The okapi of Marlene sleeps in a hammock under the walnut tree."


class Changed(RandomTree):
    """The same history, but for the gist of one node."""

    def __init__(self, seed, n_tokens, lod, index):
        super().__init__(seed, n_tokens)
        self._node = (lod, index)

    def gists(self, lod, indices):
        rows = super().gists(lod, indices).copy()
        rows[[(lod, int(index)) == self._node for index in indices]] *= -3.0
        return rows


@pytest.mark.parametrize("seed", range(6))
def test_row33_the_last_entry_can_change_the_score_of_the_first(seed):
    """Non-causality: entries are weighed against each other, whichever comes first."""
    view = policy_view(seed, n_tokens=20_000, w_max=700)
    tree = RandomTree(seed, 20_000)
    lods, free = view.entries.lod, ~view.entries.protected
    first, last = np.flatnonzero(free & (lods > 0))[[0, -1]].tolist()
    ends = [(int(lods[at]), int(view.entries.index[at])) for at in (first, last)]
    assert ends[0] != ends[1]
    liked = tree.gists(ends[0][0], np.array([ends[0][1]]))[0, 0]
    only = HeuristicWeights(lexical=0.0, recency=0.0, stickiness=0.0, precision=0.0, cosine=1.0)
    before, after = (
        HeuristicFocus(only).score(attrs.evolve(view, tree=reads, query_vector=liked))[first]
        for reads in (tree, Changed(seed, 20_000, *ends[1]))
    )
    assert before > 0
    assert before != after


# --- row 35 -----------------------------------------------------------------------------------


def levels(report, span):
    return {entry.lod for entry in report.entries if entry.span.overlaps(span)}


def test_row35_a_turn_of_ten_tokens_changes_scores_and_layout_before_the_first_token(sessions):
    with sessions.open() as session:
        sessions.fill(session, 20)
        told = session.append(FACT)
        sessions.fill(session, 80)
        before = session.focus.report()
        assert 0 not in levels(before, told.span)
        turn = "okapi bed?"
        assert 10 == len(session._parts.state.tokenizer.encode(turn))
        stream = session.stream(turn, max_new_tokens=4)
        changed = next(stream)  # nothing is decoded yet
        assert {0} == levels(changed.focus, told.span)
        assert changed.focus.epoch > before.epoch
        record = session._parts.state.records[-1]
        assert ("turn", True) == (record.trigger, len(record.moves) > 0)
        stream.close()


def test_row35_the_ephemeral_turn_steers_without_being_remembered(sessions):
    with sessions.open() as session:
        sessions.fill(session, 20)
        told = session.append(FACT)
        sessions.fill(session, 80)
        n_tokens = session.stats().n_tokens
        reply = session.generate("okapi bed?", max_new_tokens=2, remember=False)
        assert n_tokens == session.stats().n_tokens
        assert {0} == levels(reply.focus, told.span)


def test_row58_a_fact_at_token_10_comes_back_in_full_after_one_refocus(sessions):
    with sessions.open() as session:
        session.append("Hi there.")
        told = session.append(FACT)
        assert told.span.start < 32
        session.append(" ".join(f"word{n % 97}" for n in range(4_000)))
        assert session.stats().n_tokens > 20_000
        reply = session.generate("Where does the okapi sleep?", max_new_tokens=2)
        assert {0} == levels(reply.focus, told.span)


# --- row 43 -----------------------------------------------------------------------------------


def test_row43_the_opening_and_pins_stay_in_full_over_100_refocuses_of_a_session(sessions):
    with sessions.open() as session:
        system = session.append("Be kind, be brief.", role="system")
        assert system.span.end <= 32
        sessions.fill(session, 60)
        pin = session.append(FACT)
        session.focus.pin(pin.span)
        n_refocuses = 0
        while n_refocuses < 100:
            session.generate(f"Day {n_refocuses % 60}?", max_new_tokens=34)
            report = session.focus.report()
            assert {0} == levels(report, system.span)
            assert {0} == levels(report, pin.span)
            n_refocuses = session._parts.state.step


# --- row 48 -----------------------------------------------------------------------------------


class Wants(FocusPolicy):
    """Asks for everything coarse, and offers nothing."""

    name = "wants"

    def score(self, view):
        return np.where(view.entries.lod > 0, 0.9, 0.0).astype(np.float32)


@pytest.mark.parametrize(
    "allocator",
    [
        GreedyAllocator,
        AdaptiveTauAllocator,
        HybridAllocator,
        KnapsackAllocator,
        StochasticAllocator,
    ],
)
def test_row48_a_full_budget_ends_a_refocus_after_one_idle_iteration(sessions, allocator):
    with sessions.open(focus=Wants()) as session:
        sessions.fill(session, 80)
        state = session._parts.state
        state.refocuser._allocator = allocator()
        for _ in range(40):  # until every row is spent
            session._parts.loop.boundary(np.zeros(0, np.int32))
        before = state.wc.epoch
        session._parts.loop.refocus(
            np.zeros(0, np.int32), "", turn_start=None, max_iterations=1000, trigger="turn"
        )
        record = state.records[-1]
        assert ((), 1) == (record.moves, record.iterations)
        assert {"budget"} >= {skipped.reason for skipped in record.skipped}
        assert before == state.wc.epoch
