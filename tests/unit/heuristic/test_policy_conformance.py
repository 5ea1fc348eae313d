"""The built-in policies pass the kit, and the kit catches policies that break the contract."""

from __future__ import annotations

import numpy as np
import pytest

from megacontext_sdk.builtin.baselines import Bm25Focus, CosineFocus, RandomFocus
from megacontext_sdk.builtin.heuristic import HeuristicFocus
from megacontext_sdk.builtin.recency import RecencyFocus
from megacontext_sdk.contracts.focus import FocusPolicy, Reveal
from megacontext_sdk.testing.policy import FocusPolicyConformance, RandomTree, policy_view


class TestHeuristic(FocusPolicyConformance):
    make = staticmethod(HeuristicFocus)


class TestRecency(FocusPolicyConformance):
    make = staticmethod(RecencyFocus)


class TestBm25(FocusPolicyConformance):
    make = staticmethod(Bm25Focus)


class TestCosine(FocusPolicyConformance):
    make = staticmethod(CosineFocus)


class TestRandom(FocusPolicyConformance):
    make = staticmethod(RandomFocus)


class Zero(FocusPolicy):
    name = "zero"

    def score(self, view):
        return np.zeros(len(view.entries), np.float32)


class TestZero(FocusPolicyConformance):
    make = staticmethod(Zero)


class TooLoud(Zero):
    def score(self, view):
        return super().score(view) + 1.5


class Wide(Zero):
    def score(self, view):
        return np.zeros(len(view.entries))


class Gloomy(Zero):
    def score(self, view):
        return super().score(view) - 0.9


class Moody(Zero):
    def __init__(self):
        self._calls = 0

    def score(self, view):
        self._calls += 1
        return super().score(view) + np.float32(self._calls / 1000)


class Nosy(Zero):
    def reveals(self, view, limit):
        return [Reveal(block=view.n_blocks, utility=0.5)][:limit]


class Restless(Zero):
    def score(self, view):
        scores = super().score(view)
        scores[view.entries.lod == 0] = -0.9
        scores[view.entries.lod == 1] = 0.9
        return scores


@pytest.mark.parametrize(
    ("policy", "check", "arguments"),
    [
        (TooLoud, "test_scores_are_one_finite_float32_per_entry_in_range", (0,)),
        (Wide, "test_scores_are_one_finite_float32_per_entry_in_range", (0,)),
        (Gloomy, "test_slack_never_causes_a_collapse", (0,)),
        (Moody, "test_the_same_view_gives_the_same_opinion", (0,)),
        (Nosy, "test_reveals_are_hidden_full_blocks_within_the_limit", (0, 1)),
    ],
)
def test_the_kit_catches_a_broken_policy(policy, check, arguments):
    kit = FocusPolicyConformance()
    kit.make = policy
    with pytest.raises(AssertionError):
        getattr(kit, check)(*arguments)


def test_the_kit_catches_a_policy_that_never_rests():
    kit = FocusPolicyConformance()
    kit.make = Restless
    with pytest.raises(pytest.fail.Exception, match="still moving"):
        kit.test_a_refocus_comes_to_rest(0)


def test_the_random_tree_refuses_what_does_not_exist_yet():
    tree = RandomTree(0, 100)
    assert (3, 1, 16) == tree.gists(1, np.arange(3)).shape
    with pytest.raises(AssertionError, match="LOD1:3 is not complete"):
        tree.gists(1, np.array([3]))
    with pytest.raises(AssertionError, match="not complete"):
        tree.precision(np.array([-1]))


def test_views_are_reproducible():
    np.testing.assert_array_equal(policy_view(5).hits.score, policy_view(5).hits.score)
