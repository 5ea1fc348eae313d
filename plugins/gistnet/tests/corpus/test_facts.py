"""Made-up conversations: each answer stands before its question, and no two are confused."""

from __future__ import annotations

import random
import re

import pytest

from megacontext_gistnet.corpus import FactSource, Source, Turn, fact_dialogues, tell_facts
from megacontext_gistnet.corpus.fact_kinds import KINDS, NAMES, UNSEEN_NAMES
from megacontext_gistnet.corpus.facts import read_filler
from megacontext_sdk.demo.facts import KINDS as ASKED_BY_THE_BENCHMARK
from megacontext_sdk.demo.facts import make_facts
from megacontext_sdk.errors import ConfigError

FILLER = [
    (Turn("user", "The rain went on."), Turn("assistant", "So it did.")),
    (Turn("user", "A page of a book about the sea. " * 20),),
]


def questions_of(chat):
    """Return [(index, question, answer)] of a conversation: a question answered without a stop."""
    return [
        (at, turn.text, chat[at + 1].text)
        for at, turn in enumerate(chat[:-1])
        if turn.text.endswith("?") and chat[at + 1].role == "assistant"
    ]


def test_every_answer_was_told_before_it_is_asked_for():
    for chat in fact_dialogues(100, 1, FILLER):
        asked = questions_of(chat)
        assert 3 <= len(asked) <= 12
        for at, _, answer in asked:
            told = [turn.text for turn in chat[:at] if turn.role == "user"]
            assert any(answer in text for text in told)


def test_no_question_is_asked_twice_in_one_conversation():
    for chat in fact_dialogues(100, 2, []):
        asked = [question for _, question, _ in questions_of(chat)]
        assert len(asked) == len(set(asked))


def test_equal_seeds_give_equal_conversations():
    assert list(fact_dialogues(5, 3, FILLER)) == list(fact_dialogues(5, 3, FILLER))
    assert list(fact_dialogues(5, 3, FILLER)) != list(fact_dialogues(5, 4, FILLER))


def test_filler_stands_between_facts_and_questions():
    chats = list(fact_dialogues(50, 4, FILLER))
    used = [any("rain" in turn.text or "sea" in turn.text for turn in chat) for chat in chats]
    assert sum(used) > 40
    assert max(sum(len(turn.text) for turn in chat) for chat in chats) < 7_000


def test_facts_of_one_call_differ_in_kind_person_or_thing():
    facts = tell_facts(60, random.Random(1))
    keys = [(fact.kind, fact.question) for fact in facts]
    assert len(facts) == 60
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_says_the_answer_once_and_never_in_the_question(kind):
    rng = random.Random(0)
    words = {"name": "Zoe", "thing": kind.things[0], "answer": "ANSWER"}
    for statement in kind.statements:
        assert 1 == statement.format(**words).count("ANSWER")
    for question in kind.questions:
        assert "answer" not in question
        assert question.format(**words).endswith("?")
        assert "Zoe" in question.format(**words)
    assert all(kind.answer(rng) for _ in range(20))


def test_numbers_names_and_colors_are_among_the_answers():
    rng = random.Random(0)
    found = {kind.name: kind.answer(rng) for kind in KINDS}
    assert re.fullmatch(r"\d{4}", found["code of four"])
    assert re.fullmatch(r"\d{6}", found["code of six"])
    assert re.fullmatch(r"\d+ (dollars|euros|pounds)", found["price"])
    assert found["relative"] in NAMES
    assert {"color", "sport", "month"} <= set(found)


def test_the_wordings_of_the_benchmark_are_among_ours():
    ours = {wording for kind in KINDS for wording in (*kind.statements, *kind.questions)}
    for kind in ASKED_BY_THE_BENCHMARK:
        assert set(kind.statements) <= ours, kind.name
        assert set(kind.questions) & ours, kind.name


def test_the_facts_of_the_benchmark_are_not_those_of_any_training_seed():
    of_benchmark = {(fact.text, fact.question) for s in range(20) for fact in make_facts(60, s)}
    for seed in range(20):
        ours = tell_facts(60, random.Random(f"megacontext facts {seed}/0"))
        shared = of_benchmark & {(fact.statement, fact.question) for fact in ours}
        assert len(shared) < 6  # chance: a few dozen names and answers only


def test_some_names_are_kept_for_the_probe():
    assert not set(NAMES) & set(UNSEEN_NAMES)
    assert all(fact.kind for fact in tell_facts(5, random.Random(0), UNSEEN_NAMES))


def test_a_source_of_facts_keeps_the_sides_of_its_filler_apart(write):
    rows = [{"id": str(i), "text": f"A: Line {i}.\nB: Yes, {i}."} for i in range(300)]
    filler = Source(write("dialogue.jsonl", rows), style="chat")
    sides = {True: set(), False: set()}
    for held_out, turns in read_filler((filler,)):
        sides[held_out].add(turns[0].text)
    assert 290 < len(sides[False]) < 300
    drafts = list(FactSource(300, filler=(filler,)).drafts())
    assert {True, False} == {draft.is_held_out for draft in drafts}
    for draft in drafts:
        assert "facts" == draft.domain
        assert not sides[not draft.is_held_out] & {turn.text for turn in draft.content}


def test_books_are_filler_page_by_page(write):
    text = "\n\n".join(f"Paragraph {i}. " * 10 for i in range(40))
    source = Source(write("books.jsonl", [{"id": "b", "text": text}]))
    pages = [turns for _, turns in read_filler((source,))]
    assert len(pages) > 3
    assert {("user",)} == {tuple(turn.role for turn in turns) for turns in pages}
    assert max(len(turns[0].text) for turns in pages) <= 1800


def test_facts_without_filler_are_facts_all_the_same():
    assert 4 == len(list(FactSource(4).drafts()))


def test_no_documents_are_refused():
    with pytest.raises(ConfigError, match="n_documents=0"):
        FactSource(0)
