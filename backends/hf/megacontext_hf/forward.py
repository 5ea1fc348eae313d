"""One forward pass over new rows of a window, through the model's own code.

This is the plain path, right for every model family, and the oracle of `llama_forward`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megacontext_hf.cache import SlotCache
    from megacontext_hf.foreign import HfModel
    from megacontext_sdk.contracts.model import RowBatch

__all__ = ["ModelForward"]


class ModelForward:
    """Calls a transformers model with vectors, positions, our cache and a ready mask.

    Args:
        model: a causal language model.
    """

    def __init__(self, model: HfModel) -> None:
        self._model = model
        self._decoder = model.get_decoder()
        self._embedding: nn.Embedding = model.get_input_embeddings()
        self.device: torch.device = model.device
        self.dtype: torch.dtype = self._embedding.weight.dtype

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return embedding rows [n, d] for int64[n]."""
        rows: Tensor = self._embedding(token_ids)
        return rows

    def embed_rows(self, rows: RowBatch) -> Tensor:
        """Return [1, n, d]: embedding rows, and vectors where the id is -1."""
        ids = torch.from_numpy(np.maximum(rows.token_ids, 0).astype(np.int64))
        x = self.embed(ids.to(self.device))
        if len(rows.vectors):
            where = torch.from_numpy(np.flatnonzero(rows.token_ids < 0)).to(self.device)
            vectors = torch.from_numpy(np.ascontiguousarray(rows.vectors))
            x = x.index_copy(0, where, vectors.to(self.device, self.dtype))
        return x[None]

    def hidden(
        self, x: Tensor, positions: Tensor, cache: SlotCache | None, mask: Tensor | None
    ) -> Tensor:
        """Return final hidden states [1, n, d].

        Args:
            x: input vectors [1, n, d].
            positions: int64[1, n].
            cache: aimed at the rows' slots; None for a pass that keeps nothing.
            mask: additive [1, 1, n, m] over what the cache shows. None where every row sees all
                of it up to itself.
        """
        states: Tensor = self._decoder(
            inputs_embeds=x,
            position_ids=positions,
            past_key_values=cache,
            attention_mask=mask,
            use_cache=cache is not None,
            return_dict=True,
        ).last_hidden_state
        return states

    def logits(
        self, x: Tensor, positions: Tensor, cache: SlotCache, mask: Tensor | None, row: int | None
    ) -> Tensor:
        """Return logits [n, vocab] of all rows, or [1, vocab] of one; arguments as in `hidden`.

        The model's own head is asked, since some scale or cap their logits.
        """
        is_whole = row is None or x.shape[1] == 1
        keep = 0 if is_whole else torch.tensor([row], device=x.device)
        logits: Tensor = self._model(
            inputs_embeds=x,
            position_ids=positions,
            past_key_values=cache,
            attention_mask=mask,
            use_cache=True,
            return_dict=True,
            logits_to_keep=keep,
        ).logits
        return logits[0]
