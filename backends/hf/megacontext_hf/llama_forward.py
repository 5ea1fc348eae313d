"""The same forward pass for Llama-like models in half the time, without transformers' own code.

Decoding on a CPU and on small models spends most of its time between the operations. This path
reads the weights of the model's modules and runs one fused operation where they run several. It is
chosen only for float32 models whose modules are exactly the known ones, and only after it has
given the hidden states of the plain path; anything else stays with `ModelForward`, the oracle.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import attrs
import torch
from torch import nn
from torch.nn import functional

from megacontext_hf.cache import SlotCache
from megacontext_hf.forward import ModelForward

if TYPE_CHECKING:
    from torch import Tensor

    from megacontext_hf.cache import CacheShape
    from megacontext_hf.foreign import HfModel

__all__ = ["LlamaForward", "choose_forward"]

_log = logging.getLogger(__name__)

_KNOWN: Final = frozenset(
    {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
)
_TABLE_ROWS: Final = 32_768
"""Longest trained window whose angles are kept as a table (16 MiB at head dimension 64)."""
_TOLERANCE: Final = 1e-4


def choose_forward(model: HfModel, shape: CacheShape, trained_window: int) -> ModelForward:
    """Return the fast path if it fits and agrees with the plain one, else the plain one."""
    plain = ModelForward(model)
    if not _is_known(model):
        return plain
    fast = LlamaForward(model, trained_window)
    with torch.inference_mode():
        x = plain.embed(torch.arange(6, device=plain.device) % model.config.vocab_size)[None]
        positions = torch.arange(6, device=plain.device)[None]
        expected, found = (
            path.hidden(x, positions, _aimed(shape), None).float() for path in (plain, fast)
        )
    error = float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-6))
    if error < _TOLERANCE:
        return fast
    _log.debug("the fast forward pass differs by %.1e and is not used", error)
    return plain


@attrs.frozen(eq=False)
class _Layer:
    """Weights of one layer, each [out, in]; biases and norms of queries and keys may be None."""

    norm: Tensor
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    query_norm: Tensor | None
    key_norm: Tensor | None
    out: nn.Linear
    mlp_norm: Tensor
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear


class LlamaForward(ModelForward):
    """Runs Llama, Mistral, Qwen2 and Qwen3 from their weights.

    Args:
        model: a causal language model of a known class, in float32.
        trained_window: positions stay below it.
    """

    def __init__(self, model: HfModel, trained_window: int) -> None:
        super().__init__(model)
        config = model.config
        self._rotary = self._decoder.rotary_emb
        self._layers = [_layer(layer) for layer in self._decoder.layers]
        self._final_norm: Tensor = self._decoder.norm.weight
        self._head: nn.Linear = model.lm_head
        self._eps = float(config.rms_norm_eps)
        self._head_dim = int(self._decoder.layers[0].self_attn.head_dim)
        self._n_queries = int(config.num_attention_heads)
        self._table: tuple[Tensor, Tensor] | None = None
        if trained_window <= _TABLE_ROWS:
            with torch.inference_mode():
                ladder = torch.arange(trained_window, device=self.device)
                self._table = self._angles(ladder[None])

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return embedding rows [n, d] for int64[n]."""
        return functional.embedding(token_ids, self._embedding.weight)

    def hidden(
        self, x: Tensor, positions: Tensor, cache: SlotCache | None, mask: Tensor | None
    ) -> Tensor:
        """Return final hidden states [1, n, d]; see `ModelForward.hidden`."""
        if cache is None:
            return super().hidden(x, positions, cache, mask)
        if self._table is None:
            cos, sin = self._angles(positions)
        else:
            cos, sin = (column.index_select(0, positions[0]) for column in self._table)
        for number, layer in enumerate(self._layers):
            x = x + self._attend(layer, number, self._rms(x, layer.norm), cos, sin, cache, mask)
            x = x + _mlp(layer, self._rms(x, layer.mlp_norm))
        return self._rms(x, self._final_norm)

    def logits(
        self, x: Tensor, positions: Tensor, cache: SlotCache, mask: Tensor | None, row: int | None
    ) -> Tensor:
        """Return logits [n, vocab] or [1, vocab]; see `ModelForward.logits`."""
        hidden = self.hidden(x, positions, cache, mask)[0]
        kept = hidden if row is None else hidden[row : row + 1]
        return functional.linear(kept, self._head.weight, self._head.bias)

    def _attend(
        self,
        layer: _Layer,
        number: int,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: SlotCache,
        mask: Tensor | None,
    ) -> Tensor:
        n, dim = x.shape[1], self._head_dim
        query, key = _linear(x, layer.query), _linear(x, layer.key)
        if layer.query_norm is not None and layer.key_norm is not None:
            query = self._rms(query.view(1, n, -1, dim), layer.query_norm).view(1, n, -1)
            key = self._rms(key.view(1, n, -1, dim), layer.key_norm).view(1, n, -1)
        both = torch.cat((query, key), dim=-1).view(1, n, -1, dim)  # queries and keys turn at once
        both = torch.addcmul(both * cos, both.roll(dim // 2, -1), sin)
        query, key = both[:, :, : self._n_queries], both[:, :, self._n_queries :]
        value = _linear(x, layer.value).view(1, n, -1, dim)
        keys, values = cache.update(key.transpose(1, 2), value.transpose(1, 2), number)
        mixed = functional.scaled_dot_product_attention(
            query.transpose(1, 2),  # [1, H, n, d]
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None and n > 1,
            enable_gqa=True,
        )
        return _linear(mixed.transpose(1, 2).reshape(1, n, -1), layer.out)

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, weight.shape, weight, self._eps)

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and signed sin [n, 1, d] for int64[1, n].

        The sign of rotate_half goes into the sine: `rotate_half(x) * sin = roll(x) * signed_sin`.
        """
        probe = self._final_norm[:1]
        cos, sin = self._rotary(probe, positions)
        half = sin.shape[-1] // 2
        signed = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        return cos[0][:, None].contiguous(), signed[0][:, None].contiguous()


def _layer(layer: HfModel) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        norm=layer.input_layernorm.weight,
        query=attention.q_proj,
        key=attention.k_proj,
        value=attention.v_proj,
        query_norm=getattr(getattr(attention, "q_norm", None), "weight", None),
        key_norm=getattr(getattr(attention, "k_norm", None), "weight", None),
        out=attention.o_proj,
        mlp_norm=layer.post_attention_layernorm.weight,
        gate=mlp.gate_proj,
        up=mlp.up_proj,
        down=mlp.down_proj,
    )


def _linear(x: Tensor, module: nn.Linear) -> Tensor:
    return functional.linear(x, module.weight, module.bias)


def _mlp(layer: _Layer, x: Tensor) -> Tensor:
    gated = functional.silu(_linear(x, layer.gate)).mul_(_linear(x, layer.up))
    return _linear(gated, layer.down)


def _is_known(model: HfModel) -> bool:
    """Whether the model is exactly one of the known classes, untouched and in float32."""
    kind = type(model)
    if kind.__name__ not in _KNOWN or not kind.__module__.startswith("transformers.models."):
        return False
    if getattr(model.config, "hidden_act", None) != "silu":
        return False
    parameters = list(model.parameters())
    devices = {parameter.device for parameter in parameters}
    is_plain = all(parameter.dtype == torch.float32 for parameter in parameters)
    return is_plain and len(devices) == 1 and all(map(_is_untouched, model.modules()))


def _is_untouched(module: nn.Module) -> bool:
    """Whether a module has no hooks and is no replacement of a linear layer (adapters, int8)."""
    has_hooks = module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook")  # noqa: SLF001
    is_linear = not hasattr(module, "in_features") or type(module) is nn.Linear
    return not has_hooks and is_linear


def _aimed(shape: CacheShape) -> SlotCache:
    cache = SlotCache(shape, 6)
    cache.aim(slice(0, 6), 6, 6)
    return cache
