"""The fast forward pass is chosen where it is right, and gives what the plain one gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from megacontext_hf.adapter import wrap
from megacontext_hf.anatomy import examine
from megacontext_hf.cache import CacheShape, SlotCache
from megacontext_hf.forward import ModelForward
from megacontext_hf.llama_forward import LlamaForward, choose_forward
from megacontext_hf.testing import build_model
from megacontext_sdk.contracts.model import RowBatch

FAST = ("llama", "llama3-scaling", "linear-scaling", "yarn-scaling", "mistral", "qwen2", "qwen3")


def choose(model, trained_window=128):
    return choose_forward(model, examine(model, model.config).shape, trained_window)


@pytest.mark.parametrize("family", FAST)
@pytest.mark.parametrize("trained_window", [128, 100_000])
def test_fast_pass_gives_the_plain_hidden_states_and_logits(family, trained_window):
    model = build_model(family)
    fast, plain = choose(model, trained_window), ModelForward(model)
    assert isinstance(fast, LlamaForward)
    shape = examine(model, model.config).shape
    results = []
    for forward in (fast, plain):
        cache = SlotCache(shape, 24)
        with torch.inference_mode():
            for start, stop in ((0, 8), (8, 9), (9, 20)):
                x = forward.embed(torch.arange(start, stop) * 7)[None]
                places = torch.arange(start, stop)[None]
                cache.aim(slice(start, stop), stop - start, stop)
                mask = torch.full((stop - start, stop), -torch.inf).triu(start + 1)[None, None]
                is_plain = start == 0 or stop - start == 1
                logits = forward.logits(x, places, cache, None if is_plain else mask, None)
                last = forward.logits(x, places, cache, None if is_plain else mask, 0)
                np.testing.assert_allclose(logits[:1], last, atol=1e-4)
                results.append(logits)
    for found, expected in zip(results[:3], results[3:], strict=True):
        assert float((expected - found).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("family", ["smollm3", "gpt-neox", "phi3", "cohere-interleaved"])
def test_other_families_stay_with_the_plain_pass(family):
    assert ModelForward is type(choose(build_model(family)))


def test_half_precision_stays_with_the_plain_pass():
    assert ModelForward is type(choose(build_model("llama", torch.bfloat16)))


def test_hooks_and_replaced_layers_stay_with_the_plain_pass():
    class Adapted(nn.Linear):
        pass

    hooked, replaced = build_model("llama"), build_model("llama")
    hooked.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    attention = replaced.model.layers[0].self_attn
    attention.q_proj = Adapted(48, 48, bias=False)
    for model in (hooked, replaced):
        assert ModelForward is type(choose(model))


def test_a_subclass_that_computes_otherwise_stays_with_the_plain_pass():
    model = build_model("llama")
    # Same classes, other arithmetic: only the comparison with the plain pass can notice.
    layer = model.model.layers[0]
    plain = layer.mlp.forward
    layer.mlp.forward = lambda x: 2.0 * plain(x)
    assert ModelForward is type(choose(model))


def test_rows_mix_tokens_and_vectors():
    forward = ModelForward(build_model("llama"))
    vectors = np.full((2, 48), 0.5, np.float32)
    with torch.inference_mode():
        rows = forward.embed_rows(RowBatch(np.array([3, -1, 5, -1], np.int32), vectors))[0]
        expected = forward.embed(torch.tensor([3, 5]))
    assert torch.equal(expected, rows[[0, 2]])
    assert torch.equal(torch.full((2, 48), 0.5), rows[[1, 3]])


def test_logits_that_a_family_scales_keep_their_scale(byte_tokenizer):
    model = build_model("cohere-interleaved")
    with torch.inference_mode():
        expected = model(torch.tensor([[1, 2, 3]])).logits[0, -1].numpy()
    with wrap(model, byte_tokenizer) as adapter:
        window = adapter.open_window(4)
        for at, token in enumerate((1, 2, 3)):
            found = window.step(token, at, at).numpy()
    np.testing.assert_allclose(expected, found, atol=1e-4)


def test_cache_speaks_the_interface_of_transformers():
    cache = SlotCache(CacheShape(2, 1, 4, 4, torch.float32, torch.device("cpu")), 10)
    cache.aim(slice(3, 5), 2, 5)
    assert (3, 3) == (cache.get_seq_length(), cache.get_query_offset())
    assert (5, 0) == cache.get_mask_sizes(2, 0)
    assert 10 == cache.get_max_length() == cache.get_max_cache_shape()
    rows = torch.arange(8.0).view(1, 1, 2, 4)
    keys, values = cache.update(rows, rows + 1, 1, {"ignored": 1})
    assert (1, 1, 5, 4) == tuple(keys.shape) == tuple(values.shape)
    assert torch.equal(rows, keys[:, :, 3:5])
    assert keys.data_ptr() == cache.keys[1].data_ptr()
    assert not cache.keys[0].any()


def test_cache_gathers_slots_that_are_not_packed():
    cache = SlotCache(CacheShape(1, 1, 2, 2, torch.float32, torch.device("cpu")), 6)
    cache.aim(torch.tensor([5, 1]), 2, torch.tensor([1, 5]))
    rows = torch.tensor([[1.0, 1.0], [2.0, 2.0]])[None, None]
    keys, _ = cache.update(rows, rows, 0)
    assert [2.0, 1.0] == keys[0, 0, :, 0].tolist()
