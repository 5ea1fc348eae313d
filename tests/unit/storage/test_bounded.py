"""A prefix view: equal to the memory as it was, and silent about everything behind the cut."""

from pathlib import Path

import numpy as np
import pytest

from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.contracts.storage import GistBatch, Header
from megacontext_sdk.errors import ConfigError, ReadOnlyError
from megacontext_sdk.memory.directory.bounded import BoundedStorage
from megacontext_sdk.memory.directory.replay import copy_commits, copy_gists
from megacontext_sdk.memory.lod import Span

N_COMMITS = 12


def ids_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, 50_000, n).astype(np.int32)


@pytest.fixture
def memory(opened, append):
    memory = opened()
    for seed in range(N_COMMITS):
        append(memory, ids_of(30 + seed, seed), b"text %d" % seed)
        if seed == 5:
            memory.journal.update_settings({"a": 1}).wait()
    n = memory.journal.n_blocks
    rows = np.arange(8 * n, dtype=np.uint8).reshape(n, 8)
    nodes, trust = np.arange(n, dtype=np.uint64), np.full(n, 3, np.uint8)
    memory.journal.put_gists(GistBatch(version=1, lod=1, nodes=nodes, trust=trust, rows=rows))
    memory.journal.flush()
    return memory


@pytest.mark.parametrize("seq", range(N_COMMITS + 2))
def test_a_view_equals_the_copy_of_its_prefix(memory, seq):
    copy = InMemoryStorage(Path("copy"))
    copy.open("create", Header(block_bytes=64))
    position = copy_commits(memory.storage, copy, root=bytes(16), token_bytes=2, upto_seq=seq)
    copy_gists(memory.storage, copy, n_tokens=position.n_tokens)
    view = BoundedStorage(memory.storage, seq, 2)
    state, expected = view.state(), copy.state()
    for name in ("seq", "n_tokens", "n_blocks", "n_messages", "tail", "setting", "gist_rows"):
        assert getattr(expected, name) == getattr(state, name), name
    blocks, numbers = np.arange(state.n_blocks), np.arange(state.n_messages)
    assert np.array_equal(copy.read_blocks(blocks), view.read_blocks(blocks))
    assert copy.read_bodies(numbers) == view.read_bodies(numbers)
    nodes = np.array([3, 0, 99, state.n_blocks, 3])
    for name in ("present", "trust"):
        found = getattr(view.read_gists(1, 1, nodes), name)
        assert np.array_equal(getattr(copy.read_gists(1, 1, nodes), name), found), name


def test_nothing_behind_the_cut_is_shown(memory):
    view = BoundedStorage(memory.storage, 4, 2)
    state = view.state()
    for call in (
        lambda: view.read_commits(4, 6),
        lambda: view.read_commits(0, 2),
        lambda: view.read_blocks(np.array([state.n_blocks])),
        lambda: view.read_messages(0, state.n_messages + 1),
        lambda: view.read_bodies(np.array([state.n_messages])),
        lambda: BoundedStorage(memory.storage, 99, 2).state(),
    ):
        with pytest.raises(LookupError):
            call()
    gists = view.read_gists(1, 1, np.arange(state.n_blocks + 3))
    assert state.n_blocks == gists.present.sum()
    assert not gists.rows[~gists.present].any()


def test_a_view_refuses_to_be_written(memory):
    view = BoundedStorage(memory.storage, 4, 2)
    for call in (
        lambda: view.open("write", Header(block_bytes=64)),
        lambda: view.commit(None),
        lambda: view.put_gists(None),
        view.flush,
    ):
        with pytest.raises(ReadOnlyError, match="commit 4"):
            call()


def test_opening_at_a_commit_shows_the_memory_as_it_was(memory, opened, append, snapshot):
    memory.close()
    before = snapshot(memory.path)
    whole = opened(read_only=True)
    for seq, settings in ((0, {}), (3, {}), (7, {"a": 1}), (13, {"a": 1})):
        view = opened(at_seq=seq, read_only=True)
        journal = view.journal
        assert (seq, settings) == (journal.seq, journal.settings)
        span = Span(0, journal.n_tokens)
        assert np.array_equal(whole.journal.token_ids(span), journal.token_ids(span))
        with pytest.raises(ConfigError):
            journal.token_ids(Span(0, journal.n_tokens + 1))
        with pytest.raises(ReadOnlyError):
            append(view, [1])
        view.close()
    whole.close()
    assert before == snapshot(memory.path)


def test_opening_at_a_commit_needs_reading_and_a_commit(memory, opened):
    memory.close()
    with pytest.raises(ConfigError, match="read_only=True"):
        opened(at_seq=3)
    for seq in (-1, N_COMMITS + 2):
        with pytest.raises(ConfigError, match="from 1 to 13") as caught:
            opened(at_seq=seq, read_only=True)
        assert "at_seq" == caught.value.field
