"""Ratios of sums with bootstrap intervals over documents; what is summed is others' business.

Every figure here is a ratio of two sums over windows. A resample draws whole documents with all
their windows, because windows of one document are alike, and takes the ratio inside: the mean of
many small ratios would be ruled by windows where there is almost nothing to recover. One
`Bootstrap` draws once, so all figures over the same windows are compared on the same resamples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Bootstrap", "Estimate", "Nats"]

Nats: TypeAlias = NDArray[np.float64]
"""Losses, float64."""

N_RESAMPLES = 2000
_LEVEL = 95.0
_TINY = 1e-12


@attrs.frozen
class Estimate:
    """A figure with its 95 % interval; not a number where nothing could be measured.

    Attributes:
        value: the figure over all documents.
        low, high: percentiles 2.5 and 97.5 of the resamples.
        n: windows that counted.
    """

    value: float
    low: float
    high: float
    n: int

    def is_above(self, other: Estimate) -> bool:
        """Tell whether the two intervals are apart, this one higher."""
        return self.low > other.high


class Bootstrap:
    """Resamples of documents, drawn once for a set of windows.

    Args:
        documents: for each window the document it is from.
        n_resamples: how many.
        seed: fixes the draws.
    """

    def __init__(
        self, documents: Sequence[str], *, n_resamples: int = N_RESAMPLES, seed: int = 0
    ) -> None:
        names, self._document = np.unique(np.asarray(documents, dtype=str), return_inverse=True)
        self.n_documents = len(names)
        rng = np.random.default_rng(seed)
        share = np.full(self.n_documents, 1.0 / max(1, self.n_documents))
        # How often each document is drawn, float64[n_resamples, n_documents].
        self._times = rng.multinomial(self.n_documents, share, n_resamples).astype(np.float64)

    def ratio(self, top: Nats, bottom: Nats) -> Estimate:
        """Return sum(top) / sum(bottom) over windows.

        Args:
            top, bottom: float64[n], one number per window. A window that is to be left out has 0
                in both.
        """
        counted = int(((bottom != 0) | (top != 0)).sum())
        above, below = self._by_document(top), self._by_document(bottom)
        drawn = _divide(self._times @ above, self._times @ below)
        return _estimate(_divide(above.sum(), below.sum()), drawn, counted)

    def difference(self, top: Nats, bottom: Nats, top2: Nats, bottom2: Nats) -> Estimate:
        """Return the first ratio minus the second, paired: both from the same resamples."""
        above, below = self._by_document(top), self._by_document(bottom)
        above2, below2 = self._by_document(top2), self._by_document(bottom2)
        drawn = _divide(self._times @ above, self._times @ below)
        drawn2 = _divide(self._times @ above2, self._times @ below2)
        value = _divide(above.sum(), below.sum()) - _divide(above2.sum(), below2.sum())
        return _estimate(value, drawn - drawn2, len(top))

    def share_positive(self, values: Nats, counted: Nats) -> float:
        """Return the share of documents whose sum of `values` is above 0.

        Args:
            values: float64[n].
            counted: float64[n]; documents where its sum is 0 are left out.
        """
        sums, weights = self._by_document(values), self._by_document(counted)
        there = weights > 0
        return float((sums[there] > 0).mean()) if there.any() else float("nan")

    def _by_document(self, values: Nats) -> Nats:
        sums = np.bincount(self._document, values, minlength=self.n_documents)
        return sums.astype(np.float64)


def _divide(top: Nats, bottom: Nats) -> Nats:
    """Divide; not a number where there is nothing to divide by."""
    bottom = np.asarray(bottom, np.float64)
    safe = np.where(np.abs(bottom) > _TINY, bottom, np.nan)
    result: Nats = np.asarray(top, np.float64) / safe
    return result


def _estimate(value: Nats, drawn: Nats, n: int) -> Estimate:
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn) or not np.isfinite(value):
        return Estimate(float(value), float("nan"), float("nan"), n)
    low, high = np.percentile(drawn, [50 - _LEVEL / 2, 50 + _LEVEL / 2])
    return Estimate(float(value), float(low), float(high), n)
