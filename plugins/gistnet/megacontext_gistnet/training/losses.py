"""The losses, as plain functions of tensors: no model, no layout, no state.

Every formula has a hand-computed fixture in the tests. Nothing here loops over tokens; over a large
vocabulary rows are taken in chunks, and the logits of a chunk are computed again on the way back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Head = Callable[[Tensor], Tensor]

__all__ = [
    "diversity",
    "diversity_penalty",
    "info_nce",
    "token_nll",
    "token_weights",
    "transfer",
    "weighted_mean",
]

_MOST_LOGITS: Final = 1 << 26
"""Logits held at once; 256 MiB as float32."""


def token_weights(
    nll_drop: Tensor, nll_full: Tensor, counted: Tensor, *, floor: float, cap: float
) -> Tensor:
    """Return `floor + clip(NLL_drop - NLL_full, 0, cap)`, 0 where a token is not counted."""
    return (floor + (nll_drop - nll_full).clamp(0.0, cap)) * counted


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return `sum(w * x) / sum(w)`, a scalar; 0 where no weight is positive."""
    return (values * weights).sum() / weights.sum().clamp_min(1e-8)


def token_nll(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    """Return the nats of each target, float32[n].

    Args:
        head: hidden states to logits.
        hidden: [n, d].
        targets: int64[n], the token that follows; shifted by the caller.
    """
    parts = [
        functional.cross_entropy(head(rows).float(), wanted, reduction="none")
        for rows, wanted in zip(*_chunks(head, hidden, targets), strict=True)
    ]
    return torch.cat(parts)


def transfer(
    head: Head, student: Tensor, teacher: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Return KL(P_teacher || P_student) and the student's nats, each float32[n].

    Args:
        head: hidden states to logits; the same for both.
        student, teacher: final hidden states [n, d]; the teacher's carry no gradient.
        targets: int64[n].
    """
    parts = list(zip(*_chunks(head, student, teacher, targets), strict=True))
    if len(parts) == 1:
        return _transfer(head, *parts[0])
    found = [checkpoint(_transfer, head, *part, use_reentrant=False) for part in parts]
    kl, nll = zip(*found, strict=True)
    return torch.cat(kl), torch.cat(nll)


def _transfer(
    head: Head, student: Tensor, teacher: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    log_q = functional.log_softmax(head(student).float(), dim=-1)
    with torch.no_grad():
        log_p = functional.log_softmax(head(teacher).float(), dim=-1)
        p = log_p.exp()
        negative_entropy = (p * log_p).sum(dim=-1)
    cross = (p * log_q).sum(dim=-1)
    nll = -log_q.gather(-1, targets[:, None])[:, 0]
    return negative_entropy - cross, nll


def _chunks(head: Head, first: Tensor, *others: Tensor) -> list[tuple[Tensor, ...]]:
    vocab = head(first[:1].detach()).shape[-1]
    size = max(1, _MOST_LOGITS // vocab)
    return [one.split(size) for one in (first, *others)]


def info_nce(keys: Tensor, queries: Tensor, temperature: float) -> Tensor:
    """Return the contrastive loss of matching rows against all others of the batch, a scalar.

    Args:
        keys, queries: [n, e]; row i of one belongs to row i of the other.
    """
    scores = functional.normalize(queries.float(), dim=-1) @ (
        functional.normalize(keys.float(), dim=-1).T
    )
    wanted = torch.arange(len(keys), device=keys.device)
    return functional.cross_entropy(scores / temperature, wanted)


def diversity(gists: Tensor) -> Tensor:
    """Return `1 - mean cosine` of neighbouring gists, a scalar; gists [B, n, d]."""
    return 1.0 - _neighbour_cosine(gists).mean()


def diversity_penalty(gists: Tensor, margin: float = 0.2) -> Tensor:
    """Return `mean max(0, margin - (1 - cos(g_i, g_i+1)))`, a scalar; gists [B, n, d]."""
    return (margin - (1.0 - _neighbour_cosine(gists))).clamp_min(0.0).mean()


def _neighbour_cosine(gists: Tensor) -> Tensor:
    return functional.cosine_similarity(gists[:, :-1].float(), gists[:, 1:].float(), dim=-1)
