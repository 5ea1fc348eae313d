"""What this process has accepted and the store does not hold yet, and reads of it.

A bounded queue between the callers and the writer thread, which is also an overlay for readers:
they take the newest tokens, messages and gists from here and everything older from the store. All
methods expect the caller to hold `changed`. It starts no thread and does no I/O.
"""

from __future__ import annotations

from bisect import bisect_right
from threading import Condition, Event
from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.contracts.storage import COMMIT, MESSAGE
from megacontext_sdk.memory.chain import (
    Position,
    frozen,
    link,
    pack_head,
    pack_message,
)
from megacontext_sdk.memory.lod import BLOCK_SIZE, n_nodes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bools, Bytes2D, Ids, Indices
    from megacontext_sdk.contracts.storage import GistBatch
    from megacontext_sdk.memory.chain import (
        CommitReceipt,
        MessageRecord,
    )

__all__ = ["InFlight", "Outcome", "Pending", "Ticket", "pending_commit"]

_MAX_ITEMS = 1_024
_MAX_BYTES = 8 * 2**20  # more would not be faster, only cost resident memory


class Outcome:
    """What became of a queued commit: unknown until `event` is set, then stored or `error`."""

    __slots__ = ("error", "event")

    def __init__(self) -> None:
        self.event = Event()
        self.error: Exception | None = None

    def settle(self, error: Exception | None = None) -> None:
        """Wake everyone who waits."""
        self.error = error
        self.event.set()


class Ticket:
    """The receipt of an append that is on its way to the disk. May be shared between threads."""

    __slots__ = ("_outcome", "_receipt")

    def __init__(self, receipt: CommitReceipt, outcome: Outcome | None = None) -> None:
        self._receipt = receipt
        self._outcome = outcome  # None: stored long ago

    def done(self) -> bool:
        """Tell whether `wait` would return or raise at once."""
        return self._outcome is None or self._outcome.event.is_set()

    def wait(self, timeout: float | None = None) -> CommitReceipt:
        """Return once the append is durable.

        Raises:
            StorageError: what kept it from being stored; nothing of it is kept then.
            TimeoutError: still not durable after `timeout` seconds; it may yet become so.
        """
        if self._outcome is None:
            return self._receipt
        if not self._outcome.event.wait(timeout):
            raise TimeoutError(f"the append is not durable yet after {timeout} s; wait again")
        if self._outcome.error is not None:
            raise self._outcome.error
        return self._receipt


@attrs.frozen(kw_only=True, eq=False)
class Pending:
    """One accepted commit: its 88-byte row, what it holds and the position it leads to."""

    row: bytes
    start: int
    ids: Ids
    first_message: int
    messages: NDArray[np.void]
    bodies: tuple[bytes, ...]
    n_bytes: int
    after: Position
    outcome: Outcome


def pending_commit(
    before: Position,
    ids: Ids,
    messages: Sequence[MessageRecord],
    size: int,
    what: tuple[int, bytes, int],
    settings: Mapping[str, object] | None,
    outcome: Outcome,
) -> Pending:
    """Return the commit of these messages after `before`; `what` is `(op, key, ts_us)`."""
    op, key, ts_us = what
    setting = before.setting if settings is None else before.n_messages
    rows, start = [], before.n_tokens
    for message in messages:
        rows.append(pack_message(start, message))
        start += message.n_tokens
    packed = b"".join(rows)
    bodies = tuple(message.body for message in messages)
    head = pack_head(
        before,
        ts_us=ts_us,
        setting=setting,
        n_tokens=len(ids),
        n_messages=len(messages),
        op=op,
        key=key,
    )
    chain = link(before.chain, head, ids, packed, bodies)
    n_tail = (before.n_tokens + len(ids)) % BLOCK_SIZE
    # A copy: a view would keep the whole append alive.
    tail = ids[len(ids) - n_tail :].copy()
    if n_tail > len(ids):
        tail = np.concatenate([before.tail, ids])
    return Pending(
        row=head + chain,
        start=before.n_tokens,
        ids=ids,
        first_message=before.n_messages,
        messages=np.frombuffer(packed, MESSAGE),
        bodies=bodies,
        n_bytes=size + COMMIT.itemsize,
        after=Position(
            seq=before.seq + 1,
            chain=chain,
            n_tokens=before.n_tokens + len(ids),
            n_messages=before.n_messages + len(messages),
            tail=frozen(tail),
            setting=setting,
            settings=before.settings if settings is None else settings,
        ),
        outcome=outcome,
    )


class InFlight:
    """Queue of accepted commits and gists, and the two positions it lies between.

    Args:
        stored: position the store is at.
        gist_counts: rows the store holds by `(version, lod)`.
    """

    def __init__(self, stored: Position, gist_counts: dict[tuple[int, int], int]) -> None:
        self.changed = Condition()
        self.stored = stored
        self.accepted = stored
        self.appends: list[Pending] = []
        self.gists: list[GistBatch] = []
        self.gist_counts = gist_counts  # including what is queued
        self.n_bytes = 0
        self.n_rollbacks = 0

    @property
    def has_room(self) -> bool:
        """False when the next append has to wait for the writer."""
        return len(self.appends) + len(self.gists) < _MAX_ITEMS and self.n_bytes < _MAX_BYTES

    # --- writing ---------------------------------------------------------------------------

    def accept(self, pending: Pending) -> None:
        """Queue a commit; from now on reads see it."""
        self.appends.append(pending)
        self.accepted = pending.after
        self.n_bytes += pending.n_bytes

    def accept_gists(self, batch: GistBatch) -> None:
        """Queue gist rows; from now on reads see them."""
        key = (batch.version, batch.lod)
        self.gist_counts[key] = self.gist_counts.get(key, 0) + len(batch.nodes)
        self.gists.append(batch)
        self.n_bytes += batch.rows.nbytes

    def group(self, max_bytes: int) -> list[Pending]:
        """Return the oldest queued commits that fit into one batch, at least one if any."""
        size, at = 0, 0
        while at < len(self.appends) and (at == 0 or size + self.appends[at].n_bytes <= max_bytes):
            size += self.appends[at].n_bytes
            at += 1
        return self.appends[:at]

    def retire(self, group: Sequence[Pending]) -> None:
        """Take commits off the queue because the store holds them now."""
        del self.appends[: len(group)]
        self.stored = group[-1].after
        self.n_bytes -= sum(pending.n_bytes for pending in group)

    def covered_gists(self) -> list[GistBatch]:
        """Return the queued gists whose tokens are stored: a row never precedes its children."""
        ready: list[GistBatch] = []
        for batch in self.gists:
            if int(batch.nodes[-1]) >= n_nodes(self.stored.n_tokens, batch.lod):
                break
            ready.append(batch)
        return ready

    def retire_gists(self, batch: GistBatch) -> None:
        """Take the oldest gist batch off the queue because the store holds it now."""
        self.gists.pop(0)
        self.n_bytes -= batch.rows.nbytes

    def roll_back(self, error: Exception) -> None:
        """Give up every queued commit, and gists of blocks that will not exist."""
        given_up, self.appends = self.appends, []
        self.accepted = self.stored
        kept = [self._kept(batch) for batch in self.gists]
        self.gists = [batch for batch in kept if len(batch.nodes)]
        self.n_bytes = sum(batch.rows.nbytes for batch in self.gists)
        self.n_rollbacks += 1
        for pending in given_up:
            pending.outcome.settle(error)

    def _kept(self, batch: GistBatch) -> GistBatch:
        """Return the part of a batch whose tokens are stored."""
        stop = int(np.searchsorted(batch.nodes, n_nodes(self.stored.n_tokens, batch.lod)))
        self.gist_counts[batch.version, batch.lod] -= len(batch.nodes) - stop
        if stop == len(batch.nodes):
            return batch
        return attrs.evolve(
            batch, nodes=batch.nodes[:stop], trust=batch.trust[:stop], rows=batch.rows[:stop]
        )

    # --- reading ---------------------------------------------------------------------------

    def ids(self, start: int, end: int) -> Ids:
        """Return the ids of `[start, end)`, int32[n]; `start` is not before the stored tail."""
        if start >= end:
            return np.empty(0, np.int32)
        parts = []
        at = self.stored.n_blocks * BLOCK_SIZE
        if start < self.stored.n_tokens:
            parts.append(self.stored.tail[start - at : end - at])
        first = max(bisect_right(self.appends, start, key=lambda pending: pending.start) - 1, 0)
        for pending in self.appends[first:]:
            if pending.start >= end:
                break
            parts.append(pending.ids[max(0, start - pending.start) : end - pending.start])
        return np.concatenate(parts)

    def messages(self, start: int, stop: int) -> tuple[NDArray[np.void], list[bytes]]:
        """Return rows MESSAGE[n] and bodies of queued messages `[start, stop)`."""
        rows: list[NDArray[np.void]] = [np.empty(0, MESSAGE)]
        bodies: list[bytes] = []
        for pending in self.appends:
            first = max(0, start - pending.first_message)
            last = stop - pending.first_message
            if first < len(pending.bodies) and last > first:
                rows.append(pending.messages[first:last])
                bodies += pending.bodies[first:last]
        return np.concatenate(rows), bodies

    def fill_gists(
        self,
        key: tuple[int, int],
        nodes: Indices,
        found: tuple[Bytes2D | None, NDArray[np.uint8], Bools],
    ) -> tuple[Bytes2D | None, NDArray[np.uint8], Bools]:
        """Return `(rows, trust, present)` completed with queued rows."""
        rows, trust, present = found
        for batch in self.gists:
            if (batch.version, batch.lod) != key:
                continue
            first = int(batch.nodes[0])
            hit = (nodes >= first) & (nodes < first + len(batch.nodes))
            if not hit.any():
                continue
            if rows is None or rows.shape[1] != batch.rows.shape[1]:
                rows = np.zeros((len(nodes), batch.rows.shape[1]), np.uint8)
            at = nodes[hit] - first
            rows[hit], trust[hit], present[hit] = batch.rows[at], batch.trust[at], True
        return rows, trust, present
