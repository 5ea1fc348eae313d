"""Layouts: which rows a working context has, against a plain loop; nothing is ever padded."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from megacontext_gistnet.training.layouts import draw_lods, newest_raw, rows_of
from megacontext_gistnet.training.recipe import Layouts
from megacontext_sdk.errors import ConfigError

RANDOM = Layouts(tail=0.0, least=0.3, most=1.0, first_raw=0.0)


def rows_one_by_one(lods, slots, has_bos_row):
    """The reference: walk the blocks of one window."""
    n = len(lods)
    first_of = {1: 32 * n + 1, 2: 32 * n + 1 + n * slots}
    rows = [32 * n] if has_bos_row else []
    for block, lod in enumerate(lods.tolist()):
        if lod == 0:
            rows += range(32 * block, 32 * block + 32)
        elif block % 32 ** (lod - 1) == 0:
            node = block // 32 ** (lod - 1)
            rows += range(first_of[lod] + node * slots, first_of[lod] + (node + 1) * slots)
    return rows


@pytest.mark.parametrize("has_bos_row", [False, True])
@pytest.mark.parametrize("slots", [0, 1, 2, 4])
@pytest.mark.parametrize(("n_blocks", "lod"), [(5, 1), (16, 1), (36, 2), (70, 2)])
def test_rows_are_those_of_a_walk_over_the_blocks(n_blocks, lod, slots, has_bos_row):
    rng = np.random.default_rng(n_blocks)
    lods = draw_lods(rng, 3, n_blocks, RANDOM, lod=lod)
    found = rows_of(lods, slots, has_bos_row=has_bos_row)
    expected = [rows_one_by_one(one, slots, has_bos_row) for one in lods]
    assert expected == found.index.tolist()
    for row, index in enumerate(found.index.tolist()):
        raw = [at for at, place in enumerate(index) if place < 32 * n_blocks]
        assert raw == found.raw_at[row].tolist()
        assert [index[at] for at in raw] == found.token_at[row].tolist()


@pytest.mark.parametrize("first_raw", [0.0, 1.0])
@pytest.mark.parametrize("tail", [0.0, 1.0])
def test_windows_of_a_batch_have_equally_many_raw_blocks(tail, first_raw):
    rules = Layouts(tail=tail, first_raw=first_raw)
    rng = np.random.default_rng(0)
    for n_blocks in (4, 5, 16):
        for _ in range(60):
            lods = draw_lods(rng, 4, n_blocks, rules)
            counts = set((lods == 0).sum(axis=1).tolist())
            assert 1 == len(counts)
            assert 1 <= counts.pop() < n_blocks
            assert not first_raw or (lods[:, 0] == 0).all()
            rows_of(lods, 2)


def test_the_tail_layout_is_the_one_of_the_evaluation():
    lods = draw_lods(np.random.default_rng(0), 2, 16, Layouts(tail=1.0, first_raw=0.0))
    assert [1] * 13 + [0] * 3 == lods[0].tolist() == lods[1].tolist()


def test_the_mix_of_layouts_is_the_one_asked_for():
    rng = np.random.default_rng(0)
    rules = Layouts(tail=0.5, first_raw=0.0)
    drawn = [draw_lods(rng, 1, 16, rules)[0] for _ in range(2_000)]
    tails = sum([1] * 13 + [0] * 3 == one.tolist() for one in drawn)
    assert 0.5 == pytest.approx(tails / len(drawn), abs=0.04)
    shares = [one.mean() for one in drawn if [1] * 13 + [0] * 3 != one.tolist()]
    assert 0.3 == pytest.approx(min(shares), abs=0.07)
    assert max(shares) > 0.9
    at = Counter(block for one in drawn for block in np.flatnonzero(one == 0).tolist()[:1])
    assert len(at) > 10


def test_rows_of_different_windows_differ():
    lods = draw_lods(np.random.default_rng(1), 8, 16, RANDOM)
    assert 1 < len({tuple(one) for one in lods.tolist()})


def test_windows_that_would_need_padding_are_refused():
    lods = np.array([[1, 0, 0], [1, 1, 0]], np.int8)
    with pytest.raises(ConfigError, match="equally many"):
        rows_of(lods, 1)


def test_a_part_of_a_lod2_unit_is_refused():
    lods = np.full((1, 33), 2, np.int8)
    lods[:, -1] = 0
    rows_of(lods, 1)
    lods[:, 31] = 0
    with pytest.raises(ConfigError, match="part of a LOD2 unit"):
        rows_of(lods, 1)


def test_the_teacher_reads_raw_what_fits_and_older_blocks_as_gists():
    assert (newest_raw(2, 32, 1024, 4) == 0).all()
    lods = newest_raw(1, 38, 1024, 4)[0]
    n_raw = int((lods == 0).sum())
    assert sorted(lods.tolist(), reverse=True) == lods.tolist()
    assert 32 * n_raw + 4 * (38 - n_raw) <= 1024 < 32 * (n_raw + 1) + 4 * (37 - n_raw)
    with pytest.raises(ConfigError, match="does not fit 128 rows"):
        newest_raw(1, 38, 128, 4)
