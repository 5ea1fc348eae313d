"""What a tree holds and did, as numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TreeStats"]


@attrs.frozen(kw_only=True)
class TreeStats:
    """What a tree holds and did.

    Attributes:
        n_tokens, n_blocks, n_tail: the history, its full blocks, the tokens behind them.
        nodes: complete nodes by level, from 1 on.
        node_ratio: nodes above LOD0 over tokens; 1/31 for a long history.
        versions: stored LOD1 gists by encoder version.
        served: nodes above LOD0 by the version that serves them; -1 is stored nowhere.
        n_missing_gists: complete nodes without a stored gist of the active encoder.
        n_pending_blocks: blocks without one.
        gist_row_bytes: bytes of one gist row.
        id_bytes_per_token, gist_bytes_per_token: as stored, before compression.
        encode_calls: nodes encoded by this process, by level.
        cache_hits, cache_misses: reads of decoded gists.
        access_reset: why access counts started again from zero; empty if they did not.
    """

    n_tokens: int
    n_blocks: int
    n_tail: int
    nodes: Mapping[int, int]
    node_ratio: float
    versions: Mapping[int, int]
    served: Mapping[int, int]
    n_missing_gists: int
    n_pending_blocks: int
    gist_row_bytes: int
    id_bytes_per_token: float
    gist_bytes_per_token: float
    encode_calls: Mapping[int, int]
    cache_hits: int
    cache_misses: int
    access_reset: str
