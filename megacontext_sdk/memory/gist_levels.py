"""The gists of one encoder over one memory: what is stored, and making what is missing.

Level by level, rows are stored without gaps from node 0; so "what is missing" is always the suffix
behind the stored count, whether a crash, a failed encoder, a new one, or one that runs behind left
it. A parent is computed from its children as storage gives them back, so no row depends on how
appends were cut. Nothing is cached here, and nothing stands in for what is missing.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.contracts.gist import Gists
from megacontext_sdk.contracts.storage import GistBatch
from megacontext_sdk.memory.lod import BLOCK_SIZE, MAX_LOD, n_nodes
from megacontext_sdk.memory.provenance import trust_of_blocks

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bools, Floats, Ids, Indices
    from megacontext_sdk.contracts.gist import Blocks
    from megacontext_sdk.memory.block_runs import BlockRuns
    from megacontext_sdk.memory.gist_maker import GistMaker
    from megacontext_sdk.memory.journal import Journal

    Turn = Callable[[], AbstractContextManager[None]]
    """Guards one access to the journal."""

__all__ = ["Chunk", "GistLevels", "Level"]

_CHUNK_NUMBERS = 2**18  # of gists encoded and handed over at once: 1,024 blocks at width 256


@attrs.frozen(eq=False)
class Level:
    """Decoded rows of ascending nodes of one level, with their trust, uint8[n].

    `first` is the first of them; they follow each other unless they were asked for one by one.
    """

    first: int
    gists: Gists
    trust: NDArray[np.uint8]

    @property
    def stop(self) -> int:
        """The node behind the last, of nodes that follow each other."""
        return self.first + len(self.trust)


@attrs.frozen(eq=False)
class Chunk:
    """Nodes to be made, and what of: read, not encoded yet.

    Attributes:
        lod: their level.
        first: the first of them.
        below: runs of blocks at LOD1, else the rows of the children.
        trust: uint8[n].
        since: `n_rollbacks` of the journal before it was read.
    """

    lod: int
    first: int
    below: list[Blocks] | Gists
    trust: NDArray[np.uint8]
    since: int


class GistLevels:
    """Rows of one encoder.

    Args:
        journal: the memory.
        maker: runs the encoder.
        blocks: what it is handed.
        turn: entered around each access to the journal, and never around the encoder.

    Attributes:
        maker, blocks: as given.
        version: of the encoder in the memory's table; None if it never wrote here.
    """

    def __init__(
        self, journal: Journal, maker: GistMaker, blocks: BlockRuns, turn: Turn = nullcontext
    ) -> None:
        self.maker = maker
        self.blocks = blocks
        self.version: int | None = None
        self._journal = journal
        self._turn = turn
        codec = maker.codec
        rows = _CHUNK_NUMBERS // (codec.slots * codec.width) // BLOCK_SIZE * BLOCK_SIZE
        self._chunk = max(rows, 2 * BLOCK_SIZE)

    def taking_turns(self, turn: Turn) -> GistLevels:
        """Return the same levels for another thread."""
        other = GistLevels(self._journal, self.maker, self.blocks, turn)
        other.version = self.version
        return other

    def count(self, lod: int) -> int:
        """Return how many nodes of a level have stored gists."""
        return 0 if self.version is None else self._journal.gist_count(self.version, lod)

    @property
    def n_missing(self) -> int:
        """Number of complete nodes without a stored gist."""
        n_tokens = self._journal.n_tokens
        return sum(n_nodes(n_tokens, lod) - self.count(lod) for lod in range(1, MAX_LOD + 1))

    # --- building in one go ------------------------------------------------------------------

    def build(self, fresh: Ids | None, keep: Callable[[int, int, Floats], None]) -> None:
        """Build everything that is missing: the blocks, and each parent as soon as it can be.

        Args:
            fresh: int32[n, 32], the newest blocks if they are at hand; nothing is missing above
                the others.
            keep: told of each run of new rows: level, first node, rows float32[n, S, d].

        Raises:
            ModelError: the encoder fails; what was stored before stays.
        """
        if fresh is None:
            self._raise_missing(keep)
        n_blocks, at = self._journal.n_blocks, self.count(1)
        fresh_from = n_blocks - (0 if fresh is None else len(fresh))
        while at < n_blocks:
            stop = min(at + self._chunk, n_blocks)
            if fresh is not None and at >= fresh_from:
                ids = fresh[at - fresh_from : stop - fresh_from]
                gists = self.maker.of_blocks([self.blocks.run(at, ids)])
            else:
                gists = self.maker.of_blocks(self.blocks.of(np.arange(at, stop)))
            trust = trust_of_blocks(self._journal, at, stop)
            self._raise_parents(self._store(1, at, gists, trust, keep), keep)
            at = stop

    def _raise_missing(self, keep: Callable[[int, int, Floats], None]) -> None:
        """Build parents that an earlier failure left out, level by level."""
        for lod in range(2, MAX_LOD + 1):
            at, stop = self.count(lod), self.count(lod - 1) // BLOCK_SIZE
            while at < stop:
                end = min(at + self._chunk // BLOCK_SIZE, stop)
                children = self.load(lod - 1, np.arange(at * BLOCK_SIZE, end * BLOCK_SIZE))
                self._store_parents(lod, children, keep)
                at = end

    def _raise_parents(self, level: Level, keep: Callable[[int, int, Floats], None]) -> None:
        """Build the parents that new rows complete, and theirs."""
        lod = 1
        while level.stop // BLOCK_SIZE > self.count(lod + 1):
            lod += 1
            first = self.count(lod) * BLOCK_SIZE
            stop = level.stop // BLOCK_SIZE * BLOCK_SIZE
            level = self._store_parents(lod, self._joined(lod - 1, first, level, stop), keep)

    def _joined(self, lod: int, first: int, level: Level, stop: int) -> Level:
        """Return rows `[first, stop)` of a level: the older ones from storage, the rest given."""
        cut = max(0, stop - level.first)
        rows, aux, trust = level.gists.rows[:cut], level.gists.aux[:cut], level.trust[:cut]
        if first < level.first:
            old = self.load(lod, np.arange(first, min(level.first, stop)))
            rows = np.concatenate([old.gists.rows, rows])
            aux = np.concatenate([old.gists.aux, aux])
            trust = np.concatenate([old.trust, trust])
        return Level(first, Gists(rows=rows, aux=aux), trust)

    def _store_parents(
        self, lod: int, children: Level, keep: Callable[[int, int, Floats], None]
    ) -> Level:
        gists = self.maker.of_children(lod, children.gists)
        return self._store(lod, children.first // BLOCK_SIZE, gists, _least(children.trust), keep)

    def _store(
        self,
        lod: int,
        first: int,
        gists: Gists,
        trust: NDArray[np.uint8],
        keep: Callable[[int, int, Floats], None],
    ) -> Level:
        """Hand new rows to the journal; return them as storage will give them back."""
        raw, rounded = self.maker.packed(lod, first, gists)
        nodes = np.arange(first, first + len(raw), dtype=np.uint64)
        self._journal.put_gists(
            GistBatch(version=self.version or 0, lod=lod, nodes=nodes, trust=trust, rows=raw)
        )
        keep(lod, first, rounded.rows)
        return Level(first, rounded, trust)

    # --- building chunk by chunk -------------------------------------------------------------

    def next_chunk(self, n_blocks: int) -> Chunk | None:
        """Read what is to be made next, at most so many blocks; None if nothing is missing.

        Parents that can be made come first, so that a level is never far behind the one below.
        Chunks end on multiples of `n_blocks`: a long history is cut alike whenever it is made.

        Raises:
            LookupError: blocks went meanwhile, because a full disk took them back.
        """
        with self._turn():
            since = self._journal.n_rollbacks
            for lod in range(MAX_LOD, 1, -1):
                at, stop = self.count(lod), self.count(lod - 1) // BLOCK_SIZE
                if at < stop:
                    end = min(at + max(1, n_blocks // BLOCK_SIZE), stop)
                    return self._parents_to_make(lod, at, end, since)
            at, stop = self.count(1), self._journal.n_blocks
            if at >= stop:
                return None
            end = min((at // n_blocks + 1) * n_blocks, stop)
            below = list(self.blocks.of(np.arange(at, end)))
            return Chunk(1, at, below, trust_of_blocks(self._journal, at, end), since)

    def _parents_to_make(self, lod: int, at: int, end: int, since: int) -> Chunk:
        children = np.arange(at * BLOCK_SIZE, end * BLOCK_SIZE)
        found = self._journal.gists(self.version or 0, lod - 1, children)
        below = self.maker.codec.decode(found.rows)
        return Chunk(lod, at, below, _least(found.trust), since)

    def encode(self, chunk: Chunk) -> GistBatch:
        """Return the rows of a chunk, as they are stored.

        Raises:
            ModelError: the encoder fails.
        """
        if isinstance(chunk.below, Gists):
            gists = self.maker.of_children(chunk.lod, chunk.below)
        else:
            gists = self.maker.of_blocks(chunk.below)
        raw, _rounded = self.maker.packed(chunk.lod, chunk.first, gists)
        nodes = np.arange(chunk.first, chunk.first + len(raw), dtype=np.uint64)
        version = self.version or 0
        return GistBatch(version=version, lod=chunk.lod, nodes=nodes, trust=chunk.trust, rows=raw)

    def put(self, chunk: Chunk, batch: GistBatch) -> None:
        """Hand the rows of a chunk to the journal, which drops them if their blocks went."""
        with self._turn():
            self._journal.put_gists(batch, since=chunk.since)

    # --- reading -----------------------------------------------------------------------------

    def stored(self, lod: int, nodes: Indices) -> tuple[Level, Bools]:
        """Return rows of ascending nodes as far as they are stored and finite, and which are."""
        codec = self.maker.codec
        if self.version is None:
            nothing = np.zeros((len(nodes), codec.row_bytes), np.uint8)
            trust = np.zeros(len(nodes), np.uint8)
            return Level(0, codec.decode(nothing), trust), np.zeros(len(nodes), np.bool_)
        with self._turn():
            found = self._journal.gists(self.version, lod, nodes)
        raw, present = found.rows, found.present
        if not present.all():
            if not present.any():  # a backend cannot know how wide rows are that it lacks
                raw = np.zeros((len(nodes), codec.row_bytes), np.uint8)
            raw = np.where(present[:, None], raw, np.uint8(0))
        gists = codec.decode(raw)
        if not codec.is_finite(gists):
            is_whole = np.isfinite(gists.rows).all(axis=(1, 2)) & np.isfinite(gists.aux).all(axis=1)
            present = present & is_whole
        return Level(int(nodes[0]) if len(nodes) else 0, gists, found.trust), present

    def load(self, lod: int, nodes: Indices) -> Level:
        """Return rows of ascending nodes; what storage lacks is computed, not stored.

        Raises:
            ModelError: a row that is not stored cannot be computed.
        """
        level, present = self.stored(lod, nodes)
        if present.all():
            return level
        made = self._compute(lod, nodes[~present])
        rows, aux = level.gists.rows.copy(), level.gists.aux.copy()
        rows[~present], aux[~present] = made.gists.rows, made.gists.aux
        trust = level.trust.copy()
        trust[~present] = made.trust
        return Level(int(nodes[0]), Gists(rows=rows, aux=aux), trust)

    def _compute(self, lod: int, nodes: Indices) -> Level:
        """Return rows computed from the children, rounded as storage would round them."""
        if lod == 1:
            with self._turn():
                runs = list(self.blocks.of(nodes))
                trust = [trust_of_blocks(self._journal, at, at + 1) for at in nodes.tolist()]
            level = Level(0, self.maker.of_blocks(runs), np.concatenate(trust))
        else:
            below = nodes[:, None] * BLOCK_SIZE + np.arange(BLOCK_SIZE)
            children = self.load(lod - 1, below.reshape(-1))
            gists = self.maker.of_children(lod, children.gists)
            level = Level(0, gists, _least(children.trust))
        _raw, rounded = self.maker.packed(lod, int(nodes[0]), level.gists)
        return Level(int(nodes[0]), rounded, level.trust)


def _least(trust: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the trust of parents, uint8[n], of uint8[n * 32]: the least of their children's."""
    least: NDArray[np.uint8] = trust.reshape(-1, BLOCK_SIZE).min(axis=1)
    return least
