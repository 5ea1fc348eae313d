from __future__ import annotations

import re

import pytest

from megacontext_sdk.demo.facts import KINDS, NAMES, Fact, is_correct, make_facts

MOST = len(NAMES) * len(KINDS)


def fact(*answers: str) -> Fact:
    return Fact("city", "Noah", "Noah lives in Rome.", "Where does Noah live?", answers)


def test_the_same_seed_gives_the_same_facts():
    assert make_facts(50, seed=3) == make_facts(50, seed=3)


def test_another_seed_gives_other_facts():
    assert make_facts(50, seed=3) != make_facts(50, seed=4)


def test_fifty_facts_are_about_fifty_people():
    assert 50 == len({fact.person for fact in make_facts(50)})


def test_all_questions_differ_even_when_every_person_has_every_kind():
    facts = make_facts(MOST, seed=1)
    assert MOST == len({fact.question for fact in facts})
    assert MOST == len({(fact.person, fact.kind) for fact in facts})


def test_all_kinds_take_turns():
    assert {kind.name for kind in KINDS} == {fact.kind for fact in make_facts(len(KINDS))}


@pytest.mark.parametrize("n", [-1, MOST + 1])
def test_an_impossible_number_of_facts_names_the_bounds(n):
    with pytest.raises(ValueError, match=rf"n={n} .* 0 to {MOST}"):
        make_facts(n)


def test_no_facts_are_no_facts():
    assert [] == make_facts(0)


@pytest.mark.parametrize("seed", range(3))
def test_a_fact_tells_its_answer_and_its_question_does_not(seed):
    for told in make_facts(MOST, seed=seed):
        assert told.answers[0] in told.text
        assert told.person in told.text
        assert told.person in told.question
        assert not re.search(rf"\b{told.answers[0]}\b", told.question)


def test_every_wording_is_used_by_some_fact():
    facts = make_facts(MOST, seed=5)
    for kind in KINDS:
        told = [fact for fact in facts if fact.kind == kind.name]
        openings = {statement.split("{")[0] for statement in kind.statements}
        for opening in openings:
            assert any(fact.text.startswith(opening) for fact in told)


def test_no_two_people_share_a_name_or_a_common_word():
    assert len(NAMES) == len(set(NAMES))
    assert "Will" not in NAMES  # a question about Will would be asked in stop words


@pytest.mark.parametrize(
    "answer", ["Rome", "rome", " ROME.", "In Rome.", "Rome!\nParis", "It is Rome, I think."]
)
def test_the_whole_word_in_any_case_is_right(answer):
    assert is_correct(answer, fact("Rome"))


@pytest.mark.parametrize(
    "answer",
    ["", "Paris", "Romeo", "Jerome", "Paris. Rome", "Paris\nRome", "Rom", "I do not know."],
)
def test_another_word_a_longer_word_or_a_later_sentence_is_wrong(answer):
    assert not is_correct(answer, fact("Rome"))


def test_any_accepted_word_is_right():
    assert is_correct("Gotham", fact("New York", "Gotham"))
    assert is_correct("in new york", fact("New York", "Gotham"))
