"""The probe finds out how a model turns its keys, and refuses models that cannot be paged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from megacontext_hf.adapter import wrap
from megacontext_hf.anatomy import examine
from megacontext_hf.rotation import Rotation
from megacontext_hf.testing import FAMILIES, build_model
from megacontext_sdk.errors import ModelError

SMALL = {"vocab_size": 260, "bos_token_id": 0, "eos_token_id": 1}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 6,
    "long_factor": [2.0] * 6,
    "factor": 2.0,
    "original_max_position_embeddings": 64,
}


def look(model):
    return examine(model, model.config)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tested_family_can_be_paged(family):
    anatomy = look(build_model(family))
    assert 4 == anatomy.shape.n_layers
    assert torch.float32 == anatomy.shape.dtype
    assert (family == "cohere-interleaved") == anatomy.rotation.is_interleaved


def test_partial_rotation_is_found():
    assert 6 == look(build_model("gpt-neox")).rotation.rotary_dim
    assert 12 == look(build_model("llama")).rotation.rotary_dim


def test_layers_without_rotation_have_no_frequencies():
    frequencies = look(build_model("smollm3")).rotation.frequencies
    assert [True, True, True, False] == frequencies.any(dim=1).tolist()


def test_layers_with_bases_of_their_own_keep_them():
    model = build_model("gemma3-two-bases", layer_types=["sliding_attention", "full_attention"] * 2)
    frequencies = look(model).rotation.frequencies
    assert (4, 8) == tuple(frequencies.shape)
    assert torch.equal(frequencies[0], frequencies[2])
    assert not torch.equal(frequencies[0], frequencies[1])


def test_probing_half_precision_finds_the_same_frequencies():
    full, half = (look(build_model("llama3-scaling", t)) for t in (torch.float32, torch.bfloat16))
    np.testing.assert_allclose(full.rotation.frequencies, half.rotation.frequencies, rtol=1e-6)
    assert torch.bfloat16 == half.shape.dtype


@pytest.mark.parametrize(
    "parameters", [{"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}, LONGROPE]
)
def test_length_dependent_scaling_is_refused(parameters, byte_tokenizer):
    with wrap(build_model("llama", rope_parameters=parameters), byte_tokenizer) as adapter:
        with pytest.raises(ModelError, match=parameters["rope_type"]) as caught:
            adapter.open_window(8)
        assert "llama" == caught.value.model_type
        assert "Qwen3" in str(caught.value)
        assert (260, 48) == adapter.embedding_table().shape


def test_models_without_rotary_positions_are_refused(byte_tokenizer):
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=64, **SMALL)
    with wrap(transformers.GPT2LMHeadModel(config), byte_tokenizer) as adapter:
        assert 0 == adapter.info.rotary_dim
        with pytest.raises(ModelError, match="'gpt2' cannot be paged: it has no rotary positions"):
            adapter.open_window(8)


def test_a_model_whose_keys_turn_by_another_rule_is_refused(byte_tokenizer):
    model = build_model("llama")
    model.get_decoder().rotary_emb.forward = lambda x, position_ids: (
        torch.full((1, position_ids.shape[1], 12), 2.0) ** position_ids[..., None],
        torch.zeros((1, position_ids.shape[1], 12)),
    )
    with pytest.raises(ModelError, match="not turned by rotary positions alone"):
        look(model)


def test_models_that_keep_a_running_state_are_refused():
    config = transformers.MambaConfig(
        num_hidden_layers=2, hidden_size=16, state_size=4, pad_token_id=0, **SMALL
    )
    with pytest.raises(ModelError, match="'mamba' cannot be paged"):
        look(transformers.MambaForCausalLM(config).eval())


def test_rotation_of_pairs_is_a_complex_product():
    random = np.random.default_rng(1)
    keys = random.standard_normal((3, 2, 5, 12)).astype(np.float32)
    frequencies = (10_000.0 ** (-np.arange(6) / 6)).astype(np.float32)
    source, target = random.integers(0, 2_000, (2, 5))
    turns = np.exp(
        1j
        * (
            (target[:, None].astype(np.float32) * frequencies).astype(np.float64)
            - (source[:, None].astype(np.float32) * frequencies).astype(np.float64)
        )
    )
    for is_interleaved in (False, True):
        first = keys[..., 0::2] if is_interleaved else keys[..., :6]
        second = keys[..., 1::2] if is_interleaved else keys[..., 6:]
        expected = (first + 1j * second) * turns
        out = torch.empty(3, 2, 5, 12)
        rotation = Rotation(torch.from_numpy(frequencies)[None], is_interleaved)
        rotation.rotate(
            torch.from_numpy(keys), torch.from_numpy(source), torch.from_numpy(target), out
        )
        found = out.numpy()
        real = found[..., 0::2] if is_interleaved else found[..., :6]
        imaginary = found[..., 1::2] if is_interleaved else found[..., 6:]
        np.testing.assert_allclose(expected.real, real, atol=2e-6)
        np.testing.assert_allclose(expected.imag, imaginary, atol=2e-6)


def test_rotation_by_nothing_is_the_identity_bit_for_bit():
    keys = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    places, out = torch.tensor([0, 7, 300, 2, 5]), torch.empty(2, 2, 5, 8)
    Rotation(torch.rand(1, 3)).rotate(keys, places, places, out)
    assert torch.equal(keys, out)


def test_rotation_in_half_precision_computes_in_single():
    keys = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    source, target = torch.zeros(5, dtype=torch.int64), torch.tensor([900, 1, 2, 3, 4])
    rotation = Rotation(torch.tensor([[1.0, 0.3, 0.1, 0.01]]))
    full, half = torch.empty(1, 2, 5, 8), torch.empty(1, 2, 5, 8, dtype=torch.bfloat16)
    rotation.rotate(keys.float(), source, target, full)
    rotation.rotate(keys, source, target, half)
    assert torch.equal(full.bfloat16(), half)
