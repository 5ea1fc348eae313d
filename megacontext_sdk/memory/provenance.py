"""How far blocks may be trusted: the least of the messages whose tokens they hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.memory.lod import BLOCK_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from megacontext_sdk.memory.journal import Journal

__all__ = ["trust_of_blocks"]


def trust_of_blocks(journal: Journal, first: int, stop: int) -> NDArray[np.uint8]:
    """Return the trust of full blocks `[first, stop)`, uint8[n]."""
    starts_at, ends_at = first * BLOCK_SIZE, stop * BLOCK_SIZE
    owner, last = journal.message_at(starts_at), journal.message_at(ends_at - 1)
    rows = journal.messages(owner, last + 1)
    if owner == last:
        return np.full(stop - first, rows["trust"][0], np.uint8)
    rows = rows[rows["n_tokens"] > 0]  # settings hold no tokens and taint nothing
    starts = rows["start"].astype(np.int64)
    edges = np.arange(starts_at, ends_at, BLOCK_SIZE)
    begin = np.searchsorted(starts, edges, side="right") - 1
    end = np.searchsorted(starts, edges + BLOCK_SIZE, side="left")
    cuts = np.stack([begin, end], axis=1).reshape(-1)
    padded = np.append(rows["trust"], np.uint8(255))  # lets `end` name the place behind the last
    least: NDArray[np.uint8] = np.minimum.reduceat(padded, cuts)[::2]
    return least
