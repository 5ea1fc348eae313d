"""The tables on a base whose answers are known: unions of tokens recover all, other gists less."""

from __future__ import annotations

import numpy as np
import pytest

from megacontext_gistnet.evaluation import adjacent as adjacent_module
from megacontext_gistnet.evaluation.adjacent import adjacent, boundary
from megacontext_gistnet.evaluation.histories import books, histories
from megacontext_gistnet.evaluation.lab import Readings
from megacontext_gistnet.evaluation.shape import diversity, gist_shapes
from megacontext_gistnet.evaluation.substitution import (
    CHILDREN,
    MEAN_OF_GISTS,
    far_tokens,
    lod1,
    lod2,
    mean_of_gists,
    reach,
)
from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.errors import ConfigError, ModelError

WRONG = 0.9
"""A gist of another block's tokens stays below this; the right one reaches 1."""


def r_of(section, name, slots=1, domain="all"):
    slots = 0 if name in {"full", "drop"} else slots
    return section.line(name, slots, domain).recovery.all.value


def test_the_right_gist_recovers_everything(make_bench, make_windows, union):
    bench = make_bench(union(), union(gist_slots=2))
    found = lod1(Readings(bench.lab, make_windows(8, 512)))
    assert r_of(found, "union") == pytest.approx(1, abs=1e-4)
    assert r_of(found, "union", 2) == pytest.approx(1, abs=1e-4)
    assert r_of(found, "full") == 1
    assert r_of(found, "drop") == 0
    assert r_of(found, "zero row") == pytest.approx(0, abs=1e-4)
    assert {"all", "story", "code"} == {one.domain for one in found.lines}
    line = found.line("union", 2)
    assert (line.condition.rows, line.recovery.n_tokens) == (26, 8 * 95)


def test_gists_of_the_wrong_span_are_noticed(make_bench, make_windows, union):
    """Off by one block, the planted bug: some tokens stay unknown, others are made up."""
    bench = make_bench(union(), union(shift=1))
    windows = make_windows(8, 512)
    near, _ = reach(Readings(bench.lab, make_windows(8, 1024)))
    for found in (adjacent(Readings(bench.lab, windows)), near):
        assert r_of(found, "union") == pytest.approx(1, abs=1e-3)
        assert r_of(found, "shifted") < WRONG


def test_a_layout_that_takes_the_wrong_gists_is_noticed(
    make_bench, make_windows, union, monkeypatch
):
    bench = make_bench(union())
    right = adjacent_module.keys_of

    def next_one(entries, slots=1):
        return right(entries, slots) + np.where(right(entries, slots) >= 1 << 56, 4, 0)

    monkeypatch.setattr(adjacent_module, "keys_of", next_one)
    found = r_of(adjacent(Readings(bench.lab, make_windows(8, 512))), "union")
    assert abs(found - 1) > 0.1  # the next block's gist even knows what is to come


def test_a_parent_of_unions_recovers_everything_and_a_mean_of_gists_does_not(
    make_bench, make_windows, union
):
    bench = make_bench(union(), trained_window=2048)
    found = lod2(Readings(bench.lab, make_windows(4, 1120), top=2))
    assert r_of(found, "union") == pytest.approx(1, abs=1e-4)
    assert r_of(found, f"union: {CHILDREN}") == pytest.approx(1, abs=1e-4)
    assert r_of(found, f"union: {MEAN_OF_GISTS}") < WRONG
    assert found.line("union", 1).condition.rows == 1
    assert found.line("full", 0).condition.rows == 1024


def test_lod2_is_compared_with_what_the_base_can_read(make_bench, make_windows, union):
    bench = make_bench(union(), trained_window=1024)
    windows = make_windows(2, 1120)
    found = lod2(Readings(bench.lab, windows, top=2))
    assert found.line("full", 0).condition.rows == 928
    assert max(len(one) for one in bench.base.positions) <= 1024
    newest = bench.lab.reader.losses(windows.token_ids, np.arange(96, 1120), np.arange(1025, 1120))
    assert found.line("full", 0).recovery.nll.value == pytest.approx(newest.mean())
    with pytest.raises(ConfigError, match="1120"):
        lod2(Readings(bench.lab, make_windows(2, 512), top=2))


def test_near_and_far_count_the_tokens_they_name(make_bench, make_windows, union):
    bench = make_bench(union())
    near, far = reach(Readings(bench.lab, make_windows(4, 1024)))
    assert near.line("full", 0).recovery.n_tokens == 4 * 32
    assert far.line("full", 0).recovery.n_tokens == 4 * 128
    assert r_of(far, "union") == pytest.approx(1, abs=1e-3)
    assert (far_tokens(1024), far_tokens(8192), far_tokens(256)) == (1024, 1024, 0)


def test_horizons_depend_on_the_kind_of_text(make_bench, make_windows, union):
    found = adjacent(Readings(make_bench(union()).lab, make_windows(4, 512)))
    assert found.line("full", 0, "story").recovery.n_tokens == 2 * 64
    assert found.line("full", 0, "code").recovery.n_tokens == 2 * 128
    assert found.line("full", 0, "all").recovery.n_tokens == 2 * 64 + 2 * 128


def test_edges_of_perfect_gists_cost_nothing(make_bench, make_windows, union):
    bench = make_bench(union(), union(shift=1))
    perfect, shifted = boundary(Readings(bench.lab, make_windows(6, 512)))
    assert abs(perfect.edge.value) < 1e-3
    assert abs(perfect.interior.value) < 1e-3
    assert shifted.edge.value > 0.01
    assert shifted.ratio.value == pytest.approx(shifted.edge.value / shifted.interior.value)


def test_long_histories_share_no_document(documents):
    some = [documents(f"d{i}", "dialogue", 300, seed=i) for i in range(10)]
    found = histories(some, 3, 1000)
    assert ["d0", "d4"] == [one.name for one in found]
    assert [1000, 1000] == [len(one.token_ids) for one in found]
    assert np.array_equal(found[1].token_ids[:300], some[4].token_ids)


def test_books_are_the_longest_stories(documents):
    some = [documents(f"d{n}", "story", n) for n in (100, 900, 500)]
    some.append(documents("code", "code", 5000))
    assert ["d900", "d500"] == [one.name for one in books(some, 5, 400)]


def test_an_encoder_that_gives_no_numbers_is_refused(make_bench, make_windows, union):
    class Broken(union):
        def encode_blocks(self, blocks, services):
            made = super().encode_blocks(blocks, services)
            made.rows[0, 0, 0] = np.nan
            return made

    with pytest.raises(ModelError, match="not finite"):
        lod1(Readings(make_bench(Broken()).lab, make_windows(2, 512)))


def test_neighbours_in_one_direction_have_no_diversity():
    rows = np.random.default_rng(0).normal(0, 1, (2, 8, 1, 256)).astype(np.float32)
    assert diversity(rows) == pytest.approx(1, abs=0.1)
    assert diversity(np.repeat(rows[:, :1], 8, axis=1)) == pytest.approx(0, abs=1e-6)


def test_a_vector_that_all_gists_share_hides_what_they_have_of_their_own(
    make_bench, make_windows, union
):
    class Shifted(union):
        def encode_blocks(self, blocks, services):
            made = super().encode_blocks(blocks, services)
            made.rows[:] += 1.0
            return made

    lifted = Shifted()
    lifted.name = "lifted"
    bench = make_bench(union(), lifted)
    plain, shifted = gist_shapes(Readings(bench.lab, make_windows(4, 512)))
    assert shifted.diversity < 0.1 < plain.diversity
    assert shifted.own_diversity == pytest.approx(plain.own_diversity, abs=0.02)


def test_shapes_tell_sizes_and_twins(make_bench, make_windows, union):
    class Constant(union):
        def encode_blocks(self, blocks, services):
            made = super().encode_blocks(blocks, services)
            made.rows[:] = 1.0
            return made

    bench = make_bench(MeanGistEncoder(1), Constant())
    mean, constant = gist_shapes(Readings(bench.lab, make_windows(4, 512)))
    assert mean.norm_ratio == pytest.approx(1, abs=0.02)
    assert (mean.distinct, constant.distinct) == (1, 0)
    assert constant.twin_distance == 0
    assert constant.diversity == pytest.approx(0, abs=1e-6)
    assert constant.norm_ratio == pytest.approx(
        512**0.5, abs=0.1
    )  # rows of ones against one-hot rows


def test_the_mean_of_gists_has_the_size_of_a_token():
    rng = np.random.default_rng(0)
    table = rng.normal(0, 0.05, (100, 16)).astype(np.float32)
    found = mean_of_gists(rng.normal(0, 3, (2, 32, 2, 16)).astype(np.float32), table)
    sizes = np.sqrt(np.square(found).mean(axis=-1))
    assert found.shape == (2, 1, 2, 16)
    assert sizes == pytest.approx(np.sqrt(np.square(table).mean(axis=1)).mean(), rel=1e-5)
