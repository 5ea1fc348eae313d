"""The policies to compare with do what their names say."""

from __future__ import annotations

from megacontext_sdk.builtin.baselines import Bm25Focus, CosineFocus, RandomFocus
from megacontext_sdk.builtin.recency import RecencyFocus
from megacontext_sdk.testing.policy import policy_view


def free_blocks(view):
    return (view.entries.lod <= 1) & ~view.entries.protected


def test_recency_prefers_the_newest_and_reveals_nothing():
    view = policy_view(1, n_tokens=9_000, w_max=700)
    scores = RecencyFocus().score(view)
    raw = view.entries.lod == 0
    gist = free_blocks(view) & ~raw & (scores != 0)
    assert scores[raw & ~view.entries.protected].min() > scores[gist].max()
    assert 0 == len(RecencyFocus().reveals(view, 64))


def test_random_depends_on_its_seed_alone():
    view = policy_view(2, n_tokens=9_000, w_max=700)
    assert RandomFocus(1).score(view).tolist() == RandomFocus(1).score(view).tolist()
    assert RandomFocus(1).score(view).tolist() != RandomFocus(2).score(view).tolist()
    wanted = RandomFocus(3).score(view)[free_blocks(view)] > 0
    assert 0 < wanted.sum() < len(wanted)


def test_bm25_shows_hits_only_for_their_words():
    view = policy_view(3, n_tokens=30_000, w_max=900, n_hits=30)
    reveals = Bm25Focus().reveals(view, 64)
    touched = {
        block
        for start, end in zip(view.hits.start.tolist(), view.hits.end.tolist(), strict=True)
        for block in range(start // 32, -(-end // 32))
    }
    assert len(reveals) > 0
    assert {reveal.block for reveal in reveals} <= touched


def test_cosine_reveals_nothing_and_ignores_hits():
    view = policy_view(4, n_tokens=30_000, w_max=900, n_hits=30)
    bare = policy_view(4, n_tokens=30_000, w_max=900, n_hits=0)
    assert 0 == len(CosineFocus().reveals(view, 64))
    assert CosineFocus().score(view).tolist() == CosineFocus().score(bare).tolist()
    assert Bm25Focus().score(view).tolist() != Bm25Focus().score(bare).tolist()
