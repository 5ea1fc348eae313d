"""Stand-ins for gists the active encoder cannot make: plain, computed on demand, never stored.

A failing encoder must not stop a session (spec section 11), and a gist of another encoder must not
pass for its own. So stand-ins come from the blocks alone and live in memory until it works again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.memory.forgotten import filled
from megacontext_sdk.memory.lod import BLOCK_SIZE

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Indices
    from megacontext_sdk.contracts.gist import GistEncoder, Gists, GistServices
    from megacontext_sdk.memory.journal import Journal

__all__ = ["StandIns"]


class StandIns:
    """Makes gists with a simple encoder, and counts them.

    Args:
        encoder: needs nothing that may fail; as many slots as the active one.
        journal: has the blocks.
        services: what the encoder may ask of the session.
        filler_id: stands for forgotten tokens.

    Attributes:
        n_made: gists made so far.
    """

    def __init__(
        self, encoder: GistEncoder, journal: Journal, services: GistServices, *, filler_id: int = 0
    ) -> None:
        self.n_made = 0
        self._encoder = encoder
        self._journal = journal
        self._services = services
        self._filler_id = filler_id

    @property
    def name(self) -> str:
        """Name of the simple encoder."""
        return self._encoder.name

    def make(self, lod: int, nodes: Indices) -> Gists:
        """Return gists of complete nodes, rows float32[n, S, d]."""
        self.n_made += len(nodes)
        return self._make(lod, nodes)

    def _make(self, lod: int, nodes: Indices) -> Gists:
        if lod == 1:
            ids = filled(self._journal.blocks(nodes), self._filler_id)
            return self._encoder.encode_blocks(ids, self._services)
        below = (nodes[:, None] * BLOCK_SIZE + np.arange(BLOCK_SIZE)).reshape(-1)
        return self._encoder.encode_gists(lod, self._make(lod - 1, below), self._services)
