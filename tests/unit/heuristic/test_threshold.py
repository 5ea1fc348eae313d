"""The line where the budget is full, against a plain count of rows."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from megacontext_sdk.builtin.greedy import GreedyAllocator
from megacontext_sdk.builtin.threshold import choose, focus_scores
from megacontext_sdk.contracts.focus import Budget
from megacontext_sdk.focus.working_context import WorkingContext
from megacontext_sdk.memory.lod import BLOCK_SIZE, NodeId, children, minimal_cover


def laid_out(n_tokens, w_max, **rules):
    budget = Budget(w_max=w_max, **({"recent_tokens": 64} | rules))
    wc = WorkingContext(budget, allocator=GreedyAllocator(), strict=True)
    wc.lay_out(n_tokens)
    return wc


def rows_of_layout(n_tokens, raw_blocks, gist_slots):
    """Count the rows of the coarsest tiling with some blocks raw, node by node."""
    raw = set(raw_blocks)

    def rows(node):
        low, high = node.span.start // BLOCK_SIZE, node.span.end // BLOCK_SIZE
        if not any(low <= block < high for block in raw):
            return gist_slots
        if node.lod == 1:
            return BLOCK_SIZE
        return sum(rows(child) for child in children(node))

    full = n_tokens // BLOCK_SIZE * BLOCK_SIZE
    return sum(rows(node) for node in minimal_cover(0, full)) + n_tokens - full


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("gist_slots", [1, 4])
def test_the_choice_fits_the_budget_to_the_row(seed, gist_slots):
    rng = np.random.default_rng(seed)
    n_tokens = int(rng.integers(2_000, 60_000))
    w_max = int(rng.integers(700, 2_000))
    wc = laid_out(n_tokens, w_max, gist_slots=gist_slots)
    entries = wc.entries
    utility = rng.random(len(entries))
    starts = rng.integers(0, n_tokens // BLOCK_SIZE - 4, 20)
    groups = [
        (range(int(a), int(a) + 1 + i % 4), float(rng.random())) for i, a in enumerate(starts)
    ]
    choice = choose(entries, utility, groups, wc.budget)
    held = entries.index[entries.protected & (entries.n_tokens == BLOCK_SIZE)]
    rows = rows_of_layout(n_tokens, [*held, *choice.blocks], gist_slots)
    assert rows <= wc.budget.target
    # A refused group would not have fitted at the end either, in spite of shared paths.
    shown = {*held.tolist(), *choice.blocks.tolist()}
    for blocks, _ in groups:
        if not set(blocks) <= shown:
            more = rows_of_layout(n_tokens, shown | set(blocks), gist_slots)
            assert more > rows


def test_groups_are_shown_whole_or_not_at_all():
    wc = laid_out(20_000, 420)
    groups = [(range(at, at + 5), 2.0 + at / 1000) for at in range(40, 560, 40)]
    choice = choose(wc.entries, np.zeros(len(wc.entries)), groups, wc.budget)
    shown = [sum(b in choice.blocks for b in blocks) for blocks, _ in groups]
    assert {0, 5} == set(shown)
    assert 5 == shown[-1]  # the most useful one


def test_neighbours_share_their_path():
    near = [(range(40 + i, 41 + i), 2.0) for i in range(20)]
    far = [(range(40 + 32 * (i % 15), 41 + 32 * (i % 15)), 2.0) for i in range(15)]
    wc = laid_out(20_000, 600)
    nothing = np.full(len(wc.entries), -1.0)
    assert len(choose(wc.entries, nothing, near, wc.budget).blocks) > len(
        set(choose(wc.entries, nothing, far, wc.budget).blocks.tolist())
    )


def test_everything_fits_in_a_large_budget():
    wc = laid_out(3_000, 8_192)
    utility = np.linspace(0, 1, len(wc.entries))
    choice = choose(wc.entries, utility, [], wc.budget)
    scores = focus_scores(wc.entries, utility, choice, wc.budget)
    assert set(wc.entries.index[~wc.entries.protected].tolist()) <= set(choice.blocks.tolist())
    assert scores.min() >= 0


def test_scores_cross_the_thresholds_exactly_where_the_budget_is_full():
    wc = laid_out(20_000, 700)
    entries = wc.entries
    utility = np.random.default_rng(1).random(len(entries))
    choice = choose(entries, utility, [], wc.budget)
    scores = focus_scores(entries, utility, choice, wc.budget)
    raw = (entries.lod <= 1) & ~entries.protected
    chosen = np.isin(entries.index, choice.blocks)
    assert (scores[raw & chosen] > wc.budget.tau_expand).all()
    loses = raw & ~chosen & (scores != 0)
    assert (scores[loses] < -wc.budget.tau_collapse).all()
    assert (scores[entries.protected] == 0).all()
    order = np.argsort(utility[loses])
    assert (np.diff(scores[loses][order]) >= 0).all()


def test_gists_beside_a_shown_block_are_left_in_peace():
    wc = laid_out(20_000, 500)
    wc.apply(attrs.evolve(GreedyAllocator().make_room(wc.entries, wc.budget)))
    choice = choose(wc.entries, np.full(len(wc.entries), -1.0), [(range(70, 71), 1.0)], wc.budget)
    wc.expand(NodeId(0, 70).span)
    scores = focus_scores(wc.entries, np.full(len(wc.entries), -1.0), choice, wc.budget)
    siblings = (wc.entries.lod == 1) & (wc.entries.index // 32 == 2)
    assert 31 == siblings.sum()
    assert (scores[siblings] >= 0).all()


def test_an_empty_history_has_nothing_to_choose():
    wc = WorkingContext(Budget(w_max=512), allocator=GreedyAllocator(), strict=True)
    choice = choose(wc.entries, np.empty(0), [], wc.budget)
    assert 0 == len(choice.blocks)
    assert (0,) == focus_scores(wc.entries, np.empty(0), choice, wc.budget).shape


def test_equal_utilities_prefer_the_newest():
    wc = laid_out(20_000, 900)
    choice = choose(wc.entries, np.zeros(len(wc.entries)), [], wc.budget)
    free = wc.entries.index[(wc.entries.lod <= 1) & ~wc.entries.protected]
    newest = np.sort(free)[::-1]
    shown = np.isin(newest, choice.blocks)
    assert shown[0]
    assert (np.diff(shown.astype(int)) <= 0).all()
