"""Heuristic focus, the default: shared rare words first, then similarity, recency, precision.

Six features, one weighted sum, and the line where the budget is full. No training, no state: what
it keeps between calls are only values of pure functions. Source: `docs/explanation` on focus.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.builtin.node_cache import NodeCache
from megacontext_sdk.builtin.threshold import candidates, focus_scores
from megacontext_sdk.contracts.focus import FocusPolicy, Reveal
from megacontext_sdk.memory.lod import BLOCK_SIZE, widths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from megacontext_sdk.builtin.threshold import Candidates
    from megacontext_sdk.contracts.arrays import Floats, Indices
    from megacontext_sdk.contracts.focus import FocusView, LexicalHits

__all__ = ["HeuristicFocus", "HeuristicWeights"]

LEXICAL_FLOOR = 4.0
"""Smallest score a lexical feature of 1 stands for: a weak best match is no full match."""

RECENCY_TOKENS = 2048
"""Distance from the cursor at which recency has fallen to 1/e."""

PRECISION_FULL = 4.0
"""Numbers, dates, ids, ... in a block that make its precision feature 1."""

MIN_SPREAD = 1e-6
"""Guards divisions by norms and deviations of zero."""

COSINE_SPREAD = 3.0
"""Standard deviations above the mean at which the cosine feature is 1."""


@attrs.frozen(kw_only=True)
class HeuristicWeights:
    """How much each feature, all in [0, 1], counts."""

    lexical: float = 1.0
    cosine: float = 0.4
    recency: float = 0.2
    stickiness: float = 0.1
    precision: float = 0.15


@attrs.frozen(eq=False)
class _Appraisal:
    """What the policy thinks of one view: candidates and their scores, float32[C]."""

    view: FocusView
    blocks: Indices
    found: Candidates
    scores: Floats


class HeuristicFocus(FocusPolicy):
    """Scores entries and hidden blocks by a weighted sum of simple features.

    Args:
        weights: of the features; the default was tuned on development sets.
    """

    name = "heuristic"

    def __init__(self, weights: HeuristicWeights | None = None) -> None:
        self._weights = weights or HeuristicWeights()
        self._cosines = NodeCache()
        self._precision = NodeCache()
        self._query: Floats | None = None
        self._last: _Appraisal | None = None

    def score(self, view: FocusView) -> Floats:
        """Return float32[E] in [-1, 1]; zero where the budget is full."""
        return self._appraise(view).scores[: len(view.entries)]

    def reveals(self, view: FocusView, limit: int) -> Sequence[Reveal]:
        """Return the blocks of lexical hits under coarse entries that are above the line."""
        seen = self._appraise(view)
        scores = seen.scores[len(view.entries) :]
        order = np.lexsort((-seen.blocks, -scores))[: max(limit, 0)]
        return [
            Reveal(block=int(seen.blocks[i]), utility=float(scores[i]), reason="lexical")
            for i in order
            if scores[i] > 0
        ]

    def _appraise(self, view: FocusView) -> _Appraisal:
        if self._last is None or self._last.view is not view:
            blocks, lexical = _hit_blocks(view.hits, view.n_blocks)
            is_hidden = _covering_lod(view, blocks) >= 2
            found = candidates(view.entries, blocks[is_hidden])
            utility = self._utility(view, found, blocks, lexical)
            scores = focus_scores(found, utility, view.entries, view.budget)
            self._last = _Appraisal(view, blocks[is_hidden], found, scores)
        return self._last

    def _utility(
        self, view: FocusView, found: Candidates, blocks: Indices, lexical: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        w = self._weights
        total = w.lexical * _max_over_spans(found, blocks, lexical)
        total += w.recency * np.exp(-np.maximum(view.n_tokens - found.end, 0) / RECENCY_TOKENS)
        total += w.stickiness * found.is_raw
        total += w.cosine * self._cosine(view, found)
        total += w.precision * self._precision_bias(view, found)
        return total

    def _cosine(self, view: FocusView, found: Candidates) -> NDArray[np.float64]:
        """Return clip(z / 3, 0, 1), z the z-score of cos(query, gist) among candidates."""
        if self._query is None or not np.array_equal(self._query, view.query_vector):
            self._cosines.clear()
            self._query = view.query_vector.copy()
        cosine = np.zeros(len(found))
        lod = np.maximum(found.lod, 1)
        index = found.start // widths(lod)
        has_gist = (index + 1) * widths(lod) <= view.n_tokens
        if not has_gist.any() or not view.query_vector.any():
            return cosine
        for level in np.unique(lod[has_gist]).tolist():
            at = np.flatnonzero(has_gist & (lod == level))
            cosine[at] = self._cosines.get(level, index[at], partial(_cosines, view, level))
        ranked = cosine[found.is_free & has_gist]
        if not len(ranked):
            return np.zeros(len(found))
        z = (cosine - ranked.mean()) / max(float(ranked.std()), MIN_SPREAD)
        return np.where(has_gist, np.clip(z / COSINE_SPREAD, 0.0, 1.0), 0.0)

    def _precision_bias(self, view: FocusView, found: Candidates) -> NDArray[np.float64]:
        """Return min(1, n / 4) of blocks at LOD0 or LOD1, 0 for coarser nodes, float64[C]."""
        block = found.start // BLOCK_SIZE
        at = np.flatnonzero((found.lod <= 1) & (block < view.n_blocks))
        bias = np.zeros(len(found))
        counts = self._precision.get(0, block[at], view.tree.precision)
        bias[at] = np.minimum(1.0, counts / PRECISION_FULL)
        return bias


def _cosines(view: FocusView, lod: int, nodes: Indices) -> Floats:
    """Return cos(query, gist) of nodes, float32[n]; of S slots the first spans the whole node."""
    gists = view.tree.gists(lod, nodes)[:, 0]
    query = view.query_vector
    norms = np.linalg.norm(gists, axis=1) * np.linalg.norm(query)
    cosines: Floats = (gists @ query / np.maximum(norms, MIN_SPREAD)).astype(np.float32)
    return cosines


def _hit_blocks(hits: LexicalHits, n_blocks: int) -> tuple[Indices, NDArray[np.float64]]:
    """Return the full blocks hits touch, ascending, and the best lexical feature of each."""
    if not len(hits):
        return np.empty(0, np.int64), np.empty(0)
    first = hits.start // BLOCK_SIZE
    count = np.maximum(np.minimum(-(-hits.end // BLOCK_SIZE), n_blocks) - first, 0)
    within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    touched = np.repeat(first, count) + within
    feature = hits.score.astype(np.float64) / max(float(hits.score.max()), LEXICAL_FLOOR)
    blocks, place = np.unique(touched, return_inverse=True)
    lexical = np.zeros(len(blocks))
    np.maximum.at(lexical, place, np.repeat(feature, count))
    return blocks, lexical


def _covering_lod(view: FocusView, blocks: Indices) -> Indices:
    """Return the level of the entry that covers each block, int64[n]."""
    place = np.searchsorted(view.entries.start, blocks * BLOCK_SIZE, side="right") - 1
    lods: Indices = view.entries.lod[place].astype(np.int64)
    return lods


def _max_over_spans(
    found: Candidates, blocks: Indices, lexical: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the largest lexical feature within each candidate's span, float64[C]."""
    first = np.searchsorted(blocks, found.start // BLOCK_SIZE)
    last = np.searchsorted(blocks, -(-found.end // BLOCK_SIZE))
    best = np.zeros(len(found))
    has_hit = last > first
    if has_hit.any():
        # reduceat takes the maximum of [first, last) at even places; one past the end is padding.
        edges = np.column_stack([first[has_hit], last[has_hit]]).reshape(-1)
        best[has_hit] = np.maximum.reduceat(np.append(lexical, 0.0), edges)[::2]
    return best
