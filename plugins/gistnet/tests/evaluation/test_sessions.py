"""Whole memories: real sessions over long histories, and books through every level."""

from __future__ import annotations

import numpy as np
import pytest

from megacontext_gistnet.evaluation.histories import History
from megacontext_gistnet.evaluation.lab import Arm, Lab
from megacontext_gistnet.evaluation.reader import Reader, frozen_base
from megacontext_gistnet.evaluation.rows import is_token
from megacontext_gistnet.evaluation.system import continuation_tokens, system
from megacontext_gistnet.evaluation.wholebooks import fewest, in_session, whole_books
from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.errors import ModelError


@pytest.fixture
def lab(tiny):
    arms = tuple(Arm("mean", s, MeanGistEncoder(s)) for s in (1, 2))
    return Lab(adapter=tiny, reader=Reader(frozen_base(tiny)), arms=arms)


@pytest.fixture
def history():
    def make(n_tokens, domain="story", seed=0):
        ids = np.random.default_rng(seed).integers(0, 256, n_tokens)
        return History(f"{domain} {seed}", domain, ids)

    return make


def test_a_history_that_fits_is_served_as_it_is(lab, history):
    """Nothing gives way below w_max, so serving is reading: delta NLL is 0 for any encoder."""
    found = system(lab, [history(320 + continuation_tokens())], 320, w_max=768)
    for slots in (1, 2):
        line = found.line("mean", slots)
        assert line.condition.rows == 320
        assert abs(line.recovery.delta_nll.value) < 1e-4
        assert line.recovery.n_tokens == 64


def test_horizons_and_comparators_are_told(lab, history):
    n = 2048
    some = [history(n + 129, "story"), history(n + 129, "code", 1)]
    found = system(lab, some, n, w_max=512)
    assert "recency, the newest 512 tokens raw" in found.about[1]
    assert found.line("full", 0).condition.rows == 512
    assert found.line("mean", 1, "code").recovery.n_tokens == 128
    assert 300 < found.line("mean", 1).condition.rows <= 512
    assert found.line("mean", 1).recovery.delta_nll.value != 0


def test_recency_stands_beside_where_everything_fits(lab, history):
    found = system(lab, [history(768 + 129)], 768, w_max=512)
    assert found.line("full", 0).condition.rows == 768
    assert found.line("recency", 0).condition.rows == 512


def test_stand_ins_are_not_measured(tiny, history):
    class Failing(MeanGistEncoder):
        name = "failing"

        def encode_blocks(self, blocks, services):
            raise ModelError("no gists today")

    lab = Lab(
        adapter=tiny,
        reader=Reader(frozen_base(tiny)),
        arms=(Arm("failing", 1, Failing(1)),),
    )
    with pytest.raises(ModelError, match=r"stand-ins|no gists"):
        system(lab, [history(2048 + 129)], 2048, w_max=512)


def test_a_book_is_the_fewest_gists_and_its_newest_tokens():
    keys = fewest(33_024, 1)
    # 33,024 - 96 tokens are one LOD3 gist and five blocks.
    assert len(keys) == 1 + 5 + 96
    assert list(range(33_024 - 96, 33_024)) == keys[6:].tolist()


def test_a_session_lays_a_book_out_within_its_rows(lab, history):
    book = history(33_024)
    views = in_session(lab, book, [8_192, 33_024], w_max=512)
    for cut, keys in zip((8_192, 33_024), views, strict=True):
        assert len(keys) <= 512
        assert keys[is_token(keys)][-1] == cut - 1
        assert list(range(cut - 128, cut)) == keys[-128:].tolist()


def test_whole_books_are_read_through_all_levels(make_bench, union, monkeypatch):
    """The end repeats the newest pages and the very beginning, which only gists still know."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 60, 33_024)
    ids[:400] = rng.integers(60, 200, 400)
    ids[-900:-96] = rng.integers(200, 300, 804)
    ids[-96:] = np.where(
        rng.random(96) < 0.5, rng.integers(60, 200, 96), rng.integers(200, 300, 96)
    )
    monkeypatch.setattr(
        "megacontext_gistnet.evaluation.wholebooks.in_session",
        lambda lab, book, cuts, w_max: [fewest(cut, 1) for cut in cuts],
    )
    bench = make_bench(union())
    found = whole_books(bench.lab, [History("book", "story", ids)], n_cuts=1, w_max=512)

    def r_of(name):
        return found.line(name, 1).recovery.all.value

    assert r_of("union") > 1.2
    assert r_of("zero row") == pytest.approx(0, abs=1e-4)
    assert r_of("recency") < 0.5
    assert found.line("union", 1).condition.rows == 6
    assert found.line("full", 0).condition.rows == 928
    assert "union - recency, S=1" in {one.what for one in found.differences}


def test_books_are_cut_evenly(lab, history):
    found = whole_books(lab, [history(8_200), history(9_000, seed=1)], n_cuts=2, w_max=512)
    line = found.line("mean", 1)
    assert (line.recovery.n_windows, line.recovery.n_documents) == (4, 2)
    assert line.recovery.n_tokens == 4 * 95
    assert found.line("mean, 512 rows", 1).condition.rows <= 512 - 96
