"""Windows at random: by weight, within their documents, and bit for bit after a resume."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from megacontext_gistnet.corpus import Source, WindowSampler, open_store
from megacontext_sdk.errors import ConfigError


@pytest.fixture
def store(texts, tokenizer, info, tmp_path):
    return open_store([texts], tokenizer, info, tmp_path / "cache", min_tokens=300)


@pytest.fixture
def numbered(write, tokenizer, info, tmp_path):
    """Documents of one letter each, 10 to 40 long: every window tells where it is from."""
    rows = [{"id": f"r{i}", "text": chr(97 + i) * (8 + 10 * i)} for i in range(4)]
    source = Source(write("x.jsonl", rows), split="train")
    return open_store([source], tokenizer, info, tmp_path / "cache", min_tokens=0)


def domains_of(windows, tokenizer):
    words = {"def": "code", "Once": "story", "time": "story", "Hello": "dialogue"}
    texts = [tokenizer.decode(window, special=False) for window in windows]
    return Counter(next(kind for word, kind in words.items() if word in text) for text in texts)


def test_windows_have_the_shape_and_type_of_batches(store):
    windows = WindowSampler(store).next(5, 64)
    assert ((5, 64), np.int64) == (windows.shape, windows.dtype)


def test_windows_are_pieces_of_training_documents(store):
    whole = [document.token_ids.tobytes() for document in store.documents("train")]
    for window in WindowSampler(store, seed=3).next(50, 64).astype(np.int32):
        assert any(window.tobytes() in document for document in whole)


def test_held_out_windows_come_from_held_out_documents(store):
    whole = [document.token_ids.tobytes() for document in store.documents("held-out")]
    for window in WindowSampler(store, split="held-out").next(20, 64).astype(np.int32):
        assert any(window.tobytes() in document for document in whole)


def test_the_mix_gives_each_domain_its_weight(store, tokenizer):
    sampler = WindowSampler(store, {"code": 3.0, "story": 1.0, "facts": 5.0})
    found = domains_of(sampler.next(400, 64), tokenizer)
    assert {"code", "story"} == set(found)
    assert 260 < found["code"] < 340


def test_without_a_mix_every_token_counts_the_same(store, tokenizer):
    found = domains_of(WindowSampler(store).next(600, 64), tokenizer)
    counts = store.counts("train")
    for domain, n in counts.items():
        assert abs(found[domain] / 600 - n / sum(counts.values())) < 0.08


def test_equal_seeds_give_equal_windows(store):
    assert np.array_equal(
        WindowSampler(store, seed=7).next(9, 64), WindowSampler(store, seed=7).next(9, 64)
    )
    assert not np.array_equal(
        WindowSampler(store, seed=7).next(9, 64), WindowSampler(store, seed=8).next(9, 64)
    )


@pytest.mark.parametrize("packed", [False, True])
def test_a_resumed_sampler_goes_on_bit_for_bit(store, packed):
    first = WindowSampler(store, seed=5, packed=packed, at_start=0.5)
    first.next(3, 64)
    state = json.loads(json.dumps(first.state_dict()))
    expected = [first.next(4, 64), first.next(2, 32)]
    second = WindowSampler(store, seed=99, packed=packed, at_start=0.5)
    second.load_state_dict(state)
    for one in expected:
        assert np.array_equal(one, second.next(*one.shape))


def test_the_state_of_other_data_is_refused(store, numbered):
    with pytest.raises(ConfigError, match="made with other data"):
        WindowSampler(numbered).load_state_dict(WindowSampler(store).state_dict())


def test_a_window_lies_within_one_document_and_reaches_its_ends(numbered, tokenizer):
    windows = WindowSampler(numbered).next(400, 20)
    texts = {tokenizer.decode(window, special=False) for window in windows}
    assert {"b", "c", "d"} == {text[0] for text in texts}
    assert all(len(set(text)) == 1 for text in texts)
    starts = {window[0] == tokenizer.bos_id for window in windows}
    ends = {window[-1] == tokenizer.end_id for window in windows}
    assert {True, False} == starts == ends


def test_every_place_in_a_document_is_as_likely(numbered, tokenizer):
    windows = WindowSampler(numbered).next(3_000, 37)
    places = Counter(
        int(np.argmax(window == tokenizer.bos_id)) if tokenizer.bos_id in window else -1
        for window in windows  # only the last document is long enough, with four places
    )
    assert {0, -1} == set(places)
    assert 600 < places[0] < 900


def test_a_packed_window_runs_on_into_the_next_document(numbered, tokenizer):
    windows = WindowSampler(numbered, packed=True).next(300, 60)
    texts = [tokenizer.decode(window, special=False) for window in windows]
    assert all(len(set(text)) > 1 for text in texts)
    orders = {"".join(dict.fromkeys(text)) for text in texts}
    assert all(order in "abcdabcd" for order in orders), orders


def test_windows_may_begin_where_documents_begin(numbered, tokenizer):
    windows = WindowSampler(numbered, packed=True, at_start=1.0).next(50, 30)
    assert {tokenizer.bos_id} == set(windows[:, 0].tolist())
    assert 4 == len({int(window[1]) for window in windows})


def test_a_window_longer_than_every_document_needs_packing(numbered):
    with pytest.raises(ConfigError, match="no document holds a window of 64 tokens"):
        WindowSampler(numbered).next(1, 64)
    assert (1, 64) == WindowSampler(numbered, packed=True).next(1, 64).shape


@pytest.mark.parametrize(
    ("mix", "said"),
    [
        ({"poem": 1.0}, "names 'poem'"),
        ({"facts": 1.0}, "positive weight"),
        ({"code": -1.0, "story": 2.0}, "positive weight"),
    ],
)
def test_a_mix_that_gives_nothing_is_refused(store, mix, said):
    with pytest.raises(ConfigError, match=said):
        WindowSampler(store, mix)


def test_a_share_outside_its_range_is_refused(store):
    with pytest.raises(ConfigError, match=r"at_start=1\.5"):
        WindowSampler(store, at_start=1.5)
