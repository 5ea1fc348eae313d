"""Validation between steps: recovery on held-out windows, on the protocol of the evaluation.

Everything but the last 96 tokens gives way to gists, LOD1 or LOD2, straight from the torch model;
reader, counted tokens and R are the evaluation's. Full context and dropping are read once and kept,
and one pass of the encoder serves all slots, so a check costs little between steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np
import torch

from megacontext_gistnet.evaluation.reader import Reader
from megacontext_gistnet.evaluation.recovery import RECALL_NATS, Study
from megacontext_gistnet.evaluation.rows import gists_then_raw, tokens_only
from megacontext_gistnet.evaluation.substitution import RAW_TOKENS, counted_tail
from megacontext_sdk.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from megacontext_gistnet.evaluation.statistics import Nats
    from megacontext_gistnet.evaluation.windows import Windows
    from megacontext_gistnet.nets.model import GistModel
    from megacontext_sdk.contracts.arrays import Floats

__all__ = ["Found", "Validation", "gists_of", "refuse_without_context", "window_of"]

_K = 32
_WINDOWS_PER_PASS = 8


@attrs.frozen(kw_only=True)
class Found:
    """What one validation found.

    Attributes:
        lod: level of the gists.
        all, recall: R over all tokens and over recall tokens, by slots.
        by_domain: R over all tokens with the fewest slots, by domain.
        nll: nats per token with the fewest slots.
        recall_share: share of the tokens that are recall tokens.
    """

    lod: int = 1
    all: Mapping[int, float]
    recall: Mapping[int, float]
    by_domain: Mapping[str, float]
    nll: float
    recall_share: float

    @property
    def score(self) -> float:
        """One number to compare checkpoints by, higher is better: the mean of all R."""
        found = [*self.all.values(), *self.recall.values()]
        return sum(found) / len(found)

    def row(self) -> dict[str, float]:
        """Return the figures by the names of curves."""
        prefix = "validation/" if self.lod == 1 else f"validation/lod{self.lod}_"
        row = {"score": self.score, "loss_at_h": self.nll}
        for slots in self.all:
            row[f"recovery_all_s{slots}"] = self.all[slots]
            row[f"recovery_recall_s{slots}"] = self.recall[slots]
        row |= {f"recovery_{name}": r for name, r in self.by_domain.items()}
        return {prefix + name: value for name, value in row.items()}


def window_of(lod: int, window_tokens: int) -> int:
    """Return the length of validation windows: LOD2 needs whole units before the raw tokens."""
    return window_tokens if lod == 1 else _K**lod + RAW_TOKENS


class Validation:
    """Held-out windows, and how an encoder does on them.

    Args:
        base: the frozen base, float32.
        model: the encoder that is measured, as it is whenever this is called.
        windows: of held-out documents.
        slots: for which R is measured.
        lod: level of the gists.
        trained_window: rows the base was trained on; of longer windows the full context is the
            newest tokens that fit.
    """

    def __init__(
        self,
        base: nn.Module,
        model: GistModel,
        windows: Windows,
        *,
        slots: tuple[int, ...],
        lod: int = 1,
        trained_window: int,
    ) -> None:
        self._reader, self._model = Reader(base), model
        self._windows, self._slots, self._lod = windows, slots, lod
        self._scored = counted_tail(windows.n_tokens)
        ids = windows.token_ids
        full = np.arange(max(0, windows.n_tokens - trained_window), windows.n_tokens)
        tail = tokens_only(gists_then_raw(windows.n_tokens, RAW_TOKENS, lod=lod))
        self.study = Study(
            self._reader.losses(ids, full, self._scored),
            self._reader.losses(ids, tail, self._scored),
            windows.documents,
            names=windows.domains,
        )

    def __call__(self) -> Found:
        """Measure the encoder as it is now."""
        gists = self._gists()
        nats = {slots: self._read(gists, slots) for slots in self._slots}
        found = {slots: self.study.recovery(one) for slots, one in nats.items()}
        fewest = self._slots[0]
        by_domain = {}
        for name in self._windows.known_domains:
            here = self.study.names == name
            by_domain[name] = self.study.where(here).recovery(nats[fewest][here]).all.value
        first = found[fewest]
        return Found(
            lod=self._lod,
            all={slots: one.all.value for slots, one in found.items()},
            recall={slots: one.recall.value for slots, one in found.items()},
            by_domain=by_domain,
            nll=first.nll.value,
            recall_share=float(self.study.is_recall.mean()),
        )

    def _read(self, gists: Floats, slots: int) -> Nats:
        n_tokens = self._windows.n_tokens
        keys = gists_then_raw(n_tokens, RAW_TOKENS, lod=self._lod, gist_slots=slots)
        rows = {self._lod: np.ascontiguousarray(gists[:, :, :slots])}
        return self._reader.losses(self._windows.token_ids, keys, self._scored, rows)

    @torch.no_grad()
    def _gists(self) -> Floats:
        """Return the encoder's gists, float32[n, nodes, S, d]."""
        ids = torch.from_numpy(self._windows.token_ids)
        device = self._model.device
        parts = [
            gists_of(self._model, one.to(device), self._lod)[self._lod].cpu().numpy()
            for one in ids.split(_WINDOWS_PER_PASS)
        ]
        return np.concatenate(parts)


def gists_of(
    model: GistModel, token_ids: Tensor, lod: int, *, learns_blocks: bool = False
) -> dict[int, Tensor]:
    """Return gists of windows by level, float32[B, nodes, S, d].

    Args:
        model: the encoder.
        token_ids: int64[B, T].
        lod: 1 or 2; only whole LOD2 units have a parent.
        learns_blocks: False makes no graph below the parents, where LOD1 is frozen.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and (learns_blocks or lod == 1)):
        blocks = model.blocks(token_ids)
    found = {1: blocks.float()}
    if lod > 1:
        whole = blocks.shape[1] // _K * _K
        children = blocks[:, :whole].reshape(-1, _K, *blocks.shape[2:])
        with torch.no_grad():
            sizes = model.block_sizes(token_ids)[:, :whole].reshape(-1, _K)
        parents = model.parents(children, 2, sizes)
        found[2] = parents.float().view(len(token_ids), whole // _K, *blocks.shape[2:])
    return found


def refuse_without_context(found: Found, least: float, name: str) -> None:
    """Refuse a base that does not use its context: there would be nothing to recover.

    Raises:
        ModelError: too few recall tokens.
    """
    if found.recall_share < least:
        raise ModelError(
            f"{name} loses more than {RECALL_NATS} nat at only {found.recall_share:.2%} of the "
            f"held-out tokens when what stands before is dropped, less than {least:.2%}: it hardly "
            "uses its context. Train the base on text that needs memory first, or lower "
            "least_recall_share in the recipe",
            recall_share=found.recall_share,
        )
