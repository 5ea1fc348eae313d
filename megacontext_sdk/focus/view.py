"""Builds the `FocusView` a policy sees: entries, query, lexical hits, reads of the tree.

Lexical hits and the query vector belong to one refocus and are computed once; the entries change
with every iteration. Nothing here decides anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs
import numpy as np

from megacontext_sdk.contracts.focus import FocusQuery, FocusView, LexicalHits
from megacontext_sdk.memory.older_gists import NO_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bools, Floats, Ids, Indices, Lods
    from megacontext_sdk.contracts.focus import Budget, EntryArrays, GistReader

__all__ = ["EMPTY_QUERY", "LexicalSource", "QueryScope", "TreeSource", "ViewBuilder"]

_TURN_HITS = 64
_EMBED_TOKENS = 8_192
_DECODE_HITS = 8
"""Fewer while decoding: each hit may cost reads of gists and blocks, every 32 tokens."""

EMPTY_QUERY = FocusQuery(
    turn_ids=np.zeros(0, dtype=np.int32),
    turn_text="",
    recent_ids=np.zeros(0, dtype=np.int32),
    recent_text="",
)
_NO_HITS = LexicalHits(
    start=np.zeros(0, dtype=np.int64),
    end=np.zeros(0, dtype=np.int64),
    score=np.zeros(0, dtype=np.float32),
)


class LexicalSource(Protocol):
    """The part of the lexical index a view needs."""

    def query(
        self,
        turn_text: str,
        recent_text: str,
        n_blocks: int,
        limit: int = 64,
        *,
        before: int | None = None,
    ) -> LexicalHits:
        """Return the messages that match, smoothed over neighbours, best first."""


class TreeSource(Protocol):
    """The part of the tree a view needs, besides the reads it lends to the policy."""

    @property
    def n_tokens(self) -> int:
        """N, the cursor."""

    @property
    def n_blocks(self) -> int:
        """Full blocks."""

    def serving(self, lods: Lods, indices: Indices) -> tuple[NDArray[np.int16], Bools]:
        """Version that serves each gist node, int16[n], and whether it stands in, bool[n]."""


@attrs.frozen(eq=False)
class QueryScope:
    """What stays the same over the iterations of one refocus."""

    query: FocusQuery
    query_vector: Floats
    hits: LexicalHits


class ViewBuilder:
    """Makes views for one session.

    Args:
        tree: the session's tree.
        reader: the reads a policy may make (the tree itself).
        lexical: the lexical index.
        embed: token ids int32[n] to embedding rows float32[n, d].
        hidden_size: d.
    """

    def __init__(
        self,
        tree: TreeSource,
        reader: GistReader,
        lexical: LexicalSource,
        embed: Callable[[Ids], Floats],
        hidden_size: int,
    ) -> None:
        self._tree = tree
        self._reader = reader
        self._lexical = lexical
        self._embed = embed
        self._zero = np.zeros(hidden_size, dtype=np.float32)

    def scope(self, query: FocusQuery) -> QueryScope:
        """Look up what one refocus needs once: lexical hits and query vector."""
        ids = query.turn_ids if len(query.turn_ids) else query.recent_ids
        vector = self._mean(ids) if len(ids) else self._zero
        hits = _NO_HITS
        if query.turn_text or query.recent_text:
            limit = _DECODE_HITS if len(query.recent_ids) else _TURN_HITS
            hits = self._lexical.query(
                query.turn_text,
                query.recent_text,
                self._tree.n_blocks,
                limit,
                before=query.turn_start,
            )
        return QueryScope(query, vector, hits)

    def _mean(self, ids: Ids) -> Floats:
        """Return the mean embedding, page by page: a turn may be megabytes of pasted text."""
        if len(ids) <= _EMBED_TOKENS:
            mean: Floats = self._embed(ids).mean(axis=0)
            return mean
        total = np.zeros(len(self._zero), dtype=np.float64)
        for at in range(0, len(ids), _EMBED_TOKENS):
            total += self._embed(ids[at : at + _EMBED_TOKENS]).sum(axis=0, dtype=np.float64)
        return (total / len(ids)).astype(np.float32)

    def view(
        self, scope: QueryScope, entries: EntryArrays, budget: Budget, iteration: int
    ) -> FocusView:
        """Return the view of one iteration."""
        versions, provisional = self._serving(entries)
        return FocusView(
            entries=entries,
            budget=budget,
            n_tokens=self._tree.n_tokens,
            n_blocks=self._tree.n_blocks,
            iteration=iteration,
            query=scope.query,
            query_vector=scope.query_vector,
            hits=scope.hits,
            gist_versions=versions,
            provisional=provisional,
            tree=self._reader,
        )

    def _serving(self, entries: EntryArrays) -> tuple[NDArray[np.int16], Bools]:
        """Return version and whether it stands in, of the gist of each entry; the tail has none."""
        versions, provisional = self._tree.serving(np.maximum(entries.lod, 1), entries.index)
        tail = (entries.lod == 0) & (entries.index >= self._tree.n_blocks)
        versions[tail], provisional[tail] = NO_VERSION, False
        return versions, provisional
