"""Recovery: how much of what dropping the history costs a replacement of the history gives back.

    R = sum(NLL_drop - NLL_x) / sum(NLL_drop - NLL_full)

over the counted tokens of all windows, a ratio of sums (spec 4.6). R is 0 for dropping and 1 for
the full context. Mean differences alone flatter every method, since dropping costs most tokens
nothing, so R is given twice: over all tokens, and over recall tokens, those that dropping makes
more than half a nat worse. Which tokens those are is decided by drop and full alone. Windows with
nothing to recover are left out of R, and counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_gistnet.evaluation.statistics import Bootstrap
from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from megacontext_gistnet.evaluation.statistics import Estimate, Nats
    from megacontext_sdk.contracts.arrays import Bools

__all__ = ["RECALL_NATS", "SMALLEST_GAIN_NATS", "Recovery", "Study"]

RECALL_NATS = 0.5
"""A token is a recall token if dropping costs it more than this."""

SMALLEST_GAIN_NATS = 0.01
"""A window whose whole gain, full against drop, is below this has nothing to recover."""


@attrs.frozen(kw_only=True)
class Recovery:
    """How one replacement of the history did.

    Attributes:
        nll: nats per counted token.
        delta_nll: the same, minus that of the full context.
        all: R over all counted tokens.
        recall: R over recall tokens.
        by_seed: R over all tokens of each seed's windows.
        share_positive: share of windows with something to recover where R is above 0.
        share_not_worse: share of all windows where the sum is not above that of dropping.
        share_documents: share of documents where R, over all their windows, is above 0.
        n_windows, n_documents, n_skipped, n_tokens, n_recall_tokens: what was counted; skipped are
            windows with nothing to recover.
    """

    nll: Estimate
    delta_nll: Estimate
    all: Estimate
    recall: Estimate
    by_seed: tuple[float, ...]
    share_positive: float
    share_not_worse: float
    share_documents: float
    n_windows: int
    n_documents: int
    n_skipped: int
    n_tokens: int
    n_recall_tokens: int


class Study:
    """Windows that were read with the full context and without: what others are measured against.

    Args:
        full, drop: float64[n, t], nats of each counted token of each window. NaN where a window
            has fewer counted tokens.
        documents: for each window the document it is from.
        seeds: int[n], which sampling seed each window is from; by default all are of one.
        names: for each window a label that `part` selects by, such as its domain.

    Raises:
        ConfigError: arrays of different shapes.
    """

    def __init__(
        self,
        full: Nats,
        drop: Nats,
        documents: Sequence[str],
        *,
        seeds: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.full, self.drop = full, drop
        self.documents = tuple(documents)
        self.seeds = np.zeros(len(full), np.int64) if seeds is None else np.asarray(seeds)
        self.names = np.asarray([""] * len(full) if names is None else names, dtype=str)
        self._check(drop)
        gain = drop - full
        self._counted = np.isfinite(gain)
        self._is_recall = self._counted & (np.nan_to_num(gain) > RECALL_NATS)
        total = _sum(gain, self._counted)
        self._has_gain = total >= SMALLEST_GAIN_NATS
        self._gain = np.where(self._has_gain, total, 0.0)
        self._recall_gain = np.where(self._has_gain, _sum(gain, self._is_recall), 0.0)
        self._n_tokens = self._counted.sum(axis=1).astype(np.float64)
        self._bootstrap = Bootstrap(self.documents)

    def __len__(self) -> int:
        return len(self.full)

    @property
    def is_recall(self) -> Bools:
        """Which tokens are recall tokens, bool[n, t]; drop and full alone decide."""
        return self._is_recall

    def part(self, name: str) -> Study:
        """Return the study of the windows with this label."""
        return self.where(self.names == name)

    def where(self, chosen: Bools) -> Study:
        """Return the study of some windows, bool[n]."""
        return Study(
            self.full[chosen],
            self.drop[chosen],
            [one for one, is_in in zip(self.documents, chosen, strict=True) if is_in],
            seeds=self.seeds[chosen].tolist(),
            names=self.names[chosen].tolist(),
        )

    def tokens(self, chosen: slice) -> Study:
        """Return the study of some of the counted tokens of every window."""
        return Study(
            self.full[:, chosen],
            self.drop[:, chosen],
            self.documents,
            seeds=self.seeds.tolist(),
            names=self.names.tolist(),
        )

    def recovery(self, nll: Nats) -> Recovery:
        """Return what a replacement recovers.

        Args:
            nll: float64[n, t], its nats of the same tokens.

        Raises:
            ConfigError: another shape, or a number that is not finite where it is counted.
        """
        self._check(nll)
        saved, recall = self._saved(nll)
        ratio = self._bootstrap.ratio
        summed, full = _sum(nll, self._counted), _sum(self.full, self._counted)
        worse = _sum(nll, self._counted) > _sum(self.drop, self._counted)
        return Recovery(
            nll=ratio(summed, self._n_tokens),
            delta_nll=ratio(summed - full, self._n_tokens),
            all=ratio(saved, self._gain),
            recall=ratio(recall, self._recall_gain),
            by_seed=tuple(self._of_seed(saved, seed) for seed in np.unique(self.seeds)),
            share_positive=_mean(saved[self._has_gain] > 0),
            share_not_worse=_mean(~worse),
            share_documents=self._bootstrap.share_positive(saved, self._gain),
            n_windows=len(self.full),
            n_documents=self._bootstrap.n_documents,
            n_skipped=int((~self._has_gain).sum()),
            n_tokens=int(self._n_tokens.sum()),
            n_recall_tokens=int(self._is_recall[self._has_gain].sum()),
        )

    def difference(self, nll: Nats, other: Nats) -> Mapping[str, Estimate]:
        """Return R of one replacement minus R of another, paired: over "all" and "recall" tokens.

        Args:
            nll, other: float64[n, t], as for `recovery`.
        """
        self._check(nll)
        self._check(other)
        (saved, recall), (saved2, recall2) = self._saved(nll), self._saved(other)
        apart = self._bootstrap.difference
        return {
            "all": apart(saved, self._gain, saved2, self._gain),
            "recall": apart(recall, self._recall_gain, recall2, self._recall_gain),
        }

    def _saved(self, nll: Nats) -> tuple[Nats, Nats]:
        """Return what was saved against dropping: over all tokens and over recall tokens."""
        saved = np.where(self._has_gain, _sum(self.drop - nll, self._counted), 0.0)
        recall = np.where(self._has_gain, _sum(self.drop - nll, self._is_recall), 0.0)
        return saved, recall

    def _of_seed(self, saved: Nats, seed: int) -> float:
        here = self.seeds == seed
        gain = float(self._gain[here].sum())
        return float(saved[here].sum()) / gain if gain else float("nan")

    def _check(self, nll: Nats) -> None:
        if nll.shape != self.full.shape or len(self.documents) != len(nll):
            message = (
                f"losses of shape {nll.shape} do not fit {len(self.documents)} windows of full "
                f"context of shape {self.full.shape}; read the same windows"
            )
            raise ConfigError(message, field="nll", value=nll.shape)
        counted = np.isfinite(self.full)
        if not np.isfinite(nll[counted]).all():
            message = (
                "a loss is not finite where the full context has one: look at the gists for "
                "numbers that are none"
            )
            raise ConfigError(message, field="nll", value="not finite")


def _sum(values: Nats, counted: Bools) -> Nats:
    """Sum the counted numbers of each window, float64[n]."""
    result: Nats = np.where(counted, values, 0.0).sum(axis=1, dtype=np.float64)
    return result


def _mean(flags: Bools) -> float:
    return float(flags.mean()) if len(flags) else float("nan")
