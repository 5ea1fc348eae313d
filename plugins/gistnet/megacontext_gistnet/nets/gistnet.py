"""`gistnet`: 32 rows become 4, then 32 again, then S, within a narrow width (32→1→32→1).

It sees the tokens of one block and nothing else, both ways inside it. Rows are mixed, compressed
into M slots, and told by cross-attention what the whole block says; then S queries read the refined
rows. A token attends to the M slots *and itself*: with one key the softmax would be 1 whatever the
token is, and the step would add the same vector to all of them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from megacontext_gistnet.nets.gist_model import GistModel
from megacontext_gistnet.nets.layers import (
    FeedForward,
    RmsNorm,
    attend,
    in_heads,
    rotary_angles,
    rotate,
)
from megacontext_gistnet.nets.mean import BLOCK

if TYPE_CHECKING:
    from torch import Tensor

    from megacontext_gistnet.nets.config import GistNetConfig

__all__ = ["GistNet", "GistNetBody", "GistNetLevels"]

_SLOT_SPREAD = 0.5  # slot queries start this wide: apart, and about the size of normed rows


class GistNetBody(nn.Module):
    """One network for one kind of children: tokens, or gists of any level.

    About `2·d·w + 16·w² + 8·w²` parameters for the base's width d and w = `config.hidden`.

    Args:
        width: d.
        config: the shape.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, width: int, config: GistNetConfig) -> None:
        super().__init__()
        inner, self.heads = config.hidden, config.heads
        self.enter = nn.Linear(width, inner, bias=False)
        # 1 mix
        self.mix_norm = RmsNorm(inner)
        self.mix_qkv = nn.Linear(inner, 3 * inner, bias=False)
        self.mix_out = nn.Linear(inner, inner, bias=False)
        self.mix_ffn_norm = RmsNorm(inner)
        self.mix_ffn = FeedForward(inner, 2 * inner)
        # 2 compress to M slots
        self.memory = nn.Parameter(torch.randn(config.memory_slots, inner) * _SLOT_SPREAD)
        self.memory_norm = RmsNorm(inner)
        self.memory_query = nn.Linear(inner, inner, bias=False)
        self.memory_kv = nn.Linear(inner, 2 * inner, bias=False)
        self.memory_out = nn.Linear(inner, inner, bias=False)
        # 3 expand to 32 rows
        self.expand_norm = RmsNorm(inner)
        self.expand_query = nn.Linear(inner, inner, bias=False)
        self.expand_kv = nn.Linear(inner, 2 * inner, bias=False)
        self.expand_out = nn.Linear(inner, inner, bias=False)
        self.expand_gate = nn.Linear(inner, inner)
        self.expand_ffn_norm = RmsNorm(inner)
        self.expand_ffn = FeedForward(inner, 2 * inner)
        # 4 compress to S slots
        self.gist = nn.Parameter(torch.randn(config.slots, inner) * _SLOT_SPREAD)
        self.gist_norm = RmsNorm(inner)
        self.gist_query = nn.Linear(inner, inner, bias=False)
        self.gist_kv = nn.Linear(inner, 2 * inner, bias=False)
        self.gist_out = nn.Linear(inner, inner, bias=False)
        self.leave_norm = RmsNorm(inner)
        self.leave = nn.Linear(inner, width, bias=False)
        nn.init.zeros_(self.leave.weight)
        cosine, sine = rotary_angles(BLOCK, inner // self.heads)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)

    def forward(
        self, rows: Tensor, shift: Tensor | None = None, slots: int | None = None
    ) -> Tensor:
        """Return the residual of S' gists.

        Args:
            rows: [n, 32, d], about as large as a row of ones.
            shift: [w] added after the projection, such as a level's embedding.
            slots: S', all by default.

        Returns:
            [n, S', d], zero before training.
        """
        x = self.enter(rows)
        x = self.mix(x if shift is None else x + shift.to(x.dtype))
        x = self.refine(x, self.compress(x))
        return self.leave_through(x, slots)

    def mix(self, x: Tensor) -> Tensor:
        """Let the rows of [n, 32, w] see each other, both ways, by rotary positions 0..31."""
        queries, keys, values = (
            in_heads(part, self.heads) for part in self.mix_qkv(self.mix_norm(x)).chunk(3, -1)
        )
        queries = rotate(queries, self.cosine, self.sine)
        keys = rotate(keys, self.cosine, self.sine)
        x = x + self.mix_out(attend(queries, keys, values))
        mixed: Tensor = x + self.mix_ffn(self.mix_ffn_norm(x))
        return mixed

    def compress(self, x: Tensor) -> Tensor:
        """Return the M slots [n, M, w] of rows [n, 32, w]."""
        read = self._read(x, self.memory, self.memory_norm, self.memory_query, self.memory_kv)
        slots: Tensor = self.memory_out(read) + self.memory.to(read.dtype)
        return slots

    def expand(self, x: Tensor, memory: Tensor) -> Tensor:
        """Return what each row learns from the slots: an update [n, 32, w] of its own.

        Args:
            x: rows [n, 32, w].
            memory: slots [n, M, w].
        """
        y = self.expand_norm(x)
        query = self.expand_query(y).unflatten(-1, (self.heads, -1))  # [n, 32, H, e]
        own_key, own_value = self._kv(y)  # [n, 32, H, e]
        keys, values = self._kv(memory)  # [n, M, H, e]
        scores = torch.einsum("nthe,nmhe->nthm", query, keys)
        own = (query * own_key).sum(-1, keepdim=True)
        weights = torch.cat((scores, own), -1) / math.sqrt(query.shape[-1])
        weights = weights.float().softmax(-1).to(y.dtype)  # [n, 32, H, M + 1]
        told = torch.einsum("nthm,nmhe->nthe", weights[..., :-1], values)
        told = told + weights[..., -1:] * own_value
        update: Tensor = self.expand_out(told.flatten(-2)) * torch.sigmoid(self.expand_gate(y))
        return update

    def refine(self, x: Tensor, memory: Tensor) -> Tensor:
        """Add the expansion to rows [n, 32, w], and work it in."""
        x = x + self.expand(x, memory)
        refined: Tensor = x + self.expand_ffn(self.expand_ffn_norm(x))
        return refined

    def leave_through(self, x: Tensor, slots: int | None) -> Tensor:
        """Return [n, S', d], what the gist slots read in rows [n, 32, w]."""
        queries = self.gist[:slots]
        read = self._read(x, queries, self.gist_norm, self.gist_query, self.gist_kv)
        out: Tensor = self.leave(self.leave_norm(self.gist_out(read) + queries.to(read.dtype)))
        return out

    def _kv(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of the expansion, [n, T, H, e] each."""
        n, rows, width = x.shape
        both = self.expand_kv(x).view(n, rows, 2, self.heads, width // self.heads)
        return both[:, :, 0], both[:, :, 1]

    def _read(
        self, x: Tensor, slots: Tensor, norm: nn.Module, query: nn.Module, kv: nn.Module
    ) -> Tensor:
        """Return [n, S, w]: each of [S, w] slots attends to rows [n, 32, w], without position."""
        keys, values = kv(norm(x)).chunk(2, -1)
        queries = query(slots).expand(len(x), -1, -1)
        return attend(*(in_heads(part, self.heads) for part in (queries, keys, values)))


class GistNetLevels(nn.Module):
    """What LOD2 and above share: one body with slots of its own, and an embedding per level."""

    def __init__(self, width: int, config: GistNetConfig) -> None:
        super().__init__()
        self.body = GistNetBody(width, config)
        self.level = nn.Parameter(torch.zeros(config.n_levels, config.hidden))


class GistNet(GistModel):
    """The trainable `gistnet`; see the module."""

    kind: ClassVar[str] = "gistnet"
    config: GistNetConfig

    def __init__(self, base: nn.Module, config: GistNetConfig) -> None:
        super().__init__(base, config)
        self.body = GistNetBody(self.width, config)
        self.levels = GistNetLevels(self.width, config)

    def block_residual(self, embedded: Tensor, means: Tensor) -> Tensor:
        """Return the residual of each block from its own 32 rows alone."""
        rows = embedded.reshape(-1, BLOCK, self.width) / self.rho
        residual: Tensor = self.body(rows, slots=means.shape[2])
        return residual.view(means.shape)

    def parent_residual(self, rows: Tensor, lod: int, means: Tensor) -> Tensor:
        """Return the residual of each parent from slot 0 of its children."""
        level = self.levels.level[min(lod - 2, self.config.n_levels - 1)]
        residual: Tensor = self.levels.body(rows / self.rho, level, slots=means.shape[1])
        return residual
