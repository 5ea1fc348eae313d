"""Tiny random models of the supported families and a byte tokenizer: tests need no download."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

if TYPE_CHECKING:
    from megacontext_hf.foreign import HfModel, HfTextTokenizer

__all__ = ["FAMILIES", "build_model", "build_tokenizer"]

_MARKERS: Final = ["<|bos|>", "<|user|>", "<|assistant|>", "<|end|>"]
_VOCAB = 256 + len(_MARKERS)
_TEMPLATE = (
    "<|bos|>{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SIZES: Final[dict[str, Any]] = {
    "vocab_size": _VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 256,
    "eos_token_id": 259,
    "pad_token_id": None,
    "attn_implementation": "sdpa",
}
_ROPE: Final[dict[str, Any]] = {"rope_type": "default", "rope_theta": 10_000.0}
_CONFIGS: Final[dict[str, tuple[Any, dict[str, Any]]]] = {
    "llama": (transformers.LlamaConfig, {}),
    "llama3-scaling": (
        transformers.LlamaConfig,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "linear-scaling": (
        transformers.LlamaConfig,
        {"rope_parameters": {**_ROPE, "rope_type": "linear", "factor": 2.0}},
    ),
    "yarn-scaling": (
        transformers.LlamaConfig,
        {
            "rope_parameters": {
                **_ROPE,
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 16}),
    "mistral": (transformers.MistralConfig, {"sliding_window": 96}),
    "smollm3": (transformers.SmolLM3Config, {"no_rope_layer_interval": 4}),
    "gpt-neox": (
        transformers.GPTNeoXConfig,
        {"rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5}},
    ),
    "phi3": (
        transformers.Phi3Config,
        {"rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5}, "hidden_size": 64},
    ),
    "cohere-interleaved": (transformers.CohereConfig, {"logit_scale": 0.25}),
    "gemma3-two-bases": (
        transformers.Gemma3TextConfig,
        {"head_dim": 16, "sliding_window": 96, "attn_implementation": "eager"},
    ),
}
FAMILIES: Final = tuple(_CONFIGS)
"""Every family and every kind of rotary scaling that is tested."""


def build_model(family: str, dtype: torch.dtype = torch.float32, **changes: object) -> HfModel:
    """Return a random model with weights large enough for attention to matter.

    Args:
        family: one of `FAMILIES`.
        dtype: of its weights.
        **changes: to the config.

    Example:
        >>> build_model("llama").config.num_hidden_layers
        4
    """
    kind, options = _CONFIGS[family]
    torch.manual_seed(FAMILIES.index(family) + 1)
    config = kind(**{**_SIZES, **options, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.normal_(0.0, 1.5 * parameter.shape[-1] ** -0.5)
            if "embed" in name:
                parameter.normal_(0.0, 1.0)
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.2)
    return model.eval()


def build_tokenizer(template: str | None = _TEMPLATE) -> HfTextTokenizer:
    """Return a fast tokenizer of bytes with four special tokens."""
    vocab = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_MARKERS)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_MARKERS[0],
        eos_token=_MARKERS[-1],
        chat_template=template,
    )
