"""How the tree grows: the same from any cuts, one encode per node, nothing missing or partial."""

from __future__ import annotations

import numpy as np
import pytest

from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.errors import ConfigError
from megacontext_sdk.memory.lod import BLOCK_SIZE, NodeId, Span


def everything(tree):
    """Ids and all gists of all levels."""
    levels = range(1, tree.top_lod + 1)
    rows = {lod: tree.gists(lod, np.arange(tree.n_nodes(lod))) for lod in levels}
    return tree.token_ids(Span(0, tree.n_tokens)), rows


def stored_rows(memory):
    """The gist rows as bytes, by version and level."""
    return {key: level.rows.all.tobytes() for key, level in memory.store.inner._gists.items()}


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("step", [1, 31, 50, 1000, None])
def test_row04_gists_do_not_depend_on_how_appends_were_cut(tmp_path, build, slots, step):
    ids = build.ids(2 * 1024 + 77)
    whole, cut = build.memory(tmp_path), build.memory(tmp_path)
    build.append(whole.open(slots=slots), ids)
    build.append(cut.open(slots=slots), ids, step)
    expected, actual = everything(whole.tree), everything(cut.tree)
    np.testing.assert_array_equal(expected[0], actual[0])
    for lod, rows in expected[1].items():
        np.testing.assert_array_equal(rows, actual[1][lod])
    assert whole.tree.encode_calls == cut.tree.encode_calls == {1: 66, 2: 2}
    whole.close()
    cut.close()
    assert stored_rows(whole) == stored_rows(cut)


def test_row04_fifty_twenty_hundred_leave_the_tails_of_the_specification(memory, build):
    tree = memory.open()
    seen = []
    for n in (50, 20, 100):
        tree.append(build.ids(n), build.records(n))
        seen.append((tree.n_blocks * BLOCK_SIZE, len(tree.tail)))
    assert [(32, 18), (64, 6), (160, 10)] == seen


def test_row04_closing_and_opening_between_appends_changes_nothing(memory, tmp_path, build):
    ids = build.ids(1024 * 3 + 5)
    for part in np.split(ids, [10, 500, 1024, 1030, 3000]):
        build.append(memory.open(), part)
    whole = build.memory(tmp_path)
    build.append(whole.open(), ids)
    for mine, other in zip(
        everything(memory.tree)[1].values(), everything(whole.tree)[1].values(), strict=False
    ):
        np.testing.assert_array_equal(other, mine)
    whole.close()


@pytest.mark.parametrize("n", range(32))
def test_row05_the_partial_tail_is_visible_and_survives_a_restart(memory, build, n):
    ids = build.ids(64 + n)
    build.append(memory.open(), ids)
    tree = memory.open()
    np.testing.assert_array_equal(ids[64:], tree.tail)
    np.testing.assert_array_equal(ids, tree.token_ids(Span(0, 64 + n)))
    rows = memory.services.table[ids[64:]]
    np.testing.assert_array_equal(rows, tree.rows(NodeId(0, 2)) if n else rows)
    assert not tree.exists(NodeId(0, 2))


class LoggingEncoder(MeanGistEncoder):
    """Notes the shape of everything it is asked for."""

    def __init__(self):
        super().__init__()
        self.blocks = []
        self.groups = []

    def encode_blocks(self, blocks, services):
        self.blocks.append(blocks.token_ids.copy())
        return super().encode_blocks(blocks, services)

    def encode_gists(self, lod, children, services):
        self.groups.append((lod, len(children.rows)))
        return super().encode_gists(lod, children, services)


def test_row05_the_encoder_never_sees_a_partial_or_padded_block(memory, build):
    encoder = LoggingEncoder()
    tree = memory.open(encoder=encoder)
    ids = build.ids(5000)
    for part in np.split(ids, [1, 32, 33, 100, 1000, 1001, 4999]):
        build.append(tree, part)
    seen = np.concatenate(encoder.blocks)
    np.testing.assert_array_equal(ids[: 5000 // 32 * 32].reshape(-1, 32), seen)
    assert all(n % 32 == 0 for _, n in encoder.groups)


def test_row06_a_new_block_costs_one_encode_and_one_per_completed_level(memory, build):
    tree = memory.open(slots=1)
    build.append(tree, build.ids(32**3 - 32))
    for _ in range(40):
        before = sum(tree.encode_calls.values())
        build.append(tree, build.ids(32))
        n, completed = tree.n_blocks, 0
        while n % 32 == 0:
            n, completed = n // 32, completed + 1
        assert 1 + completed == sum(tree.encode_calls.values()) - before


@pytest.mark.parametrize("lengths", [[1], [31], [32], [33], [128], [5000], [1, 31, 32, 33, 128]])
def test_row07_no_row_is_zero_or_missing_after_an_append(memory, build, lengths):
    tree = memory.open()
    for n in lengths:
        build.append(tree, build.ids(n, seed=n))
        assert 0 == tree.stats().n_missing_gists
        for lod in range(1, tree.top_lod + 1):
            rows = tree.gists(lod, np.arange(tree.n_nodes(lod)))
            assert np.isfinite(rows).all()
            assert np.abs(rows).max(axis=-1).min() > 0
    assert sum(lengths) == tree.n_tokens


def test_row11_the_index_of_a_token_never_changes(memory, build):
    first, later = build.ids(100), build.ids(3000, seed=5)
    build.append(memory.open(), first)
    before = [memory.tree.token_ids(Span(i, i + 1))[0] for i in range(100)]
    build.append(memory.tree, later, step=70)
    tree = memory.open(slots=4)  # another encoder: everything above LOD0 is built anew
    assert before == [tree.token_ids(Span(i, i + 1))[0] for i in range(100)]
    np.testing.assert_array_equal(later[50:60], tree.token_ids(Span(150, 160)))
    assert NodeId(2, 1) == tree.node_at(1024, 2)


def test_row18_nodes_above_lod0_are_one_in_31(memory, build):
    tree = memory.open()
    build.append(tree, build.ids(32**3 * 4))
    stats = tree.stats()
    assert {1: 4096, 2: 128, 3: 4} == stats.nodes
    assert stats.node_ratio == pytest.approx(1 / 31, rel=0.01)


@pytest.mark.parametrize("slots", [1, 4])
def test_row18_gist_bytes_per_token_follow_the_formula(tmp_path, build, slots):
    memory = build.memory(tmp_path, width=256)
    tree = memory.open(slots=slots)
    build.append(tree, build.ids(32**3))
    formula = 256 * 2 * slots / 31
    memory.close()
    stored = sum(map(len, stored_rows(memory).values())) / 32**3
    assert formula == pytest.approx(stored, rel=0.05)
    assert stored == pytest.approx(tree.stats().gist_bytes_per_token)


def test_a_zero_length_append_changes_nothing(memory, build):
    tree = memory.open()
    build.append(tree, build.ids(40))
    tree.append(np.empty(0, np.int32), [])
    assert (40, 1) == (tree.n_tokens, tree.n_blocks)


@pytest.mark.parametrize("wrong", [-1, 300, 65_535])
def test_an_id_outside_the_vocabulary_writes_nothing(memory, build, wrong):
    tree = memory.open()
    ids = build.ids(64)
    ids[40] = wrong
    with pytest.raises(ConfigError) as caught:
        tree.append(ids, build.records(64))
    assert (40, wrong) == (caught.value.index, caught.value.value)
    assert 0 == tree.n_tokens
