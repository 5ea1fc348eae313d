"""Layers that both encoders are built from: norm, feed-forward, attention over few rows.

Everything here is plain and differentiable; what inference fuses is `encoder`'s business.
Letters: n blocks, T rows of one, H heads, S or M slots, d the base's width, w a width of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FeedForward", "RmsNorm", "attend", "in_heads", "rotary_angles", "rotate"]

_EPS = 1e-6


class RmsNorm(nn.Module):
    """Divides rows by their RMS and multiplies by a learned weight; any leading shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., w] of [..., w]."""
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), _EPS)


class FeedForward(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.rise = nn.Linear(width, hidden)
        self.fall = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., w] of [..., w]."""
        fallen: Tensor = self.fall(F.gelu(self.rise(x)))
        return fallen


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend without a mask, every query to every key.

    Args:
        queries: [n, H, Q, e].
        keys, values: [n, H, T, e].

    Returns:
        [n, Q, H * e].
    """
    mixed = F.scaled_dot_product_attention(queries, keys, values)
    return mixed.transpose(1, 2).flatten(2)


def in_heads(x: Tensor, heads: int) -> Tensor:
    """Split [n, T, w] into heads, [n, H, T, w / H]."""
    n, rows, width = x.shape
    return x.view(n, rows, heads, width // heads).transpose(1, 2)


def rotary_angles(n_rows: int, width: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Return cosine and sine, float32[T, e / 2] each, of the positions 0..T-1.

    Args:
        n_rows: T.
        width: e, even.
        base: RoPE's base.
    """
    rates = base ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.arange(n_rows, dtype=torch.float32)[:, None] * rates
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn the halves of [n, H, T, e] against each other by their positions' angles [T, e / 2]."""
    first, second = x.chunk(2, -1)
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    turned = (first * cosine - second * sine, first * sine + second * cosine)
    return torch.cat(turned, -1)
