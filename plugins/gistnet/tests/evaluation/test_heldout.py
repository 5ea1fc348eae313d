"""Only held-out text is measured on, and nothing that an encoder says it was trained on."""

from __future__ import annotations

import json

import pytest

from megacontext_gistnet.corpus import FactSource, Source, is_held_out
from megacontext_gistnet.evaluation.heldout import (
    EVALUATION_SEED,
    SOURCES_FACT,
    check_not_trained_on,
    held_out_sources,
    packaged_sources,
    read_held_out,
    source_facts,
    texts_of,
    trained_on,
)
from megacontext_sdk.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    def make(name, n=120, licence=""):
        place = tmp_path / name
        place.mkdir(parents=True)
        rows = [{"id": f"{name}-{i}", "text": f"Story {i} of {name}. " * 30} for i in range(n)]
        lines = "\n".join(json.dumps(one) for one in rows)
        (place / "books.jsonl").write_text(lines, encoding="utf-8")
        if licence:
            (place / "LICENSE.txt").write_text(licence, encoding="utf-8")
        return place

    return make


def ids_of(sources, tiny):
    found = read_held_out(sources, tiny.tokenizer, tiny.info)
    return {one.doc_id.partition("+")[0] for one in found}


def test_of_training_data_only_the_held_out_side_is_read(folder, tiny):
    found = ids_of(held_out_sources([folder("stories")], []), tiny)
    assert found
    assert all(is_held_out(one) for one in found)


def test_of_evaluation_data_everything_is_read(folder, tiny):
    whole = held_out_sources([], [folder("stories", n=3)])
    assert {"stories-0"} == ids_of(whole, tiny)  # packed together: the first names the pack
    named = held_out_sources([folder("eval-mine", n=3)], [])
    assert {"eval-mine-0"} == ids_of(named, tiny)


def test_non_commercial_folders_are_left_out_unless_named(folder, tiny):
    outer = folder("eval-all", n=2)
    inner = folder("eval-all/locomo", n=2, licence="Attribution-NonCommercial 4.0 International")
    assert {"eval-all-0"} == ids_of(held_out_sources([outer], []), tiny)
    assert {"eval-all/locomo-0"} == ids_of(held_out_sources([], [inner]), tiny)
    with pytest.raises(ConfigError, match="non-commercial data only"):
        held_out_sources([folder("outer/eval-x", licence="NonCommercial").parent], [])


def test_a_place_without_data_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no data"):
        held_out_sources([tmp_path / "nowhere"], [])


def test_an_encoder_trained_on_evaluation_data_is_refused(folder):
    place = folder("eval-mine", n=3)
    facts = {SOURCES_FACT: trained_on([place])}
    with pytest.raises(ConfigError, match="'greedy' was trained on eval-mine/books.jsonl"):
        check_not_trained_on("greedy", facts, held_out_sources([place], []))


def test_training_on_the_other_side_of_the_split_is_fine(folder):
    place = folder("stories")
    facts = {SOURCES_FACT: trained_on([place])}
    check_not_trained_on("honest", facts, held_out_sources([place], []))
    with pytest.raises(ConfigError, match="was trained on"):
        check_not_trained_on("honest", facts, held_out_sources([], [place]))


def test_training_on_everything_is_refused_for_the_held_out_side_too(folder):
    place = folder("stories")
    facts = {SOURCES_FACT: trained_on([Source(place, split="train")])}
    with pytest.raises(ConfigError, match="was trained on"):
        check_not_trained_on("greedy", facts, held_out_sources([place], []))


def test_a_copy_elsewhere_is_the_same_data(folder, tmp_path):
    place = folder("eval-mine", n=3)
    copy = tmp_path / "training" / "other.jsonl"
    copy.parent.mkdir()
    copy.write_bytes((place / "books.jsonl").read_bytes())
    facts = {SOURCES_FACT: trained_on([copy])}
    with pytest.raises(ConfigError, match="was trained on"):
        check_not_trained_on("copied", facts, held_out_sources([place], []))


def test_weights_that_say_nothing_pass(folder):
    check_not_trained_on("silent", {}, held_out_sources([folder("eval-mine", n=3)], []))


def test_facts_of_the_evaluation_are_nobody_elses(folder):
    packaged = packaged_sources()
    check_not_trained_on("other", {SOURCES_FACT: trained_on([FactSource(10)])}, packaged)
    mine = {SOURCES_FACT: trained_on([FactSource(10, seed=EVALUATION_SEED)])}
    with pytest.raises(ConfigError, match="made-up facts, seed 7411"):
        check_not_trained_on("cheat", mine, packaged)


def test_the_record_names_every_file(folder):
    place = folder("stories", n=3)
    (entry,) = source_facts([place])
    assert entry["name"] == "stories/books.jsonl"
    assert len(entry["digest"]) == 64


def test_texts_that_training_may_read_are_left_out_word_for_word(folder, tiny):
    """A file of its own, whose texts stand in the training data under other names, too."""
    mine = folder("eval-mine", n=6)
    row = json.loads((mine / "books.jsonl").read_text(encoding="utf-8").splitlines()[2])
    other = folder("train", n=60)
    with (other / "books.jsonl").open("a", encoding="utf-8") as file:
        file.writelines("\n" + json.dumps(row | {"id": f"copy-{number}"}) for number in range(60))
    seen = texts_of([Source(other)])
    for without, is_there in ((frozenset(), True), (seen, False)):
        read = read_held_out(
            held_out_sources([mine], []), tiny.tokenizer, tiny.info, without=without
        )
        text = " ".join(tiny.tokenizer.decode(one.token_ids) for one in read)
        assert is_there == ("Story 2 of" in text)
        assert "Story 3 of" in text


def test_packaged_texts_are_books_and_facts(tiny):
    domains = set()
    for one in read_held_out(packaged_sources(), tiny.tokenizer, tiny.info):
        domains.add(one.domain)
        assert one.is_held_out
        if domains == {"story", "facts"}:
            break
    assert {"story", "facts"} == domains
