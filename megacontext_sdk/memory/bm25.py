"""BM25 arithmetic over posting lists: inverse document frequency, sums, smoothing.

Pure functions of arrays; knows no database, no text and no tokens. A text counts a term as present
or absent (BM25 at k1 = 0), because messages are short; measured, counting repetitions did not find
more evidence and would triple the size of the index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Indices

__all__ = ["best", "idf", "length_factor", "smooth", "sum_postings"]

NEIGHBOUR_WEIGHTS = (0.5, 0.25)
"""Share of a row's score that its first and second neighbours get: answers stand beside cues."""

SEEDS = 512
"""Rows with the best own score whose surroundings are smoothed; bounds the work per query."""


def idf(n_rows: int, n_with_term: float) -> float:
    """Return `ln(1 + (B - df + 1/2) / (df + 1/2))`, positive for every df up to B."""
    return float(np.log1p((n_rows - n_with_term + 0.5) / (n_with_term + 0.5)))


def sum_postings(
    postings: Sequence[Indices], weights: Sequence[float]
) -> tuple[Indices, NDArray[np.float64]]:
    """Add up what each row gets from each term.

    Args:
        postings: per term the rows that hold it, int64[*].
        weights: per term what one of its rows gets.

    Returns:
        rows int64[n], ascending and distinct, and their scores float64[n].
    """
    if not postings:
        return np.empty(0, np.int64), np.empty(0)
    rows, place = np.unique(np.concatenate(postings), return_inverse=True)
    gain = np.repeat(np.asarray(weights, np.float64), [len(p) for p in postings])
    scores = np.bincount(place, weights=gain, minlength=len(rows))
    return rows, scores.astype(np.float64, copy=False)


def length_factor(n_tokens: Indices, typical: float, share: float) -> NDArray[np.float64]:
    """Return BM25's length normalisation `1 - b + b * length / typical`, float64[n].

    Args:
        n_tokens: int64[n], lengths.
        typical: length of factor 1.
        share: b.
    """
    return 1.0 - share + share * np.asarray(n_tokens, np.float64) / typical


def smooth(
    rows: Indices, scores: NDArray[np.float64], n_rows: int
) -> tuple[Indices, NDArray[np.float64]]:
    """Let rows share their score with their neighbours in row order.

    `lex'(m) = lex(m) + 1/2 lex(m-1) + 1/2 lex(m+1) + 1/4 lex(m-2) + 1/4 lex(m+2)`, exact for every
    row within two rows of the `SEEDS` best ones; rows farther away from them are left out.

    Args:
        rows: int64[n], ascending, rows with a score; numbered 1..n_rows.
        scores: float64[n].
        n_rows: number of the last row.

    Returns:
        rows int64[m] ascending and their smoothed scores float64[m].
    """
    seeds = rows[best(rows, scores, SEEDS)]
    reach = len(NEIGHBOUR_WEIGHTS)
    around = np.unique(seeds[:, None] + np.arange(-reach, reach + 1)[None, :])
    around = around[(around >= 1) & (around <= n_rows)]
    total = _score_of(rows, scores, around)
    for distance, weight in enumerate(NEIGHBOUR_WEIGHTS, start=1):
        total += weight * _score_of(rows, scores, around - distance)
        total += weight * _score_of(rows, scores, around + distance)
    return around, total


def best(rows: Indices, scores: NDArray[np.float64], limit: int) -> Indices:
    """Return the places of the `limit` best scores, best first, newer rows first among equals."""
    if len(rows) <= 4 * limit:
        return np.lexsort((-rows, -scores))[:limit]
    kept = np.flatnonzero(scores >= np.partition(scores, -limit)[-limit])
    order: Indices = kept[np.lexsort((-rows[kept], -scores[kept]))[:limit]]
    return order


def _score_of(rows: Indices, scores: NDArray[np.float64], wanted: Indices) -> NDArray[np.float64]:
    place = np.minimum(np.searchsorted(rows, wanted), len(rows) - 1)
    return np.where(rows[place] == wanted, scores[place], 0.0)
