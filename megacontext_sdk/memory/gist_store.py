"""Serves the gists of one memory: from the cache, from storage, made at once, or provisional.

An encoder that is quicker than the disk makes its gists while tokens are appended. One that runs
behind leaves them to a builder in the background; until it has been there, a node is served by the
newest encoder before, or by plain means, and says so. What is provisional never passes for the
encoder's own: it is not stored, and whoever holds it can ask whether the real one has come.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.errors import (
    ConfigError,
    ModelError,
    ModelMismatchError,
    SessionClosedError,
)
from megacontext_sdk.memory.block_runs import BlockRuns
from megacontext_sdk.memory.encoder_table import EncoderTable
from megacontext_sdk.memory.gist_builder import GistBuilder
from megacontext_sdk.memory.gist_levels import GistLevels
from megacontext_sdk.memory.gist_maker import GistMaker
from megacontext_sdk.memory.gist_rows import GistCache
from megacontext_sdk.memory.lod import BLOCK_SIZE
from megacontext_sdk.memory.older_gists import NO_VERSION, OlderGists
from megacontext_sdk.memory.urgent import affordable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bools, Floats, Ids, Indices, Lods
    from megacontext_sdk.contracts.gist import GistEncoder, GistServices
    from megacontext_sdk.errors import MegaContextError
    from megacontext_sdk.memory.gist_rows import RowCodec
    from megacontext_sdk.memory.journal import Journal
    from megacontext_sdk.memory.stand_in import StandIns

__all__ = ["BACKGROUND", "GistStore"]

BACKGROUND = ("auto", "on", "off")
"""Who makes gists: a thread in the background for encoders that run behind, always, or never."""

_KEPT = 64  # rows of a small append are kept decoded, for they are read next
_PROVISIONAL_ROWS = 2048  # kept decoded while the encoder is behind: more than a window shows
_AT_ONCE = 2**15
"""Missing blocks that a quick encoder makes when a memory is opened: 1 M tokens, under a second."""
_HELD_BLOCKS = 16
"""New blocks that wait together while a reply is decoded: one call of the encoder, 512 tokens."""
_URGENT_SECONDS = 5.0
"""How long the window waits for gists it needs: a chunk and a request of a sane encoder."""

_log = logging.getLogger(__name__)


class GistStore:
    """Builds and reads the gists of the active encoder.

    Args:
        journal: the memory.
        encoder: the active encoder.
        services: what it may ask of the session.
        codec: layout of its rows.
        cache_rows: decoded rows kept in memory.
        read_only: store nothing; what is missing is computed for this process.
        stand_ins: serve what the encoder has not made; without them such reads raise.
        filler_id: stands for forgotten tokens; no encoder ever sees them.
        background: one of `BACKGROUND`.

    Attributes:
        maker: runs the encoder.
        blocks: what it is handed.
        levels: its stored rows.
        table: the encoders of this memory.
        n_provisional: gists served so far in place of the encoder's own.
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
        background: str = "off",
    ) -> None:
        self.codec = codec
        self.cache = GistCache(cache_rows, codec.slots, codec.width)
        self.table = EncoderTable(journal)
        self.maker = GistMaker(encoder, services, codec)
        self.blocks = BlockRuns(journal.blocks, encoder, filler_id)
        self.levels = GistLevels(journal, self.maker, self.blocks)
        self.stand_ins = stand_ins
        self.n_provisional = 0
        self._journal = journal
        self._read_only = read_only
        self._last_error: ModelError | None = None
        self._runs_behind = background == "on" or (background == "auto" and encoder.runs_behind)
        self._may_catch_up = background == "auto" and not read_only
        self._builder: GistBuilder | None = None
        self._older: OlderGists | None = None
        self._provisional = GistCache(
            min(max(cache_rows, 1), _PROVISIONAL_ROWS), codec.slots, codec.width
        )
        self._ahead = GistCache(_PROVISIONAL_ROWS, codec.slots, codec.width)  # made, not stored yet
        self._seen_rollbacks = journal.n_rollbacks
        self._is_held = False

    @property
    def version(self) -> int | None:
        """Version of the encoder in the memory's table; None if it never wrote here."""
        return self.levels.version

    @property
    def last_error(self) -> MegaContextError | None:
        """Why gists are missing, after the encoder failed; None while all is well."""
        if self._builder is not None and self._builder.error is not None:
            return self._builder.error
        return self._last_error

    @last_error.setter
    def last_error(self, error: ModelError | None) -> None:
        self._last_error = error

    @property
    def is_behind(self) -> bool:
        """Tell whether gists are made in the background now."""
        return self._builder is not None

    def open(self, *, strict: bool = False) -> None:
        """Find or enter the encoder's version, then build what is missing, or leave it to `wake`.

        Args:
            strict: refuse a memory whose gists are another encoder's.

        Raises:
            ModelMismatchError: with `strict`.
            StorageError: the version cannot be entered.
        """
        info, encoder = self.maker.services.info, self.maker.encoder
        self.levels.version = self.table.find(encoder, self.codec, info)
        if strict:
            self._check_encoder()
        if self.version is None and not self._read_only:
            self.levels.version = self.table.register(encoder, self.codec, info)
        self._older = OlderGists(
            self._journal, self.table, self.codec, active=self.version, base=info.fingerprint
        )
        backlog = self._journal.n_blocks - self.count(1)
        if self._runs_behind or (self._may_catch_up and backlog > _AT_ONCE):
            self._builder = GistBuilder(self._journal, self.levels, stores=not self._read_only)
        else:
            self.grow()

    def _check_encoder(self) -> None:
        encoder = self.maker.encoder
        fingerprint = encoder.fingerprint(self.maker.services.info)
        for version, name in self.table.others(fingerprint):
            if self._journal.gist_count(version, 1) > self.count(1):
                message = (
                    f"the gists of this memory were made by encoder {name!r}, not by "
                    f"{encoder.name!r}, and strict_encoder=True forbids to mix them; open it with "
                    f"gist={name!r} and call rebuild(gist={encoder.name!r})"
                )
                stored = str(self.table.entries[version].get("fp", ""))
                raise ModelMismatchError(message, kind="encoder", stored=stored, given=fingerprint)

    def count(self, lod: int) -> int:
        """Return how many nodes of a level have stored gists."""
        return self.levels.count(lod)

    @property
    def n_missing(self) -> int:
        """Number of complete nodes without a stored gist."""
        return self.levels.n_missing

    # --- building ----------------------------------------------------------------------------

    def grow(self, blocks: Ids | None = None) -> None:
        """Build the gists of all new blocks and of every parent they complete, or see to it.

        A failing encoder leaves its gists missing: they are tried again at the next call, and the
        tokens they stand for are safe. `last_error` says why.

        Args:
            blocks: int32[n, 32], the newest blocks, if the caller has them at hand.
        """
        self._notice_rollbacks()
        if self._read_only or self.version is None:
            return
        if self._is_held and self._journal.n_blocks - self.count(1) < _HELD_BLOCKS:
            return
        self._make(blocks)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Let the gists of a few new blocks wait inside: text in, then tokens out.

        Encoding blocks together costs a fraction of one after the other, and not a token waits for
        it. What is needed before is made at once, and the rest at the end.
        """
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            with suppress(SessionClosedError):  # a lost memory; whoever waits for its text says so
                self.grow()

    def _make(self, blocks: Ids | None = None) -> None:
        """Build what is missing, or wake the background; see `grow`."""
        if self._builder is not None:
            n_fresh = 0 if blocks is None else len(blocks)
            if not self._has_caught_up(n_fresh):
                self._builder.wake()
                return
            self.close()
            blocks = None  # whatever else it left missing
        self._build(blocks)

    def _has_caught_up(self, n_fresh: int) -> bool:
        """Tell whether a quick encoder has made all but the newest blocks: it goes on by itself."""
        if self._runs_behind or self._builder is None or not self._builder.is_idle:
            return False
        return self._journal.n_blocks - self.count(1) <= n_fresh

    def _build(self, blocks: Ids | None) -> None:
        try:
            self.levels.build(blocks if self._last_error is None else None, self._keep)
        except ModelError as error:
            self._last_error = error
            _log.warning("gists are missing and will be tried again: %s", error)
        except (ConfigError, LookupError):
            if self._journal.n_rollbacks == self._seen_rollbacks:
                raise
            # A full disk took the blocks back while their gists were made; their ticket says so.
        else:
            if self._last_error is not None:
                self.cache.clear()  # of stand-ins
            self._last_error = None

    def _keep(self, lod: int, first: int, rows: Floats) -> None:
        if len(rows) <= _KEPT:
            self.cache.write(lod, np.arange(first, first + len(rows)), rows)

    def wake(self) -> None:
        """Let the background begin with what a crash or another encoder left missing."""
        if self._builder is not None and self.n_missing:
            self._builder.wake()

    def wait(self) -> None:
        """Return when the background has made everything, or has given up for now."""
        builder = self._builder
        if builder is not None and not self._read_only:
            builder.wait()

    def paused(self, *, idle: bool = False) -> AbstractContextManager[None]:
        """Keep the background away from the journal and, with `idle`, from the encoder."""
        return nullcontext() if self._builder is None else self._builder.paused(idle=idle)

    def close(self) -> None:
        """End the background; what it has not made stays missing. Idempotent."""
        if self._builder is not None:
            self._builder.close()
            self._builder = None

    # --- reading -----------------------------------------------------------------------------

    def read(self, lod: int, nodes: Indices) -> Floats:
        """Return gists float32[n, S, d] of existing nodes, in the order asked.

        Raises:
            ModelError: a missing gist cannot be computed, and there are no stand-ins.
        """
        self._notice_rollbacks()
        if self._builder is not None:
            return self._read_behind(lod, nodes)
        rows, missing = self.cache.read(lod, nodes)
        if len(missing):
            wanted = np.unique(nodes[missing])
            if wanted[-1] >= self.count(lod) and not self._read_only and self.version is not None:
                self._make()
            found = self._load_or_stand_in(lod, wanted)
            self.cache.write(lod, wanted, found)
            rows[missing] = found[np.searchsorted(wanted, nodes[missing])]
        return rows

    def _load_or_stand_in(self, lod: int, nodes: Indices) -> Floats:
        """Return rows float32[n, S, d] of ascending nodes; provisional ones where it fails."""
        try:
            return self.levels.load(lod, nodes).gists.rows
        except ModelError as error:
            if self.stand_ins is None:
                raise
            self._last_error = error
        n_stored = int(np.searchsorted(nodes, self.count(lod)))
        if not 0 < n_stored < len(nodes):
            return self._stand_in(lod, nodes)
        parts = (nodes[:n_stored], nodes[n_stored:])
        return np.concatenate([self._load_or_stand_in(lod, part) for part in parts])

    def _read_behind(self, lod: int, nodes: Indices) -> Floats:
        """Return what there is now; the encoder is not run for it."""
        rows, missing = self.cache.read(lod, nodes)
        is_left = np.zeros(len(nodes), np.bool_)
        is_left[missing] = True
        own = missing[nodes[missing] < self.count(lod)]
        if len(own):
            wanted, at = np.unique(nodes[own], return_inverse=True)
            level, present = self.levels.stored(lod, wanted)
            self.cache.write(lod, wanted[present], level.gists.rows[present])
            rows[own], is_left[own] = level.gists.rows[at], ~present[at]
        left = np.flatnonzero(is_left)
        for cache in (self._ahead, self._provisional):
            if len(left):
                found, still = cache.read(lod, nodes[left])
                rows[left] = found
                left = left[still]
        if len(left):
            wanted = np.unique(nodes[left])
            made = self._stand_in(lod, wanted)
            self._provisional.write(lod, wanted, made)
            rows[left] = made[np.searchsorted(wanted, nodes[left])]
        return rows

    def _stand_in(self, lod: int, nodes: Indices) -> Floats:
        """Return rows float32[n, S, d] of ascending nodes by other means than the encoder's.

        Raises:
            ModelError: there are no stand-ins.
        """
        self.n_provisional += len(nodes)
        older = self._older
        if older is None:
            rows, found = self._empty(len(nodes)), np.zeros(len(nodes), np.bool_)
        else:
            rows, found = older.read(lod, nodes)
        if found.all():
            return rows
        if self.stand_ins is None:
            node = f"LOD{lod}:{int(nodes[~found][0])}"
            message = f"the gist of {node} is not made yet, and nothing may stand in for it"
            raise ModelError(message, encoder=self.maker.encoder.name, lod=lod, node=node)
        rows[~found] = self.stand_ins.make(lod, nodes[~found]).rows
        return rows

    def _empty(self, n: int) -> Floats:
        return np.zeros((n, self.codec.slots, self.codec.width), np.float32)

    def _notice_rollbacks(self) -> None:
        """Forget decoded rows after appends were given up: other blocks will take their place."""
        if self._journal.n_rollbacks != self._seen_rollbacks:
            self._seen_rollbacks = self._journal.n_rollbacks
            for cache in (self.cache, self._provisional, self._ahead):
                cache.clear()
            if self.stand_ins is not None:
                self.stand_ins.clear()

    # --- what is the encoder's own -----------------------------------------------------------

    @property
    def _stands_in(self) -> bool:
        """Tell whether something stands in for what is missing; else it is made when it is read."""
        return self._builder is not None or self._last_error is not None

    def need(self, lods: Lods, nodes: Indices) -> None:
        """Make gists at once that the model is about to be fed, as far as that is cheap."""
        if self._builder is None:
            return
        wanted = affordable(lods, nodes, self.is_provisional(lods, nodes), self.count)
        if wanted:
            for lod, made, rows in self._builder.make(wanted, _URGENT_SECONDS):
                self._ahead.write(lod, made, rows)

    def is_provisional(self, lods: Lods, nodes: Indices) -> Bools:
        """Tell of nodes whether `read` gives something else than the encoder's own gist, bool[n].

        A node that does not exist has no gist, and none is provisional.
        """
        provisional = np.zeros(len(nodes), np.bool_)
        if not self._stands_in:
            return provisional
        for lod in np.unique(lods).tolist():
            at = np.flatnonzero((lods == lod) & (nodes >= self.count(lod)))
            exists = nodes[at] < self._journal.n_tokens // BLOCK_SIZE**lod
            at = at[exists]
            provisional[at] = ~self._ahead.holds(lod, nodes[at])
        return provisional

    def serving(self, lods: Lods, nodes: Indices) -> tuple[NDArray[np.int16], Bools]:
        """Return which version serves nodes, int16[n], and which gists are provisional, bool[n].

        The version is -1 where the gist is stored nowhere.
        """
        provisional = self.is_provisional(lods, nodes)
        own = NO_VERSION if self.version is None else self.version
        found = np.full(len(nodes), own, np.int16)
        for lod in np.unique(lods[provisional]).tolist():
            at = np.flatnonzero(provisional & (lods == lod))
            found[at] = NO_VERSION if self._older is None else self._older.which(lod, nodes[at])
        return found, provisional

    def served(self, n_nodes: Mapping[int, int]) -> dict[int, int]:
        """Return how many nodes each version serves, with -1 for what is stored nowhere.

        Args:
            n_nodes: complete nodes by level.
        """
        totals: dict[int, int] = {}
        for lod, n in n_nodes.items():
            bounds = [] if self.version is None else [(self.version, self.count(lod))]
            if self._older is not None and self._stands_in:
                bounds += self._older.counts(lod)
            covered = 0
            for version, count in [*bounds, (NO_VERSION, n)]:
                more = min(count, n) - covered
                if more > 0:
                    totals[version] = totals.get(version, 0) + more
                    covered += more
        return totals
