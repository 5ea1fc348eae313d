"""The base reads rows as a session would lay them, and every token against the row before it."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from torch.nn import functional

from megacontext_gistnet.evaluation import reader as reading
from megacontext_gistnet.evaluation.reader import Reader, frozen_base
from megacontext_gistnet.evaluation.rows import gists_then_raw, tokens_only
from megacontext_hf.adapter import wrap
from megacontext_hf.testing import build_model, build_tokenizer
from megacontext_sdk.builtin.positions import CompactPositions
from megacontext_sdk.contracts.positions import Layout
from megacontext_sdk.errors import ModelError
from megacontext_sdk.runtime.pager import Pager

T = 160
TAIL = np.arange(T - 95, T)


@pytest.fixture(scope="module", params=["llama", "qwen3", "gpt-neox"])
def adapter(request):
    model = build_model(request.param, max_position_embeddings=256)
    return wrap(model, build_tokenizer(), trained_window=256)


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(0).integers(0, 256, (3, T))


@pytest.fixture(scope="module")
def gists(adapter):
    width = adapter.info.hidden_size
    return {1: np.random.default_rng(1).normal(0, 1, (3, 2, 2, width)).astype(np.float32)}


def test_the_full_context_costs_what_transformers_says(adapter, ids):
    """The oracle: transformers' own forward over token ids, one window and token at a time."""
    base = frozen_base(adapter)
    found = Reader(base).losses(ids, np.arange(T), TAIL)
    for row, window in enumerate(ids):
        with torch.no_grad():
            logits = base(input_ids=torch.from_numpy(window[None])).logits[0].double()
        for column, token in enumerate(TAIL):
            slow = -functional.log_softmax(logits[token - 1], -1)[window[token]].item()
            assert found[row, column] == pytest.approx(slow, abs=1e-5)


def test_the_mean_is_the_loss_that_transformers_gives_for_labels(adapter, ids):
    base = frozen_base(adapter)
    found = Reader(base).losses(ids, np.arange(T), np.arange(1, T))
    tensor = torch.from_numpy(ids)
    with torch.no_grad():
        loss = base(input_ids=tensor, labels=tensor).loss.item()
    assert found.mean() == pytest.approx(loss, abs=1e-5)


def test_gists_stand_where_the_pager_puts_them(adapter, ids, gists):
    """The oracle: a real pager over a real window of the adapter, S=2, compact positions."""
    keys = gists_then_raw(T, 96, gist_slots=2)
    found = Reader(frozen_base(adapter)).losses(ids, keys, TAIL, gists)
    for row in range(3):
        source = Source(ids[row].astype(np.int32), gists[1][row])
        pager = Pager(
            adapter.open_window(128), source, CompactPositions(), adapter.info, mode="exact"
        )
        pager.sync(layout_of([(1, 0), (1, 1), (0, 2), (0, 3), (0, 4)], 2))
        _, positions = pager.live()
        assert list(range(100)) == sorted(positions)
        logits = torch.from_numpy(pager.newest_logits(96)).double()[:-1]
        slow = functional.cross_entropy(logits, torch.from_numpy(ids[row, -95:]), reduction="none")
        assert np.abs(found[row] - slow.numpy()).max() < 1e-4


def test_dropping_is_reading_the_raw_rows_alone(adapter, ids):
    base = frozen_base(adapter)
    keys = tokens_only(gists_then_raw(T, 96))
    found = Reader(base).losses(ids, keys, TAIL)
    alone = Reader(base).losses(ids[:, -96:], np.arange(96), np.arange(1, 96))
    assert np.abs(found - alone).max() < 1e-5


def test_a_sink_stands_in_front_of_everything(adapter, ids):
    base = frozen_base(adapter)
    found = Reader(base, sink=256).losses(ids, np.arange(T), TAIL)
    longer = np.concatenate([np.full((3, 1), 256), ids], axis=1)
    by_hand = Reader(base).losses(longer, np.arange(T + 1), TAIL + 1)
    assert np.abs(found - by_hand).max() < 1e-5


def test_many_windows_cost_what_each_costs_alone(adapter, ids, monkeypatch):
    base = frozen_base(adapter)
    together = Reader(base).losses(ids, np.arange(T), TAIL)
    monkeypatch.setattr(reading, "_ROWS_PER_PASS", 1)
    told = []
    alone = Reader(base).losses(ids, np.arange(T), TAIL, advance=told.append)
    assert np.abs(together - alone).max() < 1e-5
    assert [1, 1, 1] == told


def test_labels_are_shifted_by_one(presence):
    """The copy task: whoever knows the successor of each token loses nothing on the next one."""
    base = presence(successor=True)
    ids = (np.arange(64)[None] + np.arange(1, 4)[:, None]) % 512
    found = Reader(base).losses(ids, np.arange(64), np.arange(1, 64))
    assert found.max() < 1e-4


def test_labels_that_are_not_shifted_are_noticed(presence, monkeypatch):
    """Scoring a token from its own row, the planted bug, cannot pass the copy task."""
    right = Reader.logits
    monkeypatch.setattr(Reader, "logits", lambda self, laid, rows: right(self, laid, rows - 1))
    base = presence(successor=True)
    ids = np.arange(64)[None]
    found = Reader(base).losses(ids, np.arange(64), np.arange(2, 64))
    assert found.mean() > 5


def test_positions_are_compact(presence, make_bench, make_windows, union):
    bench = make_bench(union())
    windows = make_windows(2, 512)
    keys = gists_then_raw(512, 96)
    zeros = {1: np.zeros((2, 13, 1, 512), np.float32)}
    bench.lab.reader.losses(windows.token_ids, keys, np.arange(417, 512), zeros)
    assert [list(range(13 + 95))] == bench.base.positions


def test_the_base_is_left_as_it_was(adapter, ids, gists):
    before = digest(adapter.torch_module())
    Reader(frozen_base(adapter)).losses(ids, gists_then_raw(T, 96, gist_slots=2), TAIL, gists)
    assert before == digest(adapter.torch_module())
    assert all(one.grad is None for one in adapter.torch_module().parameters())


def test_half_precision_is_read_from_a_copy():
    model = build_model("llama", torch.bfloat16)
    adapter = wrap(model, build_tokenizer())
    base = frozen_base(adapter)
    assert next(base.parameters()).dtype == torch.float32
    assert next(model.parameters()).dtype == torch.bfloat16
    with pytest.raises(ModelError, match="float32"):
        Reader(model)


def digest(model):
    whole = hashlib.sha256()
    for one in model.parameters():
        whole.update(one.detach().numpy().tobytes())
    return whole.hexdigest()


def layout_of(entries, slots):
    lod = np.array([one[0] for one in entries], np.uint8)
    index = np.array([one[1] for one in entries], np.int64)
    tokens = np.full(len(lod), 32, np.int64)
    return Layout(
        lod=lod,
        index=index,
        start=index * 32,
        n_tokens=tokens,
        cost=np.where(lod == 0, 32, slots),
        gist_slots=slots,
        epoch=0,
    )


class Source:
    """Row content for a pager."""

    def __init__(self, ids, rows):
        self._ids, self._rows = ids, rows

    def token_ids_at(self, indices):
        return self._ids[indices]

    def need(self, lod, indices):
        """Everything is there."""

    def is_provisional(self, lods, indices):
        return np.zeros(len(indices), np.bool_)

    def gists(self, lod, indices):
        return self._rows[indices]
