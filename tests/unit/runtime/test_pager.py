"""The pager against its oracle: a fresh window computed from scratch for the same layout."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_sdk.builtin.echo import EchoModel
from megacontext_sdk.builtin.greedy import GreedyAllocator
from megacontext_sdk.builtin.positions import CompactPositions
from megacontext_sdk.contracts.focus import Budget
from megacontext_sdk.errors import BudgetError, ConfigError, InvariantError
from megacontext_sdk.focus.working_context import WorkingContext
from megacontext_sdk.memory.lod import NodeId, Span, width
from megacontext_sdk.runtime.audit import kl_nats
from megacontext_sdk.runtime.pager import Pager
from megacontext_sdk.runtime.rows import gist_parts, is_token, row_keys

MODEL = EchoModel()
BUDGET = Budget(w_max=224, headroom=32, recent_tokens=32, sink_blocks=1)
TOLERANCE = 2e-3  # logits of the echo model have a spread of about 6; fp32, two layers


class RandomHistory:
    """Token ids and gists of a history that needs no storage; counts what is read."""

    def __init__(self, n_tokens: int = 32**3, seed: int = 3) -> None:
        random = np.random.default_rng(seed)
        self.ids = random.integers(97, 123, n_tokens, dtype=np.int32)

    def token_ids_at(self, indices):
        return self.ids[indices]

    def is_provisional(self, lods, indices):
        return np.zeros(len(indices), bool)

    def need(self, lods, indices):
        pass

    def gists(self, lod, indices):
        w = width(lod)
        rows = [MODEL.embed(self.ids[i * w : (i + 1) * w]).mean(axis=0) for i in indices]
        return np.array(rows, dtype=np.float32)[:, None, :]


HISTORY = RandomHistory()


class CountingWindow:
    """A real window that counts forwards and rows."""

    def __init__(self, window) -> None:
        self._window = window
        self.capacity = window.capacity
        self.forwards: list[int] = []

    def __getattr__(self, name):
        return getattr(self._window, name)

    def write(self, rows, positions, slots, want="nothing"):
        self.forwards.append(rows.n_rows)
        return self._window.write(rows, positions, slots, want)


def make_pager(mode: str = "exact", cache_bytes: int = 0, history=HISTORY) -> Pager:
    window = CountingWindow(MODEL.open_window(BUDGET.w_max + 96))
    return Pager(
        window, history, CompactPositions(), MODEL.info, mode=mode, cache_bytes=cache_bytes
    )


def make_context(n_tokens: int) -> WorkingContext:
    wc = WorkingContext(BUDGET, allocator=GreedyAllocator(), strict=True)
    wc.lay_out(n_tokens)
    return wc


def from_scratch(layout):
    fresh = make_pager()
    fresh.sync(layout)
    return fresh.newest_logits(24)


def edit(wc: WorkingContext, pick: int, kind: str) -> None:
    """Change the layout somewhere; refusals are part of the game."""
    entries = wc.entries
    at = pick % len(entries)
    node = NodeId(int(entries.lod[at]), int(entries.index[at]))
    try:
        if kind == "grow":
            wc.extend(min(wc.n_tokens + 1 + pick % 70, len(HISTORY.ids)))
        elif kind == "expand":
            wc.expand(node)
        else:
            wc.collapse(Span(node.span.start, node.span.end))
    except (ConfigError, BudgetError, InvariantError):
        return


EDITS = st.lists(
    st.tuples(st.integers(0, 10_000), st.sampled_from(["grow", "expand", "collapse"])),
    min_size=1,
    max_size=8,
)


def test_row_keys_name_tokens_by_index_and_gists_by_node() -> None:
    layout = make_context(2_000).layout()

    keys = row_keys(layout, 3)

    assert layout.n_rows + 3 == len(keys) == len(set(keys.tolist()))
    assert [2_000, 2_001, 2_002] == keys[-3:].tolist()
    lods, nodes, slots = gist_parts(keys[~is_token(keys)])
    gist = layout.lod > 0
    assert layout.lod[gist].tolist() == lods.tolist()
    assert layout.index[gist].tolist() == nodes.tolist()
    assert not slots.any()


@settings(max_examples=40, deadline=None)
@given(n_tokens=st.integers(1, 6_000), edits=EDITS)
def test_row67_exact_mode_equals_a_window_built_from_scratch(n_tokens, edits) -> None:
    wc, pager = make_context(n_tokens), make_pager()
    pager.sync(wc.layout())
    for pick, kind in edits:
        edit(wc, pick, kind)
        pager.sync(wc.layout())

    assert pager.stale_rows == 0
    np.testing.assert_allclose(pager.newest_logits(24), from_scratch(wc.layout()), atol=TOLERANCE)


@settings(max_examples=25, deadline=None)
@given(n_tokens=st.integers(200, 6_000), edits=EDITS, mode=st.sampled_from(["stale", "seam"]))
def test_row53_every_live_row_is_a_row_of_the_layout_in_every_mode(n_tokens, edits, mode) -> None:
    wc, pager = make_context(n_tokens), make_pager(mode, cache_bytes=1 << 20)
    pager.sync(wc.layout())
    for pick, kind in edits:
        edit(wc, pick, kind)
        pager.sync(wc.layout())

    keys, positions = pager.live()
    order = np.argsort(positions)
    assert row_keys(wc.layout()).tolist() == keys[order].tolist()
    assert list(range(len(keys))) == positions[order].tolist()
    assert len(keys) == pager.window.n_live


def test_row67_rows_recomputed_are_those_right_of_the_earliest_edit() -> None:
    wc, pager = make_context(6_000), make_pager()
    pager.sync(wc.layout())
    before = row_keys(wc.layout())
    gist = int(np.flatnonzero(wc.entries.lod == 1)[0])

    wc.expand(NodeId(1, int(wc.entries.index[gist])))
    after = row_keys(wc.layout())
    report, _ = pager.sync(wc.layout())

    shortest = min(len(before), len(after))
    first_edit = int(np.flatnonzero(before[:shortest] != after[:shortest])[0])
    assert len(after) - first_edit == report.rows_recomputed


def test_row69_a_refocus_is_one_forward_over_new_and_seam_rows() -> None:
    wc, pager = make_context(6_000), make_pager("seam")
    pager.sync(wc.layout())
    pager.window.forwards.clear()
    gists = np.flatnonzero(wc.entries.lod == 1)
    for at in (gists[0], gists[0] + 6):
        wc.expand(NodeId(1, int(wc.entries.index[at])))

    report, _ = pager.sync(wc.layout())

    assert 1 == report.forwards == len(pager.window.forwards)
    assert pager.window.forwards == [report.rows_new - report.rows_cached + report.rows_seam]
    assert report.rows_seam > 0


def test_row69_growth_at_the_tail_computes_only_the_new_rows() -> None:
    wc, pager = make_context(100), make_pager("seam")
    pager.sync(wc.layout())

    wc.extend(107)
    report, _ = pager.sync(wc.layout())

    assert 7 == report.rows_recomputed
    assert 0 == report.rows_moved == pager.stale_rows


def test_a_sealed_block_of_generated_tokens_costs_nothing() -> None:
    history = RandomHistory()
    wc, pager = make_context(90), make_pager("seam", history=history)
    pager.sync(wc.layout())
    for index in range(90, 96):
        pager.step(int(history.ids[index]), index)

    wc.extend(96)
    report, _ = pager.sync(wc.layout())

    assert (0, 0) == (report.forwards, report.rows_new)
    np.testing.assert_allclose(pager.newest_logits(24), from_scratch(wc.layout()), atol=TOLERANCE)


def test_row71_a_span_that_comes_back_is_taken_from_the_cache() -> None:
    wc, pager = make_context(6_000), make_pager("stale", cache_bytes=1 << 22)
    pager.sync(wc.layout())
    gist = NodeId(1, int(wc.entries.index[np.flatnonzero(wc.entries.lod == 1)[3]]))
    wc.expand(gist)
    pager.sync(wc.layout())
    wc.collapse(gist)
    pager.sync(wc.layout())

    wc.expand(gist)
    report, _ = pager.sync(wc.layout())

    assert (32, 32) == (report.rows_new, report.rows_cached)
    assert 0 == report.rows_recomputed
    assert 0 < pager.cache.hits


def test_row71_eviction_changes_the_cost_only() -> None:
    results = []
    for cache_bytes in (1 << 22, 9_000):
        wc, pager = make_context(6_000), make_pager("seam", cache_bytes=cache_bytes)
        pager.sync(wc.layout())
        gists = [NodeId(1, int(i)) for i in wc.entries.index[wc.entries.lod == 1][2:5]]
        for gist in gists * 2:
            wc.expand(gist)
            pager.sync(wc.layout())
            wc.collapse(gist)
            pager.sync(wc.layout())
        assert pager.cache.n_bytes <= cache_bytes
        results.append((row_keys(wc.layout()).tolist(), pager.newest_logits(16), pager.cache.hits))

    assert results[0][0] == results[1][0]
    assert results[0][2] > results[1][2]
    assert float(kl_nats(results[0][1], results[1][1]).mean()) < 0.05


def test_row70_a_rebuild_leaves_nothing_stale_and_equals_scratch() -> None:
    wc, pager = make_context(6_000), make_pager("stale")
    pager.sync(wc.layout())
    wc.expand(NodeId(1, int(wc.entries.index[np.flatnonzero(wc.entries.lod == 1)[0]])))
    pager.sync(wc.layout())
    assert pager.stale_rows > 0
    assert pager.swaps_since_rebuild > 0

    pager.sync(wc.layout(), rebuild=True)

    assert (0, 0, 1) == (pager.stale_rows, pager.swaps_since_rebuild, pager.rebuilds)
    np.testing.assert_allclose(pager.newest_logits(24), from_scratch(wc.layout()), atol=TOLERANCE)


def test_row70_repairing_seams_is_on_average_no_worse_than_leaving_rows_stale() -> None:
    distance = {"stale": [], "seam": []}
    for mode, found in distance.items():
        for seed in range(6):
            history = RandomHistory(seed=seed)
            wc = make_context(6_000)
            pager = make_pager(mode, history=history)
            pager.sync(wc.layout())
            for at in np.flatnonzero(wc.entries.lod == 1)[seed : seed + 3]:
                wc.expand(NodeId(1, int(wc.entries.index[at])))
                pager.sync(wc.layout())
            exact = make_pager(history=history)
            exact.sync(wc.layout())
            found.append(kl_nats(pager.newest_logits(16), exact.newest_logits(16)).mean())

    assert np.mean(distance["seam"]) <= np.mean(distance["stale"]) + 1e-6


def test_pending_tokens_follow_the_layout_and_can_be_taken_back() -> None:
    wc, pager = make_context(100), make_pager("seam")
    pending = HISTORY.ids[100:105]
    _, output = pager.sync(wc.layout(), pending, want_logits=True)
    assert output is not None
    assert 105 == pager.n_live

    pager.truncate(100)

    assert 100 == pager.n_live
    np.testing.assert_allclose(pager.newest_logits(24), from_scratch(wc.layout()), atol=TOLERANCE)


def test_logits_of_a_row_that_is_there_already_are_those_of_a_fresh_window() -> None:
    wc, pager = make_context(100), make_pager("seam")
    pager.sync(wc.layout())

    report, output = pager.sync(wc.layout(), want_logits=True)

    assert 1 == report.rows_recomputed
    np.testing.assert_allclose(output.numpy(), from_scratch(wc.layout())[-1], atol=TOLERANCE)


def test_reading_logits_leaves_the_window_as_it_was() -> None:
    wc, pager = make_context(900), make_pager("seam")
    pager.sync(wc.layout())

    first = pager.newest_logits(16)

    np.testing.assert_allclose(first, pager.newest_logits(16), atol=1e-4)
    report, _ = pager.sync(wc.layout())
    assert 0 == report.rows_recomputed


def test_an_empty_layout_is_an_empty_window() -> None:
    pager = make_pager()

    report, output = pager.sync(make_context(0).layout(), want_logits=True)

    assert output is None
    assert (0, 0) == (report.rows_new, pager.n_live)


@pytest.mark.parametrize("mode", ["exact", "stale", "seam"])
def test_row14_swapped_rows_reuse_slots_and_none_leak(mode: str) -> None:
    wc, pager = make_context(6_000), make_pager(mode, cache_bytes=1 << 20)
    for number in range(60):
        edit(wc, number * 7, ("expand", "collapse", "grow")[number % 3])
        pager.sync(wc.layout())
        assert wc.cost == pager.n_live == pager.window.n_live


def test_row52_a_slot_with_the_wrong_row_is_detected() -> None:
    wc, pager = make_context(2_000), make_pager("seam")
    pager.sync(wc.layout())
    pager.check(wc.layout())

    pager._keys[3] = 10**6

    with pytest.raises(InvariantError, match="I14") as caught:
        pager.check(wc.layout())
    assert "I14" == caught.value.code


def test_row52_two_rows_at_one_position_are_detected() -> None:
    wc, pager = make_context(2_000), make_pager("seam")
    pager.sync(wc.layout())

    pager._positions[4] = pager._positions[5]

    with pytest.raises(InvariantError, match="I11"):
        pager.check(wc.layout())


def test_row52_a_gist_that_is_not_finite_never_reaches_the_model() -> None:
    class Broken(RandomHistory):
        def gists(self, lod, indices):
            rows = super().gists(lod, indices)
            rows[0, 0, 0] = np.nan
            return rows

    wc, pager = make_context(6_000), make_pager("seam", history=Broken())

    with pytest.raises(InvariantError, match="I6"):
        pager.sync(wc.layout())
