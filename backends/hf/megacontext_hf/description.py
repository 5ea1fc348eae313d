"""What core must know about a model, read from its config, weights and tokenizer.

Runs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megacontext_hf.anatomy import rope_parameters
from megacontext_sdk.contracts.model import ModelInfo
from megacontext_sdk.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from megacontext_hf.foreign import HfConfig, HfModel
    from megacontext_hf.tokenizer import HfTokenizer

__all__ = ["describe", "text_config"]


def text_config(model: HfModel) -> HfConfig:
    """Return the config of the language part."""
    return model.config.get_text_config(decoder=True)


def describe(
    model: HfModel,
    tokenizer: HfTokenizer,
    name: str,
    digest: str,
    trained_window: int | str | None,
) -> ModelInfo:
    """Return what core must know.

    Args:
        model: loaded, on its device.
        tokenizer: the model's.
        name: what the user asked for.
        digest: fingerprint of the weights.
        trained_window: overrides the config's.

    Raises:
        ModelError: the length of the window is not known.
        ConfigError: a trained window below 1.
    """
    config = text_config(model)
    rope = rope_parameters(config)
    bos = tokenizer.bos_id if tokenizer.bos_id is not None else config.bos_token_id
    return ModelInfo(
        name=name,
        fingerprint=digest,
        tokenizer_fingerprint=tokenizer.fingerprint,
        hidden_size=config.hidden_size,
        vocab_size=model.get_input_embeddings().weight.shape[0],
        n_layers=config.num_hidden_layers,
        trained_window=_trained_window(config, trained_window),
        rotary_dim=_rotary_dim(model),
        rope_theta=float(rope[0].get("rope_theta") or 0.0) if rope else 0.0,
        device=str(model.device),
        dtype=str(model.get_input_embeddings().weight.dtype).removeprefix("torch."),
        bos_id=bos if isinstance(bos, int) else None,
        eos_ids=_eos_ids(model, tokenizer),
    )


def _trained_window(config: HfConfig, wanted: int | str | None) -> int:
    """Return the longest row count that is safe, capped by sliding or chunked attention."""
    given = wanted if wanted is not None else getattr(config, "max_position_embeddings", None)
    if given is None:
        raise ModelError(
            f"the config of this {config.model_type} model does not say how long its window is; "
            "give trained_window",
            model_type=config.model_type,
        )
    if int(given) < 1:
        raise ConfigError(f"trained_window={given}", field="trained_window", value=given)
    limits = [getattr(config, "attention_chunk_size", None)]
    if getattr(config, "use_sliding_window", True):
        limits.append(getattr(config, "sliding_window", None))
    return min([int(given), *(int(limit) for limit in limits if limit)])


def _rotary_dim(model: HfModel) -> int:
    buffers = model.get_decoder().named_buffers()
    return max(
        (2 * len(buffer) for name, buffer in buffers if name.endswith("inv_freq")), default=0
    )


def _eos_ids(model: HfModel, tokenizer: HfTokenizer) -> tuple[int, ...]:
    generation = getattr(model, "generation_config", None)
    found = getattr(generation, "eos_token_id", None)
    ids = set(found) if isinstance(found, (list, tuple)) else {found}
    ids.add(tokenizer.eos_id)
    return tuple(sorted(number for number in ids if number is not None))
