"""Reads of the tree: by arithmetic, in a constant number of rows, checked against plain loops."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_sdk.errors import ConfigError
from megacontext_sdk.memory import lod as levels
from megacontext_sdk.memory.lod import BLOCK_SIZE, NodeId, Span


@given(st.integers(0, 7), st.integers(0, 10**9))
def test_row02_addresses_equal_brute_force(lod, index):
    width = 32 if lod == 0 else 32**lod
    node = NodeId(lod, index)
    assert Span(index * width, (index + 1) * width) == node.span
    assert (
        node == levels.node_at(index * width, lod) == levels.node_at((index + 1) * width - 1, lod)
    )
    assert node == levels.unpack(levels.pack(lod, index))
    above = levels.parent(node)
    assert node in levels.children(above)
    spans = [child.span for child in levels.children(above)]
    assert above.span == Span(spans[0].start, spans[-1].end)
    assert all(a.end == b.start for a, b in pairwise(spans))


def test_row02_the_golden_counts_of_a_hundred_thousand_tokens(memory, build):
    tree = memory.open()
    build.append(tree, build.ids(100_000))
    assert {1: 3125, 2: 97, 3: 3} == tree.stats().nodes
    cover = tree.cover(Span(0, 100_000), max_rows=25)
    assert [3, 1, 21] == [sum(node.lod == lod for node in cover) for lod in (3, 2, 1)]
    assert 25 == levels.min_cost(100_000)


def test_row02_nodes_of_a_hundred_blocks_and_a_tail(memory, build):
    tree = memory.open()
    build.append(tree, build.ids(100 * 32 + 7))
    assert [100, 100, 3, 0] == [tree.n_nodes(lod) for lod in range(4)]
    assert 2 == tree.top_lod
    assert [NodeId(2, 1), NodeId(2, 2)] == list(tree.iter_nodes(2, 1024, 9999))
    assert [NodeId(1, 3), NodeId(1, 4)] == list(tree.iter_nodes(1, 127, 129))
    assert [] == list(tree.iter_nodes(3, 0, 3200))
    assert tree.exists(NodeId(0, 99))
    assert not tree.exists(NodeId(0, 100))
    assert not tree.exists(NodeId(11, 0))
    assert not tree.exists(NodeId(1, -1))


@pytest.mark.parametrize(("token", "lod"), [(-1, 1), (3200, 0), (3072, 2), (0, 3)])
def test_a_token_without_a_complete_node_is_refused(memory, build, token, lod):
    tree = memory.open()
    build.append(tree, build.ids(100 * 32 + 7))
    with pytest.raises(ConfigError, match="complete") as caught:
        tree.node_at(token, lod)
    assert "token_index" == caught.value.field


def test_row10_a_node_costs_the_same_few_rows_at_any_depth_and_length(memory, build):
    tree = memory.open()
    costs = []
    for _ in range(2):
        build.append(tree, build.ids(32**3 + 32))
        tree = memory.open(gist_cache_rows=1)
        memory.store.reset()
        tree.token_ids_of_blocks(np.array([tree.n_blocks // 3]))
        costs.append((memory.store.calls, memory.store.rows))
        tree.token_ids(Span(5000, 5020))
        costs.append((memory.store.calls, memory.store.rows))
        for lod in (1, 2, 3):
            tree.gists(lod, np.array([tree.n_nodes(lod) // 2]))
            costs.append((memory.store.calls, memory.store.rows))
    assert [(n, n) for n in (1, 2, 3, 4, 5)] * 2 == costs


def test_row10_a_batch_is_one_read_and_a_second_one_is_free(memory, build):
    build.append(memory.open(), build.ids(32**3))
    tree = memory.open()
    wanted = np.array([5, 900, 5, 31, 0])
    memory.store.reset()
    first = tree.gists(1, wanted)
    assert (1, 4) == (memory.store.calls, memory.store.rows)
    np.testing.assert_array_equal(first, tree.gists(1, wanted))
    assert (1, 4) == (memory.store.calls, memory.store.rows)
    np.testing.assert_array_equal(first[0], first[2])


def test_row10_opening_reads_nothing_of_the_history(memory, build):
    build.append(memory.open(), build.ids(32**3))
    memory.close()
    memory.store.reset()
    memory.open()
    assert 0 == memory.store.rows


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_the_cache_never_changes_an_answer_and_never_outgrows_its_bound(data):
    from megacontext_sdk.memory.gist_rows import GistCache

    capacity = data.draw(st.integers(1, 200))
    cache = GistCache(capacity, 1, 2)
    truth = np.arange(3000, dtype=np.float32).reshape(-1, 1, 2)
    for _ in range(30):
        lod = data.draw(st.integers(1, 2))
        nodes = np.array(data.draw(st.lists(st.integers(0, 700), max_size=100, unique=True)), int)
        rows, missing = cache.read(lod, nodes)
        rows[missing] = truth[nodes[missing] * lod]
        np.testing.assert_array_equal(truth[nodes * lod], rows)
        cache.write(lod, nodes[missing], rows[missing])
        assert len(cache) <= capacity


def test_the_cache_keeps_what_was_used_last():
    from megacontext_sdk.memory.gist_rows import GistCache

    cache = GistCache(2, 1, 1)
    for node in (1, 2):
        cache.write(1, np.array([node]), np.full((1, 1, 1), node, np.float32))
    cache.read(1, np.array([1]))
    cache.write(1, np.array([3]), np.full((1, 1, 1), 3, np.float32))
    assert [0, 2] == [int(len(cache.read(1, np.array([n]))[1]) * 2) for n in (1, 2)]


def test_tail_gists_are_the_newest_and_missing_ones_are_nan_in_front(memory, build):
    tree = memory.open()
    assert np.isnan(tree.tail_gists()).all()
    build.append(tree, build.ids(64 + 5))
    assert [True, True, True, False, False, True] == np.isnan(tree.tail_gists()).all(1).tolist()
    build.append(tree, build.ids(1100))
    rows = tree.tail_gists()
    np.testing.assert_array_equal(tree.gists(1, np.arange(31, 36))[:, 0], rows[:5])
    np.testing.assert_array_equal(tree.gists(2, np.array([0]))[0, 0], rows[5])
    assert np.float32 == rows.dtype


@pytest.mark.parametrize(
    "span", [(-1, 5), (5, 4), (0, 101), (0.0, 5), (0, 5.5), (True, 5), ("0", 5), (None, None)]
)
def test_a_span_outside_the_history_is_refused_with_the_valid_range(memory, build, span):
    tree = memory.open()
    build.append(tree, build.ids(100))
    for read in (tree.token_ids, lambda s: tree.cover(s, 1000)):
        with pytest.raises(ConfigError, match="<= 100") as caught:
            read(Span(*span))
        assert ("span", span) == (caught.value.field, caught.value.value)


def test_nodes_that_do_not_exist_are_refused(memory, build):
    tree = memory.open()
    build.append(tree, build.ids(100))
    for read in (
        lambda: tree.gists(1, np.array([0, 3])),
        lambda: tree.gists(2, np.array([0])),
        lambda: tree.gists(0, np.array([0])),
        lambda: tree.gists(1, np.array([-1])),
        lambda: tree.token_ids_of_blocks(np.array([3])),
        lambda: tree.rows(NodeId(0, 4)),
        lambda: tree.rows(NodeId(1, 3)),
    ):
        with pytest.raises(ConfigError):
            read()


def test_asking_for_nothing_gives_nothing(memory, build):
    tree = memory.open()
    build.append(tree, build.ids(100))
    none = np.empty(0, np.int64)
    assert (0, 1, 8) == tree.gists(1, none).shape
    assert (0, 32) == tree.token_ids_of_blocks(none).shape
    assert 0 == len(tree.precision(none))
    assert 0 == len(tree.token_ids(Span(50, 50)))


# --- cover -----------------------------------------------------------------------------------


def cost(tree, nodes):
    tail = NodeId(0, tree.n_blocks)
    per = {True: BLOCK_SIZE, False: tree.gist_slots}
    return sum(len(tree.tail) if node == tail else per[node.lod == 0] for node in nodes)


@pytest.mark.parametrize("max_rows", [9, 60, 100, 500, 5000])
def test_cover_tiles_a_span_within_the_rows_and_wastes_none(memory, build, max_rows):
    tree = memory.open()
    build.append(tree, build.ids(2000))
    nodes = tree.cover(Span(40, 1900), max_rows=max_rows + 50)
    spans = [node.span for node in nodes]
    assert (32, 1920) == (spans[0].start, spans[-1].end)
    assert all(a.end == b.start for a, b in pairwise(spans))
    left = max_rows + 50 - cost(tree, nodes)
    coarse = [node for node in nodes if node.lod]
    assert 0 <= left
    assert not coarse or left < 31


def test_cover_shows_the_tail_and_refuses_too_few_rows(memory, build):
    tree = memory.open()
    build.append(tree, build.ids(1024 + 70))
    assert [NodeId(2, 0), NodeId(1, 32), NodeId(1, 33), NodeId(0, 34)] == tree.cover(
        Span(0, 1094), max_rows=9
    )
    with pytest.raises(ConfigError, match="at least 9 rows") as caught:
        tree.cover(Span(0, 1094), max_rows=8)
    assert 9 == caught.value.needed
    assert [NodeId(0, 34)] == tree.cover(Span(1090, 1094), max_rows=8)
    assert [] == tree.cover(Span(64, 64), max_rows=0)
