"""Recovery: what counts, what is left out, and what cannot flatter it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from megacontext_gistnet.evaluation.recovery import Study
from megacontext_sdk.errors import ConfigError


def study(full, drop, **more):
    full, drop = np.array(full, float), np.array(drop, float)
    documents = more.pop("documents", [f"d{i}" for i in range(len(full))])
    return Study(full, drop, documents, **more)


def test_full_is_one_and_drop_is_zero():
    one = study([[1.0, 2.0], [2.0, 2.0]], [[3.0, 2.0], [2.5, 4.0]])
    full, drop = one.recovery(one.full), one.recovery(one.drop)
    assert (full.all.value, full.recall.value, full.delta_nll.value) == (1, 1, 0)
    assert (drop.all.value, drop.recall.value) == (0, 0)
    assert drop.share_not_worse == 1
    assert drop.share_positive == 0


def test_recovery_is_a_ratio_of_sums_over_windows():
    one = study([[1.0], [1.0]], [[11.0], [1.1]])
    found = one.recovery(np.array([[2.0], [2.1]]))
    assert found.all.value == pytest.approx((9 - 1) / (10 + 0.1))


def test_a_window_with_nothing_to_recover_is_left_out_and_counted():
    """Where dropping costs nothing, any method has no delta NLL: only R shows nothing was done."""
    one = study([[2.0], [2.0]], [[2.0], [2.005]])
    found = one.recovery(one.drop)
    assert found.delta_nll.value < 0.1  # the target that dropping meets
    assert math.isnan(found.all.value)
    assert (found.n_skipped, found.n_windows) == (2, 2)
    assert math.isnan(found.share_positive)


def test_windows_without_gain_do_not_move_the_ratio():
    with_it = study([[1.0], [2.0]], [[3.0], [2.0]])
    alone = study([[1.0]], [[3.0]])
    nll = np.array([[2.0], [9.0]])
    assert with_it.recovery(nll).all.value == alone.recovery(nll[:1]).all.value == 0.5
    assert with_it.recovery(nll).nll.value == 5.5  # but they stay in the losses


def test_recall_tokens_are_chosen_without_the_method():
    one = study([[1.0, 1.0, 1.0]], [[1.4, 1.6, 3.0]])
    assert [[False, True, True]] == one.is_recall.tolist()
    for nll in ([[1.0, 1.0, 1.0]], [[9.0, 0.0, 9.0]], [[0.0, 9.0, 0.0]]):
        assert one.recovery(np.array(nll)).n_recall_tokens == 2
    found = one.recovery(np.array([[9.0, 1.1, 2.0]]))
    assert found.recall.value == pytest.approx((0.5 + 1.0) / (0.6 + 2.0))


def test_shares_count_windows_and_documents_apart():
    one = study([[0.0]] * 4, [[1.0]] * 4, documents=["a", "a", "a", "b"])
    found = one.recovery(np.array([[1.5], [0.2], [0.2], [1.5]]))
    assert (found.share_positive, found.share_not_worse) == (0.5, 0.5)
    assert found.share_documents == 0.5
    assert (found.n_windows, found.n_documents) == (4, 2)


def test_tokens_that_are_not_there_are_not_counted():
    one = study([[1.0, np.nan], [1.0, 1.0]], [[2.0, np.nan], [2.0, 3.0]])
    found = one.recovery(np.array([[1.0, np.nan], [2.0, 3.0]]))
    assert found.n_tokens == 3
    assert found.all.value == pytest.approx(1 / 4)


def test_parts_and_seeds_are_those_of_their_windows():
    one = study([[0.0]] * 3, [[1.0]] * 3, names=["story", "code", "story"], seeds=[0, 0, 1])
    nll = np.array([[0.0], [1.0], [0.5]])
    assert one.recovery(nll).by_seed == (0.5, 0.5)
    assert one.part("story").recovery(nll[[0, 2]]).all.value == 0.75
    assert one.part("code").recovery(nll[[1]]).all.value == 0


def test_the_difference_of_two_methods_is_paired():
    rng = np.random.default_rng(0)
    full, gain = rng.uniform(1, 2, (30, 5)), rng.gamma(1, 1, (30, 5))
    one = study(full, full + gain)
    noise = rng.normal(0, 1, (30, 5))
    better, worse = full + 0.3 * gain + noise, full + 0.4 * gain + noise
    apart = one.difference(better, worse)["all"]
    assert (apart.value, apart.low, apart.high) == pytest.approx((0.1, 0.1, 0.1))


def test_losses_that_are_no_numbers_are_refused():
    one = study([[1.0, 1.0]], [[2.0, 2.0]])
    with pytest.raises(ConfigError, match="not finite"):
        one.recovery(np.array([[np.nan, 1.0]]))
    with pytest.raises(ConfigError, match="do not fit"):
        one.recovery(np.array([[1.0]]))
