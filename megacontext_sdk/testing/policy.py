"""What every focus policy must keep, as a pytest class to inherit from.

    class TestAcme(FocusPolicyConformance):
        make = staticmethod(AcmeFocus)

Checks the contract on random histories, layouts and hits, not quality: whether a policy finds what
matters is measured by the benchmarks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np
import pytest

from megacontext_sdk.builtin.greedy import GreedyAllocator
from megacontext_sdk.contracts.focus import (
    Budget,
    FocusPolicy,
    FocusQuery,
    FocusView,
    LexicalHits,
)
from megacontext_sdk.focus.working_context import WorkingContext
from megacontext_sdk.memory.lod import BLOCK_SIZE, width

if TYPE_CHECKING:
    from collections.abc import Callable

    from megacontext_sdk.contracts.arrays import Floats, Ids, Indices
    from megacontext_sdk.contracts.focus import Reveal

__all__ = ["FocusPolicyConformance", "RandomTree", "policy_view"]

_VOCAB, _WIDTH, _EXACT = 256, 16, 8
_SEEDS = range(5)
_MOST_ITERATIONS = 200


class RandomTree:
    """Reads of a random history; asking for anything not complete at its end fails the test.

    Args:
        seed: same seed, same tokens at each index, however long the history is.
        n_tokens: N.
    """

    def __init__(self, seed: int, n_tokens: int) -> None:
        self.n_tokens = n_tokens
        self.n_blocks = n_tokens // BLOCK_SIZE
        self._table = np.random.default_rng(seed).normal(size=(_VOCAB, _WIDTH)).astype(np.float32)
        ids = np.random.default_rng(seed + 1).integers(0, _VOCAB, n_tokens, dtype=np.int64)
        self._ids: Ids = ids.astype(np.int32)
        rows = self._table[ids].astype(np.float64)
        self._sums = np.concatenate([np.zeros((1, _WIDTH)), np.cumsum(rows, axis=0)])

    def gists(self, lod: int, indices: Indices) -> Floats:
        """Return the mean embedding of each node, float32[n, 1, d]."""
        self._check(lod, indices)
        start = np.asarray(indices) * width(lod)
        mean = (self._sums[start + width(lod)] - self._sums[start]) / width(lod)
        rows: Floats = mean[:, None].astype(np.float32)
        return rows

    def tail_gists(self) -> Floats:
        """Return the newest five of LOD1 and the newest of LOD2, float32[6, d]."""
        rows = np.full((6, _WIDTH), np.nan, np.float32)
        newest = np.arange(max(0, self.n_blocks - 5), self.n_blocks)
        rows[5 - len(newest) : 5] = self.gists(1, newest)[:, 0]
        n_above = self.n_tokens // width(2)
        if n_above:
            rows[5] = self.gists(2, np.array([n_above - 1]))[0, 0]
        return rows

    def token_ids_of_blocks(self, blocks: Indices) -> Ids:
        """Return int32[n, 32]."""
        self._check(0, blocks)
        ids: Ids = self._ids[np.asarray(blocks)[:, None] * BLOCK_SIZE + np.arange(BLOCK_SIZE)]
        return ids

    def precision(self, blocks: Indices) -> Floats:
        """Return how many ids below 8 each block holds, float32[n]."""
        counts: Floats = (self.token_ids_of_blocks(blocks) < _EXACT).sum(axis=1).astype(np.float32)
        return counts

    def _check(self, lod: int, indices: Indices) -> None:
        beyond = (np.asarray(indices) + 1) * width(lod) > self.n_tokens
        if np.any(beyond) or np.any(np.asarray(indices) < 0):
            node = int(np.asarray(indices)[beyond][0]) if np.any(beyond) else -1
            message = f"LOD{lod}:{node} is not complete at N={self.n_tokens}"
            raise AssertionError(message)


def policy_view(
    seed: int,
    *,
    n_tokens: int | None = None,
    w_max: int | None = None,
    n_hits: int | None = None,
    n_query: int = 10,
) -> FocusView:
    """Return a view of a random history in its initial layout.

    Args:
        seed: same seed, same view.
        n_tokens: N, drawn by lot if None.
        w_max: the budget, drawn by lot if None.
        n_hits: lexical hits, drawn by lot if None.
        n_query: tokens of the pending turn.
    """
    rng = np.random.default_rng(seed)
    n_tokens = int(rng.integers(1, 40_000)) if n_tokens is None else n_tokens
    w_max = int(rng.integers(400, 2_000)) if w_max is None else w_max
    tree = RandomTree(seed, n_tokens)
    budget = Budget(w_max=w_max, recent_tokens=128)
    wc = WorkingContext(budget, allocator=GreedyAllocator(), strict=True)
    wc.lay_out(n_tokens)
    ids = rng.integers(0, _VOCAB, n_query).astype(np.int32)
    return FocusView(
        entries=wc.entries,
        budget=budget,
        n_tokens=n_tokens,
        n_blocks=tree.n_blocks,
        iteration=0,
        query=FocusQuery(
            turn_ids=ids,
            turn_text=" ".join(f"w{i}" for i in ids),
            recent_ids=np.empty(0, np.int32),
            recent_text="",
        ),
        query_vector=rng.normal(size=_WIDTH).astype(np.float32) * min(n_query, 1),
        hits=_random_hits(rng, n_tokens, n_hits),
        gist_versions=np.zeros(len(wc.entries), np.int16),
        provisional=np.zeros(len(wc.entries), np.bool_),
        tree=tree,
    )


def _random_hits(rng: np.random.Generator, n_tokens: int, n_hits: int | None) -> LexicalHits:
    n_hits = int(rng.integers(0, 64)) if n_hits is None else n_hits
    start = np.sort(rng.integers(0, max(n_tokens, 1), n_hits))
    end = np.minimum(start + rng.integers(1, 128, n_hits), n_tokens)
    score = np.sort(rng.gamma(2.0, 3.0, n_hits))[::-1]
    order = rng.permutation(n_hits)
    return LexicalHits(start=start[order], end=end[order], score=score.astype(np.float32))


class FocusPolicyConformance:
    """Inherit, and set `make` to a callable that returns a fresh policy."""

    make: Callable[[], FocusPolicy]

    def test_it_has_a_name_and_is_a_policy(self) -> None:
        """A policy is found by its name."""
        policy = self.make()
        assert isinstance(policy, FocusPolicy)
        assert policy.name

    @pytest.mark.parametrize("seed", _SEEDS)
    def test_scores_are_one_finite_float32_per_entry_in_range(self, seed: int) -> None:
        """Shape, type and range of `score`."""
        view = policy_view(seed)
        _check_scores(self.make().score(view), view)

    @pytest.mark.parametrize("n_tokens", [0, 1, 31, 32, 33, 1024])
    def test_short_and_empty_histories_are_scored(self, n_tokens: int) -> None:
        """An empty history, a lone tail and a first block are no special cases."""
        view = policy_view(3, n_tokens=n_tokens, n_hits=0)
        policy = self.make()
        _check_scores(policy.score(view), view)
        assert not policy.reveals(view, 64) or n_tokens >= BLOCK_SIZE

    @pytest.mark.parametrize("seed", _SEEDS)
    def test_no_query_and_no_hits_are_scored(self, seed: int) -> None:
        """Steady decode has neither a turn nor, often, a lexical hit."""
        view = policy_view(seed, n_hits=0, n_query=0)
        policy = self.make()
        _check_scores(policy.score(view), view)
        policy.reveals(view, 64)

    @pytest.mark.parametrize("seed", _SEEDS)
    def test_the_same_view_gives_the_same_opinion(self, seed: int) -> None:
        """Bit for bit: again, from a fresh policy, and after another view."""
        view, policy = policy_view(seed), self.make()
        scores, reveals = policy.score(view), list(policy.reveals(view, 64))
        policy.score(policy_view(seed + 100))
        for other in (policy, self.make()):
            np.testing.assert_array_equal(scores, other.score(policy_view(seed)))
            assert reveals == list(other.reveals(policy_view(seed), 64))

    @pytest.mark.parametrize("seed", _SEEDS)
    def test_the_order_of_the_questions_does_not_matter(self, seed: int) -> None:
        """`reveals` may be asked before `score`."""
        view = policy_view(seed)
        first, second = self.make(), self.make()
        reveals = list(first.reveals(view, 64))
        scores = second.score(view)
        assert reveals == list(second.reveals(view, 64))
        np.testing.assert_array_equal(scores, first.score(view))

    @pytest.mark.parametrize("seed", _SEEDS)
    @pytest.mark.parametrize("limit", [0, 1, 64])
    def test_reveals_are_hidden_full_blocks_within_the_limit(self, seed: int, limit: int) -> None:
        """At most `limit`, distinct, complete, under a gist, utility in range, best first."""
        view = policy_view(seed)
        reveals = list(self.make().reveals(view, limit))
        assert len(reveals) <= limit
        assert len(reveals) == len({reveal.block for reveal in reveals})
        for reveal in reveals:
            _check_reveal(reveal, view)
        assert reveals == sorted(reveals, key=lambda reveal: -reveal.utility)

    @pytest.mark.parametrize("seed", _SEEDS)
    def test_slack_never_causes_a_collapse(self, seed: int) -> None:
        """With everything at LOD0 and rows to spare nothing is offered back."""
        view = policy_view(seed, n_tokens=2_000 + seed, w_max=4_096)
        assert view.entries.lod.max() == 0
        assert self.make().score(view).min() >= -view.budget.tau_collapse

    @pytest.mark.parametrize("seed", _SEEDS)
    def test_the_view_is_left_alone(self, seed: int) -> None:
        """A policy reads; hits and query vector stay as they were."""
        view = policy_view(seed)
        before = [view.hits.score.copy(), view.query_vector.copy(), view.tail_gists.copy()]
        policy = self.make()
        policy.score(view)
        policy.reveals(view, 64)
        for old, new in zip(
            before, [view.hits.score, view.query_vector, view.tail_gists], strict=True
        ):
            np.testing.assert_array_equal(old, new)

    @pytest.mark.parametrize("seed", _SEEDS)
    def test_a_refocus_comes_to_rest(self, seed: int) -> None:
        """Scored again and again with the same query, a working context stops changing."""
        view, policy = policy_view(seed), self.make()
        wc = WorkingContext(view.budget, allocator=GreedyAllocator(), strict=True)
        wc.lay_out(view.n_tokens)
        for iteration in range(_MOST_ITERATIONS):
            view = attrs.evolve(view, entries=wc.entries, iteration=iteration)
            scores = policy.score(view)
            _check_scores(scores, view)
            plan = GreedyAllocator().plan(
                view.entries, scores, policy.reveals(view, 64), view.budget
            )
            wc.tick(scores)
            if not plan.moves:
                return
            wc.apply(plan)
        pytest.fail(f"still moving after {_MOST_ITERATIONS} iterations")


def _check_scores(scores: Floats, view: FocusView) -> None:
    assert (len(view.entries),) == scores.shape
    assert np.float32 == scores.dtype
    assert np.isfinite(scores).all()
    assert (np.abs(scores) <= 1.0).all()


def _check_reveal(reveal: Reveal, view: FocusView) -> None:
    entries = view.entries
    assert 0 <= reveal.block < view.n_blocks
    cover = int(np.searchsorted(entries.start, reveal.block * BLOCK_SIZE, side="right")) - 1
    assert entries.lod[cover] > 0
    assert -1.0 <= reveal.utility <= 1.0
