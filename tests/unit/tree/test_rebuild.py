"""Gists are a cache: what a crash, a failure or another encoder left out is made again."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.contracts.gist import Gists
from megacontext_sdk.errors import ConfigError, ModelError, StorageFullError
from megacontext_sdk.memory.lod import NodeId
from megacontext_sdk.testing.gist import blocks_of

N = 32**3 + 32 * 40 + 9


def gists_of(tree):
    return [tree.gists(lod, np.arange(tree.n_nodes(lod))) for lod in range(1, tree.top_lod + 1)]


@pytest.mark.parametrize(
    "kept", [{}, {1: 5}, {1: 1063}, {1: 1064, 2: 32}, {1: 1064, 2: 33}, {1: 1064, 2: 33, 3: 1}]
)
def test_row09_gists_missing_after_a_crash_are_built_on_open(memory, build, kept):
    build.append(memory.open(), build.ids(N))
    expected = gists_of(memory.tree)
    memory.crash(kept)
    tree = memory.open()
    assert 0 == tree.stats().n_missing_gists
    n_nodes = {1: 1064, 2: 33, 3: 1}
    missing = {lod: n - kept.get(lod, 0) for lod, n in n_nodes.items() if n > kept.get(lod, 0)}
    assert missing == tree.encode_calls
    for one, other in zip(expected, gists_of(tree), strict=True):
        np.testing.assert_array_equal(one, other)


def test_row09_a_gist_never_precedes_its_children(memory, build):
    written = []
    commit, put_gists = memory.store.inner.commit, memory.store.inner.put_gists

    def checked_commit(batch, *, sync=True):
        commit(batch, sync=sync)
        written.append("commit")

    def checked_put(batch):
        counts = {lod: n for _, lod, n in memory.store.inner.state().gist_rows}
        state = memory.store.inner.state()
        below = state.n_blocks if batch.lod == 1 else counts.get(batch.lod - 1, 0) // 32
        assert int(batch.nodes[-1]) < below
        put_gists(batch)
        written.append(batch.lod)

    memory.store.inner.commit, memory.store.inner.put_gists = checked_commit, checked_put
    build.append(memory.open(), build.ids(N), step=1000)
    memory.close()
    assert {"commit", 1, 2, 3} == set(written)


def test_a_read_only_tree_computes_what_is_missing_and_writes_nothing(memory, build):
    build.append(memory.open(), build.ids(N))
    expected = gists_of(memory.tree)
    memory.crash({1: 100})
    tree = memory.open(read_only=True)
    before = memory.store.inner.state()
    for one, other in zip(expected, gists_of(tree), strict=True):
        np.testing.assert_array_equal(one, other)
    tree.note_access(np.array([1]), np.array([3]))
    memory.close()
    memory.store.inner.open("read", None)
    assert before == memory.store.inner.state()
    assert not (memory.folder / "access.bin").exists()


def test_a_read_only_tree_serves_an_encoder_that_never_wrote(memory, build):
    build.append(memory.open(slots=1), build.ids(2000))
    expected = memory.open(slots=4).gists(1, np.arange(60))
    memory.crash({})
    memory.store.inner._gists.clear()
    tree = memory.open(slots=2, read_only=True)
    np.testing.assert_array_equal(expected[:, :2], tree.gists(1, np.arange(60)))


def test_gists_of_an_append_that_a_full_disk_took_back_are_forgotten(memory, build):
    tree = memory.open()
    build.append(tree, build.ids(40))
    commit = memory.store.inner.commit

    def full(batch, *, sync=True):
        raise StorageFullError("the volume is full", needed=1, free=0, path="")

    memory.store.inner.commit = full
    ticket = tree.append(build.ids(100, seed=1), build.records(100))
    with pytest.raises(StorageFullError):
        ticket.wait()
    memory.store.inner.commit = commit
    assert (40, 1) == (tree.n_tokens, tree.n_blocks)
    other = build.ids(100, seed=2)
    build.append(tree, other)
    second = np.concatenate([build.ids(40)[32:], other[:24]])[None]
    expected = MeanGistEncoder().encode_blocks(blocks_of(second, 0, 1, 0), memory.services)
    np.testing.assert_allclose(tree.gists(1, np.array([1])), expected.rows, atol=1e-3)
    assert 0 == tree.stats().n_missing_gists


class FailingEncoder(MeanGistEncoder):
    """Fails in a way of choice while `how` is set."""

    how = ""

    def encode_blocks(self, blocks, services):
        gists = super().encode_blocks(blocks, services)
        if self.how == "raise":
            raise RuntimeError("out of memory")
        if self.how == "nan":
            gists.rows[-1, 0, 0] = np.nan
        if self.how == "huge":
            gists.rows[:] = 1e6  # infinite once stored as float16
        return gists

    def encode_gists(self, lod, children, services):
        if self.how == "parents":
            return Gists(children.rows[:0], children.aux[:0] / 0)
        return super().encode_gists(lod, children, services)


@pytest.mark.parametrize("how", ["raise", "nan", "huge", "parents"])
def test_row13_a_failing_encoder_loses_no_token_and_is_tried_again(memory, build, caplog, how):
    encoder = FailingEncoder()
    tree = memory.open(encoder=encoder)
    encoder.how = how
    with caplog.at_level(logging.WARNING), np.errstate(all="ignore"):
        build.append(tree, build.ids(32 * 33))
    assert 32 * 33 == tree.n_tokens
    assert tree.stats().n_missing_gists > 0
    assert isinstance(tree.encoder_error, ModelError)
    assert "tried again" in caplog.text
    if how != "parents":
        with pytest.raises(ModelError, match="mean"):
            tree.gists(1, np.array([32]))
    encoder.how = ""
    build.append(tree, build.ids(32))
    assert 0 == tree.stats().n_missing_gists
    assert tree.encoder_error is None
    assert np.isfinite(tree.gists(2, np.array([0]))).all()


@pytest.mark.parametrize("how", ["raise", "nan", "huge", "parents"])
def test_row75_where_an_encoder_fails_mean_gists_stand_in_and_are_never_stored(memory, build, how):
    encoder = FailingEncoder()
    tree = memory.open(encoder=encoder, provisional=MeanGistEncoder())
    ids = build.ids(32 * 32 * 32 + 64)
    build.append(tree, ids[: 32 * 40])
    encoder.how = how
    with np.errstate(all="ignore"):
        build.append(tree, ids[32 * 40 :])
        missing = tree.stats().n_missing_gists
        assert missing > 0
        served = {lod: tree.gists(lod, np.arange(tree.n_nodes(lod))) for lod in (1, 2, 3)}
    assert isinstance(tree.encoder_error, ModelError)
    assert tree.n_provisional > 0
    assert missing == tree.stats().n_missing_gists
    encoder.how = ""
    build.append(tree, ids[:32])
    assert 0 == tree.stats().n_missing_gists
    for lod, rows in served.items():
        # The stand-ins are mean gists too, so what comes after is equal but for rounding.
        made = tree.gists(lod, np.arange(len(rows)))
        np.testing.assert_allclose(rows, made, atol=2e-3)
        assert how == "parents" or not np.array_equal(rows, made)


def test_row13_a_stored_row_that_is_not_finite_is_computed_again(memory, build):
    build.append(memory.open(), build.ids(N))
    expected = memory.tree.gists(1, np.array([7]))
    memory.close()
    memory.store.inner._gists[0, 1].rows._rows[7] = 255  # NaN in every number
    np.testing.assert_array_equal(expected, memory.open().gists(1, np.array([7])))


def test_row13_another_encoder_gets_a_version_of_its_own_and_the_old_one_stays(memory, build):
    build.append(memory.open(slots=1), build.ids(N))
    first = memory.tree.gists(1, np.arange(10))
    tree = memory.open(slots=4)
    assert {0: 1064, 1: 1064} == tree.stats().versions
    np.testing.assert_array_equal(first[:, 0], tree.gists(1, np.arange(10))[:, 0])
    build.append(tree, build.ids(320))
    assert {0: 1064, 1: 1074} == tree.stats().versions
    again = memory.open(slots=1)
    assert {0: 1074, 1: 1074} == again.stats().versions
    assert 10 == again.encode_calls[1]


def test_row14_every_fact_a_gist_depends_on_makes_another_version(memory, build):
    build.append(memory.open(), build.ids(100))
    for change in ({"slots": 2}, {"gist_dtype": "f4"}):
        memory.open(**change)
    memory.open()
    assert {0: 3, 1: 3, 2: 3} == memory.tree.stats().versions


def test_row14_rebuilt_gists_equal_those_of_a_fresh_ingest(memory, tmp_path, build):
    ids = build.ids(N)
    build.append(memory.open(slots=1), ids, step=777)
    fresh = build.memory(tmp_path)
    build.append(fresh.open(slots=4), ids)
    for one, other in zip(gists_of(fresh.tree), gists_of(memory.open(slots=4)), strict=True):
        np.testing.assert_array_equal(one, other)
    fresh.close()


def test_version_0_stays_free_for_mean_when_another_encoder_comes_first(memory, build):
    class Other(MeanGistEncoder):
        name = "other"

    build.append(memory.open(encoder=Other()), build.ids(64))
    assert {0: 0, 1: 2} == memory.tree.stats().versions
    assert {0: 2, 1: 2} == memory.open().stats().versions


@pytest.mark.parametrize(("width", "dtype"), [(8, "i4"), (8, ""), (40_000, "f2")])
def test_a_row_that_cannot_be_stored_is_refused_before_anything_is_written(
    tmp_path, build, width, dtype
):
    memory = build.memory(tmp_path, width=8)
    memory.services.info = build.memory(tmp_path, width=1).services.info
    object.__setattr__(memory.services.info, "hidden_size", width)
    with pytest.raises(ConfigError):
        memory.open(gist_dtype=dtype or "f8")


STEPS = st.lists(
    st.one_of(
        st.integers(1, 1500),  # append so many tokens
        st.just("reopen"),
        st.tuples(st.integers(0, 120), st.integers(0, 4)),  # crash with so many rows left
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS, slots=st.sampled_from([1, 4]))
def test_row09_any_appends_restarts_and_crashes_leave_the_tree_of_one_append(
    tmp_path_factory, build, steps, slots
):
    folder = tmp_path_factory.mktemp("memory")
    memory = build.memory(folder)
    memory.open(slots=slots)
    ids = np.empty(0, np.int32)
    for number, step in enumerate(steps):
        if isinstance(step, int):
            part = build.ids(step, seed=number)
            build.append(memory.tree, part)
            ids = np.concatenate([ids, part])
        elif step == "reopen":
            memory.open(slots=slots)
        else:
            memory.crash({1: step[0], 2: min(step[1], step[0] // 32)})
            memory.open(slots=slots)
    whole = build.memory(folder)
    build.append(whole.open(slots=slots), ids)
    for one, other in zip(gists_of(whole.tree), gists_of(memory.tree), strict=True):
        np.testing.assert_array_equal(one, other)
    whole.close()
    memory.close()


@pytest.mark.parametrize(("trusts", "expected"), [([3, 0, 3], [0, 0]), ([3, 2, 1], [2, 1])])
def test_the_trust_of_a_gist_is_the_least_of_its_messages(memory, build, trusts, expected):
    tree = memory.open()
    for trust, n in zip(trusts, (20, 20, 24), strict=True):
        tree.append(build.ids(n), build.records(n, trust=trust))
    memory.close()
    assert expected == memory.store.inner._gists[0, 1].trust.all.tolist()


def test_the_trust_of_a_parent_is_the_least_of_its_children(memory, build):
    tree = memory.open()
    records = build.records(500) + build.records(1, trust=1) + build.records(2048 - 501)
    tree.append(build.ids(2048), records)
    memory.close()
    gists = memory.store.inner._gists
    assert [1, 3] == gists[0, 2].trust.all.tolist()
    assert [15] == np.flatnonzero(gists[0, 1].trust.all == 1).tolist()


def test_rows_of_a_node_are_what_the_model_is_fed(memory, build):
    ids = build.ids(1100)
    tree = memory.open(slots=2)
    build.append(tree, ids)
    np.testing.assert_array_equal(memory.services.table[ids[32:64]], tree.rows(NodeId(0, 1)))
    np.testing.assert_array_equal(memory.services.table[ids[1088:]], tree.rows(NodeId(0, 34)))
    assert (2, 8) == tree.rows(NodeId(2, 0)).shape
