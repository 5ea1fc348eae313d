"""The pager: brings a model's window in line with a layout at the price of the swapped rows.

Rows are named by keys (`runtime.rows`). Those that stay keep their slots, those that leave are
released (and kept in a bounded block cache), those that arrive are restored from it or computed in
one batched forward pass. With the compact scheme the rows behind a swap only move: their keys are
re-rotated. It knows nothing about scores or policies, and the window is always a cache of the tree.

Modes (spec section 10): `exact` recomputes everything right of the earliest edit, `stale` only the
new rows, `seam` the new rows and the first rows behind each edited run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.contracts.model import RowBatch
from megacontext_sdk.errors import InvariantError
from megacontext_sdk.runtime.block_kv import BlockKVCache
from megacontext_sdk.runtime.rows import gist_parts, is_token, node_groups, row_keys

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Bools, Floats, Ids, Indices
    from megacontext_sdk.contracts.model import BlockKV, ModelInfo, Window, WindowOutput
    from megacontext_sdk.contracts.positions import Layout, PositionScheme
    from megacontext_sdk.runtime.row_source import RowSource

__all__ = ["Aside", "Pager", "SyncReport"]

_NO_IDS: Ids = np.zeros(0, dtype=np.int32)
_CHUNK_ROWS = 1024
"""Rows per forward pass of a large write: bounds the attention mask, not the result."""


@attrs.frozen(kw_only=True)
class SyncReport:
    """What one `sync` did.

    Attributes:
        rows_new: rows that were not in the window.
        rows_cached: of these, restored from the block cache.
        rows_seam: kept rows that were recomputed (seam, exact mode, or for logits).
        rows_released: rows that left.
        rows_moved: kept rows whose position changed.
        forwards: forward passes of the base.
    """

    rows_new: int = 0
    rows_cached: int = 0
    rows_seam: int = 0
    rows_released: int = 0
    rows_moved: int = 0
    forwards: int = 0

    @property
    def rows_recomputed(self) -> int:
        """Rows that went through the base."""
        return self.rows_new - self.rows_cached + self.rows_seam


@attrs.frozen(eq=False, kw_only=True)
class _Target:
    """The rows a window shall hold, in position order.

    `slots` is filled while rows find their place: -1 where a row is not in the window yet.
    """

    keys: Indices
    positions: Indices
    slots: Indices
    end: int
    pending: Ids


@attrs.frozen(eq=False, kw_only=True)
class Aside:
    """Rows taken out of a window for a while; `block` is None where there were none."""

    block: BlockKV | None
    keys: Indices
    positions: Indices
    next_position: int


class Pager:
    """Owns one window and which row stands in which slot.

    Args:
        window: an empty window; its live slots are kept packed in `[0, n_live)`.
        source: token ids and gists.
        scheme: position scheme.
        info: the model's facts.
        mode: "exact", "stale" or "seam".
        seam_rows: rows recomputed behind each edited run in seam mode.
        cache_bytes: bound of the block cache.
    """

    def __init__(
        self,
        window: Window,
        source: RowSource,
        scheme: PositionScheme,
        info: ModelInfo,
        *,
        mode: str = "seam",
        seam_rows: int = 16,
        cache_bytes: int = 32 << 20,
    ) -> None:
        self.window = window
        self.mode = mode
        self.seam_rows = seam_rows
        self.cache = BlockKVCache(0 if mode == "exact" else cache_bytes)
        self.rebuilds = 0
        self.swaps_since_rebuild = 0
        self._source = source
        self._scheme = scheme
        self._info = info
        self._n = 0
        self._keys = np.full(window.capacity, -1, dtype=np.int64)
        self._positions = np.full(window.capacity, -1, dtype=np.int64)
        self._stale = np.zeros(window.capacity, dtype=np.bool_)
        self._is_provisional = np.zeros(window.capacity, dtype=np.bool_)
        self._no_vectors = np.zeros((0, info.hidden_size), dtype=np.float32)
        self._next_position = 0

    @property
    def n_live(self) -> int:
        """Rows in the window."""
        return self._n

    @property
    def stale_rows(self) -> int:
        """Kept rows that were computed when their left side looked different."""
        return int(self._stale[: self._n].sum())

    def live(self) -> tuple[Indices, Indices]:
        """Return keys and positions of the live slots in slot order, int64[n_live] each (I14)."""
        return self._keys[: self._n].copy(), self._positions[: self._n].copy()

    # -- decode ---------------------------------------------------------------------------------

    def step(self, token_id: int, token_index: int) -> WindowOutput:
        """Feed one generated token behind everything live and return the logits it gives."""
        slot = self._n
        position = self._next_position
        try:
            output = self.window.step(token_id, position, slot)
        except BaseException:
            self._start_over()
            raise
        self._keys[slot] = token_index
        self._positions[slot] = position
        self._stale[slot] = self._is_provisional[slot] = False
        self._n = slot + 1
        self._next_position = position + 1
        return output

    # -- layout changes -------------------------------------------------------------------------

    def sync(
        self,
        layout: Layout,
        pending: Ids = _NO_IDS,
        *,
        want_logits: bool = False,
        rebuild: bool = False,
    ) -> tuple[SyncReport, WindowOutput | None]:
        """Make the window hold exactly the rows of a layout and of the pending tokens behind it.

        If it fails or is interrupted, the window is empty: the next call computes all rows.

        Args:
            layout: what the working context holds.
            pending: int32[p], generated tokens that are not in the layout yet.
            want_logits: return the logits of the last row, recomputing it if it is there already.
            rebuild: recompute every row, so that nothing stale is left.

        Returns:
            What was done, and the "last" logits if wanted (None for an empty window).

        Raises:
            ConfigError: the position scheme cannot place the layout.
            ModelError: more rows than the window has slots.
        """
        try:
            return self._sync(layout, pending, want_logits=want_logits, rebuild=rebuild)
        except BaseException:
            self._start_over()
            raise

    def _sync(
        self, layout: Layout, pending: Ids, *, want_logits: bool, rebuild: bool
    ) -> tuple[SyncReport, WindowOutput | None]:
        positions = self._assign(layout, len(pending))
        keys = row_keys(layout, len(pending))
        if rebuild:
            self._release(np.arange(self._n), keep=False)
        released = self._release_outdated() + self._release_others(self._find(keys))
        target = _Target(
            keys=keys,
            positions=positions,
            slots=self._find(keys),
            end=layout.end,
            pending=pending,
        )
        new = target.slots < 0
        moved = self._move(target, ~new)
        restored = self._restore(target, new)
        repair = self._repair(new)
        if want_logits and len(keys):
            repair[-1] = True
        compute = (new & ~restored) | repair
        self._need(keys[new & ~restored])
        output, forwards = self._write(target, compute, want_logits=want_logits)
        self._book(target.slots, new, compute, rebuild=rebuild)
        return SyncReport(
            rows_new=int(new.sum()),
            rows_cached=int((restored & ~compute).sum()),
            rows_seam=int((compute & ~new).sum()),
            rows_released=released,
            rows_moved=moved,
            forwards=forwards,
        ), output

    def _start_over(self) -> None:
        """Forget all rows: which of them are whole is not known after a pass that failed."""
        self._n = 0
        self.swaps_since_rebuild = 0
        self.cache.clear()
        self.window.release(np.arange(self.window.capacity))

    def _assign(self, layout: Layout, n_pending: int) -> Indices:
        positions = self._scheme.assign(layout, self._info)
        first = self._scheme.next_position(layout, self._info)
        self._next_position = first + n_pending
        if not n_pending:
            return positions
        return np.concatenate([positions, np.arange(first, first + n_pending, dtype=np.int64)])

    def _find(self, keys: Indices) -> Indices:
        """Return the slot of each key, -1 where it is not in the window."""
        live = self._keys[: self._n]
        if not len(live) or not len(keys):
            return np.full(len(keys), -1, dtype=np.int64)
        order = np.argsort(live)
        at = np.minimum(np.searchsorted(live, keys, sorter=order), len(live) - 1)
        slots = order[at]
        return np.where(live[slots] == keys, slots, -1)

    def _release_outdated(self) -> int:
        """Free the slots of gists that stood in for their node's own, which is there now."""
        provisional = np.flatnonzero(self._is_provisional[: self._n])
        if not len(provisional):
            return 0
        lods, nodes, _slot = gist_parts(self._keys[provisional])
        gone = provisional[~self._source.is_provisional(lods.astype(np.uint8), nodes)]
        self._release(gone, keep=False)
        return len(gone)

    def _need(self, keys: Indices) -> None:
        """Tell the source which gists are about to be fed to the model."""
        lods, nodes, slot = gist_parts(keys[~is_token(keys)])
        first = slot == 0
        if first.any():
            self._source.need(lods[first].astype(np.uint8), nodes[first])

    def _release_others(self, slots: Indices) -> int:
        stays = np.zeros(self._n, dtype=np.bool_)
        stays[slots[slots >= 0]] = True
        leaving = np.flatnonzero(~stays)
        self._release(leaving, keep=self.cache.max_bytes > 0)
        return len(leaving)

    def _release(self, leaving: Indices, *, keep: bool) -> None:
        """Free slots, export whole nodes to the cache, and pack the live ones to the front."""
        if not len(leaving):
            return
        if keep:
            own = leaving[~self._is_provisional[leaving]]
            for group in node_groups(self._keys[own]):
                self.cache.put(group.node, self.window.export(own[group.at]))
        self.window.release(leaving)
        n_left = self._n - len(leaving)
        holes = leaving[leaving < n_left]
        gone = np.zeros(self._n, dtype=np.bool_)
        gone[leaving] = True
        movers = np.flatnonzero(~gone[n_left:]) + n_left
        if len(holes):
            self.window.relocate(movers, holes)
            for column in (self._keys, self._positions, self._stale, self._is_provisional):
                column[holes] = column[movers]
        self._n = n_left

    def _move(self, target: _Target, kept: Bools) -> int:
        changed = kept.copy()
        changed[kept] = self._positions[target.slots[kept]] != target.positions[kept]
        n_moved = int(changed.sum())
        if n_moved:
            slots, positions = target.slots[changed], target.positions[changed]
            self.window.move(slots, positions)
            self._positions[slots] = positions
        return n_moved

    def _restore(self, target: _Target, new: Bools) -> Bools:
        """Put cached nodes back; return which rows that were."""
        restored = np.zeros(len(target.keys), dtype=np.bool_)
        if not len(self.cache):
            return restored
        missing = np.flatnonzero(new)
        for group in node_groups(target.keys[missing]):
            block = self.cache.take(group.node)
            if block is not None:
                rows = missing[group.at]
                slots = self._occupy(target, rows)
                self.window.restore(block, slots, target.positions[rows])
                restored[rows] = True
        return restored

    def _occupy(self, target: _Target, rows: Indices) -> Indices:
        """Give new rows the next free slots and return these."""
        slots = np.arange(self._n, self._n + len(rows))
        target.slots[rows] = slots
        self._keys[slots] = target.keys[rows]
        self._positions[slots] = target.positions[rows]
        self._is_provisional[slots] = False
        self._n += len(rows)
        return slots

    def _repair(self, new: Bools) -> Bools:
        """Return which kept rows are computed again, by mode."""
        kept = ~new
        row = np.arange(len(new))
        last_edit = np.maximum.accumulate(np.where(new, row, -len(new) - self.seam_rows))
        if self.mode == "exact":
            return kept & (last_edit >= 0)
        if self.mode == "seam":
            return kept & (row - last_edit <= self.seam_rows) & (last_edit >= 0)
        return np.zeros(len(new), dtype=np.bool_)

    def _write(
        self, target: _Target, compute: Bools, *, want_logits: bool
    ) -> tuple[WindowOutput | None, int]:
        """Run the base over the rows to compute, in position order, a chunk at a time."""
        rows = np.flatnonzero(compute)
        output = None
        chunks = [rows[at : at + _CHUNK_ROWS] for at in range(0, len(rows), _CHUNK_ROWS)]
        for number, chunk in enumerate(chunks, 1):
            fresh = chunk[target.slots[chunk] < 0]
            if len(fresh):
                self._occupy(target, fresh)
            output = self.window.write(
                self._content(target, chunk),
                target.positions[chunk],
                target.slots[chunk],
                "last" if want_logits and number == len(chunks) else "nothing",
            )
        return (output if want_logits else None), len(chunks)

    def _content(self, target: _Target, rows: Indices) -> RowBatch:
        """Return what rows hold: ids of tokens, vectors of gists."""
        keys = target.keys[rows]
        token = is_token(keys)
        ids = np.full(len(keys), -1, dtype=np.int32)
        ids[token] = self._token_ids(keys[token], target)
        if token.all():
            return RowBatch(ids, self._no_vectors)
        lods, nodes, slot = gist_parts(keys[~token])
        # Asked before they are read: what becomes a node's own in between is replaced once more.
        provisional = self._source.is_provisional(lods.astype(np.uint8), nodes)
        self._is_provisional[target.slots[rows[~token]]] = provisional
        vectors = np.empty((len(lods), self._info.hidden_size), dtype=np.float32)
        for lod in np.unique(lods):
            at = lods == lod
            vectors[at] = self._source.gists(int(lod), nodes[at])[np.arange(at.sum()), slot[at]]
        if not np.isfinite(vectors).all():
            raise _violation("I6", "a gist row is not finite; session.close() and open it again")
        return RowBatch(ids, vectors)

    def _token_ids(self, indices: Indices, target: _Target) -> Ids:
        ids = np.empty(len(indices), dtype=np.int32)
        ahead = indices >= target.end
        ids[ahead] = target.pending[indices[ahead] - target.end]
        stored = indices[~ahead]
        if len(stored):
            ids[~ahead] = self._source.token_ids_at(stored)
        return ids

    def _book(self, slots: Indices, new: Bools, compute: Bools, *, rebuild: bool) -> None:
        """Keep count of what is stale now."""
        edits = np.flatnonzero(new)
        if rebuild:
            self._stale[: self._n] = False
            self.swaps_since_rebuild = 0
            self.rebuilds += 1
            return
        if len(edits):
            behind = np.arange(len(new)) > edits[0]
            self._stale[slots[behind & ~new]] = True
            runs_with_followers = int((new[:-1] & ~new[1:]).sum())
            self.swaps_since_rebuild += runs_with_followers
        self._stale[slots[new]] = True
        self._stale[slots[compute]] = False

    def newest_logits(self, n_rows: int) -> Floats:
        """Return logits of the newest raw-token rows as served, float32[n, vocab].

        Feeding a row again needs its slot; its keys and values are put back afterwards, so the
        window stays what it was. Rows are the trailing run of raw tokens, at most `n_rows`.
        """
        order = np.argsort(self._positions[: self._n])
        token = is_token(self._keys[order])
        run = len(order) - 1 - (np.flatnonzero(~token)[-1] if not token.all() else -1)
        slots = order[len(order) - min(run, n_rows) :]
        kept = self.window.export(slots)
        positions = self._positions[slots]
        batch = RowBatch(self._source.token_ids_at(self._keys[slots]), self._no_vectors)
        try:
            output = self.window.write(batch, positions, slots, "all")
            logits = None if output is None else output.numpy()
            self.window.restore(kept, slots, positions)
        except BaseException:
            self._start_over()
            raise
        return np.zeros((0, self._info.vocab_size), np.float32) if logits is None else logits

    def set_aside(self, token_index: int) -> Aside:
        """Take rows of raw tokens from `token_index` on out of the window, to be put back."""
        live = self._keys[: self._n]
        slots = np.flatnonzero(is_token(live) & (live >= token_index))
        aside = Aside(
            block=self.window.export(slots) if len(slots) else None,
            keys=self._keys[slots],
            positions=self._positions[slots],
            next_position=self._next_position,
        )
        self._release(slots, keep=False)
        return aside

    def put_back(self, aside: Aside) -> None:
        """Put rows back that were set aside; the other rows must be where they were."""
        if aside.block is None:
            return
        slots = np.arange(self._n, self._n + len(aside.keys))
        self.window.restore(aside.block, slots, aside.positions)
        self._keys[slots], self._positions[slots] = aside.keys, aside.positions
        self._stale[slots] = self._is_provisional[slots] = False
        self._n += len(slots)
        self._next_position = aside.next_position

    def truncate(self, token_index: int) -> None:
        """Drop rows of raw tokens from `token_index` on: text that was taken back."""
        live = self._keys[: self._n]
        self._release(np.flatnonzero(is_token(live) & (live >= token_index)), keep=False)

    def check(self, layout: Layout, n_pending: int = 0) -> None:
        """Check that the window holds exactly the rows of a layout, in order (I11, I14).

        Raises:
            InvariantError: positions that do not rise, or a row without its slot.
        """
        order = np.argsort(self._positions[: self._n], kind="stable")
        if (np.diff(self._positions[: self._n][order]) <= 0).any():
            raise _violation("I11", "two rows share a position")
        keys = row_keys(layout, n_pending)
        if self.window.n_live != self._n or not np.array_equal(keys, self._keys[: self._n][order]):
            raise _violation("I14", f"{self._n} slots do not hold the {len(keys)} rows in order")

    def clear(self) -> None:
        """Empty the window and the block cache; the next `sync` computes everything."""
        self._release(np.arange(self._n), keep=False)
        self.cache.clear()


def _violation(code: str, detail: str) -> InvariantError:
    return InvariantError(
        f"{code}: {detail}; please report this", code=code, detail=detail, epoch=None
    )
