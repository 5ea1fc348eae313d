"""The MegaContext Tree: the complete history, append-only, raw blocks below and gists above.

Addresses are arithmetic (`memory.lod`), the journal is the truth, gists are a cache that rebuilds
itself. The tree knows no budget, no scores and no text; it hands out arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.errors import ConfigError
from megacontext_sdk.memory import lod as levels
from megacontext_sdk.memory.access import AccessCounts
from megacontext_sdk.memory.forgotten import filled
from megacontext_sdk.memory.gist_rows import RowCodec
from megacontext_sdk.memory.gist_store import GistStore
from megacontext_sdk.memory.journal import OP_APPEND
from megacontext_sdk.memory.lod import BLOCK_SIZE, NodeId, Span
from megacontext_sdk.memory.older_gists import NO_VERSION
from megacontext_sdk.memory.stand_in import StandIns
from megacontext_sdk.memory.tree_stats import TreeStats

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bools, Floats, Ids, Indices, Lods
    from megacontext_sdk.contracts.gist import GistEncoder, GistServices
    from megacontext_sdk.errors import MegaContextError
    from megacontext_sdk.memory.journal import Journal, MessageRecord, Ticket
    from megacontext_sdk.memory.precision import PrecisionTable

__all__ = ["MegaContextTree"]

_TAIL_GISTS = 5
_PAGE_TOKENS = 2**16


class MegaContextTree:
    """A 32-ary tree over one journal. Implements `contracts.focus.GistReader`.

    Not shared between threads; the session's lock guards it.

    Args:
        journal: the truth of the memory.
        encoder: makes the gists.
        services: what the encoder may ask; also gives embedding rows.
        gist_dtype: "i1", "f2" or "f4", how gists are stored.
        gist_cache_rows: decoded gists kept in memory.
        access_path: file of the access counts, or None to count in this process only.
        precision: counts exact things in blocks; without one every block counts zero.
        read_only: write neither gists nor counts; what is missing is computed for this process.
        provisional: encoder that stands in, in memory only, where the other one fails or lags.
        filler_id: what models and encoders are shown in place of forgotten tokens.
        background: "on", "off" or "auto": who makes gists, see `memory.gist_store.BACKGROUND`.

    Attributes:
        filler_id: as given.

    Raises:
        ConfigError: an unknown type, or gists too wide to store.
    """

    def __init__(
        self,
        journal: Journal,
        encoder: GistEncoder,
        services: GistServices,
        *,
        gist_dtype: str = "f2",
        gist_cache_rows: int = 8192,
        access_path: Path | None = None,
        precision: PrecisionTable | None = None,
        read_only: bool = False,
        provisional: GistEncoder | None = None,
        filler_id: int = 0,
        background: str = "off",
    ) -> None:
        width = services.info.hidden_size
        codec = RowCodec(encoder.gist_slots, width, encoder.aux_size, gist_dtype)
        self._journal = journal
        self._services = services
        self.filler_id = filler_id
        stand_ins = (
            None
            if provisional is None
            else StandIns(provisional, journal, services, filler_id=filler_id)
        )
        self._gists = GistStore(
            journal,
            encoder,
            services,
            codec,
            gist_cache_rows,
            read_only=read_only,
            stand_ins=stand_ins,
            filler_id=filler_id,
            background=background,
        )
        self._access = AccessCounts(access_path, read_only=read_only)
        self._precision = precision

    def open(self, *, strict_encoder: bool = False) -> None:
        """Build gists that are missing after a crash, or leave them; read the access counts.

        Args:
            strict_encoder: refuse a memory whose gists are another encoder's.

        Raises:
            ModelMismatchError: with `strict_encoder`.
            StorageError: the encoder table cannot be stored.
        """
        self._gists.open(strict=strict_encoder)
        self._access.open()

    def over(self, journal: Journal) -> MegaContextTree:
        """Return the tree of another memory with the same encoder; it counts no accesses."""
        dtype = self._gists.codec.dtype
        return MegaContextTree(
            journal,
            self._gists.maker.encoder,
            self._services,
            gist_dtype=dtype,
            filler_id=self.filler_id,
            background="auto",
        )

    def flush(self) -> None:
        """Make everything accepted durable, and write the access counts.

        Raises:
            StorageError: what could not be written.
        """
        self._journal.flush()
        self._access.flush()

    def close(self) -> None:
        """Write the access counts; the journal is closed by whoever opened it."""
        self.stop()
        self._access.flush()

    # --- gists in the background -------------------------------------------------------------

    def wake(self) -> None:
        """Begin with what was missing when the tree was opened, if that was left to a thread."""
        self._gists.wake()

    def wait_for_gists(self) -> None:
        """Return when the background has made everything, or has given up on it for now.

        May be called without the session's lock.
        """
        self._gists.wait()

    def paused(self, *, idle: bool = False) -> AbstractContextManager[None]:
        """Keep the background away from the journal, and with `idle` from the encoder."""
        return self._gists.paused(idle=idle)

    def holding(self) -> AbstractContextManager[None]:
        """Let the gists of a few new blocks wait until the end of this, unless they are needed."""
        return self._gists.holding()

    def stop(self) -> None:
        """End the background; what it has not made stays missing. Idempotent."""
        self._gists.close()

    # --- shape -------------------------------------------------------------------------------

    @property
    def n_tokens(self) -> int:
        """N, the cursor: the index of the next token."""
        return self._journal.n_tokens

    @property
    def n_blocks(self) -> int:
        """Full blocks."""
        return self._journal.n_blocks

    @property
    def tail(self) -> Ids:
        """Ids behind the last full block, int32[0..31]."""
        return self._journal.tail

    @property
    def gist_slots(self) -> int:
        """S, rows per gist."""
        return self._gists.codec.slots

    @property
    def top_lod(self) -> int:
        """Highest level with a complete node."""
        return levels.top_lod(self.n_tokens)

    @property
    def gist_store(self) -> GistStore:
        """Builds and reads the gists."""
        return self._gists

    @property
    def encode_calls(self) -> Mapping[int, int]:
        """Nodes encoded by this process, by level."""
        return dict(self._gists.maker.encode_calls)

    @property
    def encoder_error(self) -> MegaContextError | None:
        """Why gists are missing, if they are."""
        return self._gists.last_error

    @property
    def gist_version(self) -> int:
        """Version of the encoder in use; -1 if it never wrote here."""
        version = self._gists.version
        return NO_VERSION if version is None else version

    @property
    def n_missing_gists(self) -> int:
        """Complete nodes without a stored gist of the encoder in use."""
        return self._gists.n_missing

    @property
    def n_provisional(self) -> int:
        """Gists served so far in place of the encoder's own, because it failed or lags."""
        return self._gists.n_provisional

    def n_nodes(self, lod: int) -> int:
        """Return how many complete nodes a level has."""
        return levels.n_nodes(self.n_tokens, lod)

    def exists(self, node: NodeId) -> bool:
        """Tell whether a node is complete; the partial tail is none."""
        is_level = 0 <= node.lod <= levels.MAX_LOD
        return is_level and 0 <= node.index < self.n_nodes(node.lod)

    def node_at(self, token_index: int, lod: int) -> NodeId:
        """Return the complete node of a level that covers a token.

        Raises:
            ConfigError: there is none.
        """
        node = levels.node_at(token_index, lod)
        if token_index < 0 or not self.exists(node):
            end = self.n_nodes(lod) * levels.width(lod)
            message = f"no complete LOD{lod} node covers token {token_index}; they cover [0, {end})"
            raise ConfigError(message, field="token_index", value=token_index)
        return node

    def iter_nodes(self, lod: int, start: int, end: int) -> Iterator[NodeId]:
        """Yield the complete nodes of a level that overlap tokens `[start, end)`, in order."""
        width = levels.width(lod)
        stop = min(-(-end // width), self.n_nodes(lod))
        yield from (NodeId(lod, index) for index in range(max(0, start // width), stop))

    def cover(self, span: Span, max_rows: int) -> list[NodeId]:
        """Tile a span, widened to whole blocks, in as much detail as some rows allow.

        Starts from the fewest nodes, then expands the coarsest, of those the newest, while all
        fits. The tail appears as the LOD0 node of its unfinished block.

        Raises:
            ConfigError: the span is no part of the history, or `max_rows` is too small.
        """
        self._check_span(span)
        end = min(-(-span.end // BLOCK_SIZE), self.n_blocks) * BLOCK_SIZE
        nodes = levels.minimal_cover(min(span.start // BLOCK_SIZE * BLOCK_SIZE, end), end)
        rows = self.gist_slots * len(nodes)
        has_tail = span.end > end
        rows += len(self.tail) if has_tail else 0
        if rows > max_rows:
            message = f"{span} needs at least {rows} rows, max_rows is {max_rows}"
            raise ConfigError(message, field="max_rows", value=max_rows, needed=rows)
        nodes = levels.refined(nodes, max_rows - rows, self.gist_slots)
        return [*nodes, NodeId(0, self.n_blocks)] if has_tail else nodes

    def stats(self) -> TreeStats:
        """Return what the tree holds and did."""
        above = {lod: self.n_nodes(lod) for lod in range(1, self.top_lod + 1)}
        n_gists, n_tokens = sum(above.values()), max(1, self.n_tokens)
        row_bytes = self._gists.codec.row_bytes
        versions = range(len(self._gists.table.entries))
        return TreeStats(
            n_tokens=self.n_tokens,
            n_blocks=self.n_blocks,
            n_tail=len(self.tail),
            nodes=above,
            node_ratio=n_gists / n_tokens,
            versions={v: self._journal.gist_count(v, 1) for v in versions},
            served=self._gists.served(above),
            n_missing_gists=self._gists.n_missing,
            n_pending_blocks=self.n_blocks - self._gists.count(1),
            gist_row_bytes=row_bytes,
            id_bytes_per_token=_id_bytes(self._services.info.vocab_size),
            gist_bytes_per_token=n_gists * row_bytes / n_tokens,
            encode_calls=self.encode_calls,
            cache_hits=self._gists.cache.hits,
            cache_misses=self._gists.cache.misses,
            access_reset=self._access.reset_reason,
        )

    # --- writing -----------------------------------------------------------------------------

    def append(
        self,
        token_ids: Ids,
        messages: Sequence[MessageRecord],
        *,
        op: int = OP_APPEND,
        key: bytes | None = None,
        ts_us: int | None = None,
    ) -> Ticket:
        """Append tokens and build the gists of every node they complete.

        Readable at once, durable when the ticket's `wait` returns. An encoder that fails does not
        fail the append: see `encoder_error`.

        Args:
            token_ids: int32[n].
            messages: whose `n_tokens` add up to n.
            op: what made them.
            key: idempotency key, 16 bytes.
            ts_us: time of the commit in microseconds.

        Raises:
            ConfigError: an id outside the vocabulary.
            StorageError: the append was refused; nothing changed.
        """
        self._check_ids(token_ids)
        before, tail, rollbacks = self.n_blocks, self.tail, self._journal.n_rollbacks
        ticket = self._journal.append(token_ids, messages, op=op, key=key, ts_us=ts_us)
        n_new = self.n_blocks - before
        if self._journal.n_rollbacks != rollbacks:
            self._gists.grow()  # what lies before these tokens is not what it was
        elif n_new:
            ids = np.concatenate([tail, np.asarray(token_ids, np.int32)])
            self._gists.grow(ids[: n_new * BLOCK_SIZE].reshape(-1, BLOCK_SIZE))
        return ticket

    # --- reading -----------------------------------------------------------------------------

    def token_ids(self, span: Span) -> Ids:
        """Return the ids of a span, int32[n], -1 where forgotten.

        Raises:
            ConfigError: the span is no part of the history.
        """
        self._check_span(span)
        return self._journal.token_ids(span)

    def is_forgotten(self, span: Span) -> bool:
        """Tell whether every token of a span was forgotten; of an empty span none was.

        Raises:
            ConfigError: the span is no part of the history.
        """
        self._check_span(span)
        parts = range(span.start, span.end, _PAGE_TOKENS)
        return span.n_tokens > 0 and all(
            bool((self.token_ids(Span(at, min(at + _PAGE_TOKENS, span.end))) < 0).all())
            for at in parts
        )

    def token_ids_of_blocks(self, blocks: Indices) -> Ids:
        """Return the ids of full blocks, int32[n, 32], -1 where forgotten.

        Raises:
            ConfigError: a block that is not full.
        """
        return self._journal.blocks(self._checked(0, blocks))

    def gists(self, lod: int, indices: Indices) -> Floats:
        """Return gists of nodes of one level, float32[n, S, d].

        Raises:
            ConfigError: a node that does not exist.
            ModelError: a missing gist cannot be computed.
        """
        if lod < 1:
            message = f"gists exist from LOD1 on, not at LOD{lod}"
            raise ConfigError(message, field="lod", value=lod)
        nodes = self._checked(lod, indices)
        return self._gists.read(lod, nodes)

    def rows(self, node: NodeId) -> Floats:
        """Return what a model is fed for a node, float32[m, d].

        Embedding rows of the tokens at LOD0, the unfinished block included; a gist above, made at
        once if that is cheap.

        Raises:
            ConfigError: a node that does not exist.
        """
        if node.lod:
            index = np.array([node.index])
            self.need(np.array([node.lod], np.uint8), index)
            gist: Floats = self.gists(node.lod, index)[0]
            return gist
        if node.index == self.n_blocks:
            ids = self.tail
        else:
            ids = self.token_ids_of_blocks(np.array([node.index]))[0]
        rows: Floats = self._services.embedding_table()[filled(ids, self.filler_id)]
        return rows

    def need(self, lods: Lods, indices: Indices) -> None:
        """Make gists of nodes now that the model is about to be fed, as far as that is cheap."""
        self._gists.need(lods, indices)

    def is_provisional(self, lods: Lods, indices: Indices) -> Bools:
        """Tell of gist nodes, bool[n], whether something else serves in place of their own gist."""
        return self._gists.is_provisional(lods, indices)

    def serving(self, lods: Lods, indices: Indices) -> tuple[NDArray[np.int16], Bools]:
        """Return which version serves gist nodes, int16[n], -1 if none, and `is_provisional`."""
        return self._gists.serving(lods, indices)

    def tail_gists(self) -> Floats:
        """Return slot 0 of the newest five LOD1 gists, oldest first, and of the newest LOD2.

        float32[6, d]; missing ones are NaN, at the front.
        """
        rows = np.full((_TAIL_GISTS + 1, self._gists.codec.width), np.nan, np.float32)
        blocks = np.arange(max(0, self.n_nodes(1) - _TAIL_GISTS), self.n_nodes(1))
        if len(blocks):
            rows[_TAIL_GISTS - len(blocks) : _TAIL_GISTS] = self.gists(1, blocks)[:, 0]
        if self.n_nodes(2):
            rows[_TAIL_GISTS] = self.gists(2, np.array([self.n_nodes(2) - 1]))[0, 0]
        return rows

    def precision(self, blocks: Indices) -> Floats:
        """Return how many exact things each full block holds, float32[n].

        Raises:
            ConfigError: a block that is not full.
        """
        if self._precision is None:
            return np.zeros(len(blocks), np.float32)
        return self._precision.count(self.token_ids_of_blocks(blocks))

    # --- telemetry per node ------------------------------------------------------------------

    def note_access(self, lods: Lods, indices: Indices) -> None:
        """Count nodes read into a working context."""
        self._access.note_access(lods, indices)

    def note_mutation(self, lods: Lods, indices: Indices) -> None:
        """Count nodes that were expanded or collapsed."""
        self._access.note_mutation(lods, indices)

    def access_counts(self, node: NodeId) -> tuple[int, int]:
        """Return `(access_count, mutation_access_count)` of a node."""
        return self._access.counts(node)

    # --- checks ------------------------------------------------------------------------------

    def _checked(self, lod: int, indices: Indices) -> Indices:
        nodes = np.asarray(indices, np.int64)
        n = self.n_nodes(lod)
        if nodes.size and (nodes.min() < 0 or nodes.max() >= n):
            wrong = int(nodes[(nodes < 0) | (nodes >= n)][0])
            message = f"LOD{lod}:{wrong} does not exist; complete nodes of LOD{lod} are [0, {n})"
            raise ConfigError(message, field="indices", value=wrong)
        return nodes

    def _check_ids(self, token_ids: Ids) -> None:
        """Refuse ids the model has no embedding for; their gists could never be made."""
        n_vocab = self._services.info.vocab_size
        if len(token_ids) and token_ids.max() >= n_vocab:
            index = int(np.argmax(token_ids >= n_vocab))
            value = int(token_ids[index])
            message = f"token id {value} at index {index} is outside the vocabulary [0, {n_vocab})"
            raise ConfigError(message, field="token_ids", value=value, index=index)

    def _check_span(self, span: Span) -> None:
        ends: tuple[object, ...] = (span.start, span.end)
        is_whole = all(type(at) is int or isinstance(at, np.integer) for at in ends)
        if not is_whole or not 0 <= span.start <= span.end <= self.n_tokens:
            message = (
                f"span [{span.start!r:.40}, {span.end!r:.40}) is no part of the history; "
                f"valid are integers 0 <= start <= end <= {self.n_tokens}"
            )
            raise ConfigError(message, field="span", value=ends)


def _id_bytes(vocab_size: int) -> float:
    """Return bytes of a stored token id."""
    return 2.0 if vocab_size < 2**16 else 4.0
