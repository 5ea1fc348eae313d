"""The heuristic policy: what may steer it, what steers it, and what it protects."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from megacontext_sdk.builtin.heuristic import HeuristicFocus, HeuristicWeights
from megacontext_sdk.builtin.recency import RecencyFocus
from megacontext_sdk.contracts.focus import LexicalHits
from megacontext_sdk.memory.lod import BLOCK_SIZE, Span
from megacontext_sdk.testing.policy import policy_view

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


@pytest.mark.parametrize(("start", "end"), [(5120, 5121), (5120, 5152), (5150, 5154), (5130, 5220)])
def test_a_hit_reveals_exactly_the_blocks_its_message_touches(start, end):
    hit = LexicalHits(
        start=np.array([start]), end=np.array([end]), score=np.array([9.0], np.float32)
    )
    view = attrs.evolve(policy_view(1, n_tokens=20_000, w_max=700), hits=hit)
    reveals = HeuristicFocus().reveals(view, 64)
    assert set(Span(start, end).blocks()) == {reveal.block for reveal in reveals}
    assert 1 == len({reveal.utility for reveal in reveals})


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


@pytest.mark.parametrize("seed", range(4))
def test_row43_a_numbers_block_outlives_equal_lexical_filler(memory, chatter, seed):
    told = memory(w_max=640, headroom=64)

    def say(number, n_words, digits=""):
        """Tell words that no other message shares, so that nothing is ever hit by a query."""
        told.tell(f"{chatter(seed, n_words, prefix=f'm{number}x')} {digits}".strip())

    for i in range(64):
        say(i, 32)
    say(100, 28, "1987 2301 44 590")
    exact = told.spans[-1]
    for i in range(2):
        say(200 + i, 32)
    newer = told.spans[-2:]
    for i in range(4):
        say(300 + i, 32)
    told.lay_out()
    assert all(told.is_raw(span) for span in (exact, *newer))
    while told.is_raw(exact) and len(told.words) < 6_000:
        assert len(told.words) < 5_000
        if not any(told.is_raw(span) for span in newer):
            return
        told.go_on(chatter(seed, 32, prefix=f"g{len(told.words)}x"))
    pytest.fail("the numbers went before the filler that was told after them")


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


def test_what_is_shown_stays_when_nothing_speaks_against_it(memory, chatter):
    told, fact = history(memory, chatter, n_before=10, n_after=30, w_max=420)
    entries = told.wc.entries
    newer = entries.index[(entries.lod == 0) & ~entries.protected]
    told.wc.collapse(Span(int(newer[0]) * BLOCK_SIZE, int(newer[-1] + 1) * BLOCK_SIZE))
    told.wc.expand(fact)
    only = HeuristicWeights(lexical=0.0, cosine=0.0, recency=0.0, stickiness=1.0, precision=0.0)
    scores = HeuristicFocus(only).score(told.view())
    at = np.searchsorted(told.wc.entries.index, list(fact.blocks()))
    raw = (told.wc.entries.lod == 0) & ~told.wc.entries.protected
    assert set(at.tolist()) <= set(np.flatnonzero(raw).tolist())
    assert scores[raw].min() > scores[~raw].max()


@pytest.mark.parametrize(("score", "is_less"), [(2.0, True), (3.9, True), (8.0, False)])
def test_a_weak_best_match_is_no_full_match(score, is_less):
    def utility(value):
        hit = LexicalHits(
            start=np.array([5120]), end=np.array([5140]), score=np.array([value], np.float32)
        )
        view = attrs.evolve(policy_view(1, n_tokens=20_000, w_max=700), hits=hit)
        return HeuristicFocus().reveals(view, 64)[0].utility

    assert is_less == (utility(score) < utility(4.0))


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
