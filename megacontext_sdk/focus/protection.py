"""Protection: which token ranges stay at LOD0, whatever the scores say.

Sinks, the recent tail, the partial tail and user pins, as sorted disjoint block-aligned ranges.
Pure: it computes the promise; `working_context` keeps it and `invariants` checks it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import attrs
import numpy as np

from megacontext_sdk.memory.lod import BLOCK_SIZE, Span

if TYPE_CHECKING:
    from collections.abc import Iterable

    from megacontext_sdk.contracts.arrays import Bools, Indices
    from megacontext_sdk.contracts.focus import Budget, EntryArrays

__all__ = [
    "LEAST_RECENT_TOKENS",
    "YIELD_LADDER",
    "Protection",
    "Yielded",
    "pinned_rows",
    "protect",
    "without",
]

Yielded: TypeAlias = tuple[str, ...]
"""Protections that gave way, because the history outgrew the budget."""

YIELD_LADDER: tuple[Yielded, ...] = (
    (),
    ("sinks",),
    ("sinks", "recents"),
    ("sinks", "recents", "newest"),
)
"""In this order protections give way (spec section 7): sinks, then recents over 128 tokens.

The last step leaves one recent block: a budget of a few hundred rows could otherwise refuse tokens
that are stored already, once the history is long enough to need 31 gists on several levels.
"""

LEAST_RECENT_TOKENS = 128
"""Recent tokens that stay while any other way is left."""


@attrs.frozen(eq=False, kw_only=True)
class Protection:
    """Ranges of tokens held at LOD0 for one history length.

    Attributes:
        held: int64[r, 2], all of them, merged, ends clipped to N.
        pins: int64[p, 2], the user's part of it.
        yielded: what gave way.
    """

    held: Indices
    pins: Indices
    yielded: Yielded

    def mark(self, entries: EntryArrays) -> tuple[Bools, Bools]:
        """Return the `protected` and `pinned` masks of the entries, bool[E] each."""
        end = entries.start + entries.n_tokens
        return _touch(self.held, entries.start, end), _touch(self.pins, entries.start, end)


def protect(
    n_tokens: int, budget: Budget, pins: Iterable[Span], yielded: Yielded = ()
) -> Protection:
    """Return what is protected in a history of `n_tokens` once `yielded` has given way."""
    recent = budget.recent_tokens
    if "recents" in yielded:
        recent = min(recent, LEAST_RECENT_TOKENS)
    if "newest" in yielded:
        recent = min(recent, BLOCK_SIZE)
    tail_start = n_tokens - n_tokens % BLOCK_SIZE
    recent_start = max(0, n_tokens - recent) // BLOCK_SIZE * BLOCK_SIZE
    spans = [Span(min(recent_start, tail_start), n_tokens)]
    if "sinks" not in yielded:
        spans.append(Span(0, min(n_tokens, budget.sink_blocks * BLOCK_SIZE)))
    user = _merge(pins, n_tokens)
    return Protection(
        held=_merge([*spans, *(Span(int(a), int(b)) for a, b in user)], n_tokens),
        pins=user,
        yielded=yielded,
    )


def pinned_rows(pins: Iterable[Span], n_tokens: int) -> int:
    """Return how many rows the pinned blocks take at LOD0."""
    ranges = _merge(pins, n_tokens)
    return int((ranges[:, 1] - ranges[:, 0]).sum())


def without(pins: Iterable[Span], span: Span) -> tuple[Span, ...]:
    """Return the pins with one span cut out of them."""
    kept: list[Span] = []
    for pin in pins:
        parts = (
            Span(pin.start, min(pin.end, span.start)),
            Span(max(pin.start, span.end), pin.end),
        )
        kept.extend(part for part in parts if part.n_tokens > 0)
    return tuple(kept)


def _merge(spans: Iterable[Span], n_tokens: int) -> Indices:
    """Return spans widened to blocks, clipped to N, sorted and merged, int64[r, 2]."""
    merged: list[list[int]] = []
    for start, end in sorted(_aligned(span, n_tokens) for span in spans):
        if end <= start:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.array(merged, dtype=np.int64).reshape(-1, 2)


def _aligned(span: Span, n_tokens: int) -> tuple[int, int]:
    if span.n_tokens <= 0:
        return (0, 0)
    end = -(-span.end // BLOCK_SIZE) * BLOCK_SIZE
    return (span.start // BLOCK_SIZE * BLOCK_SIZE, min(end, n_tokens))


def _touch(ranges: Indices, start: Indices, end: Indices) -> Bools:
    """Tell which entries `[start, end)` share a token with one of the disjoint ranges."""
    if not len(ranges):
        return np.zeros(len(start), dtype=np.bool_)
    last = np.searchsorted(ranges[:, 0], end, side="left") - 1
    touching: Bools = (last >= 0) & (ranges[last, 1] > start)
    return touching
