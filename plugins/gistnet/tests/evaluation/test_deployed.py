"""Gists as a memory serves them: the same numbers as a session's tree, whatever the batching."""

from __future__ import annotations

import numpy as np
import pytest

from megacontext_gistnet.evaluation import deployed
from megacontext_gistnet.evaluation.deployed import encode_history, encode_windows
from megacontext_sdk import MemorySession
from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.contracts.gist import GistEncoder, Gists
from megacontext_sdk.errors import ModelError


class Recorder(GistEncoder):
    """Gists of the tokens left of each block; remembers what it was handed."""

    name = "recorder"
    gist_slots = 1
    aux_size = 1
    left_tokens = 70

    def __init__(self):
        self.seen = []

    def fingerprint(self, info):
        return "d" * 64

    def encode_blocks(self, blocks, services):
        self.seen.append((blocks.first, len(blocks), len(blocks.left)))
        ids = np.concatenate([blocks.left, blocks.token_ids.reshape(-1)]).astype(np.float32)
        rows = np.zeros((len(blocks), 1, services.info.hidden_size), np.float32)
        for i in range(len(blocks)):
            end = len(blocks.left) + 32 * i + 32
            rows[i, 0, 0] = ids[max(0, end - 32 - self.left_tokens) : end].mean()
        return Gists(rows, np.full((len(blocks), 1), 2.0, np.float32))

    def encode_gists(self, lod, children, services):
        n = len(children.rows) // 32
        shape = (n, 32, *children.rows.shape[1:])
        rows = children.rows.reshape(shape).sum(axis=1) * children.aux.reshape(n, 32).mean()
        return Gists(rows, np.full((n, 1), 2.0, np.float32))


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(0).integers(0, 256, 33 * 1024 + 17).astype(np.int32)


@pytest.mark.parametrize("slots", [1, 4])
def test_gists_are_those_of_a_session(tiny, ids, slots):
    """The oracle: a session's own tree, every level, bit for bit."""
    encoder = MeanGistEncoder(slots)
    found = encode_history(encoder, tiny, ids, top=3)
    settings = {"storage": "memory", "gist": encoder, "gist_slots": slots, "w_max": 512}
    with MemorySession.open(None, model=tiny, sinks=(), **settings) as session:
        session.append(ids)
        session.flush()
        tree = session._parts.tree
        for lod, rows in found.items():
            assert np.array_equal(tree.gists(lod, np.arange(len(rows))), rows)
    assert {1: 33 * 32, 2: 33, 3: 1} == {lod: len(rows) for lod, rows in found.items()}


def test_left_context_is_handed_over_however_calls_are_cut(tiny, ids, monkeypatch):
    whole = encode_history(Recorder(), tiny, ids[:640], top=1)[1]
    monkeypatch.setattr(deployed, "_BLOCKS_PER_CALL", 3)
    recorder, told = Recorder(), []
    cut = encode_history(recorder, tiny, ids[:640], top=1, advance=told.append)[1]
    assert np.array_equal(whole, cut)
    assert [(0, 3, 0), (3, 3, 70), (6, 3, 70)] == recorder.seen[:3]
    assert sum(told) == 20


def test_left_context_that_is_not_handed_over_is_noticed(tiny, ids, monkeypatch):
    whole = encode_history(Recorder(), tiny, ids[:640])[1]
    monkeypatch.setattr(deployed, "_BLOCKS_PER_CALL", 3)
    monkeypatch.setattr(Recorder, "left_tokens", 0)
    assert not np.array_equal(whole, encode_history(Recorder(), tiny, ids[:640])[1])


def test_parents_are_made_of_stored_children(tiny, ids):
    exact = encode_history(Recorder(), tiny, ids[:1024], top=2, dtype="f4")
    small = encode_history(Recorder(), tiny, ids[:1024], top=2, dtype="i1")
    stored = small[1].sum(axis=0) * 2.0
    assert small[2][0, 0, 0] == pytest.approx(stored[0, 0], rel=0.01)
    assert exact[2][0, 0, 0] == pytest.approx(exact[1].sum() * 2.0, rel=1e-5)


def test_windows_are_histories_of_their_own(tiny, make_windows):
    windows = make_windows(2, 160)
    windows.token_ids[:] %= 256
    found = encode_windows(Recorder(), tiny, windows)
    for row, one in zip(windows.token_ids, found[1], strict=True):
        alone = encode_history(Recorder(), tiny, row)
        assert np.array_equal(alone[1], one)


def test_less_than_a_block_has_no_gist(tiny, ids):
    assert encode_history(MeanGistEncoder(1), tiny, ids[:31], top=2) == {}


def test_too_few_gists_are_refused(tiny, ids):
    class Short(Recorder):
        def encode_blocks(self, blocks, services):
            made = super().encode_blocks(blocks, services)
            return Gists(made.rows[1:], made.aux[1:])

    with pytest.raises(ModelError, match="'recorder' gave 19 gists for 20 spans"):
        encode_history(Short(), tiny, ids[:640])
