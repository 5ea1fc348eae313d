"""What the encoders compute: the plain network's gists, however they are asked for them."""

from __future__ import annotations

from threading import Thread

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from megacontext_gistnet.chunk_reader import ChunkReader, windows_of
from megacontext_gistnet.encoder import open_contextual
from megacontext_gistnet.fused_body import FusedBody
from megacontext_gistnet.nets.config import GistNetConfig
from megacontext_gistnet.nets.gistnet import GistNetBody
from megacontext_gistnet.nets.model import new_model, save_weights
from megacontext_hf.adapter import wrap
from megacontext_hf.testing import build_model, build_tokenizer
from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.contracts.gist import Blocks
from megacontext_sdk.errors import ConfigError, ModelError
from megacontext_sdk.testing.gist import TableServices, blocks_of

CLOSE = 2e-5


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_gists_are_those_of_the_plain_network(lab, history, kind, slots):
    found = lab.encoded(lab.open(kind, slots), history)
    expected = lab.oracle(kind, history, slots)
    assert np.abs(expected - found).max() < CLOSE
    mean = MeanGistEncoder(slots).encode_blocks(blocks_of(history, 0, 40, 0), lab.adapter).rows
    assert np.abs(found - mean).max() > 100 * CLOSE, "or the residual was not tested"


@pytest.mark.parametrize("lod", [2, 3, 12])
def test_parents_are_those_of_the_plain_network(lab, history, kind, lod):
    encoder, model = lab.open(kind, 4), lab.models[kind]
    children = encoder.encode_blocks(blocks_of(history[:32], 0, 32, 0), lab.adapter)
    found = encoder.encode_gists(lod, children, lab.adapter)
    rows, sizes = torch.from_numpy(children.rows)[None], torch.from_numpy(children.aux.T.copy())
    expected = model.parents(rows, lod, sizes)
    assert np.abs(expected.numpy() - found.rows).max() < CLOSE
    assert abs(model.parent_sizes(rows, sizes).item() - found.aux[0, 0]) < 1e-6


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_row21_an_untrained_encoder_is_the_built_in_mean_bit_for_bit(
    lab, history, kind, slots, tmp_path
):
    model = new_model(kind, lab.adapter.torch_module(), trained_window=128)
    info = lab.adapter.info
    path = tmp_path / "untrained.safetensors"
    facts = {"base_fingerprint": info.fingerprint}
    save_weights(model, path, facts | {"tokenizer_fingerprint": info.tokenizer_fingerprint})
    encoder = type(lab.open(kind))(find(kind, path, slots), slots, kind)
    mean, blocks = MeanGistEncoder(slots), blocks_of(history[:32], 0, 32, 0)
    expected, found = (one.encode_blocks(blocks, lab.adapter) for one in (mean, encoder))
    for lod in (2, 3, 4):
        np.testing.assert_array_equal(expected.rows, found.rows)
        np.testing.assert_array_equal(expected.aux, found.aux)
        expected, found = (
            one.encode_gists(lod, repeated(children), lab.adapter)
            for one, children in ((mean, expected), (encoder, found))
        )


def find(kind, path, slots):
    from megacontext_gistnet.weights import find_weights

    return find_weights(kind, str(path), "", slots)


def repeated(gists):
    """Return 32 children, whatever their number was."""
    n = 32 // len(gists.rows)
    return type(gists)(np.repeat(gists.rows, n, axis=0), np.repeat(gists.aux, n, axis=0))


@pytest.mark.parametrize(
    "cuts", [range(41), (0, 1, 2, 3, 10, 11, 40), (0, 39, 40)], ids=["single", "uneven", "bulk"]
)
def test_gists_do_not_depend_on_how_appends_were_cut(lab, history, kind, cuts):
    whole = lab.encoded(lab.open(kind), history)
    assert np.abs(whole - lab.encoded(lab.open(kind), history, cuts)).max() < CLOSE


def test_an_open_chunk_is_read_on_and_no_token_twice(lab, history, monkeypatch):
    """Prefix 64, chunks of 64: two blocks each, read with two before."""
    encoder, n_read = lab.open("contextual"), []
    encoder.encode_blocks(blocks_of(history, 0, 0, 0), lab.adapter)
    states = encoder._model.states
    monkeypatch.setattr(
        encoder._model,
        "states",
        lambda ids, past=None: n_read.append(ids.numel()) or states(ids, past),
    )
    lab.encoded(encoder, history, range(9))
    assert [32, 32, 96, 32, 96, 32, 96, 32][2:] == n_read[2:]
    assert [32, 32] == n_read[:2]


def test_what_was_read_is_used_for_the_same_text_only(lab, history):
    """The same indices of another history: forgetting, forks and retries come here."""
    encoder = lab.open("contextual")
    lab.encoded(encoder, history[:7])
    other = history.copy()
    other[6, 0] = (other[6, 0] + 1) % 256
    expected = lab.oracle("contextual", other, 1)
    assert np.abs(expected[7:8] - lab.encoded(encoder, other, (7, 8))).max() < CLOSE
    assert np.abs(expected[5:8] - lab.encoded(encoder, other, (5, 8))).max() < CLOSE
    expected = lab.oracle("contextual", history, 1)
    assert np.abs(expected[2:9] - lab.encoded(encoder, history, (2, 9))).max() < CLOSE


def test_layers_too_large_to_copy_keep_their_change_apart(lab, history, monkeypatch):
    monkeypatch.setattr("megacontext_gistnet.encoder._MERGE_BYTES", 0)
    encoder = lab.open("contextual")
    assert (
        np.abs(lab.oracle("contextual", history, 1) - lab.encoded(encoder, history)).max() < CLOSE
    )
    assert encoder._model.reader.merge_bytes > 0


def test_half_precision_keeps_its_change_apart(moved_files):
    adapter, path = moved_files
    encoder = open_contextual(str(path))
    encoder.encode_blocks(blocks_of(np.zeros((2, 32), np.int32), 0, 2, 0), adapter)
    assert encoder._model.reader.merge_bytes > 0


@pytest.fixture
def moved_files(tmp_path):
    """Return a base in bfloat16 and a contextual for it."""
    with wrap(build_model("llama", torch.bfloat16), build_tokenizer(), name="half") as adapter:
        info, path = adapter.info, tmp_path / "contextual.safetensors"
        facts = {"base_fingerprint": info.fingerprint}
        save_weights(
            new_model("contextual", adapter.torch_module()),
            path,
            facts | {"tokenizer_fingerprint": info.tokenizer_fingerprint},
        )
        yield adapter, path


def test_threads_that_share_an_encoder_take_turns(lab, history, kind):
    """A session and its fork may have been given the same object."""
    encoder, found = lab.open(kind), {}
    texts = [history, history[::-1].copy()]

    def encode(number):
        found[number] = lab.encoded(encoder, texts[number], range(17))

    threads = [Thread(target=encode, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, text in enumerate(texts):
        assert np.abs(lab.oracle(kind, text, 1)[:16] - found[number]).max() < CLOSE


def test_a_pass_that_fails_leaves_nothing_half_read(lab, history, monkeypatch):
    encoder = lab.open("contextual")
    lab.encoded(encoder, history[:7])
    with monkeypatch.context() as patch:
        patch.setattr(encoder._model.reader, "states", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            lab.encoded(encoder, history, (7, 8))
    expected = lab.oracle("contextual", history, 1)
    assert np.abs(expected[7:9] - lab.encoded(encoder, history, (7, 9))).max() < CLOSE


def test_windows_are_aligned_to_the_history(lab, history):
    config = lab.models["contextual"].config
    found = windows_of(blocks_of(history, 3, 6, config.left_tokens), config)
    # blocks 3 of [2, 3], then 4 and 5 of [4, 5], each after the two blocks of its prefix
    assert [(128, 96, False), (128, 64, False)] == [
        (len(one.token_ids), one.skip, one.is_open) for one in found
    ]
    flat = history.reshape(-1)
    np.testing.assert_array_equal(flat[0:128], found[0].token_ids)
    np.testing.assert_array_equal(flat[64:192], found[1].token_ids)


def test_windows_that_are_alike_are_read_together(lab, history, monkeypatch):
    encoder = lab.open("contextual")
    encoder.encode_blocks(blocks_of(history, 0, 0, 0), lab.adapter)
    monkeypatch.setattr(encoder._reader, "_at_once", 8)
    expected = lab.oracle("contextual", history, 1)
    assert np.abs(expected - lab.encoded(encoder, history)).max() < CLOSE
    assert isinstance(encoder._reader, ChunkReader)


def test_row30_near_duplicate_blocks_get_gists_of_their_own(lab, history, kind):
    twins = history.copy()
    twins[1] = twins[0]
    twins[1, 16] = (twins[1, 16] + 1) % 256
    first, second = lab.encoded(lab.open(kind), twins)[:2, 0]
    assert np.abs(first - second).max() > 1e-3


def test_too_few_tokens_to_the_left_are_refused(lab, history):
    encoder = lab.open("contextual")
    given = blocks_of(history, 5, 6, encoder.left_tokens)
    short = Blocks(given.token_ids, given.first, given.left[1:])
    with pytest.raises(ConfigError, match="block 5 needs 96 tokens left of it, got 95"):
        encoder.encode_blocks(short, lab.adapter)
    spoiled = Blocks(given.token_ids, given.first, np.where(given.left > 250, -1, given.left))
    if (spoiled.left < 0).any():
        with pytest.raises(ConfigError, match="left holds the token -1"):
            encoder.encode_blocks(spoiled, lab.adapter)


def test_a_contextual_needs_a_model_in_torch(lab, history):
    services = TableServices()
    object.__setattr__(services, "info", lab.adapter.info)
    with pytest.raises(ModelError, match="no torch module"):
        lab.open("contextual").encode_blocks(blocks_of(history, 0, 1, 0), services)


@pytest.mark.parametrize("width", [48, 256])
@pytest.mark.parametrize("slots", [1, 2, 4])
def test_the_fused_body_computes_what_the_network_does(width, slots):
    torch.manual_seed(1)
    body = GistNetBody(width, GistNetConfig(hidden=32))
    with torch.no_grad():
        for one in body.parameters():
            one.add_(torch.randn_like(one), alpha=0.2)
    fused = FusedBody(body, slots)
    rows, shift = torch.randn(5, 32, width), torch.randn(32)
    with torch.no_grad():
        expected = body(rows, shift, slots)
        found = fused(F.linear(rows, fused.enter) + shift)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
