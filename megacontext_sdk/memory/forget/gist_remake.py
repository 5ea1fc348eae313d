"""The gists of the next generation after a forget: rows it did not touch, and the others made anew.

Level by level from below, so that a parent is made of its children as the new store gives them
back: what results is what the encoder would have made of the tokens that are left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.contracts.storage import GistBatch
from megacontext_sdk.errors import ModelError
from megacontext_sdk.memory.chain import decode_ids
from megacontext_sdk.memory.directory.replay import touched_nodes
from megacontext_sdk.memory.lod import BLOCK_SIZE

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Bytes2D, Ids, Indices
    from megacontext_sdk.contracts.storage import GistRows, Storage
    from megacontext_sdk.memory.directory.replay import Redaction
    from megacontext_sdk.memory.gist_store import GistStore

__all__ = ["GistRemake"]

_PAGE_BYTES = 8 * 2**20
_CHUNK_NUMBERS = 2**18  # of gists encoded at once


@attrs.define(eq=False)
class GistRemake:
    """Fills the gists of a store that has its tokens already.

    Args:
        gists: of the present generation; its encoder and version are used.
        redaction: what the new store lacks.
        n_tokens: length of the history.
        token_bytes: 2 or 4.

    Attributes:
        n_made: rows that were made anew.
    """

    gists: GistStore
    redaction: Redaction
    n_tokens: int
    token_bytes: int
    n_made: int = 0

    def fill(self, source: Storage, target: Storage) -> None:
        """Copy what holds, make what does not.

        An encoder that fails leaves the rest of its level missing, as ever; it is tried again when
        the memory is opened.

        Raises:
            CorruptError: the source finds damage.
            StorageError: the target cannot be written.
        """
        for version, lod, count in source.state().gist_rows:
            if version == self.gists.version:
                self._fill_level(source, target, lod, count)

    def anew(self, target: Storage, version: int, lod: int, nodes: Indices) -> dict[int, bytes]:
        """Return the rows that those nodes must have which the redaction touches.

        Empty where none may be: of another encoder, or because this one fails.

        Raises:
            CorruptError: the target finds damage.
        """
        touched = np.intersect1d(nodes, touched_nodes(self.redaction, self.n_tokens, lod))
        rows = dict.fromkeys(touched.tolist(), b"")
        if version == self.gists.version:
            made = self._made(target, lod, touched)
            rows |= {int(node): row.tobytes() for node, row in zip(touched, made, strict=False)}
        return rows

    def _fill_level(self, source: Storage, target: Storage, lod: int, count: int) -> None:
        touched = touched_nodes(self.redaction, self.n_tokens, lod)
        step = max(1, _PAGE_BYTES // self.gists.codec.row_bytes)
        for at in range(0, count, step):
            nodes = np.arange(at, min(at + step, count))
            found = source.read_gists(self.gists.version or 0, lod, nodes)
            low, high = np.searchsorted(touched, [at, at + len(nodes)])
            made = self._made(target, lod, touched[low:high])
            n_kept = len(nodes) if found.present.all() else int(np.argmin(found.present))
            if len(made) < high - low:
                n_kept = min(n_kept, int(touched[low + len(made)]) - at)
            self._put(target, lod, nodes[:n_kept], found, touched[low:high], made)
            if n_kept < len(nodes):
                return

    def _made(self, target: Storage, lod: int, nodes: Indices) -> Bytes2D:
        """Return new rows of touched nodes; fewer if the encoder fails."""
        rows = [np.empty((0, self.gists.codec.row_bytes), np.uint8)]
        numbers = self.gists.codec.slots * self.gists.codec.width
        step = max(1, _CHUNK_NUMBERS // numbers // (1 if lod == 1 else BLOCK_SIZE))
        for at in range(0, len(nodes), step):
            part = nodes[at : at + step]
            below = self._below(target, lod, part)
            if below is None:
                break
            try:
                rows.append(self.gists.made(lod, int(part[0]), below))
            except ModelError as error:
                self.gists.last_error = error
                break
        return np.concatenate(rows)

    def _below(self, target: Storage, lod: int, nodes: Indices) -> Ids | Bytes2D | None:
        """Return what nodes are made of: ids, or rows of children; None if one is missing."""
        if lod == 1:
            return decode_ids(target.read_blocks(nodes), self.token_bytes)
        children = (nodes[:, None] * BLOCK_SIZE + np.arange(BLOCK_SIZE)).reshape(-1)
        found = target.read_gists(self.gists.version or 0, lod - 1, children)
        return found.rows if found.present.all() else None

    def _put(
        self,
        target: Storage,
        lod: int,
        nodes: Indices,
        found: GistRows,
        touched: Indices,
        made: Bytes2D,
    ) -> None:
        """Store rows `nodes`, as found, apart from those that were made."""
        if not len(nodes):
            return
        rows = found.rows[: len(nodes)]
        places = touched[: len(made)] - nodes[0]
        is_kept = places < len(nodes)
        if is_kept.any():
            rows = rows.copy()
            rows[places[is_kept]] = made[is_kept]
        self.n_made += int(is_kept.sum())
        target.put_gists(
            GistBatch(
                version=self.gists.version or 0,
                lod=lod,
                nodes=nodes.astype(np.uint64),
                trust=found.trust[: len(nodes)],
                rows=rows,
            )
        )
