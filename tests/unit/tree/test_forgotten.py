"""A tree with forgotten tokens: -1 in the history, a filler before every model and encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.contracts.gist import GistEncoder
from megacontext_sdk.contracts.storage import Header
from megacontext_sdk.errors import ConfigError
from megacontext_sdk.memory.directory.replay import Redaction, copy_commits
from megacontext_sdk.memory.forgotten import FORGOTTEN_ID, filled, remaining
from megacontext_sdk.memory.journal import Journal
from megacontext_sdk.memory.lod import NodeId, Span
from megacontext_sdk.memory.precision import PrecisionTable
from megacontext_sdk.memory.tree import MegaContextTree
from megacontext_sdk.runtime.tree_rows import TreeRows
from megacontext_sdk.testing.gist import blocks_of

FILLER = 9
N_TOKENS = 32 * 40 + 20
GONE = (Span(10, 40), Span(64, 96), Span(N_TOKENS - 25, N_TOKENS - 5))


class Watching(GistEncoder):
    """Passes on to `mean` and remembers the ids it saw; fails if told to."""

    name = "mean"
    gist_slots = 1
    aux_size = 1

    def __init__(self, fails=False):
        self.inner = MeanGistEncoder(1)
        self.fails = fails
        self.seen = []

    def fingerprint(self, info):
        return self.inner.fingerprint(info)

    def encode_blocks(self, blocks, services):
        self.seen.append(blocks.token_ids)
        if self.fails:
            raise RuntimeError("no")
        return self.inner.encode_blocks(blocks, services)

    def encode_gists(self, lod, children, services):
        return self.inner.encode_gists(lod, children, services)


@pytest.fixture
def redacted(memory, build):
    """A journal over a copy of a memory without `GONE`."""
    tree = memory.open()
    build.append(tree, build.ids(N_TOKENS))
    memory.journal.flush()
    store = InMemoryStorage(Path("unused"))
    store.open("create", Header(block_bytes=64))
    plan = Redaction(GONE, np.array([1]))
    copy_commits(memory.store, store, root=bytes(16), token_bytes=2, redaction=plan)
    store.open("write", Header(block_bytes=64))
    return Journal(store, root=bytes(16), token_bytes=2, clock=lambda: 0)


def opened(journal, memory, encoder=None, **settings):
    encoder = encoder or MeanGistEncoder(1)
    tree = MegaContextTree(journal, encoder, memory.services, filler_id=FILLER, **settings)
    tree.open()
    return tree


def shown(build):
    """Return the ids a model is shown."""
    ids = build.ids(N_TOKENS)
    for span in GONE:
        ids[span.start : span.end] = FILLER
    return ids


def test_ids_are_replaced_only_where_they_were_forgotten():
    ids = np.array([[3, -1], [-1, 0]], np.int32)
    assert [[3, 9], [9, 0]] == filled(ids, 9).tolist()
    assert (np.int32, [3, 0]) == (filled(ids, 9).dtype, remaining(ids).tolist())
    whole = np.array([1, 2], np.int32)
    assert filled(whole, 9) is whole
    assert (-1, []) == (FORGOTTEN_ID, remaining(np.array([-1, -1])).tolist())


def test_the_history_says_what_was_forgotten(redacted, memory, build):
    tree = opened(redacted, memory)
    gone = np.flatnonzero(tree.token_ids(Span(0, N_TOKENS)) == -1)
    assert [token for span in GONE for token in range(*span)] == gone.tolist()
    assert (tree.token_ids_of_blocks(np.array([2])) == -1).all()
    assert (15, 5) == ((tree.tail == -1).sum(), (tree.tail >= 0).sum())


def test_no_encoder_ever_sees_a_forgotten_token(redacted, memory, build):
    encoder = Watching()
    tree = opened(redacted, memory, encoder)
    build.append(tree, build.ids(100))  # completes a block that begins with forgotten tokens
    tree.gists(1, np.arange(tree.n_nodes(1)))
    seen = np.concatenate(encoder.seen)
    assert seen.min() >= 0
    expected = np.concatenate([shown(build), build.ids(100)])[: 32 * 43].reshape(-1, 32)
    assert (expected == seen[:43]).all()


def test_no_encoder_that_stands_in_ever_sees_one_either(redacted, memory, build):
    provisional = Watching()
    tree = opened(redacted, memory, Watching(fails=True), provisional=provisional)
    rows = tree.gists(2, np.array([0]))
    assert np.isfinite(rows).all()
    assert np.concatenate(provisional.seen).min() >= 0


def test_gists_are_those_of_the_ids_that_are_shown(redacted, memory, build):
    tree = opened(redacted, memory)
    expected = MeanGistEncoder(1).encode_blocks(
        blocks_of(shown(build)[: 32 * 40].reshape(-1, 32), 0, 40, 0), memory.services
    )
    found = tree.gists(1, np.arange(40))
    np.testing.assert_allclose(expected.rows, found, atol=1e-2)


@pytest.mark.parametrize("block", [0, 2, 3, 40])
def test_the_rows_of_a_block_show_the_filler(redacted, memory, build, block):
    tree = opened(redacted, memory)
    ids = shown(build)[32 * block : 32 * block + 32]
    assert (memory.services.table[ids] == tree.rows(NodeId(0, block))).all()


def test_the_pager_is_given_the_filler(redacted, memory, build):
    tree = opened(redacted, memory)
    places = np.arange(N_TOKENS)[::-1]
    assert shown(build)[::-1].tolist() == TreeRows(tree).token_ids_at(places).tolist()


@pytest.mark.parametrize(
    ("span", "expected"),
    [((10, 40), True), ((64, 96), True), ((63, 96), False), ((5, 5), False), ((12, 13), True)],
)
def test_a_span_is_forgotten_if_every_token_of_it_is(redacted, memory, span, expected):
    assert expected == opened(redacted, memory).is_forgotten(Span(*span))


def test_a_long_span_is_looked_at_until_the_first_token_that_is_left(redacted, memory, monkeypatch):
    monkeypatch.setattr("megacontext_sdk.memory.tree._PAGE_TOKENS", 8)
    tree = opened(redacted, memory)
    assert tree.is_forgotten(Span(64, 96))
    assert not tree.is_forgotten(Span(64, 97))
    with pytest.raises(ConfigError):
        tree.is_forgotten(Span(0, N_TOKENS + 1))


def test_forgotten_tokens_are_no_exact_things(redacted, memory):
    class Digits:
        def decode(self, ids):
            assert (np.asarray(ids) >= 0).all()
            return "7"

    tree = opened(redacted, memory, precision=PrecisionTable(Digits(), 300))
    counts = tree.precision(np.array([1, 2, 3]))
    assert [1.0, 0.0, 1.0] == counts.tolist()


def test_the_tree_of_another_memory_has_the_same_encoder_and_filler(redacted, memory, build):
    tree = opened(redacted, memory)
    empty = InMemoryStorage(Path("unused"))
    empty.open("create", Header(block_bytes=64))
    other = tree.over(Journal(empty, root=bytes(16), token_bytes=2, clock=lambda: 0))
    other.open()
    build.append(other, build.ids(64))
    assert (FILLER, 2) == (other.filler_id, other.n_nodes(1))
    assert tree.gist_store.maker.encoder is other.gist_store.maker.encoder
    assert 0 == other.stats().n_missing_gists
