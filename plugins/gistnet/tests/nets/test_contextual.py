"""The contextual encoder: what a block's states see, and a reader beside an untouched base."""

from __future__ import annotations

import pytest
import torch

from megacontext_gistnet.nets.config import ContextualConfig
from megacontext_gistnet.nets.lora import Reader
from megacontext_gistnet.nets.model import new_model
from megacontext_hf.testing import build_model
from megacontext_sdk.errors import ConfigError, ModelError

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gpt-neox", "smollm3", "gemma3-two-bases")


@pytest.fixture
def contextual(base, moved):
    """Return an encoder that was moved: prefix 64, chunks of 64."""
    return moved(new_model("contextual", base))


def change(model, ids, at):
    """Return how much each block's gist changes with the token at an index."""
    other = ids.clone()
    other[:, at] = (other[:, at] + 11) % 260
    return (model.blocks(ids) - model.blocks(other)).abs().amax(dim=(0, 2, 3))


def test_a_later_token_changes_no_earlier_gist(contextual, windows):
    """Causal, as its name says: through the pooling, too."""
    found = change(contextual, windows(n=1), 64)
    assert 0.0 == found[:2].max()
    assert found[2:].min() > 0


@pytest.mark.parametrize("at", [0, 31])
def test_both_ends_of_a_block_matter(contextual, windows, at):
    assert change(contextual, windows(n=1, length=32), at)[0] > 1e-5


def test_left_context_matters_as_far_as_the_window_goes(contextual, windows):
    """Chunks [0, 64), [64, 128), [128, 192); a chunk's prefix is the 64 tokens before it."""
    assert (64, 64) == (contextual.config.prefix_tokens, contextual.config.chunk_tokens)
    assert 96 == contextual.config.left_tokens
    found = change(contextual, windows(n=1, length=192), 63)
    assert 0.0 == found[0]
    assert found[1:4].min() > 0
    assert 0.0 == found[4:].max()


def test_canonical_windows_equal_one_pass_inside_a_chunk(contextual, windows):
    ids = windows(n=2, length=192)
    torch.testing.assert_close(
        contextual.blocks(ids)[:, :2], contextual.blocks(ids[:, :64]), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_it_reads_through_every_family_and_shares_every_tensor(family, moved, windows):
    base = build_model(family).requires_grad_(requires_grad=False)
    ids = windows(n=1, length=64)
    with torch.no_grad():
        logits = base(ids).logits
    reader = Reader(base, 2, 4)
    kept = {one.data_ptr() for one in base.parameters()}
    own = {one.data_ptr() for change in reader.changes.values() for one in change.parameters()}
    assert {one.data_ptr() for one in reader._copy.parameters()} - own <= kept
    model = moved(new_model("contextual", base))
    assert change(model, ids, 40)[0] == 0
    assert change(model, ids, 3).min() > 0
    with torch.no_grad():
        assert torch.equal(logits, base(ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_change_the_states_are_the_base_s_own(family, windows):
    base = build_model(family).requires_grad_(requires_grad=False)
    ids = windows(n=2, length=64)
    with torch.no_grad():
        expected = base(ids, output_hidden_states=True).hidden_states[2]
        embedded = base.get_input_embeddings()(ids)
        torch.testing.assert_close(Reader(base, 2, 0).states(embedded), expected)


def test_a_past_reads_on_where_reading_stopped(contextual, windows):
    ids = windows(n=1, length=128)
    with torch.inference_mode():
        past = contextual.reader.new_past()
        parts = [contextual.states(part, past) for part in ids.split([64, 32, 32], dim=1)]
        torch.testing.assert_close(
            torch.cat(parts, 1), contextual.states(ids), atol=1e-4, rtol=1e-4
        )


def test_a_merged_reader_reads_the_same_and_leaves_the_base_alone(contextual, base, windows):
    ids = windows(n=1, length=64)
    with torch.no_grad():
        logits, states = base(ids).logits, contextual.states(ids)
        maps = contextual.config.n_layers * (2 * 48 * 48 + 2 * 48 * 24 + 3 * 48 * 64)
        assert 4 * maps == contextual.reader.merge_bytes
        contextual.reader.merge()
        assert 0 == contextual.reader.merge_bytes
        torch.testing.assert_close(contextual.states(ids), states, atol=1e-3, rtol=1e-3)
        assert torch.equal(logits, base(ids).logits)


def test_half_precision_bases_are_read_in_their_own_type(windows, moved):
    base = build_model("llama", torch.bfloat16).requires_grad_(requires_grad=False)
    model = moved(new_model("contextual", base))
    gists = model.blocks(windows())
    assert torch.float32 == gists.dtype
    assert torch.bfloat16 == model.states(windows()).dtype
    gists.sum().backward()
    assert all(one.grad is not None for _, one, group in model.trainable() if group != "levels")


def test_autocast_is_close(contextual, windows):
    with torch.autocast("cpu", torch.bfloat16):
        rough = contextual.blocks(windows())
    fine = contextual.blocks(windows())
    assert torch.float32 == rough.dtype
    assert (rough - fine).norm() / fine.norm() < 0.05


@pytest.mark.parametrize(
    ("trained", "prefix", "chunk"),
    [
        (4096, 224, 1024),
        (1280, 224, 1024),
        (1279, 224, 768),
        (1024, 224, 768),
        (991, 224, 256),
        (480, 224, 256),
        (128, 64, 64),
        (64, 32, 32),
        (32, 0, 32),
    ],
)
def test_windows_fit_what_the_base_was_trained_on(trained, prefix, chunk):
    config = ContextualConfig.for_base(6, trained)
    assert (prefix, chunk, 4) == (config.prefix_tokens, config.chunk_tokens, config.n_layers)
    assert prefix + chunk <= trained


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": 100}, "pool=100 cannot be divided among 8 heads"),
        ({"prefix_tokens": 40}, "prefix_tokens must be a multiple of 32"),
        ({"chunk_tokens": 0}, "at least one block"),
        ({"rank": -1}, "rank must be a whole number of at least 0"),
    ],
)
def test_shapes_that_fit_no_network_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        ContextualConfig(**changes)


def test_bases_that_cannot_be_read_are_refused(base, table):
    with pytest.raises(ConfigError, match="has 4 layers"):
        Reader(base, 5, 0)
    with pytest.raises(ModelError, match="no decoder of its own"):
        Reader(table(8), 1, 0)
