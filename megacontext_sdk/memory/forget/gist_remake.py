"""The gists of the next generation after a forget: rows it did not touch, and the others made anew.

Level by level from below, so that a parent is made of its children as the new store gives them
back: what results is what the encoder would have made of the tokens that are left. A gist may have
seen tokens left of its span, so those behind a forgotten token are made anew as well, as far as the
encoder looks back.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.contracts.storage import GistBatch
from megacontext_sdk.errors import ModelError
from megacontext_sdk.memory.chain import decode_ids
from megacontext_sdk.memory.directory.replay import copy_gists, touched_nodes
from megacontext_sdk.memory.lod import BLOCK_SIZE

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Bytes2D, Ids, Indices
    from megacontext_sdk.contracts.gist import Blocks
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

    @property
    def reach(self) -> int:
        """How many tokens left of a block its gist may have seen."""
        return self.gists.blocks.left_tokens

    def touched(self, lod: int) -> Indices:
        """Return the nodes of a level whose gists may know of what is left out, int64 ascending."""
        return touched_nodes(self.redaction, self.n_tokens, lod, self.reach)

    def fill(self, source: Storage, target: Storage) -> None:
        """Copy what holds, make what does not.

        An encoder that fails leaves the rest of its level missing, as ever; it is tried again when
        the memory is opened. As long as gists are missing, those of encoders before are kept as
        well, up to the first that is touched: how far theirs looked back is not known here.

        Raises:
            CorruptError: the source finds damage.
            StorageError: the target cannot be written.
        """
        for version, lod, count in source.state().gist_rows:
            if version == self.gists.version:
                self._fill_level(source, target, lod, count)
        if self.gists.n_missing:
            others = {version for version, _lod, _count in source.state().gist_rows}
            copy_gists(
                source,
                target,
                n_tokens=self.n_tokens,
                versions=others - {self.gists.version},
                redaction=self.redaction,
            )

    def anew(self, target: Storage, version: int, lod: int, nodes: Indices) -> dict[int, bytes]:
        """Return the rows that those nodes must have which the redaction touches.

        Empty where none may be: of another encoder from the first of them on, or because this one
        fails.

        Raises:
            CorruptError: the target finds damage.
        """
        touched = self.touched(lod)
        if version != self.gists.version:
            behind = nodes[nodes >= touched[0]] if len(touched) else touched
            return dict.fromkeys(behind.tolist(), b"")
        touched = np.intersect1d(nodes, touched)
        made = self._made(target, lod, touched)
        found = {int(node): row.tobytes() for node, row in zip(touched, made, strict=False)}
        return dict.fromkeys(touched.tolist(), b"") | found

    def _fill_level(self, source: Storage, target: Storage, lod: int, count: int) -> None:
        touched = self.touched(lod)
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
                rows.append(self._encoded(lod, part, below))
            except ModelError as error:
                self.gists.last_error = error
                break
        return np.concatenate(rows)

    def _encoded(self, lod: int, nodes: Indices, below: list[Blocks] | Bytes2D) -> Bytes2D:
        """Return stored rows of nodes.

        Raises:
            ModelError: the encoder fails, or its numbers cannot be stored.
        """
        maker = self.gists.maker
        if isinstance(below, list):
            return np.concatenate([maker.rows(1, run.first, run) for run in below])
        return maker.rows(lod, int(nodes[0]), below)

    def _below(self, target: Storage, lod: int, nodes: Indices) -> list[Blocks] | Bytes2D | None:
        """Return what nodes are made of: blocks, or rows of children; None if one is missing."""
        if lod == 1:
            return list(self.gists.blocks.over(partial(self._ids, target)).of(nodes))
        children = (nodes[:, None] * BLOCK_SIZE + np.arange(BLOCK_SIZE)).reshape(-1)
        found = target.read_gists(self.gists.version or 0, lod - 1, children)
        return found.rows if found.present.all() else None

    def _ids(self, target: Storage, blocks: Indices) -> Ids:
        return decode_ids(target.read_blocks(blocks), self.token_bytes)

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
