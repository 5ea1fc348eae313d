"""The one thread that writes: group commit, gists after their tokens, checkpoints off the path.

It moves what `InFlight` holds into a `Storage`. What is waiting while one flush runs goes out
together as the next batch; there is no time window. It never reads the store.
"""

from __future__ import annotations

import logging
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.contracts.storage import COMMIT, MESSAGE, Batch
from megacontext_sdk.errors import MegaContextError, SessionClosedError, StorageFullError
from megacontext_sdk.memory.chain import encode_ids
from megacontext_sdk.memory.lod import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from megacontext_sdk.contracts.storage import Storage
    from megacontext_sdk.memory.chain import Position
    from megacontext_sdk.memory.inflight import InFlight, Pending

__all__ = ["Guard", "Writer", "failed"]

logger = logging.getLogger(__name__)

_MAX_GROUP_BYTES = 8 * 2**20  # of one transaction; a larger commit goes alone
_CHECKPOINT_BYTES = 16 * 2**20
_IDLE_SECONDS = 30.0


def _nothing() -> None:
    """Stand in for a guard that a store without a directory does not need."""


class Guard:
    """What core does around the store's own writes: HEAD and the lock.

    Args:
        durable: called with seq and chain after each commit, before it is acknowledged.
        before_flush: called before each commit and checkpoint; raises if the lock was lost.
        flushed: called after each checkpoint.
    """

    def __init__(
        self,
        durable: Callable[[int, bytes], None],
        before_flush: Callable[[], None] = _nothing,
        flushed: Callable[[], None] = _nothing,
    ) -> None:
        self.durable = durable
        self.before_flush = before_flush
        self.flushed = flushed


def _named(cause: BaseException) -> str:
    """Say what happened; the text of a foreign error may quote what was written."""
    kind = type(cause).__name__
    return f"{kind}: {cause}" if isinstance(cause, MegaContextError) else kind


def failed(cause: BaseException, path: str) -> SessionClosedError:
    """Return the error of a handle that a failed write has made useless."""
    error = SessionClosedError(
        f"the memory cannot be written any more ({_named(cause)}). Everything "
        "acknowledged is kept: close it and open it again",
        reason="failed",
        path=path,
    )
    error.__cause__ = cause
    return error


def batch_of(group: Sequence[Pending], before: Position, token_bytes: int) -> Batch:
    """Return queued commits as one atomic unit that follows `before`."""
    ids = np.concatenate([before.tail, *(pending.ids for pending in group)])
    full = len(ids) - len(ids) % BLOCK_SIZE
    blocks = np.frombuffer(encode_ids(ids[:full], token_bytes), np.uint8)
    return Batch(
        commits=np.frombuffer(b"".join(pending.row for pending in group), COMMIT),
        blocks=blocks.reshape(-1, BLOCK_SIZE * token_bytes),
        tail=encode_ids(ids[full:], token_bytes),
        messages=np.concatenate([np.empty(0, MESSAGE), *(pending.messages for pending in group)]),
        bodies=tuple(body for pending in group for body in pending.bodies),
    )


class Writer:
    """Drains an `InFlight` into a store.

    Args:
        storage: opened for writing; only this thread calls its writing methods.
        queue: shared with the journal.
        token_bytes: 2 or 4.
        guard: HEAD and lock.
        sync: flush each commit; else they are durable at the next checkpoint, and HEAD waits too.

    Attributes:
        error: what made writing impossible.
        gists_blocked: the disk is full; queued gists wait until there is something new to do.
    """

    def __init__(
        self,
        storage: Storage,
        queue: InFlight,
        *,
        token_bytes: int,
        guard: Guard,
        sync: bool = True,
    ) -> None:
        self._storage = storage
        self._queue = queue
        self._token_bytes = token_bytes
        self._guard = guard
        self._sync = sync
        self._thread: Thread | None = None
        self._stopping = False
        self._flush_asked = self._flush_served = self._flush_seq = 0
        self._flush_error: Exception | None = None
        self.gists_blocked = False
        self._dirty_bytes = 0
        self._last_write = monotonic()
        self.error: SessionClosedError | None = None

    # --- called by the journal, which holds `queue.changed` ----------------------------------

    def wake(self) -> None:
        """Start the thread if need be and let it look at the queue."""
        if self._thread is None:
            self._thread = Thread(target=self._run, name="megacontext-writer", daemon=True)
            self._thread.start()
        self.gists_blocked = False
        self._queue.changed.notify_all()

    def flush(self) -> None:
        """Write everything queued and checkpoint.

        Raises:
            StorageError: why that was impossible.
        """
        self._flush_asked += 1
        self._flush_seq = self._queue.accepted.seq
        mine = self._flush_asked
        self.wake()
        self._queue.changed.wait_for(lambda: self._flush_served >= mine or self.error)
        if self.error is not None:
            raise self.error
        if self._flush_error is not None:
            raise self._flush_error

    def stop(self) -> Thread | None:
        """Ask the thread to end once the queue is empty; the caller joins it without the lock."""
        self._stopping = True
        self._queue.changed.notify_all()
        return self._thread

    # --- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as error:  # noqa: BLE001 - whatever it was, nobody may wait for ever
            self._fail(error)

    def _step(self) -> bool:
        """Do the most urgent thing; return False when it is time to end."""
        with self._queue.changed:
            self._queue.changed.wait_for(self._has_work, timeout=self._patience())
            group = self._queue.group(_MAX_GROUP_BYTES)
            before = self._queue.stored
        if group:
            self._commit(group, before)
        self._store_gists()
        if self._is_flush_due():
            self._checkpoint()
        with self._queue.changed:
            return not self._stopping or bool(self._queue.appends)

    def _has_work(self) -> bool:
        has_gists = bool(self._queue.gists) and not self.gists_blocked
        return bool(self._queue.appends) or has_gists or self._stopping or self._is_flush_asked()

    def _is_flush_asked(self) -> bool:
        return self._flush_asked > self._flush_served

    def _patience(self) -> float | None:
        """Return how long to wait for work: until the idle checkpoint, or for ever."""
        if not self._dirty_bytes:
            return None
        return max(0.0, self._last_write + _IDLE_SECONDS - monotonic())

    def _is_flush_due(self) -> bool:
        if self._is_flush_asked():
            # A flush covers what was accepted before it, not what others append meanwhile.
            return not self._queue.appends or self._queue.stored.seq >= self._flush_seq
        idle = monotonic() - self._last_write >= _IDLE_SECONDS
        return self._dirty_bytes >= _CHECKPOINT_BYTES or (idle and self._dirty_bytes > 0)

    def _commit(self, group: Sequence[Pending], before: Position) -> None:
        self._guard.before_flush()
        try:
            batch = batch_of(group, before, self._token_bytes)
            self._storage.commit(batch, sync=self._sync)
        except StorageFullError as error:
            logger.warning("the disk is full; %d appends were given up", len(group))
            with self._queue.changed:
                self._queue.roll_back(error)
                self._queue.changed.notify_all()
            return
        after = group[-1].after
        if self._sync:
            self._guard.durable(after.seq, after.chain)
        with self._queue.changed:
            self._queue.retire(group)
            self.gists_blocked = False  # there is space after all
            self._queue.changed.notify_all()
        for pending in group:
            pending.outcome.settle()
        self._note_write(sum(pending.n_bytes for pending in group))

    def _note_write(self, n_bytes: int) -> None:
        self._dirty_bytes += n_bytes
        self._last_write = monotonic()

    def _store_gists(self) -> None:
        with self._queue.changed:
            ready = [] if self.gists_blocked else self._queue.covered_gists()
        for batch in ready:
            try:
                self._storage.put_gists(batch)
            except StorageFullError:
                self.gists_blocked = True  # they stay queued until there is something new to do
                return
            with self._queue.changed:
                self._queue.retire_gists(batch)
                self._queue.changed.notify_all()
            self._note_write(batch.rows.nbytes)

    def _checkpoint(self) -> None:
        with self._queue.changed:
            asked = self._flush_asked
        self._guard.before_flush()
        error: Exception | None = None
        try:
            self._storage.flush()
        except StorageFullError as full:
            error = full
            self._last_write = monotonic()  # try again after the next pause
        else:
            if not self._sync and self._dirty_bytes:
                self._guard.durable(self._queue.stored.seq, self._queue.stored.chain)
            self._dirty_bytes = 0
            self._guard.flushed()
        with self._queue.changed:
            self._flush_served, self._flush_error = asked, error
            self._queue.changed.notify_all()

    def _fail(self, cause: BaseException) -> None:
        if isinstance(cause, SessionClosedError):
            self.error = cause
        else:
            self.error = failed(cause, str(self._storage.path))
        logger.error("writing stopped after %s", type(cause).__name__)
        with self._queue.changed:
            self._queue.roll_back(self.error)
            self._queue.changed.notify_all()
