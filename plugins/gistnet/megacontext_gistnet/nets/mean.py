"""The `mean` gist as torch sees it: the warm start that every learned gist adds a residual to.

It follows the built-in `mean` encoder sum by sum: slot 0 is the span, slot 1 its second half,
slots 2 and 3 its quarters 2 and 4, each scaled to the RMS of a token row. What a parent needs
besides its children's rows is the *size* of a child, the RMS of its raw mean before scaling; the
encoders keep it as `aux`. For learned children the same formula gives the mean of their gists,
weighted by how large their raw means were, so an untrained encoder is `mean` at every level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BLOCK", "mean_row_rms", "mean_rows", "rms"]

BLOCK = 32
"""Tokens of a block, children of a parent."""

_TINY = 1e-30


def rms(x: Tensor) -> Tensor:
    """Return the root mean square over the last axis, [..., 1]."""
    return x.square().mean(-1, keepdim=True).sqrt()


def mean_rows(rows: Tensor, rho: float, slots: int) -> tuple[Tensor, Tensor]:
    """Average 32 rows as a whole and in parts, and scale each average to `rho`.

    Args:
        rows: float32[n, 32, d], embedding rows of a block or raw means of children.
        rho: RMS of a gist.
        slots: S, one of 1, 2, 4.

    Returns:
        Gists [n, S, d], and the RMS of the whole's average, [n, 1].
    """
    sums = rows.reshape(len(rows), 4, BLOCK // 4, -1).sum(2)
    second = sums[:, 2] + sums[:, 3]
    means = [(sums[:, 0] + sums[:, 1] + second) / BLOCK]
    if slots > 1:
        means.append(second / (BLOCK // 2))
    if slots > 2:
        means += [sums[:, 1] / (BLOCK // 4), sums[:, 3] / (BLOCK // 4)]
    stacked = torch.stack(means, 1)
    sizes = rms(stacked)
    return stacked * (rho / sizes.clamp_min(_TINY)), sizes[:, 0]


def mean_row_rms(table: Tensor) -> float:
    """Return the mean over rows of their RMS for [V, d], in slices: it may be a gigabyte."""
    parts = table.detach().split(4096)
    return float(sum(float(rms(part.float()).double().sum()) for part in parts)) / len(table)
