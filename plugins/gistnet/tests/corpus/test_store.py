"""The store on disk: what was read, made once, made anew when anything about it changed."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from megacontext_gistnet.corpus import FactSource, Source, open_store, read_documents
from megacontext_gistnet.corpus import facts as facts_module
from megacontext_gistnet.corpus import store as store_module
from megacontext_sdk.errors import ConfigError


@pytest.fixture
def opened(texts, tokenizer, info, tmp_path):
    """Open the store of the texts, and count how often it reads them."""
    seen = []

    def open_again(sources=(texts,), **changes):
        model = attrs.evolve(info, **changes)
        cache = tmp_path / "cache"
        return open_store(sources, tokenizer, model, cache, lambda *said: seen.append(said))

    open_again.seen = seen
    return open_again


def test_a_store_holds_the_documents_that_were_read(opened, texts, tokenizer, info):
    store = opened()
    read = list(read_documents(texts, tokenizer, info))
    kept = list(store.documents())
    assert [d.doc_id for d in read] == [d.doc_id for d in kept]
    assert [d.domain for d in read] == [d.domain for d in kept]
    assert [d.is_held_out for d in read] == [d.is_held_out for d in kept]
    assert all(np.array_equal(a.token_ids, b.token_ids) for a, b in zip(read, kept, strict=True))
    assert sum(len(d.token_ids) for d in read) == store.n_tokens
    assert np.uint16 == store.ids.dtype


def test_a_store_knows_sides_and_domains(opened):
    store = opened()
    assert len(store) == len(store.where("train")) + len(store.where("held-out"))
    assert {"story", "code", "dialogue"} == set(store.counts())
    assert store.n_tokens == sum(store.counts().values())
    assert {"code"} == {store.document(int(i)).domain for i in store.where("all", "code")}
    assert all(d.is_held_out for d in store.documents("held-out", "story"))


def test_a_large_vocabulary_is_kept_in_four_bytes(opened):
    assert np.uint32 == opened(vocab_size=100_000).ids.dtype


def test_tokens_are_made_once(opened):
    first = opened()
    n_said = len(opened.seen)
    again = opened()
    assert n_said == len(opened.seen) > 0
    assert first.fingerprint == again.fingerprint
    assert np.array_equal(first.ids, again.ids)


def test_changed_data_settings_or_tokenizer_are_another_store(opened, texts):
    before = opened().fingerprint
    others = [
        opened((texts, FactSource(3))),
        opened((Source(texts, style="chat"),)),
        opened((Source(texts, split="train"),)),
        opened((FactSource(3, filler=(Source(texts),)),)),
        opened((FactSource(3, seed=1, filler=(Source(texts),)),)),
        opened(tokenizer_fingerprint="another"),
    ]
    with (texts / "code.jsonl").open("a") as file:
        file.write('{"id": "new", "text": "print()"}\n')
    others.append(opened())
    fingerprints = {before, *(store.fingerprint for store in others)}
    assert 1 + len(others) == len(fingerprints)


def test_other_wordings_of_the_facts_are_another_store(opened, monkeypatch):
    before = opened((FactSource(3),)).fingerprint
    monkeypatch.setattr(facts_module, "KINDS", facts_module.KINDS[:4])
    assert before != opened((FactSource(3),)).fingerprint


def test_a_copy_of_the_data_is_the_same_data(opened, texts):
    before = opened().fingerprint
    moved = texts.rename(texts.with_name("elsewhere")).rename(texts.parent / "x")
    moved.rename(texts)
    for file in texts.iterdir():
        file.write_bytes(file.read_bytes())
    assert before == opened().fingerprint


@pytest.mark.parametrize("name", ["tokens.bin", "index.json"])
def test_a_damaged_store_is_made_anew(opened, tmp_path, name):
    expected = np.array(opened().ids)
    (folder,) = (tmp_path / "cache").iterdir()
    (folder / name).write_bytes((folder / name).read_bytes()[:-7])
    assert np.array_equal(expected, opened().ids)


def test_a_store_that_fails_half_way_leaves_nothing(opened, texts, tmp_path):
    (texts / "zz.jsonl").write_text("no row\n")
    with pytest.raises(ConfigError, match=r"line 1 of .*zz\.jsonl"):
        opened()
    assert [] == list((tmp_path / "cache").iterdir())


def test_a_store_that_another_process_made_meanwhile_is_taken(opened, tmp_path, monkeypatch):
    move = store_module._move

    def move_twice(made, folder):
        folder.mkdir()
        for file in made.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        move(made, folder)

    monkeypatch.setattr(store_module, "_move", move_twice)
    assert opened().n_tokens > 0
    assert 1 == len(list((tmp_path / "cache").iterdir()))


def test_no_data_at_all_is_an_error(opened, write):
    with pytest.raises(ConfigError, match="no data was named"):
        opened(())
    with pytest.raises(ConfigError, match="gave 0 tokens"):
        opened((write("empty.jsonl", []),))
