"""Heuristic focus, the default: shared rare words first, then similarity, recency, precision.

Five features, one weighted sum, and the line where the budget is full. No training, no state: what
it keeps between calls are only values of pure functions. Source: `docs/explanation` on focus.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.builtin.node_cache import NodeCache
from megacontext_sdk.builtin.threshold import choose, focus_scores, signed_size, spread
from megacontext_sdk.contracts.focus import FocusPolicy, Reveal
from megacontext_sdk.memory.lod import BLOCK_SIZE, widths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Floats, Indices
    from megacontext_sdk.contracts.focus import EntryArrays, FocusView, LexicalHits

__all__ = ["HeuristicFocus", "HeuristicWeights"]

LEXICAL_FLOOR = 4.0
"""Smallest score a lexical feature of 1 stands for: a weak best match is no full match."""

STRONG_SHARE = 0.85
"""Share of the best score from which on a hit is strong."""

LEAD_BLOCKS = 4
"""Raw blocks shown in front of a strong hit, so that the model reads it behind raw text."""

LEAD_ROWS = 640
"""Smallest target that has rows to spend on what leads up to a hit."""

RIVAL_SHARE = 0.55
"""Share of the best score from which on a hit may be the one that is meant ..."""

FEW_RIVALS = 2
"""... and up to how many of them the best stands out, so that weak hits are left alone."""

MORE_BLOCKS = 20
"""Further raw blocks in front of a best hit that stands out."""

MORE_SHARE = 0.65
"""Lexical feature of these blocks."""

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
    """How much each feature, all in [0, 1], counts.

    Tuned on meetings with known evidence (QMSum, training part), by evidence found at 512, 1,024
    and 2,048 rows: of the published starting values only that of the cosine moved, from 0.4, which
    lost one point there, to 0.1. The base's attention is no feature yet: adapters do not expose it.
    """

    lexical: float = 1.0
    cosine: float = 0.1
    recency: float = 0.2
    stickiness: float = 0.1
    precision: float = 0.15


@attrs.frozen(eq=False)
class _Nodes:
    """Nodes to appraise: int64[n] each; a block is the LOD1 node over it."""

    lod: Indices
    index: Indices
    is_raw: NDArray[np.bool_]
    is_movable: NDArray[np.bool_]

    @property
    def end(self) -> Indices:
        """Token index past the last token of each."""
        end: Indices = (self.index + 1) * widths(self.lod)
        return end


@attrs.frozen(eq=False)
class _Hits:
    """Hits as ranges of full blocks with a lexical feature in (0, 1]; all blocks they touch."""

    ranges: tuple[range, ...]
    feature: NDArray[np.float64]
    blocks: Indices


@attrs.frozen(eq=False)
class _Opinion:
    """What the policy thinks of one view."""

    view: FocusView
    scores: Floats
    reveals: tuple[Reveal, ...]


class HeuristicFocus(FocusPolicy):
    """Scores entries and hidden blocks by a weighted sum of simple features.

    Args:
        weights: of the features; the default was tuned on development sets.
        shows_context: show strong hits together with the blocks before them.
    """

    name = "heuristic"

    def __init__(
        self, weights: HeuristicWeights | None = None, *, shows_context: bool = True
    ) -> None:
        self._shows_context = shows_context
        self._weights = weights or HeuristicWeights()
        self.drop_caches()

    def drop_caches(self) -> None:
        """Start with new caches: nodes may hold other content now."""
        self._cosines = NodeCache()
        self._precision = NodeCache()
        self._query: Floats | None = None
        self._last: _Opinion | None = None

    def score(self, view: FocusView) -> Floats:
        """Return float32[E] in [-1, 1]: what the budget has room for is above zero."""
        return self._opinion(view).scores

    def reveals(self, view: FocusView, limit: int) -> Sequence[Reveal]:
        """Return the blocks of lexical hits under coarse entries the budget has room for."""
        return self._opinion(view).reveals[: max(limit, 0)]

    def _opinion(self, view: FocusView) -> _Opinion:
        if self._last is None or self._last.view is not view:
            self._last = self._form_opinion(view)
        return self._last

    def _form_opinion(self, view: FocusView) -> _Opinion:
        entries, budget = view.entries, view.budget
        hits = _NO_HITS
        if self._weights.lexical:
            rows_for_context = budget.target if self._shows_context else 0
            hits = _hit_blocks(view.hits, view.n_blocks, rows_for_context)
        cover = np.searchsorted(entries.start, hits.blocks * BLOCK_SIZE, side="right") - 1
        is_hidden = entries.lod[cover] > 1
        hidden = hits.blocks[is_hidden]
        own = self._utility(view, _nodes(entries, hidden))
        of_block = own[cover]
        of_block[is_hidden] = own[len(entries) :]
        worth = self._worth(hits, of_block)
        choice = choose(
            entries,
            own[: len(entries)],
            list(zip(hits.ranges, worth.tolist(), strict=True)),
            budget,
        )
        best = _best_of_blocks(hits, worth)
        utility = own[: len(entries)].copy()
        seen = cover[~is_hidden]
        utility[seen] = np.maximum(utility[seen], best[~is_hidden])
        scores = focus_scores(entries, utility, choice, budget)
        wanted = np.isin(hidden, choice.blocks)
        size = signed_size(
            best[is_hidden] - choice.line, spread(utility[~entries.protected]), budget
        )
        return _Opinion(view, scores, _reveals(hidden[wanted], size[wanted]))

    def _worth(self, hits: _Hits, of_block: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the utility of each hit: its words, and the mean of its blocks."""
        if not hits.ranges:
            return np.empty(0)
        first = np.searchsorted(hits.blocks, [r.start for r in hits.ranges])
        sums = np.concatenate([[0.0], np.cumsum(of_block)])
        n_blocks = np.array([len(r) for r in hits.ranges])
        means = (sums[first + n_blocks] - sums[first]) / n_blocks
        worth: NDArray[np.float64] = self._weights.lexical * hits.feature + means
        return worth

    def _utility(self, view: FocusView, nodes: _Nodes) -> NDArray[np.float64]:
        """Return the weighted sum of all features but the lexical one, float64[n]."""
        w = self._weights
        total = w.recency * np.exp(-np.maximum(view.n_tokens - nodes.end, 0) / RECENCY_TOKENS)
        total += w.stickiness * nodes.is_raw
        if w.cosine:
            total += w.cosine * self._cosine(view, nodes)
        if w.precision:
            total += w.precision * self._precision_bias(view, nodes)
        return total

    def _cosine(self, view: FocusView, nodes: _Nodes) -> NDArray[np.float64]:
        """Return clip(z / 3, 0, 1), z the z-score of cos(query, gist) among what may be moved.

        Nobody asks for the gists of protected entries: the newest blocks among them, whose gists
        can then be made together when the first of them may be moved.
        """
        if self._query is None or not np.array_equal(self._query, view.query_vector):
            self._cosines.clear()
            self._query = view.query_vector.copy()
        cosine = np.zeros(len(nodes.lod))
        has_gist = nodes.is_movable & (nodes.end <= view.n_tokens)
        if not has_gist.any() or not view.query_vector.any():
            return cosine
        for lod in np.unique(nodes.lod[has_gist]).tolist():
            at = np.flatnonzero(has_gist & (nodes.lod == lod))
            cosine[at] = self._cosines.get(lod, nodes.index[at], partial(_cosines, view, lod))
        known = cosine[has_gist]
        z = (cosine - known.mean()) / max(float(known.std()), MIN_SPREAD)
        return np.where(has_gist, np.clip(z / COSINE_SPREAD, 0.0, 1.0), 0.0)

    def _precision_bias(self, view: FocusView, nodes: _Nodes) -> NDArray[np.float64]:
        """Return min(1, n / 4) of full blocks, 0 for coarser nodes, float64[n]."""
        at = np.flatnonzero((nodes.lod == 1) & (nodes.index < view.n_blocks))
        bias = np.zeros(len(nodes.lod))
        counts = self._precision.get(0, nodes.index[at], view.tree.precision)
        bias[at] = np.minimum(1.0, counts / PRECISION_FULL)
        return bias


_NO_HITS = _Hits((), np.empty(0), np.empty(0, np.int64))


def _nodes(entries: EntryArrays, blocks: Indices) -> _Nodes:
    """Line up entries and blocks."""
    return _Nodes(
        lod=np.concatenate([np.maximum(entries.lod, 1), np.ones(len(blocks))]).astype(np.int64),
        index=np.concatenate([entries.index, blocks]),
        is_raw=np.concatenate([entries.lod == 0, np.zeros(len(blocks), np.bool_)]),
        is_movable=np.concatenate([~entries.protected, np.ones(len(blocks), np.bool_)]),
    )


def _cosines(view: FocusView, lod: int, nodes: Indices) -> Floats:
    """Return cos(query, gist) of nodes, float32[n]; of S slots the first spans the whole node."""
    gists = view.tree.gists(lod, nodes)[:, 0]
    query = view.query_vector
    norms = np.linalg.norm(gists, axis=1) * np.linalg.norm(query)
    cosines: Floats = (gists @ query / np.maximum(norms, MIN_SPREAD)).astype(np.float32)
    return cosines


def _hit_blocks(hits: LexicalHits, n_blocks: int, target: int) -> _Hits:
    """Return what hits touch of the full blocks, with the raw text that leads up to strong ones.

    A base model reads a span well only behind raw text: rows right behind gists are garbled
    (measured, `docs/explanation/focus-loop.md`). So strong hits come with the blocks before them.
    If the best hit stands out, rows are better spent on more of what leads up to it than on weak
    hits, each of which distracts. In a small window hits go first.

    Args:
        hits: best first.
        n_blocks: full blocks of the history.
        target: rows to stay within.
    """
    first = hits.start // BLOCK_SIZE
    last = np.minimum(-(-hits.end // BLOCK_SIZE), n_blocks)
    is_full = last > first
    if not is_full.any():
        return _NO_HITS
    first, last = first[is_full], last[is_full]
    share = hits.score[is_full].astype(np.float64)
    feature = share / max(float(share.max()), LEXICAL_FLOOR)
    share = share / share.max()
    is_strong = share >= STRONG_SHARE
    more: list[int] = []
    if target >= LEAD_ROWS:
        first = np.where(is_strong, np.maximum(first - LEAD_BLOCKS, 0), first)
        if np.count_nonzero(share >= RIVAL_SHARE) <= FEW_RIVALS:
            start = int(first[share.argmax()])
            more = list(range(start - 1, max(start - 1 - MORE_BLOCKS, -1), -1))
            first, last, feature = first[is_strong], last[is_strong], feature[is_strong]
    falling = MORE_SHARE * 0.99 ** np.arange(len(more))
    ranges = [range(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True)]
    ranges += [range(block, block + 1) for block in more]
    return _Hits(
        ranges=tuple(ranges),
        feature=np.concatenate([feature, falling]),
        blocks=np.unique(np.concatenate([np.arange(r.start, r.stop) for r in ranges])),
    )


def _best_of_blocks(hits: _Hits, worth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the utility of the best hit on each block, float64[b]."""
    best = np.full(len(hits.blocks), -np.inf)
    if hits.ranges:
        touched = np.concatenate([np.arange(r.start, r.stop) for r in hits.ranges])
        place = np.searchsorted(hits.blocks, touched)
        np.maximum.at(best, place, np.repeat(worth, [len(r) for r in hits.ranges]))
    return best


def _reveals(blocks: Indices, utility: NDArray[np.float64]) -> tuple[Reveal, ...]:
    """Return reveals, best first, ties nearer the cursor."""
    order = np.lexsort((-blocks, -utility))
    return tuple(
        Reveal(block=block, utility=value, reason="lexical")
        for block, value in zip(blocks[order].tolist(), utility[order].tolist(), strict=True)
    )
