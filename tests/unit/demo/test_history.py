from __future__ import annotations

import pytest

from megacontext_sdk.demo.facts import make_facts
from megacontext_sdk.demo.history import CHARACTERS_PER_TOKEN, Item, build_history, depths
from megacontext_sdk.demo.texts import PAGE_CHARACTERS, Library, open_library


def tokens_of(items: list[Item]) -> float:
    return sum(len(item.text) for item in items) / CHARACTERS_PER_TOKEN


def test_depths_begin_at_the_start_and_rise_within_the_history():
    found = depths(50, seed=7)
    assert 50 == len(found)
    assert 0.0 == found[0]
    assert sorted(found) == found
    assert found[-1] < 1.0


def test_depths_of_no_facts_are_none():
    assert [] == depths(0)


def test_the_first_message_tells_the_first_fact(data_dir):
    facts = make_facts(5)
    first = next(build_history(1000, facts, data_dir=data_dir))
    assert Item("user", facts[0].text, facts[0]) == first


def test_all_facts_are_told_once_in_order_and_in_between(data_dir):
    facts = make_facts(20, seed=2)
    items = list(build_history(20_000, facts, seed=2, data_dir=data_dir))
    assert facts == [item.fact for item in items if item.fact is not None]
    assert items[-1].fact is None


def test_facts_stand_near_their_depths(data_dir):
    facts = make_facts(10, seed=2)
    items = list(build_history(20_000, facts, seed=2, data_dir=data_dir))
    page = 2 * PAGE_CHARACTERS / CHARACTERS_PER_TOKEN
    for fact, depth in zip(facts, depths(10, seed=2), strict=True):
        at = next(i for i, item in enumerate(items) if item.fact == fact)
        assert depth * 20_000 <= tokens_of(items[:at]) + 1
        assert tokens_of(items[:at]) <= depth * 20_000 + page


def test_the_history_is_as_long_as_asked_for(data_dir):
    found = tokens_of(list(build_history(15_000, make_facts(3), data_dir=data_dir)))
    assert 15_000 <= found <= 15_000 + 2 * PAGE_CHARACTERS / CHARACTERS_PER_TOKEN


def test_counted_tokens_replace_the_guess(data_dir):
    taken: list[Item] = []

    def count():  # two characters a token, known every ten messages
        return sum(len(item.text) for item in taken[: len(taken) // 10 * 10]) // 2

    taken.extend(build_history(5_000, make_facts(3), data_dir=data_dir, count=count))
    found = sum(len(item.text) for item in taken) / 2
    assert 5_000 <= found <= 5_000 + PAGE_CHARACTERS


def test_the_same_seed_gives_the_same_history(data_dir):
    facts = make_facts(5)
    first = list(build_history(5_000, facts, seed=4, data_dir=data_dir))
    assert first == list(build_history(5_000, facts, seed=4, data_dir=data_dir))
    assert first != list(build_history(5_000, facts, seed=5, data_dir=data_dir))


def test_texts_that_run_out_end_the_history_early(data_dir):
    items = list(build_history(10**9, [], data_dir=data_dir))
    assert len(items) == len({(index, item.text) for index, item in enumerate(items)})
    assert tokens_of(items) < 100_000


def test_no_page_is_told_twice(data_dir):
    pages = [t.text for t in open_library(data_dir).turns() if "The rain fell" in t.text]
    assert len(pages) == len(set(pages))


def test_dialogues_become_turns_of_user_and_assistant(data_dir):
    turns = list(open_library(data_dir).turns())
    replies = [turn for turn in turns if turn.role == "assistant"]
    assert 40 == len(replies)
    assert {"Yes."} == {turn.text for turn in replies}


def test_a_page_ends_with_its_paragraph():
    library = Library((("x" * 500 + "\n\n") * 4,), (), "test")
    assert ["x" * 500 + "\n\n" + "x" * 500] * 2 == [turn.text for turn in library.turns()]


def test_a_folder_without_texts_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"books\.jsonl\.xz"):
        open_library(tmp_path)


def test_the_packaged_books_hold_200k_tokens_of_text(monkeypatch, tmp_path):
    monkeypatch.setattr("megacontext_sdk.demo.texts._DATA_FOLDER", tmp_path)
    library = open_library()
    assert 2 == len(library.books)
    assert library.origin.startswith("packaged books (invisible_man.txt")
    assert 200_000 * CHARACTERS_PER_TOKEN < sum(map(len, library.books))


def test_the_packaged_books_tell_every_fact(monkeypatch, tmp_path):
    monkeypatch.setattr("megacontext_sdk.demo.texts._DATA_FOLDER", tmp_path)
    items = list(build_history(200_000, make_facts(50)))
    assert 50 == sum(item.fact is not None for item in items)
    assert 200_000 <= tokens_of(items)
