"""What the layers of a model do with keys, learnt from the model itself by a probe of one token.

A single token attends to itself only, so its hidden states do not depend on its position, and its
keys at two positions differ by the rotation alone. That tells for every layer whether, how and by
which frequencies it rotates, whatever the code of the model family looks like.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import torch

from megacontext_hf.cache import CacheShape
from megacontext_hf.rotation import Rotation
from megacontext_sdk.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from megacontext_hf.foreign import HfConfig, HfModel

__all__ = ["Anatomy", "examine", "rope_parameters"]

_WORKS: Final = "Llama, Qwen2, Qwen3, Mistral, SmolLM3, GPT-NeoX and Phi-3 models work"
_LENGTH_DEPENDENT: Final = ("dynamic", "longrope")
_PROBES: Final = (1, 11)
"""Positions compared with position 0."""
_TOLERANCES: Final = {torch.float32: 1e-4, torch.float64: 1e-4}
_LOOSE: Final = 3e-2  # half precision


@attrs.frozen(eq=False)
class Anatomy:
    """What a window must know: sizes of the cache, and how keys rotate."""

    shape: CacheShape
    rotation: Rotation


def rope_parameters(config: HfConfig) -> tuple[Mapping[str, Any], ...]:
    """Return the rotary parameters of a text config, one mapping per kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = tuple(value for value in parameters.values() if isinstance(value, dict))
    return nested or ((parameters,) if parameters else ())


def examine(model: HfModel, config: HfConfig) -> Anatomy:
    """Probe a causal language model.

    Raises:
        ModelError: its attention cannot be addressed by slots; names the model type and what works.
    """
    for parameters in rope_parameters(config):
        kind = parameters.get("rope_type", "default")
        if kind in _LENGTH_DEPENDENT:
            raise _refusal(config, f"{kind} rotary scaling depends on the length of the text")
    at_zero = _keys_at(model, config, 0)
    frequencies = _candidates(model)
    if not frequencies:
        raise _refusal(config, "it has no rotary positions")
    others = {position: _keys_at(model, config, position) for position in _PROBES}
    for is_interleaved in (False, True):
        rows = [
            _explain(at_zero[layer][0], {p: k[layer][0] for p, k in others.items()}, choice)
            for layer, choice in enumerate([(frequencies, is_interleaved)] * len(at_zero))
        ]
        if all(row is not None for row in rows) and any(bool(row.any()) for row in rows):  # type: ignore[union-attr]
            return Anatomy(_shape(at_zero, config), Rotation(_stacked(rows), is_interleaved))  # type: ignore[arg-type]
    raise _refusal(config, "its keys are not turned by rotary positions alone")


class _Recorder:
    """A cache that only looks on; it has the parts of the interface a first token needs."""

    is_compileable = False

    def __init__(self) -> None:
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        self.seen[layer_idx] = key_states.clone(), value_states.clone()
        return key_states, value_states

    def get_seq_length(self, _layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, _layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, _query_length: object, _layer_idx: int = 0) -> tuple[int, int]:
        return 1, 0


def _keys_at(model: HfModel, config: HfConfig, position: int) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values [1, H, 1, d] of every layer for one token at a position."""
    recorder = _Recorder()
    token = torch.full((1, 1), min(5, config.vocab_size - 1), device=model.device)
    place = torch.full((1, 1), position, device=model.device)
    try:
        with torch.inference_mode():
            model.get_decoder()(
                input_ids=token, position_ids=place, past_key_values=recorder, use_cache=True
            )
    except (AttributeError, TypeError, ValueError) as error:
        raise _refusal(config, "it does not use a cache of keys and values only") from error
    if sorted(recorder.seen) != list(range(config.num_hidden_layers)):
        raise _refusal(config, "not every layer keeps keys and values of its own")
    return [recorder.seen[layer] for layer in sorted(recorder.seen)]


def _candidates(model: HfModel) -> list[Tensor]:
    """Return the frequency vectors the model holds, float32[rotary_dim / 2] each."""
    return [
        buffer.float()
        for name, buffer in model.get_decoder().named_buffers()
        if name.endswith("inv_freq") and "original" not in name
    ]


def _explain(
    at_zero: Tensor, others: Mapping[int, Tensor], choice: tuple[list[Tensor], bool]
) -> Tensor | None:
    """Return the frequencies that explain one layer's keys [1, H, 1, d], zeros for none at all."""
    candidates, is_interleaved = choice
    errors = []
    for frequencies in (torch.zeros_like(candidates[0]), *candidates):
        rotation = Rotation(frequencies[None], is_interleaved)
        errors.append(max(_error(rotation, at_zero, p, keys) for p, keys in others.items()))
    best = min(range(len(errors)), key=errors.__getitem__)
    if errors[best] > _TOLERANCES.get(at_zero.dtype, _LOOSE):
        return None
    return (torch.zeros_like(candidates[0]), *candidates)[best]


def _error(rotation: Rotation, at_zero: Tensor, position: int, keys: Tensor) -> float:
    """Return how far turned keys are from the model's own, relative to the largest."""
    if rotation.rotary_dim > keys.shape[-1]:
        return float("inf")
    turned = torch.empty_like(at_zero)
    there = torch.full((1,), position, device=keys.device)
    rotation.rotate(at_zero, torch.zeros_like(there), there, turned)
    scale = keys.abs().max().clamp_min(1e-6)
    return float(((turned - keys).abs().max() / scale).float())


def _stacked(rows: list[Tensor]) -> Tensor:
    """Return [L, r/2], or [1, r/2] where all layers rotate alike."""
    alike = all(torch.equal(row, rows[0]) for row in rows)
    return rows[0][None].clone() if alike else torch.stack(rows)


def _shape(layers: list[tuple[Tensor, Tensor]], config: HfConfig) -> CacheShape:
    sizes = {(key.shape[1], key.shape[-1], value.shape[-1]) for key, value in layers}
    if len(sizes) > 1 or layers[0][0].shape[1] != layers[0][1].shape[1]:
        raise _refusal(config, "its layers keep keys and values of different sizes")
    ((n_heads, key_dim, value_dim),) = sizes
    key = layers[0][0]
    return CacheShape(len(layers), n_heads, key_dim, value_dim, key.dtype, key.device)


def _refusal(config: HfConfig, why: str) -> ModelError:
    kind = getattr(config, "model_type", "unknown")
    return ModelError(
        f"a model of type {kind!r} cannot be paged: {why}; choose another model ({_WORKS})",
        model_type=kind,
    )
