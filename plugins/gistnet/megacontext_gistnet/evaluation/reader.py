"""Reads windows through the frozen base and returns what each token cost it.

The base runs as it is served: embedding rows in, gists where the layout has gists, positions
0, 1, 2, ... Row r predicts the token of row r + 1; that shift happens here and nowhere else. Always
in float32: bfloat16 noise is as large as the differences that are measured.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch.nn import functional

from megacontext_gistnet.evaluation.rows import gist_parts, is_token, rows_of_tokens
from megacontext_sdk.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from megacontext_gistnet.evaluation.statistics import Nats
    from megacontext_sdk.contracts.arrays import Floats, Indices
    from megacontext_sdk.contracts.model import ModelAdapter

__all__ = ["Reader", "frozen_base"]

_ROWS_PER_PASS = 4096
_LOGITS_PER_PASS = 2**25  # numbers: 128 MiB of float32
_NO_GISTS: Mapping[int, Floats] = {}


def frozen_base(adapter: ModelAdapter) -> nn.Module:
    """Return the adapter's model in float32, the adapter's own one where it is that already.

    Raises:
        ModelError: the adapter holds no torch model.
    """
    base = cast("nn.Module", adapter.torch_module())
    if all(one.dtype == torch.float32 for one in base.parameters()):
        return base
    return copy.deepcopy(base).float()


class Reader:
    """The base as something that reads rows.

    Args:
        base: a causal language model of transformers, float32, in evaluation mode. It is not
            changed.
        sink: token laid raw in front of every layout, such as BOS; None lays nothing there.

    Raises:
        ModelError: the base does not compute in float32.
    """

    def __init__(self, base: nn.Module, *, sink: int | None = None) -> None:
        dtype = next(base.parameters()).dtype
        if dtype != torch.float32:
            message = f"the base computes in {dtype}; give a float32 copy (`frozen_base`)"
            raise ModelError(message, dtype=str(dtype))
        self.base = base
        self.sink = sink
        self.device = next(base.parameters()).device
        self._embedding = cast("nn.Module", base.get_input_embeddings())  # type: ignore[operator]

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return input rows float32[..., d] of int64 token ids."""
        return cast("Tensor", self._embedding(token_ids))

    def losses(
        self,
        token_ids: Indices,
        keys: Indices,
        scored: Indices,
        gists: Mapping[int, Floats] = _NO_GISTS,
        advance: Callable[[int], None] = lambda _: None,
    ) -> Nats:
        """Return the nats of the scored tokens of each window, float64[n, m].

        Args:
            token_ids: int64[n, T], windows of one length, each a history of its own.
            keys: int64[R], the rows laid out, the same for all windows.
            scored: int64[m], indices of tokens; each stands raw behind the raw token before it.
            gists: level -> float32[n, nodes, S, d], for the levels that `keys` names.
            advance: told how many windows were read.
        """
        rows = rows_of_tokens(keys, scored)
        n_fed = int(rows.max()) if len(rows) else 0
        step = self._windows_per_pass(n_fed, len(scored))
        parts = []
        for at in range(0, len(token_ids), step):
            piece = slice(at, at + step)
            ids = torch.from_numpy(np.asarray(token_ids[piece], np.int64)).to(self.device)
            with torch.inference_mode():
                laid = self.lay_out(ids, keys[:n_fed], _cut(gists, piece, self.device))
                logits = self.logits(laid, rows - 1)
                parts.append(nats(logits, ids[:, torch.from_numpy(scored)]).cpu().numpy())
            advance(len(ids))
        return np.concatenate(parts) if parts else np.empty((0, len(scored)))

    def lay_out(self, token_ids: Tensor, keys: Indices, gists: Mapping[int, Tensor]) -> Tensor:
        """Return the rows of a layout, float32[n, R, d], the sink's row not among them.

        Args:
            token_ids: int64[n, T].
            keys: int64[R].
            gists: level -> float32[n, nodes, S, d].
        """
        token = is_token(keys)
        tokens = self.embed(token_ids[:, torch.from_numpy(keys[token])])
        if token.all():
            return tokens
        laid = tokens.new_empty(len(token_ids), len(keys), tokens.shape[-1])
        laid[:, torch.from_numpy(token)] = tokens
        lods, nodes, slots = gist_parts(keys[~token])
        places = np.flatnonzero(~token)
        for lod in np.unique(lods):
            here = lods == lod
            rows = gists[int(lod)][:, torch.from_numpy(nodes[here]), torch.from_numpy(slots[here])]
            laid[:, torch.from_numpy(places[here])] = rows
        return laid

    def logits(self, laid: Tensor, rows: Indices) -> Tensor:
        """Return what some rows predict, float32[n, m, vocab].

        Args:
            laid: float32[n, R, d] from `lay_out`.
            rows: int64[m], rows of `laid`.
        """
        shift = 0
        if self.sink is not None:
            sink = torch.full((len(laid), 1), self.sink, dtype=torch.int64, device=laid.device)
            laid = torch.cat([self.embed(sink), laid], dim=1)
            shift = 1
        positions = torch.arange(laid.shape[1], device=laid.device)[None]
        kept = torch.from_numpy(rows + shift).to(laid.device)
        output = self.base(
            inputs_embeds=laid, position_ids=positions, use_cache=False, logits_to_keep=kept
        )
        return cast("Tensor", output.logits)

    def _windows_per_pass(self, n_rows: int, n_scored: int) -> int:
        vocab: int = self.base.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
        by_rows = _ROWS_PER_PASS // max(1, n_rows)
        by_logits = _LOGITS_PER_PASS // max(1, n_scored * vocab)
        return max(1, min(by_rows, by_logits))


def nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log p of the targets, float32[n, m]: row i of the logits predicts target i."""
    flat = functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="none"
    )
    return flat.view(targets.shape)


def _cut(gists: Mapping[int, Floats], piece: slice, device: torch.device) -> dict[int, Tensor]:
    cut = {}
    for lod, rows in gists.items():
        if rows.ndim != 4:
            message = f"LOD{lod} gists have shape {rows.shape}; give float32[n, nodes, S, d]"
            raise ConfigError(message, field="gists", value=rows.shape)
        cut[lod] = torch.from_numpy(np.ascontiguousarray(rows[piece], np.float32)).to(device)
    return cut
