"""Windows: drawn alike, apart, and never across two documents."""

from __future__ import annotations

import numpy as np
import pytest

from megacontext_gistnet.evaluation.windows import Windows, sample_windows
from megacontext_sdk.errors import ConfigError


@pytest.fixture
def some(documents):
    return [
        documents("long", "story", 5000, seed=1),
        documents("short", "story", 700, seed=2),
        documents("talk", "dialogue", 3000, seed=3),
        documents("scrap", "code", 500, seed=4),
    ]


def test_every_domain_and_seed_gives_as_many(some):
    found = sample_windows(some, 4, seeds=(0, 1))
    assert found.known_domains == ("story", "dialogue")  # code has nothing long enough
    assert [8, 8] == [len(found.of(one)) for one in found.known_domains]
    assert [8, 8] == [found.seeds.count(one) for one in (0, 1)]
    assert found.n_tokens == 512


def test_the_same_draw_gives_the_same_windows(some):
    one, two = (sample_windows(some, 4, seeds=(0, 1)) for _ in range(2))
    assert one.fingerprint == two.fingerprint
    assert np.array_equal(one.token_ids, two.token_ids)
    assert one.fingerprint != sample_windows(some, 4, seeds=(0, 2)).fingerprint


def test_windows_are_pieces_of_one_document_and_do_not_overlap(some):
    found = sample_windows(some, 100)
    texts = {one.doc_id: one.token_ids.tolist() for one in some}
    places = {}
    for row, name in zip(found.token_ids.tolist(), found.documents, strict=True):
        starts = [i for i, first in enumerate(texts[name]) if first == row[0]]
        (start,) = [i for i in starts if texts[name][i : i + 512] == row]
        places.setdefault(name, []).append(start)
    assert {"long": 9, "short": 1, "talk": 5} == {one: len(at) for one, at in places.items()}
    for at in places.values():
        assert all(b - a >= 512 for a, b in zip(sorted(at), sorted(at)[1:], strict=False))


def test_first_takes_from_every_domain(some):
    found = sample_windows(some, 4).first(4)
    assert found.domains == ("story", "story", "dialogue", "dialogue")
    assert len(sample_windows(some, 4).first(100)) == 8


def test_texts_that_are_too_short_are_refused(some):
    with pytest.raises(ConfigError, match="no held-out document has 8192 tokens.*longest has 5000"):
        sample_windows(some, 4, length=8192)
    with pytest.raises(ConfigError, match="longest has 0"):
        sample_windows([], 4)


def test_windows_are_whole_blocks():
    with pytest.raises(ConfigError, match="whole blocks of 32"):
        Windows(np.zeros((1, 33), np.int64), ("story",), ("a",), (0,))
    with pytest.raises(ConfigError, match="every window"):
        Windows(np.zeros((2, 32), np.int64), ("story",), ("a",), (0,))
