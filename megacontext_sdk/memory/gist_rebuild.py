"""Making the gists of one encoder complete: bottom-up, level by level, only what is missing.

Rows of a level are stored without gaps, so a rebuild that was interrupted goes on where the stored
rows end. A gist that is not finite cannot be stored; the one that served its node until now takes
its place, so that one bad node does not stop all that follow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.contracts.gist import Blocks, Gists
from megacontext_sdk.contracts.storage import GistBatch
from megacontext_sdk.errors import ModelError
from megacontext_sdk.memory.block_runs import halves
from megacontext_sdk.memory.gist_rows import RowCodec
from megacontext_sdk.memory.gist_store import GistStore
from megacontext_sdk.memory.lod import BLOCK_SIZE, MAX_LOD, n_nodes
from megacontext_sdk.memory.provenance import trust_of_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bytes2D, Floats, Indices
    from megacontext_sdk.contracts.gist import GistEncoder, GistServices
    from megacontext_sdk.memory.journal import Journal
    from megacontext_sdk.memory.tree import MegaContextTree

__all__ = ["GistRebuild", "encoder_store"]

_CHUNK_NUMBERS = 2**18  # of gists encoded at once: 1,024 blocks at width 256
_FLUSH_NODES = 2**16  # encoded between two flushes: at most so many are made twice after a crash


def encoder_store(
    journal: Journal, tree: MegaContextTree, encoder: GistEncoder, services: GistServices
) -> GistStore:
    """Return the gists of another encoder over a tree's memory; its version is entered.

    Args:
        journal: the memory.
        tree: over it; its number format is used.
        encoder: the other encoder.
        services: what it may ask of the session.

    Raises:
        StorageError: the version cannot be entered.
    """
    dtype = tree.gist_store.codec.dtype
    codec = RowCodec(encoder.gist_slots, services.info.hidden_size, encoder.aux_size, dtype)
    store = GistStore(journal, encoder, services, codec, 0, filler_id=tree.filler_id)
    store.levels.version = store.table.register(encoder, codec, services.info)
    return store


@attrs.define(eq=False)
class GistRebuild:
    """One run over one encoder's rows.

    Args:
        journal: the memory.
        store: of the encoder, its version known.
        served: rows float32[n, S, d] that served nodes of a level until now.
        progress: called with nodes done and nodes in all.

    Attributes:
        encoded: nodes encoded so far.
        reused: nodes that were stored before.
        kept_old: nodes whose new gist was not finite.
    """

    journal: Journal
    store: GistStore
    served: Callable[[int, Indices], Floats]
    progress: Callable[[int, int], None]
    encoded: int = attrs.field(default=0, init=False)
    reused: int = attrs.field(default=0, init=False)
    kept_old: int = attrs.field(default=0, init=False)
    _unflushed: int = attrs.field(default=0, init=False)

    def run(self) -> None:
        """Encode and store every missing node.

        Raises:
            ModelError: the encoder fails; what was stored before stays.
            StorageError: rows cannot be stored.
        """
        self.journal.flush()  # a full disk speaks up now, not between two rows
        n_tokens = self.journal.n_tokens
        total = sum(n_nodes(n_tokens, lod) for lod in range(1, MAX_LOD + 1))
        self.reused = total - self.store.n_missing
        self.progress(self.reused, total)
        codec = self.store.codec
        step = max(_CHUNK_NUMBERS // (codec.slots * codec.width), 1)
        for lod in range(1, MAX_LOD + 1):
            stop = n_nodes(n_tokens, lod)
            for at in range(self.store.count(lod), stop, step):
                end = min(at + step, stop)
                self._put(lod, at, end)
                self.encoded += end - at
                self.progress(self.reused + self.encoded, total)
        self.journal.flush()

    def _put(self, lod: int, at: int, end: int) -> None:
        below, trust = self._below(lod, at, end)
        rows = self._rows(lod, at, below)
        nodes = np.arange(at, end, dtype=np.uint64)
        version = self.store.version or 0
        self.journal.put_gists(
            GistBatch(version=version, lod=lod, nodes=nodes, trust=trust, rows=rows)
        )
        self._unflushed += end - at
        if self._unflushed >= _FLUSH_NODES:
            self.journal.flush()
            self._unflushed = 0

    def _below(self, lod: int, at: int, end: int) -> tuple[Blocks | Bytes2D, NDArray[np.uint8]]:
        """Return what nodes are made of, and their trust: the least of their children's."""
        if lod == 1:
            (blocks,) = self.store.blocks.of(np.arange(at, end))
            return blocks, trust_of_blocks(self.journal, at, end)
        children = np.arange(at * BLOCK_SIZE, end * BLOCK_SIZE)
        found = self.journal.gists(self.store.version or 0, lod - 1, children)
        return found.rows, found.trust.reshape(-1, BLOCK_SIZE).min(axis=1)

    def _rows(self, lod: int, first: int, below: Blocks | Bytes2D) -> Bytes2D:
        """Return stored rows of nodes; one that is not finite keeps what served until now."""
        try:
            return self.store.maker.rows(lod, first, below)
        except ModelError as error:
            if getattr(error, "node", None) is None:
                raise  # the encoder itself failed
        n = len(below) // (1 if lod == 1 else BLOCK_SIZE)
        if n > 1:
            return np.concatenate(
                [
                    self._rows(lod, first, self._halves(below)[0]),
                    self._rows(lod, first + n // 2, self._halves(below)[1]),
                ]
            )
        self.kept_old += 1
        rows = self.served(lod, np.array([first]))
        aux = np.zeros((1, self.store.codec.aux), np.float32)
        return self.store.codec.encode(Gists(rows=rows, aux=aux))

    def _halves(self, below: Blocks | Bytes2D) -> tuple[Blocks | Bytes2D, Blocks | Bytes2D]:
        """Return what two halves of some nodes are made of."""
        if isinstance(below, Blocks):
            return halves(below, self.store.blocks.left_tokens)
        cut = len(below) // BLOCK_SIZE // 2 * BLOCK_SIZE
        return below[:cut], below[cut:]
