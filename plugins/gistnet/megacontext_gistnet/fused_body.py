"""A trained `GistNetBody` with everything folded that does not depend on the tokens.

Made for one block as well as for many: few operations, so that a block costs a fraction of a
millisecond, and few multiplications. Norm weights go into the maps behind them. A slot's query is
a constant, so keys need not be made: `q·(K y)` is `(Kᵀ q)·y`, one column per slot and head; and
what a slot reads is summed before it becomes values. `GistNetBody` is the oracle of its test.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megacontext_gistnet.nets.gistnet import GistNetBody
    from megacontext_gistnet.nets.layers import FeedForward, RmsNorm

__all__ = ["FusedBody"]

_EPS = 1e-6
_BLOCK = 32


class FusedBody:
    """What `GistNetBody.forward` computes after `enter`, for inference on a CPU.

    Args:
        body: the trained network; copied from, not kept.
        slots: S' gists to make.
    """

    def __init__(self, body: GistNetBody, slots: int) -> None:
        with torch.no_grad():
            self._heads = body.heads
            self.enter = _kept(body.enter.weight)  # [w, d]
            width = len(self.enter)
            self._scale = (width // body.heads) ** -0.5
            self._cosine, self._sine = body.cosine[:, None], body.sine[:, None]  # [32, 1, e / 2]
            self._mix = _normed(body.mix_norm, body.mix_qkv)  # [3w, w]
            self._mix_out = _kept(body.mix_out.weight)
            self._mix_ffn = _Ffn(body.mix_ffn_norm, body.mix_ffn)
            self._memory = _Slots(
                body.memory, body.memory_norm, body.memory_query, body.memory_kv, body.heads
            )
            self._memory_out = _kept(body.memory_out.weight)
            self._memory_kv = _kept(body.expand_kv.weight)
            self._memory_start = _kept(body.memory)
            maps = (body.expand_query, body.expand_kv, body.expand_gate)
            self._expand = torch.cat([_normed(body.expand_norm, one) for one in maps])  # [4w, w]
            zeros = torch.zeros(3 * width)
            self._expand_bias = torch.cat((zeros, _kept(body.expand_gate.bias)))
            self._expand_out = _kept(body.expand_out.weight)
            self._expand_ffn = _Ffn(body.expand_ffn_norm, body.expand_ffn)
            gist = body.gist[:slots]
            self._gist = _Slots(gist, body.gist_norm, body.gist_query, body.gist_kv, body.heads)
            self._gist_out = _kept(body.gist_out.weight)
            self._gist_start = _kept(gist)
            self._leave = _normed(body.leave_norm, body.leave)  # [d, w]

    def __call__(self, x: Tensor) -> Tensor:
        """Return residuals [n, S', d] of rows [n, 32, w] that went through `enter`."""
        x = self._mixed(x)
        memory = F.linear(self._memory(x), self._memory_out) + self._memory_start  # [n, M, w]
        x = self._expand_ffn(x + self._told(x, memory))
        gist = F.linear(self._gist(x), self._gist_out) + self._gist_start
        return F.linear(_unit(gist), self._leave)

    def _mixed(self, x: Tensor) -> Tensor:
        n, rows, width = x.shape
        heads, half = self._heads, width // self._heads // 2
        qkv = F.linear(_unit(x), self._mix).view(n, rows, 3, heads, 2 * half)
        pair = qkv[:, :, :2].reshape(n, rows, 2 * heads, 2 * half)  # queries and keys turn alike
        first, second = pair[..., :half], pair[..., half:]
        cosine, sine = self._cosine, self._sine
        turned = torch.cat(
            (first * cosine - second * sine, first * sine + second * cosine), -1
        ).transpose(1, 2)  # [n, 2H, 32, e]
        values = qkv[:, :, 2].transpose(1, 2)
        seen = F.scaled_dot_product_attention(turned[:, :heads], turned[:, heads:], values)
        x = x + F.linear(seen.transpose(1, 2).reshape(n, rows, width), self._mix_out)
        return self._mix_ffn(x)

    def _told(self, x: Tensor, memory: Tensor) -> Tensor:
        """Return the expansion's update of rows [n, 32, w] from slots [n, M, w]."""
        n, rows, width = x.shape
        shape = (self._heads, width // self._heads)
        own = F.linear(_unit(x), self._expand, self._expand_bias)  # query, key, value, gate
        query = own[..., :width].reshape(n, rows, *shape)
        own_key = own[..., width : 2 * width].reshape(n, rows, *shape)
        own_value = own[..., 2 * width : 3 * width].reshape(n, rows, *shape)
        slots = F.linear(memory, self._memory_kv).view(n, memory.shape[1], 2, *shape)
        keys, values = slots[:, :, 0].permute(0, 2, 3, 1), slots[:, :, 1].transpose(1, 2)
        scores = torch.matmul(query.transpose(1, 2), keys)  # [n, H, 32, M]
        self_score = (query * own_key).sum(-1).transpose(1, 2)[..., None]
        weights = (torch.cat((scores, self_score), -1) * self._scale).softmax(-1)
        told = torch.matmul(weights[..., :-1], values).transpose(1, 2)  # [n, 32, H, e]
        told = torch.addcmul(told, weights[..., -1:].transpose(1, 2), own_value)
        update = F.linear(told.reshape(n, rows, width), self._expand_out)
        return update * torch.sigmoid(own[..., 3 * width :])


class _Ffn:
    """A norm, a feed-forward step and the sum with what went in."""

    def __init__(self, norm: RmsNorm, ffn: FeedForward) -> None:
        self._rise, self._rise_bias = _normed(norm, ffn.rise), _kept(ffn.rise.bias)
        self._fall, self._fall_bias = _kept(ffn.fall.weight), _kept(ffn.fall.bias)

    def __call__(self, x: Tensor) -> Tensor:
        risen = F.gelu(F.linear(_unit(x), self._rise, self._rise_bias))
        return x + F.linear(risen, self._fall, self._fall_bias)


class _Slots:
    """Slots that read rows: their queries against the keys' map, and the values' map by head."""

    def __init__(
        self, slots: Tensor, norm: RmsNorm, query: nn.Linear, kv: nn.Linear, heads: int
    ) -> None:
        width = slots.shape[1]
        inner = width // heads
        queries = query(slots).view(-1, heads, inner) / math.sqrt(inner)  # [S, H, e]
        keys, values = _normed(norm, kv).view(2, heads, inner, width)
        self._n = len(slots)
        self._heads = heads
        columns = torch.einsum("she,hew->hsw", queries, keys)
        self._columns = columns.reshape(heads * self._n, width).contiguous()
        self._values = values.transpose(1, 2).contiguous()  # [H, w, e]

    def __call__(self, x: Tensor) -> Tensor:
        """Return [n, S, w] of rows [n, 32, w], as `attend` would before its output map."""
        n, _, width = x.shape
        y = _unit(x)
        weights = torch.matmul(self._columns, y.transpose(1, 2)).softmax(-1)  # [n, HS, 32]
        read = torch.matmul(weights, y).view(n, self._heads, self._n, width)
        return torch.matmul(read, self._values).transpose(1, 2).reshape(n, self._n, width)


def _unit(x: Tensor) -> Tensor:
    """Return rows divided by their RMS."""
    return F.rms_norm(x, (x.shape[-1],), None, _EPS)


def _kept(weight: Tensor) -> Tensor:
    """Return an own float32 copy on the CPU."""
    return weight.detach().to("cpu", torch.float32, copy=True).contiguous()


def _normed(norm: RmsNorm, linear: nn.Linear) -> Tensor:
    """Return a map with the weight of the norm before it folded in."""
    return _kept(linear.weight * norm.weight)
