"""The heuristic policy: what may steer it, what steers it, and what it protects."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from megacontext_sdk.builtin.heuristic import HeuristicFocus, HeuristicWeights
from megacontext_sdk.builtin.recency import RecencyFocus
from megacontext_sdk.memory.lod import BLOCK_SIZE, Span

FACT = "the okapi of Marlene sleeps in a hammock under the walnut tree"


def history(memory, chatter, *, n_before=40, n_after=60, **kwargs):
    """Filler, one fact, more filler; return the memory and the span of the fact."""
    told = memory(**kwargs)
    for i in range(n_before):
        told.tell(chatter(i, 30))
    fact = told.tell(FACT)
    for i in range(n_after):
        told.tell(chatter(1000 + i, 30))
    told.lay_out()
    return told, fact


@pytest.mark.parametrize("seed", range(4))
def test_row34_tokens_not_yet_appended_cannot_change_any_score(memory, chatter, seed):
    now, _ = history(memory, chatter, n_before=20 + seed, w_max=700)
    query = now.query("where does the okapi of Marlene sleep", now.n_tokens)
    expected = now.policy.score(now.view(query))
    expected_reveals = list(now.policy.reveals(now.view(query), 64))

    later, _ = history(memory, chatter, n_before=20 + seed, w_max=700)
    later.horizon = len(later.words)
    for i in range(30):
        later.tell(f"Marlene okapi sleeps {chatter(seed + i, 20 + seed)} 42 77")
    actual = later.policy.score(later.view(query))
    assert expected.tolist() == actual.tolist()
    assert expected_reveals == list(later.policy.reveals(later.view(query), 64))


def test_row34_only_complete_nodes_within_the_history_are_read(memory, chatter):
    told, _ = history(memory, chatter)
    told.horizon = len(told.words)
    told.tell(chatter(7, 500))
    told.policy.score(told.view(told.query(FACT, told.horizon)))  # the memory asserts on reads


def test_row35_a_short_question_steers_within_the_same_refocus(memory, chatter):
    told, fact = history(memory, chatter, n_after=120)
    assert not told.is_raw(fact)
    blocks = told.n_blocks
    idle = told.policy.score(told.view())
    record = told.ask("so where does the okapi of our Marlene sleep now")
    assert 10 == told.spans[-1].n_tokens
    assert told.n_tokens // BLOCK_SIZE == blocks  # no block was completed by the question
    assert told.is_raw(fact)
    assert {"reveal", "collapse"} <= {move.kind for move in record.moves}
    now = told.view(told.query("where does the okapi of Marlene sleep", told.spans[-1].start))
    assert len(idle) != len(now.entries) or idle.tolist() != told.policy.score(now).tolist()


def test_row35_two_questions_over_one_history_focus_differently(memory, chatter):
    told, okapi = history(memory, chatter, w_max=520)
    told.ask("where does the okapi of Marlene sleep")
    shown = told.is_raw(okapi)
    for i in range(20):
        told.tell(chatter(5000 + i, 30))
        told.wc.extend(told.n_tokens)
    rare = told.words[told.spans[3].start]
    question = " ".join(told.words[told.spans[3].start : told.spans[3].end])
    told.ask(question)
    assert rare in question
    assert (True, True) == (shown, told.is_raw(told.spans[3]))


def test_a_hit_is_shown_with_every_block_its_message_touches(memory, chatter):
    told = memory(w_max=700)
    for i in range(50):
        told.tell(chatter(i, 30))
    long = told.tell(f"{chatter(1, 40)} okapi {chatter(2, 40)}")
    for i in range(60):
        told.tell(chatter(100 + i, 30))
    told.lay_out()
    told.ask("okapi")
    assert len(long.blocks()) >= 3
    assert told.is_raw(long)


def test_a_message_that_does_not_fit_is_not_shown_in_part(memory, chatter):
    told = memory(w_max=330)
    for i in range(40):
        told.tell(chatter(i, 30))
    long = told.tell(" ".join(f"okapi {chatter(i, 30)}" for i in range(8)))
    small = told.tell(chatter(77, 10) + " walnut")
    for i in range(60):
        told.tell(chatter(100 + i, 30))
    told.lay_out()
    told.ask("okapi walnut")
    told.loop.run(
        told.query("okapi walnut", told.spans[-1].start), max_iterations=64, trigger="turn"
    )
    lone = Span(long.start, small.start - BLOCK_SIZE)
    raw = [told.is_raw(Span(b * 32, b * 32 + 1)) for b in lone.blocks()]
    assert told.is_raw(small)
    assert not any(raw[:-2])  # the neighbour's surroundings may touch the end


@pytest.mark.parametrize("digits", [4, 8])
def test_row43_a_numbers_block_outlives_equal_lexical_filler(memory, chatter, digits):
    told = memory(w_max=640, headroom=64)
    for i in range(64):
        told.tell(chatter(i, 32))
    numbers = " ".join(str(1000 + i) for i in range(digits))
    first = told.tell(f"{chatter(501, 32)}")
    exact = told.tell(f"{chatter(502, 32 - digits)} {numbers}")
    last = told.tell(f"{chatter(503, 32)}")
    for i in range(4):
        told.tell(chatter(600 + i, 32))
    told.lay_out()
    assert told.is_raw(exact)
    assert told.is_raw(first)
    assert told.is_raw(last)
    gone = []
    for i in range(40):
        told.go_on(chatter(900 + i, 32))
        gone += [
            n
            for n, s in (("first", first), ("exact", exact), ("last", last))
            if n not in gone and not told.is_raw(s)
        ]
    assert "first" in gone
    assert "last" in gone
    assert "exact" not in gone or gone.index("exact") == 2


def test_row43_the_system_prompt_and_pins_stay_at_lod0_over_100_refocuses(memory, chatter):
    told = memory(w_max=700)
    system = told.tell(f"you are a patient assistant {chatter(1, 27)}")
    for i in range(80):
        told.tell(chatter(i, 30))
    told.lay_out()
    pinned = told.spans[20]
    told.wc.pin(pinned)
    assert (0, 32) == (system.start, system.end)
    for i in range(100):
        told.ask(chatter(3000 + i, 5) if i % 2 else FACT)
        assert told.is_raw(system)
        assert told.is_raw(pinned)


def test_slack_is_used_and_nothing_is_given_back(memory, chatter):
    told, _ = history(memory, chatter, n_before=3, n_after=3, w_max=2_000)
    scores = told.policy.score(told.view(told.query("anything", told.n_tokens)))
    assert scores.min() >= 0.0


def test_what_the_budget_has_room_for_is_what_the_refocus_ends_with(memory, chatter):
    told, _ = history(memory, chatter, w_max=500)
    told.ask("where does the okapi of Marlene sleep", max_iterations=200)
    scores = told.policy.score(told.view(told.query(FACT, told.spans[-1].start)))
    tau = told.wc.budget.tau_expand
    assert told.wc.budget.target - told.wc.cost < 62
    assert not (np.abs(scores) > 1.0).any()
    assert not ((scores != 0) & (np.abs(scores) < tau)).any()


def test_without_hits_the_newest_text_is_shown(memory, chatter):
    told, _ = history(memory, chatter, w_max=500)
    view = told.view()
    plain = HeuristicFocus(HeuristicWeights(cosine=0.0, precision=0.0, stickiness=0.0))
    actual = plain.score(view)
    free = ~view.entries.protected & (view.entries.lod <= 1) & (actual != 0)
    expected = RecencyFocus().score(view)
    assert (expected[free] > 0).tolist() == (actual[free] > 0).tolist()


def test_precision_and_stickiness_break_ties(memory, chatter):
    told, _ = history(memory, chatter, n_before=10, n_after=10, w_max=420)
    view = told.view()
    entry = int(np.flatnonzero((view.entries.lod == 0) & ~view.entries.protected)[0])
    only = HeuristicWeights(lexical=0.0, cosine=0.0, recency=0.0, stickiness=1.0, precision=0.0)
    scores = HeuristicFocus(only).score(view)
    coarse = view.entries.lod > 0
    assert scores[entry] > scores[coarse].max()


def test_a_similar_gist_wins_when_no_word_is_shared(memory, chatter):
    told, fact = history(memory, chatter, w_max=2_000, n_before=10, n_after=30)
    vector = told.gists(1, [fact.start // BLOCK_SIZE])[0, 0]
    view = attrs.evolve(told.view(), query_vector=vector.astype(np.float32))
    only = HeuristicWeights(lexical=0.0, cosine=1.0, recency=0.0, stickiness=0.0, precision=0.0)
    scores = HeuristicFocus(only).score(view)
    at = int(np.searchsorted(view.entries.start, fact.start, "right")) - 1
    free = ~view.entries.protected
    assert scores[at] == scores[free].max()


def test_the_opinion_does_not_depend_on_what_was_asked_before(memory, chatter):
    told, _ = history(memory, chatter)
    query = told.query("where does the okapi sleep", told.n_tokens)
    fresh = HeuristicFocus().score(told.view(query))
    told.policy.score(told.view(told.query("hammock", told.n_tokens)))
    told.policy.score(told.view())
    assert fresh.tolist() == told.policy.score(told.view(query)).tolist()
