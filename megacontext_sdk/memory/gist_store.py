"""Gists of one memory: built bottom-up as blocks fill, stored as a cache, made again when missing.

Level by level, rows are stored without gaps from node 0; so "what is missing" is always the suffix
behind the stored count, whether a crash, a failed encoder or a new encoder left it. A parent is
computed from its children as storage gives them back, so no row depends on how appends were cut.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.contracts.gist import Gists
from megacontext_sdk.contracts.storage import GistBatch
from megacontext_sdk.errors import ConfigError, ModelError
from megacontext_sdk.memory.encoder_table import EncoderTable
from megacontext_sdk.memory.forgotten import filled
from megacontext_sdk.memory.gist_rows import GistCache
from megacontext_sdk.memory.lod import BLOCK_SIZE, MAX_LOD, n_nodes
from megacontext_sdk.memory.provenance import trust_of_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bools, Bytes2D, Floats, Ids, Indices
    from megacontext_sdk.contracts.gist import GistEncoder, GistServices
    from megacontext_sdk.memory.gist_rows import RowCodec
    from megacontext_sdk.memory.journal import Journal
    from megacontext_sdk.memory.stand_in import StandIns

__all__ = ["GistStore"]

_CHUNK_NUMBERS = 2**18  # of gists encoded and handed over at once: 1,024 blocks at width 256
_KEPT = 64  # rows of a small append are kept decoded, for they are read next

_log = logging.getLogger(__name__)


@attrs.frozen(eq=False)
class _Level:
    """Consecutive decoded rows of one level, from node `first` on, with their trust."""

    first: int
    gists: Gists
    trust: NDArray[np.uint8]

    @property
    def stop(self) -> int:
        return self.first + len(self.trust)


class GistStore:
    """Builds and reads the gists of the active encoder.

    Args:
        journal: the memory.
        encoder: the active encoder.
        services: what it may ask of the session.
        codec: layout of its rows.
        cache_rows: decoded rows kept in memory.
        read_only: store nothing; what is missing is computed for this process.
        stand_ins: serve what the encoder fails to make; without them such reads raise.
        filler_id: stands for forgotten tokens; no encoder ever sees them.

    Attributes:
        encoder: as given.
        encode_calls: nodes encoded so far by this process, by level.
        last_error: why gists are missing, after the encoder failed; None while all is well.
    """

    def __init__(
        self,
        journal: Journal,
        encoder: GistEncoder,
        services: GistServices,
        codec: RowCodec,
        cache_rows: int,
        *,
        read_only: bool = False,
        stand_ins: StandIns | None = None,
        filler_id: int = 0,
    ) -> None:
        self.codec = codec
        self.cache = GistCache(cache_rows, codec.slots, codec.width)
        self.encode_calls: dict[int, int] = {}
        self.last_error: ModelError | None = None
        self.table = EncoderTable(journal)
        self.version: int | None = None
        self._journal = journal
        self.encoder = encoder
        self._filler_id = filler_id
        self._services = services
        self._read_only = read_only
        self.stand_ins = stand_ins
        rows = _CHUNK_NUMBERS // (codec.slots * codec.width) // BLOCK_SIZE * BLOCK_SIZE
        self._chunk = max(rows, 2 * BLOCK_SIZE)
        self._seen_rollbacks = journal.n_rollbacks

    def open(self) -> None:
        """Find or enter the encoder's version, then build what is missing.

        Raises:
            StorageError: the version cannot be entered.
        """
        info = self._services.info
        if self._read_only:
            self.version = self.table.find(self.encoder, self.codec, info)
            return
        self.version = self.table.register(self.encoder, self.codec, info)
        self.grow()

    def count(self, lod: int) -> int:
        """Return how many nodes of a level have stored gists."""
        return 0 if self.version is None else self._journal.gist_count(self.version, lod)

    @property
    def n_missing(self) -> int:
        """Number of complete nodes without a stored gist."""
        n_tokens = self._journal.n_tokens
        return sum(n_nodes(n_tokens, lod) - self.count(lod) for lod in range(1, MAX_LOD + 1))

    def grow(self, blocks: Ids | None = None) -> None:
        """Build the gists of all new blocks and of every parent they complete.

        A failing encoder leaves its gists missing: they are tried again at the next call, and the
        tokens they stand for are safe. `last_error` says why.

        Args:
            blocks: int32[n, 32], the newest blocks, if the caller has them at hand.
        """
        self._notice_rollbacks()
        if self._read_only or self.version is None:
            return
        try:
            self._build(blocks)
        except ModelError as error:
            self.last_error = error
            _log.warning("gists are missing and will be tried again: %s", error)
        except (ConfigError, LookupError):
            if self._journal.n_rollbacks == self._seen_rollbacks:
                raise
            # A full disk took the blocks back while their gists were made; their ticket says so.
        else:
            if self.last_error is not None:
                self.cache.clear()  # of stand-ins
            self.last_error = None

    def read(self, lod: int, nodes: Indices) -> Floats:
        """Return gists float32[n, S, d] of existing nodes, in the order asked.

        Raises:
            ModelError: a missing gist cannot be computed, and there are no stand-ins.
        """
        self._notice_rollbacks()
        rows, missing = self.cache.read(lod, nodes)
        if len(missing):
            wanted = np.unique(nodes[missing])
            if wanted[-1] >= self.count(lod):
                self.grow()
            found = self._load_or_stand_in(lod, wanted)
            self.cache.write(lod, wanted, found)
            rows[missing] = found[np.searchsorted(wanted, nodes[missing])]
        return rows

    def _load_or_stand_in(self, lod: int, nodes: Indices) -> Floats:
        """Return rows float32[n, S, d] of ascending nodes; stand-ins where the encoder fails."""
        try:
            return self._load(lod, nodes).gists.rows
        except ModelError as error:
            if self.stand_ins is None:
                raise
            self.last_error = error
        n_stored = int(np.searchsorted(nodes, self.count(lod)))
        if not 0 < n_stored < len(nodes):
            return self.stand_ins.make(lod, nodes).rows
        parts = (nodes[:n_stored], nodes[n_stored:])
        return np.concatenate([self._load_or_stand_in(lod, part) for part in parts])

    def _notice_rollbacks(self) -> None:
        """Forget decoded rows after appends were given up: other blocks will take their place."""
        if self._journal.n_rollbacks != self._seen_rollbacks:
            self._seen_rollbacks = self._journal.n_rollbacks
            self.cache.clear()

    # --- building ----------------------------------------------------------------------------

    def _build(self, blocks: Ids | None) -> None:
        if blocks is None or self.last_error is not None:
            self._raise_missing()
        n_blocks, at = self._journal.n_blocks, self.count(1)
        fresh_from = n_blocks - (0 if blocks is None else len(blocks))
        while at < n_blocks:
            stop = min(at + self._chunk, n_blocks)
            if blocks is not None and at >= fresh_from:
                ids = blocks[at - fresh_from : stop - fresh_from]
            else:
                ids = self._journal.blocks(np.arange(at, stop))
            self._raise_parents(self._store(1, at, self._encode_blocks(ids), self._trust(at, stop)))
            at = stop

    def _raise_missing(self) -> None:
        """Build parents that an earlier failure left out, level by level."""
        for lod in range(2, MAX_LOD + 1):
            at, stop = self.count(lod), self.count(lod - 1) // BLOCK_SIZE
            while at < stop:
                end = min(at + self._chunk // BLOCK_SIZE, stop)
                children = self._load(lod - 1, np.arange(at * BLOCK_SIZE, end * BLOCK_SIZE))
                self._store_parents(lod, children)
                at = end

    def _raise_parents(self, level: _Level) -> None:
        """Build the parents that new rows complete, and theirs."""
        lod = 1
        while level.stop // BLOCK_SIZE > self.count(lod + 1):
            lod += 1
            first = self.count(lod) * BLOCK_SIZE
            stop = level.stop // BLOCK_SIZE * BLOCK_SIZE
            level = self._store_parents(lod, self._joined(lod - 1, first, level, stop))

    def _joined(self, lod: int, first: int, level: _Level, stop: int) -> _Level:
        """Return rows `[first, stop)` of a level: the older ones from storage, the rest given."""
        cut = max(0, stop - level.first)
        rows, aux, trust = level.gists.rows[:cut], level.gists.aux[:cut], level.trust[:cut]
        if first < level.first:
            old = self._load(lod, np.arange(first, min(level.first, stop)))
            rows = np.concatenate([old.gists.rows, rows])
            aux = np.concatenate([old.gists.aux, aux])
            trust = np.concatenate([old.trust, trust])
        return _Level(first, Gists(rows=rows, aux=aux), trust)

    def _store_parents(self, lod: int, children: _Level) -> _Level:
        trust = children.trust.reshape(-1, BLOCK_SIZE).min(axis=1)
        gists = self._encode_gists(lod, children.gists)
        return self._store(lod, children.first // BLOCK_SIZE, gists, trust)

    def _store(self, lod: int, first: int, gists: Gists, trust: NDArray[np.uint8]) -> _Level:
        """Hand new rows to the journal; return them as storage will give them back."""
        raw = self.codec.encode(gists)
        nodes = np.arange(first, first + len(raw), dtype=np.uint64)
        level = _Level(first, self._checked(lod, first, self.codec.decode(raw)), trust)
        self._journal.put_gists(
            GistBatch(version=self.version or 0, lod=lod, nodes=nodes, trust=trust, rows=raw)
        )
        if len(raw) <= _KEPT:
            self.cache.write(lod, nodes.astype(np.int64), level.gists.rows)
        return level

    # --- reading -----------------------------------------------------------------------------

    def _load(self, lod: int, nodes: Indices) -> _Level:
        """Return decoded rows of ascending nodes; what storage lacks is computed, not stored."""
        if self.version is None:
            return self._compute(lod, nodes)
        found = self._journal.gists(self.version, lod, nodes)
        present = found.present
        if not present.all():
            return self._completed(lod, nodes, present)
        gists = self.codec.decode(found.rows)
        if not self.codec.is_finite(gists):
            return self._compute(lod, nodes)
        return _Level(int(nodes[0]), gists, found.trust)

    def _completed(self, lod: int, nodes: Indices, present: Bools) -> _Level:
        """Return rows of nodes of which storage has only some."""
        made = self._compute(lod, nodes[~present])
        if not present.any():
            return made
        held = self._load(lod, nodes[present])
        parts = [
            np.empty((len(nodes), *like.shape[1:]), like.dtype)
            for like in (made.gists.rows, made.gists.aux, made.trust)
        ]
        for whole, old, new in zip(
            parts,
            (held.gists.rows, held.gists.aux, held.trust),
            (made.gists.rows, made.gists.aux, made.trust),
            strict=True,
        ):
            whole[present], whole[~present] = old, new
        return _Level(int(nodes[0]), Gists(rows=parts[0], aux=parts[1]), parts[2])

    def _compute(self, lod: int, nodes: Indices) -> _Level:
        """Return rows computed from the children, rounded as storage would round them."""
        if lod == 1:
            gists = self._encode_blocks(self._journal.blocks(nodes))
            trust = np.concatenate([self._trust(at, at + 1) for at in nodes.tolist()])
        else:
            below = nodes[:, None] * BLOCK_SIZE + np.arange(BLOCK_SIZE)
            children = self._load(lod - 1, below.reshape(-1))
            gists = self._encode_gists(lod, children.gists)
            trust = children.trust.reshape(-1, BLOCK_SIZE).min(axis=1)
        rounded = self.codec.decode(self.codec.encode(gists))
        return _Level(int(nodes[0]), self._checked(lod, int(nodes[0]), rounded), trust)

    # --- the encoder, which is foreign code --------------------------------------------------

    def made(self, lod: int, first: int, below: Ids | Bytes2D) -> Bytes2D:
        """Return rows as they are stored, uint8[n, row_bytes], of nodes whose content is given.

        Args:
            lod: their level.
            first: the first of them, to name it in an error.
            below: at LOD1 ids int32[n, 32], above it stored rows of children uint8[n * 32, ...].

        Raises:
            ModelError: the encoder fails, or its numbers cannot be stored.
        """
        if lod == 1:
            gists = self._encode_blocks(below.astype(np.int32, copy=False))
        else:
            gists = self._encode_gists(lod, self.codec.decode(below.astype(np.uint8, copy=False)))
        raw = self.codec.encode(gists)
        self._checked(lod, first, self.codec.decode(raw))
        return raw

    def _encode_blocks(self, ids: Ids) -> Gists:
        encode, known = self.encoder.encode_blocks, filled(ids, self._filler_id)
        return self._encode(1, len(ids), lambda: encode(known, self._services))

    def _encode_gists(self, lod: int, children: Gists) -> Gists:
        encode = self.encoder.encode_gists
        n = len(children.rows) // BLOCK_SIZE
        return self._encode(lod, n, lambda: encode(lod, children, self._services))

    def _encode(self, lod: int, n: int, encode: Callable[[], Gists]) -> Gists:
        """Run the encoder; whatever it raises, or another shape than asked, is a `ModelError`."""
        name, codec = self.encoder.name, self.codec
        self.encode_calls[lod] = self.encode_calls.get(lod, 0) + n
        try:
            gists = encode()
        except Exception as error:
            # Its text stays in the cause: it may quote what the memory holds.
            message = f"gist encoder {name!r} failed on LOD{lod} with {type(error).__name__}"
            raise ModelError(message, encoder=name, lod=lod) from error
        if not all(_is_numbers(getattr(gists, part, None)) for part in ("rows", "aux")):
            message = (
                f"gist encoder {name!r} gave a {type(gists).__name__} for LOD{lod}; it must give "
                "Gists whose rows and aux are arrays of floating-point numbers"
            )
            raise ModelError(message, encoder=name, lod=lod)
        shapes = gists.rows.shape, gists.aux.shape
        if shapes != ((n, codec.slots, codec.width), (n, codec.aux)):
            message = (
                f"gist encoder {name!r} gave LOD{lod} arrays of shape {shapes} for {n} nodes; it "
                f"declares {codec.slots} slots of width {codec.width} and {codec.aux} aux numbers"
            )
            raise ModelError(message, encoder=name, lod=lod)
        return gists

    def _checked(self, lod: int, first: int, gists: Gists) -> Gists:
        if self.codec.is_finite(gists):
            return gists
        wrong = ~np.isfinite(gists.rows).all(axis=(1, 2)) | ~np.isfinite(gists.aux).all(axis=1)
        node = f"LOD{lod}:{first + int(np.flatnonzero(wrong)[0])}"
        message = (
            f"gist encoder {self.encoder.name!r} made numbers for {node} that "
            f"{self.codec.dtype!r} cannot hold; check the embedding table or use gist_dtype='f4'"
        )
        raise ModelError(message, encoder=self.encoder.name, lod=lod, node=node)

    def _trust(self, first: int, stop: int) -> NDArray[np.uint8]:
        return trust_of_blocks(self._journal, first, stop)


def _is_numbers(array: object) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind == "f"
