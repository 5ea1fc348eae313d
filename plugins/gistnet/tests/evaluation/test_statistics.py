"""Ratios of sums, and intervals that hold what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from megacontext_gistnet.evaluation.statistics import Bootstrap


def names(n):
    return [f"d{i}" for i in range(n)]


def test_a_ratio_of_sums_is_no_mean_of_ratios():
    top, bottom = np.array([9.0, -1.0]), np.array([10.0, 0.1])
    assert Bootstrap(names(2)).ratio(top, bottom).value == pytest.approx(8 / 10.1)
    assert (top / bottom).mean() == pytest.approx(-4.55)  # one empty window would rule


def test_the_ratio_is_taken_inside_each_resample():
    """A plain loop over drawn documents is the oracle of the matrix product."""
    rng = np.random.default_rng(3)
    top, bottom = rng.normal(1, 1, 12), rng.uniform(0.5, 2, 12)
    documents = [f"d{i % 5}" for i in range(12)]
    found = Bootstrap(documents, n_resamples=50, seed=7).ratio(top, bottom)
    times = np.random.default_rng(7).multinomial(5, [0.2] * 5, 50)
    drawn = []
    for row in times:
        above = below = 0.0
        for document, count in enumerate(row):
            for i in range(document, 12, 5):
                above += count * top[i]
                below += count * bottom[i]
        drawn.append(above / below)
    assert [found.low, found.high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]).tolist())


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits, runs = 0, 300
    for run in range(runs):
        gain = rng.gamma(2.0, 1.0, 40)
        saved = 0.6 * gain + rng.normal(0, 0.5, 40)
        found = Bootstrap(names(40), n_resamples=400, seed=run).ratio(saved, gain)
        hits += found.low <= 0.6 <= found.high
    assert 0.90 <= hits / runs <= 0.985


def test_windows_of_one_document_are_drawn_together():
    """Ten copies of a window are no ten observations."""
    rng = np.random.default_rng(1)
    top, bottom = rng.normal(1, 1, 20), np.ones(20)
    alone = Bootstrap(names(20)).ratio(top, bottom)
    copies = Bootstrap(np.repeat(names(20), 10)).ratio(np.repeat(top, 10), np.repeat(bottom, 10))
    apart = Bootstrap(names(200)).ratio(np.repeat(top, 10), np.repeat(bottom, 10))
    width = alone.high - alone.low
    assert copies.high - copies.low == pytest.approx(width, rel=1e-6)
    assert apart.high - apart.low < width / 2  # what ignoring documents would claim


def test_a_paired_difference_is_narrower_than_two_intervals():
    rng = np.random.default_rng(2)
    gain = rng.gamma(2.0, 1.0, 30)
    hard = rng.normal(0, 1, 30)
    one, two = gain * 0.7 + hard, gain * 0.5 + hard
    both = Bootstrap(names(30))
    apart = both.difference(one, gain, two, gain)
    assert apart.value == pytest.approx(0.2)
    assert apart.low == pytest.approx(0.2)
    assert apart.high == pytest.approx(0.2)
    assert not both.ratio(one, gain).is_above(both.ratio(two, gain))


def test_nothing_to_divide_by_is_no_number():
    found = Bootstrap(names(3)).ratio(np.zeros(3), np.zeros(3))
    assert math.isnan(found.value)
    assert math.isnan(found.low)
    assert found.n == 0


def test_resamples_without_anything_are_left_out():
    found = Bootstrap(names(3)).ratio(np.array([1.0, 0, 0]), np.array([2.0, 0, 0]))
    assert (found.value, found.low, found.high, found.n) == (0.5, 0.5, 0.5, 1)


def test_the_share_of_documents_leaves_out_those_without_weight():
    both = Bootstrap(["a", "a", "b", "c"])
    assert 0.5 == both.share_positive(np.array([-1.0, 2, -1, 5]), np.array([1.0, 1, 1, 0]))
    assert math.isnan(both.share_positive(np.zeros(4), np.zeros(4)))
