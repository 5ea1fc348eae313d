"""Stand-ins for gists the active encoder has not made: plain, computed on demand, never stored.

An encoder that fails or runs behind must not stop a session (spec section 11), and a gist of
another encoder must not pass for its own. So stand-ins come from the blocks alone and live in
memory until the real ones are there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.memory.block_runs import BlockRuns
from megacontext_sdk.memory.gist_maker import joined
from megacontext_sdk.memory.lod import BLOCK_SIZE

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Indices
    from megacontext_sdk.contracts.gist import GistEncoder, Gists, GistServices
    from megacontext_sdk.memory.journal import Journal

__all__ = ["StandIns"]

_KNOWN_PARENTS = 4096  # of 1,024 tokens at least: 4 M tokens are read once, not again and again


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
        self._services = services
        self._blocks = BlockRuns(journal.blocks, encoder, filler_id)
        self._known: dict[tuple[int, int], Gists] = {}  # oldest use first

    @property
    def name(self) -> str:
        """Name of the simple encoder."""
        return self._encoder.name

    def clear(self) -> None:
        """Forget what was made: blocks may hold other tokens now."""
        self._known.clear()

    def make(self, lod: int, nodes: Indices) -> Gists:
        """Return gists of complete nodes, rows float32[n, S, d]."""
        self.n_made += len(nodes)
        return self._make(lod, nodes)

    def _make(self, lod: int, nodes: Indices) -> Gists:
        if lod > 1:
            return joined([self._parent(lod, node) for node in nodes.tolist()])
        runs = self._blocks.of(nodes)
        return joined([self._encoder.encode_blocks(blocks, self._services) for blocks in runs])

    def _parent(self, lod: int, node: int) -> Gists:
        """Return the gist of a node above LOD1; few enough are remembered to climb on."""
        known = self._known.pop((lod, node), None)
        if known is None:
            below = np.arange(node * BLOCK_SIZE, (node + 1) * BLOCK_SIZE)
            known = self._encoder.encode_gists(lod, self._make(lod - 1, below), self._services)
        self._known[lod, node] = known  # now the newest
        if len(self._known) > _KNOWN_PARENTS:
            del self._known[next(iter(self._known))]
        return known
