"""`contextual`: the base's own lower layers read a block after what stands before it.

A block's gist is pooled from the states of its 32 tokens. They see, causally, from the start of
their window to themselves. Windows are cut at fixed places of the history (`windows.py`), so a gist
is a function of the text and the indices alone, however the history was appended.

Parents pool their children's gists with a head of their own. The mean of the children's encoder
states, which a parent could read besides, is not kept: it would cost a float32 row per node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from torch import nn

from megacontext_gistnet.nets.gist_model import GistModel
from megacontext_gistnet.nets.layers import RmsNorm
from megacontext_gistnet.nets.lora import Reader
from megacontext_gistnet.nets.mean import BLOCK

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Cache

    from megacontext_gistnet.nets.config import ContextualConfig

__all__ = ["Contextual", "PoolingHead"]

_QUERY_SPREAD = 0.3
_SLOT_SPREAD = 0.02


class PoolingHead(nn.Module):
    """Turns 32 states into the residuals of S gists.

    Three views of the block meet in one two-layer network: the mean state, what a learned query per
    slot and head attends to, and the `mean` gist itself.

    Args:
        width: d of states and gists.
        pool: width of the attended values.
        heads: attention heads over it.
        hidden: width between the two layers.
        slots: S.
    """

    def __init__(self, width: int, pool: int, heads: int, hidden: int, slots: int) -> None:
        super().__init__()
        self.norm = RmsNorm(width)
        self.key = nn.Linear(width, pool, bias=False)
        self.value = nn.Linear(width, pool, bias=False)
        self.query = nn.Parameter(torch.randn(slots, heads, pool // heads) * _QUERY_SPREAD)
        self.place = nn.Parameter(torch.zeros(slots, heads, BLOCK))
        self.state_norm = RmsNorm(width)
        self.pool_norm = RmsNorm(pool)
        self.mean_norm = RmsNorm(width)
        self.rise = nn.Linear(2 * width + pool, hidden)
        self.slot = nn.Parameter(torch.randn(slots, hidden) * _SLOT_SPREAD)
        self.fall = nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.fall.weight)
        self.gain = nn.Parameter(torch.ones(slots, 1))

    def forward(self, states: Tensor, means: Tensor) -> Tensor:
        """Return [n, S', d], zero before training.

        Args:
            states: [n, 32, d].
            means: [n, S', d], the gists that the residual is added to.
        """
        slots = means.shape[1]
        state = self.state_norm(states.mean(1, keepdim=True)).expand(-1, slots, -1)
        pooled = self.pool_norm(self.pooled(states, slots))
        mean = self.mean_norm(means)
        views = torch.cat((state, pooled.to(state.dtype), mean.to(state.dtype)), -1)
        risen = self.rise(views) + self.slot[:slots].to(state.dtype)
        fallen: Tensor = self.fall(F.gelu(risen))
        return fallen * self.gain[:slots].to(fallen.dtype)

    def pooled(self, states: Tensor, slots: int) -> Tensor:
        """Return what the queries attend to in [n, 32, d] states, [n, S', pool].

        A query is no function of the states, so it meets the key map first, and states are summed
        before they become values: one row per slot and head instead of one per token.
        """
        y = self.norm(states)
        heads, inner = self.query.shape[1:]
        columns = torch.einsum(
            "she,hew->shw", self.query[:slots], self.key.weight.view(heads, inner, -1)
        )
        scores = F.linear(y, columns.flatten(0, 1)).transpose(1, 2)  # [n, S * H, 32]
        place = self.place[:slots].flatten(0, 1)
        weights = (scores.float() + place).softmax(-1).to(scores.dtype)
        read = torch.matmul(weights, y.to(weights.dtype)).unflatten(1, (slots, heads))
        values = self.value.weight.view(heads, inner, -1)
        pooled: Tensor = torch.einsum("nshw,hew->nshe", read, values).flatten(-2)
        return pooled


class _Levels(nn.Module):
    """What LOD2 and above share: a head, and an embedding per level."""

    def __init__(self, width: int, config: ContextualConfig) -> None:
        super().__init__()
        self.head = PoolingHead(width, config.pool, config.heads, config.level_hidden, config.slots)
        self.level = nn.Parameter(torch.zeros(config.n_levels, width))


class Contextual(GistModel):
    """The trainable `contextual`; see the module."""

    kind: ClassVar[str] = "contextual"
    config: ContextualConfig

    def __init__(self, base: nn.Module, config: ContextualConfig) -> None:
        super().__init__(base, config)
        pool, heads = config.pool, config.heads
        reader = Reader(base, config.n_layers, config.rank)
        self._reader = (reader,)  # in a tuple: the frozen layers are no part of this module
        self.head = PoolingHead(self.width, pool, heads, config.hidden, config.slots)
        self.levels = _Levels(self.width, config)
        self.lora = nn.ModuleDict(reader.changes)

    @property
    def reader(self) -> Reader:
        """The base's lower layers with their change."""
        return self._reader[0]

    def states(self, token_ids: Tensor, past: Cache | None = None) -> Tensor:
        """Return the states [B, T, d] of windows int64[B, T], for inference.

        Args:
            token_ids: windows, each read from its first token, or after `past`.
            past: of `reader.new_past()`; grows by these rows.
        """
        return self.reader.states(self._frozen[0](token_ids), past)

    def block_residual(self, embedded: Tensor, means: Tensor) -> Tensor:
        """Return the residual of each block, read in its chunk's window."""
        length, chunk = embedded.shape[1], self.config.chunk_tokens
        parts = []
        for start in range(0, length, chunk):
            left = max(0, start - self.config.prefix_tokens)
            states = self.reader.states(embedded[:, left : start + chunk])
            parts.append(states[:, start - left :])
        states = torch.cat(parts, 1) if len(parts) != 1 else parts[0]
        return self.head_residual(states, means)

    def head_residual(self, states: Tensor, means: Tensor) -> Tensor:
        """Return residuals [B, T / 32, S', d] of states [B, T, d] and their mean gists."""
        blocks = states.reshape(-1, BLOCK, self.width).float()
        residual: Tensor = self.head(blocks, means.flatten(0, 1))
        return residual.view(means.shape)

    def parent_residual(self, rows: Tensor, lod: int, means: Tensor) -> Tensor:
        """Return the residual of each parent from slot 0 of its children."""
        level = self.levels.level[min(lod - 2, self.config.n_levels - 1)]
        residual: Tensor = self.levels.head(rows / self.rho + level, means)
        return residual
