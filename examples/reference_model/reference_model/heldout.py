"""Losses on held-out documents: by domain and layout, and what older text is worth.

It sees documents of tokens and a model; nothing is generated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np
import torch

from reference_model.model import next_token_losses

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from megacontext_gistnet.corpus import TokenStore
    from megacontext_sdk.contracts.arrays import Ids

__all__ = ["ContextGain", "context_gains", "held_out_losses", "held_out_texts"]

_BATCH_TOKENS = 16_384
_SHORTEST = 32
_GAIN_WINDOW, _GAIN_TAIL = 512, 96


@attrs.frozen
class ContextGain:
    """What the older part of a window is worth to the model.

    Attributes:
        full: loss on the last 95 of 512 tokens, in nats per token, with all 512 in view.
        drop: the same tokens, with only the last 96 in view.
        n_windows: how many windows.
    """

    full: float
    drop: float
    n_windows: int

    @property
    def gain(self) -> float:
        """Nats per token that dropping the older tokens costs."""
        return self.drop - self.full


def held_out_texts(store: TokenStore, chat_ids: Sequence[int], most: int) -> dict[str, list[Ids]]:
    """Return held-out documents by domain, chats apart: "dialogue" and "dialogue, chat".

    Args:
        store: tokens.
        chat_ids: tokens that open a message; a document with one near its start is a chat.
        most: documents of each; taken evenly from all of them.
    """
    found: dict[str, list[Ids]] = {}
    for document in store.documents("held-out"):
        is_chat = bool(np.isin(document.token_ids[:4], chat_ids).any())
        name = f"{document.domain}, chat" if is_chat else document.domain
        if len(document.token_ids) >= _SHORTEST:
            found.setdefault(name, []).append(document.token_ids)
    return {
        name: texts[:: max(1, len(texts) // most)][:most] for name, texts in sorted(found.items())
    }


def held_out_losses(model: nn.Module, texts: dict[str, list[Ids]], window: int) -> dict[str, float]:
    """Return the mean loss in nats per token of each group of texts, on their first window."""
    return {
        name: float(
            np.concatenate(list(_losses(model, [one[: window + 1] for one in some]))).mean()
        )
        for name, some in texts.items()
    }


def context_gains(model: nn.Module, texts: dict[str, list[Ids]]) -> dict[str, ContextGain]:
    """Return what older text is worth, for each group that has windows of 512 tokens."""
    found: dict[str, ContextGain] = {}
    for name, some in texts.items():
        windows = [one[:_GAIN_WINDOW] for one in some if len(one) >= _GAIN_WINDOW]
        if windows:
            n_counted = _GAIN_TAIL - 1
            full = [losses[-n_counted:] for losses in _losses(model, windows)]
            drop = list(_losses(model, [one[-_GAIN_TAIL:] for one in windows]))
            means = float(np.mean(full)), float(np.mean(drop))
            found[name] = ContextGain(*means, len(windows))
    return found


def _losses(model: nn.Module, texts: list[Ids]) -> Iterator[np.ndarray]:
    """Yield the losses of each text, float32[n - 1], in the order given; equal lengths together."""
    device = next(model.parameters()).device
    at = 0
    while at < len(texts):
        length = len(texts[at])
        end, most = at + 1, max(1, _BATCH_TOKENS // length)
        while end < len(texts) and len(texts[end]) == length and end - at < most:
            end += 1
        batch = torch.from_numpy(np.stack(texts[at:end]).astype(np.int64)).to(device)
        with torch.inference_mode():
            yield from next_token_losses(model, batch).cpu().numpy()
        at = end
