"""One step's loss: the base reads windows in full, without the gists' blocks, and with gists.

Teacher and drop pass carry no gradient, they are targets and weights. The student pass does: the
loss at raw tokens reaches the gists through the frozen base, and the encoder through the gists.
Row r predicts the token behind it; that shift happens in `_targets` and nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from megacontext_gistnet.training import losses
from megacontext_gistnet.training.layouts import newest_raw, rows_of
from megacontext_gistnet.training.validation import gists_of
from megacontext_sdk.errors import ConfigError, InvariantError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from torch import Tensor

    from megacontext_gistnet.nets.model import GistModel
    from megacontext_gistnet.training.base import FrozenBase
    from megacontext_gistnet.training.layouts import Layout, Rows
    from megacontext_gistnet.training.recipe import Losses, Recipe

__all__ = ["Extras", "Objective", "Outcome"]

_K = 32


class Extras(nn.Module):
    """What only training needs: the prompt of the reconstruction, projections of the contrast.

    Args:
        width: d of the base.
        recipe: sizes.
    """

    def __init__(self, width: int, recipe: Recipe, rho: float) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(recipe.prompt_rows, width) * rho)
        self.key = nn.Linear(width, recipe.contrast_size, bias=False)
        self.query = nn.Linear(width, recipe.contrast_size, bias=False)
        self.temperature = recipe.contrast_temperature

    def parameters_for(self, weights: Losses) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters that a loss of these weights reaches, with their names."""
        used: list[str] = []
        used += ["prompt"] if weights.reconstruction else []
        used += ["key.weight", "query.weight"] if weights.contrast else []
        return [(name, one) for name, one in self.named_parameters() if name in used]


@attrs.frozen(eq=False)
class Outcome:
    """What one step found; scalars stay tensors until somebody prints them.

    Attributes:
        loss: what to descend.
        figures: name -> scalar tensor without gradient; `gain` and `lost` are the sums whose ratio
            is R over the step's tokens.
    """

    loss: Tensor
    figures: dict[str, Tensor]


@attrs.frozen(eq=False)
class _Reading:
    """A pass without gradient: states of the counted tokens, and their nats."""

    hidden: Tensor  # [B, n, d]
    nll: Tensor  # float32[B, n]


class Objective:
    """The loss of a batch under a layout.

    Args:
        base: the frozen base.
        model: the encoder that learns.
        extras: parameters of the auxiliary losses.
        trained_window: rows the base was trained on; a longer window is read by the teacher with
            its oldest blocks as LOD1 gists of all slots.
        bos_id: the base's BOS, or None.
        autocast: makes the context in which the encoder runs.
    """

    def __init__(
        self,
        base: FrozenBase,
        model: GistModel,
        extras: Extras,
        *,
        trained_window: int,
        bos_id: int | None,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.base, self.model, self.extras = base, model, extras
        self._trained_window, self.bos_id = trained_window, bos_id
        self._autocast = autocast

    def __call__(self, token_ids: Tensor, layout: Layout, weights: Losses) -> Outcome:
        """Return loss and figures of windows int64[B, T] under a layout."""
        gists = self._gists(token_ids, layout)
        rows = self._rows(layout, layout.slots)
        table = self._table(token_ids, gists, layout.slots)
        student = self.base.hidden(_take(table, rows.index))
        hidden = _take(student, rows.raw_at)
        targets, counted = self._targets(token_ids, rows.token_at)
        with torch.no_grad():
            full = self._teacher(token_ids, gists, rows, targets, layout)
            drop = self._drop(token_ids, layout, targets)
            importance = losses.token_weights(
                drop.nll, full.nll, counted, floor=weights.weight_floor, cap=weights.weight_cap
            )
        kl, nll = losses.transfer(
            self.base.logits, hidden.flatten(0, 1), full.hidden.flatten(0, 1), targets.flatten()
        )
        kl, nll = kl.view(targets.shape), nll.view(targets.shape)
        parts = {
            "kl": losses.weighted_mean(kl, importance),
            "nll": losses.weighted_mean(nll, counted),
        }
        parts |= self._auxiliary(token_ids, gists, layout, full, weights)
        loss = torch.stack([getattr(weights, name) * one for name, one in parts.items()]).sum()
        figures = {name: part.detach() for name, part in parts.items()}
        figures |= _recovery(nll.detach(), full.nll, drop.nll, counted)
        figures |= self._shape(gists)
        return Outcome(loss, figures)

    # -- passes ---------------------------------------------------------------------------------

    def _gists(self, token_ids: Tensor, layout: Layout) -> dict[int, Tensor]:
        """Return float32[B, n, S, d] for each level of the layout.

        Nothing is encoded behind the last block that is replaced; frozen blocks make no graph.
        """
        lod = max(1, int(layout.lods.max()))
        replaced = np.flatnonzero(layout.lods.any(axis=0))
        n_read = int(replaced[-1]) + 1 if len(replaced) else 1
        blocks = [one for _, one, group in self.model.trainable() if group != "levels"]
        learns = any(one.requires_grad for one in blocks)
        with self._autocast():
            found = gists_of(self.model, token_ids[:, : _K * n_read], lod, learns_blocks=learns)
        self._require_path(found[lod])
        return found

    def _require_path(self, gists: Tensor) -> None:
        """Refuse gists that training could never reach.

        Raises:
            InvariantError: gradients are on, and the gists have none.
        """
        if torch.is_grad_enabled() and not gists.requires_grad:
            raise InvariantError(
                "the gists carry no gradient: they were detached or made under no_grad, and the "
                "encoder would never learn; this is a bug, please report it"
            )

    def _teacher(
        self,
        token_ids: Tensor,
        gists: dict[int, Tensor],
        rows: Rows,
        targets: Tensor,
        layout: Layout,
    ) -> _Reading:
        n, length = token_ids.shape
        slots = self.model.slots
        lods = newest_raw(n, length // _K, self._trained_window, slots)
        if ((layout.lods == 0) & (lods > 0)).any():
            raise ConfigError(
                f"windows of {length} tokens are longer than the {self._trained_window} the base "
                "was trained on; give shorter ones by --window",
                field="window_tokens",
                value=length,
            )
        read = rows_of(lods, slots, has_bos_row=layout.has_bos_row).to(token_ids.device)
        table = self._table(token_ids, {1: gists[1].detach()}, slots)
        hidden = self.base.hidden(_take(table, read.index))
        column = torch.zeros(n, length, dtype=torch.int64, device=token_ids.device)
        column.scatter_(1, read.token_at, read.raw_at)
        return self._read(_take(hidden, column.gather(1, rows.token_at)), targets)

    def _drop(self, token_ids: Tensor, layout: Layout, targets: Tensor) -> _Reading:
        rows = self._rows(layout, 0)
        hidden = self.base.hidden(_take(self._table(token_ids, {}, 0), rows.index))
        return self._read(_take(hidden, rows.raw_at), targets)

    def _read(self, hidden: Tensor, targets: Tensor) -> _Reading:
        nll = losses.token_nll(self.base.logits, hidden.flatten(0, 1), targets.flatten())
        return _Reading(hidden, nll.view(targets.shape))

    def _rows(self, layout: Layout, slots: int) -> Rows:
        return rows_of(layout.lods, slots, has_bos_row=layout.has_bos_row).to(self.base.device)

    def _table(self, token_ids: Tensor, gists: dict[int, Tensor], slots: int) -> Tensor:
        """Return what layouts point into, float32[B, places, d]: tokens, BOS, gists by level."""
        bos = token_ids.new_full((len(token_ids), 1), self.bos_id or 0)
        tokens = self.base.embed(torch.cat([token_ids, bos], dim=1))
        n_blocks = token_ids.shape[1] // _K
        levels = []
        for lod in sorted(gists):
            rows = gists[lod][:, :, :slots]
            n_behind = n_blocks // _K ** (lod - 1) - rows.shape[1]
            levels.append(functional.pad(rows, (0, 0, 0, 0, 0, n_behind)).flatten(1, 2))
        return torch.cat([tokens, *levels], dim=1)

    @staticmethod
    def _targets(token_ids: Tensor, token_at: Tensor) -> tuple[Tensor, Tensor]:
        """Return the token behind each raw token, and whether the window has one."""
        last = token_ids.shape[1] - 1
        following = token_ids.gather(1, (token_at + 1).clamp_max(last))
        return following, (token_at < last).float()

    # -- auxiliary losses -----------------------------------------------------------------------

    def _auxiliary(
        self,
        token_ids: Tensor,
        gists: dict[int, Tensor],
        layout: Layout,
        full: _Reading,
        weights: Losses,
    ) -> dict[str, Tensor]:
        top = gists[max(gists)]
        found = {}
        if weights.reconstruction:
            found["reconstruction"] = self._reconstruction(
                token_ids, gists[1][:, :, : layout.slots], weights.reconstruction_blocks
            )
        if weights.contrast:
            key = self.extras.key(top[:, :, 0].mean(dim=1) / self.model.rho)
            query = self.extras.query(full.hidden[:, -_K:].float().mean(dim=1))
            found["contrast"] = losses.info_nce(key, query, self.extras.temperature)
        if weights.diversity:
            found["diversity"] = losses.diversity_penalty(top[:, :, 0])
        return found

    def _reconstruction(self, token_ids: Tensor, gists: Tensor, n_blocks: int) -> Tensor:
        """Return the nats per token of blocks that the base writes down from their gists."""
        blocks = token_ids[:, : _K * gists.shape[1]].reshape(-1, _K)
        every = max(1, len(blocks) // n_blocks)
        chosen = torch.arange(0, len(blocks), every, device=token_ids.device)[:n_blocks]
        wanted, own = blocks[chosen], gists.flatten(0, 1)[chosen]
        prompt = self.extras.prompt.expand(len(chosen), -1, -1)
        rows = torch.cat([own, prompt, self.base.embed(wanted[:, :-1])], dim=1)
        hidden = self.base.hidden(rows)[:, -_K:].flatten(0, 1)
        return losses.token_nll(self.base.logits, hidden, wanted.flatten()).mean()

    @torch.no_grad()
    def _shape(self, gists: dict[int, Tensor]) -> dict[str, Tensor]:
        first = gists[max(gists)][:, :, 0]
        rms = first.square().mean(dim=-1).sqrt().mean()
        return {
            "gist_norm_ratio": rms / self.model.rho,
            "gist_diversity": losses.diversity(gists[1][:, :, 0]),
        }


def _take(table: Tensor, index: Tensor) -> Tensor:
    """Return rows [B, R, d] of tables [B, places, d] at places int64[B, R]."""
    return table.gather(1, index[..., None].expand(-1, -1, table.shape[-1]))


def _recovery(nll: Tensor, full: Tensor, drop: Tensor, counted: Tensor) -> dict[str, Tensor]:
    return {
        "gain": ((drop - nll) * counted).sum(),
        "lost": ((drop - full) * counted).sum(),
        "delta_nll": losses.weighted_mean(nll - full, counted),
    }
