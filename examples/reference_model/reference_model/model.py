"""The model of a preset, fresh, in the Llama format of transformers; and its loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import transformers
from torch.nn import functional

from reference_model.tokenizer import SPECIAL_TOKENS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from reference_model.presets import Preset

__all__ = ["build_model", "n_parameters", "next_token_losses"]

_SPREAD = 0.02


def build_model(preset: Preset, seed: int) -> nn.Module:
    """Return a model with random weights, float32, on the CPU.

    What a layer adds starts smaller the more layers there are (GPT-2, section 2.3), so that the
    sum starts at one size.
    """
    config = transformers.LlamaConfig(
        vocab_size=preset.vocab_size,
        hidden_size=preset.hidden_size,
        intermediate_size=preset.mlp_size,
        num_hidden_layers=preset.n_layers,
        num_attention_heads=preset.n_heads,
        num_key_value_heads=preset.n_kv_heads,
        max_position_embeddings=preset.window,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        initializer_range=_SPREAD,
        bos_token_id=SPECIAL_TOKENS.index("<|bos|>"),
        eos_token_id=SPECIAL_TOKENS.index("<|end|>"),
        pad_token_id=SPECIAL_TOKENS.index("<|pad|>"),
        attn_implementation="sdpa",
    )
    torch.manual_seed(seed)
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_((2 * preset.n_layers) ** -0.5)
    return model


def n_parameters(model: nn.Module) -> int:
    """Return the number of weights, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def next_token_losses(model: nn.Module, token_ids: Tensor) -> Tensor:
    """Return the loss of each token but the first, given those before it: float32[B, T - 1].

    Args:
        model: a causal language model.
        token_ids: int64[B, T].
    """
    with torch.autocast(token_ids.device.type, torch.bfloat16):
        logits = model(input_ids=token_ids[:, :-1], use_cache=False).logits
    wanted = token_ids[:, 1:]  # the labels are shifted here and nowhere else
    flat = functional.cross_entropy(
        logits.float().flatten(0, 1), wanted.flatten(), reduction="none"
    )
    return flat.view(wanted.shape)
