"""The truth of one memory over one opened store: commits, tokens, messages, gist rows, settings.

What is accepted here is visible to this process at once and durable when its ticket says so. The
journal knows nothing about the meaning of gists or the text of tokens, and nothing about files:
directories, HEAD and locks are `memory.directory.vault`'s.
"""

from __future__ import annotations

from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.contracts.storage import COMMIT, MESSAGE
from megacontext_sdk.errors import (
    ConfigError,
    InvariantError,
    ReadOnlyError,
)
from megacontext_sdk.memory.chain import (
    NO_KEY,
    OP_APPEND,
    OP_CREATE,
    OP_GENERATE,
    OP_SETTING,
    ROLE_SETTING,
    ROLES,
    CommitReceipt,
    MessageRecord,
    part_key,
    split,
)
from megacontext_sdk.memory.checks import (
    check_gists,
    check_key,
    check_messages,
    check_remembered,
    checked_ids,
    head_of,
)
from megacontext_sdk.memory.inflight import Outcome, Ticket, pending_commit
from megacontext_sdk.memory.keys import KeyTable
from megacontext_sdk.memory.lod import Span, n_nodes
from megacontext_sdk.memory.reading import JournalReader
from megacontext_sdk.memory.settings import encode_settings, merged
from megacontext_sdk.memory.writer import Guard, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from megacontext_sdk.contracts.arrays import Ids
    from megacontext_sdk.contracts.storage import GistBatch, Storage
    from megacontext_sdk.errors import (
        SessionClosedError,
    )

__all__ = [
    "OP_APPEND",
    "OP_CREATE",
    "OP_GENERATE",
    "OP_SETTING",
    "ROLES",
    "CommitReceipt",
    "Journal",
    "MessageRecord",
    "Ticket",
]


_EXIT_SECONDS = 5.0


def _joined(parts: Sequence[CommitReceipt], *, duplicate: bool) -> CommitReceipt:
    """Return one receipt for the commits of one append."""
    return CommitReceipt(
        seq=parts[-1].seq,
        span=Span(parts[0].span.start, parts[-1].span.end),
        first_message=parts[0].first_message,
        n_messages=sum(part.n_messages for part in parts),
        duplicate=duplicate,
    )


class Journal(JournalReader):
    """Appends to and reads from one memory. May be shared between threads.

    Args:
        storage: an opened store; the journal closes it.
        root: chain value before the first commit, 16 bytes.
        token_bytes: 2 or 4, as the store was made with.
        clock: microseconds since 1970, for commits without a time of their own.
        on_durable: called by the writer thread with seq and chain after each commit, before it is
            acknowledged.
        read_only: refuse writes.
        guard: replaces `on_durable` where checkpoints matter too.
        sync: flush each commit before it is acknowledged.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        root: bytes,
        token_bytes: int,
        clock: Callable[[], int],
        on_durable: Callable[[int, bytes], None] = lambda _seq, _chain: None,
        read_only: bool = False,
        guard: Guard | None = None,
        sync: bool = True,
    ) -> None:
        super().__init__(storage, root=root, token_bytes=token_bytes)
        self._clock = clock
        self._read_only = read_only
        guard = guard or Guard(on_durable)
        self._writer = Writer(storage, self._queue, token_bytes=token_bytes, guard=guard, sync=sync)
        self._keys = KeyTable()
        self._appending = Lock()  # keeps the commits of one append together

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
        """Accept tokens and the messages that tile them.

        Returns at once; waits only while the queue is full. More than 16 MiB of payload becomes
        several commits.

        Args:
            token_ids: int32[n].
            messages: their `n_tokens` add up to n.
            op: what the commit row says happened.
            key: 16 bytes; the same key with the same content is stored once.
            ts_us: time of the commit; the clock's if absent.

        Raises:
            ConfigError: bad ids or key, or the key was used for other content.
            InvariantError: the messages do not tile the tokens.
            QuotaError: a body above 16 MiB, or a memory above 2**48 tokens.
            ReadOnlyError: opened for reading.
            SessionClosedError: closed, forked or failed.
        """
        self._check_writable()
        ids = checked_ids(token_ids, token_bytes=self._token_bytes, n_tokens=self.n_tokens)
        check_messages(len(ids), messages)
        parts = split(ids, messages)
        with self._appending:
            keys = self._part_keys(key, len(parts))
            found = self._stored_parts(keys, parts) if key is not None else []
            if len(found) == len(parts):
                return self._repeated(found)
            now = self._clock() if ts_us is None else ts_us
            outcome: Outcome | None = None
            for (part_ids, part_messages, size), part in zip(
                parts[len(found) :], keys[len(found) :], strict=True
            ):
                receipt, outcome = self._accept(
                    part_ids, part_messages, size, what=(op, part, now), follows=outcome
                )
                found.append(receipt)
        return Ticket(_joined(found, duplicate=False), outcome)

    def update_settings(self, changes: Mapping[str, object]) -> Ticket:
        """Accept a new settings map: the old one with `changes`; None removes a key.

        Raises:
            ConfigError: keys that are no strings, values that cannot be stored.
            QuotaError: more than 1 MiB.
            ReadOnlyError: opened for reading.
            SessionClosedError: closed, forked or failed.
        """
        self._check_writable()
        with self._appending:
            settings = merged(self.settings, changes)
            body = encode_settings(settings)
            now = self._clock()
            message = MessageRecord(
                role=ROLE_SETTING, trust=4, flags=0, ts_us=now, n_tokens=0, body=body
            )
            receipt, outcome = self._accept(
                np.empty(0, np.int32),
                [message],
                len(body) + MESSAGE.itemsize,
                what=(OP_SETTING, NO_KEY, now),
                settings=settings,
            )
        return Ticket(receipt, outcome)

    def put_gists(self, batch: GistBatch, *, since: int | None = None) -> None:
        """Accept gist rows; they follow their tokens to the store without a flush of their own.

        Rows of blocks that a full disk took back are dropped: they will be made again.

        Args:
            batch: rows that continue a level.
            since: `n_rollbacks` when their blocks were read, by a thread that must not wait here:
                if the journal gave up anything since, the rows are dropped. None waits for room.

        Raises:
            InvariantError: nodes that do not continue the level, or a wrong dtype or shape.
            ReadOnlyError: opened for reading.
            SessionClosedError: closed, forked or failed.
        """
        self._check_writable()
        check_gists(batch)
        queue = self._queue
        with queue.changed:
            if since is None:
                queue.changed.wait_for(lambda: queue.has_room or self._writer.error)
            self._check_open()
            if since is not None and since != queue.n_rollbacks:
                return
            stop = int(np.searchsorted(batch.nodes, n_nodes(queue.accepted.n_tokens, batch.lod)))
            if stop == 0:
                return
            count = queue.gist_counts.get((batch.version, batch.lod), 0)
            if int(batch.nodes[0]) != count:
                raise InvariantError(
                    f"gists of version {batch.version}, LOD{batch.lod} continue at node {count}, "
                    f"got node {int(batch.nodes[0])}",
                    code="gist-order",
                    detail="nodes are written in order and once",
                    epoch=None,
                )
            queue.accept_gists(head_of(batch, stop))
            self._writer.wake()

    @property
    def n_queued_gists(self) -> int:
        """Batches of gist rows that are not in the store yet."""
        return len(self._queue.gists)

    @property
    def is_full(self) -> bool:
        """Tell whether queued gist rows cannot be stored now; `flush` says why."""
        return self._writer.gists_blocked or self._writer.error is not None

    def nudge(self) -> None:
        """Let the writer try again to store gists that waited for space."""
        with self._queue.changed:
            if self._closed is None and self._writer.error is None:
                self._writer.wake()

    def flush(self) -> None:
        """Return when everything accepted is durable, gists included, and checkpointed.

        Raises:
            StorageError: why that was impossible.
        """
        self._check_open()
        if not self._read_only:
            with self._queue.changed:
                self._writer.flush()

    def close(self) -> None:
        """Drain the queue, checkpoint, close the store. Idempotent.

        Raises:
            StorageError: what was accepted could not be written; the store is closed all the same.
        """
        if self._closed is not None:
            return
        try:
            with self._appending:
                if not self._read_only and self._writer.error is None:
                    self._drain()
        finally:
            self._closed = "closed"
            self._storage.close()

    def _drain(self) -> None:
        with self._queue.changed:
            try:
                self._writer.flush()
            finally:
                thread = self._writer.stop()
        if thread is not None:
            thread.join()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Flush, then hold back appends: inside, the store holds all there is and does not grow.

        Appends of other threads wait; inside, this thread must not append.

        Raises:
            ReadOnlyError: opened for reading.
            StorageError: what was accepted could not be written.
        """
        self._check_writable()
        with self._appending:
            self.flush()
            yield

    def retire(self, reason: str = "closed") -> None:
        """Close the store of a paused journal: another one goes on with what it holds.

        Appends that wait are refused. Gists still queued are dropped; they are made again.
        """
        self._closed = reason
        with self._queue.changed:
            thread = self._writer.stop()
        if thread is not None:
            thread.join()
        self._storage.close()

    def abandon(self) -> None:
        """Write what is queued and end the writer thread, without a checkpoint or a close.

        For the end of the process: an engine must not be torn down under a running thread.
        """
        if self._closed is None:
            self._closed = "closed"
            with self._queue.changed:
                thread = self._writer.stop()
            if thread is not None:
                thread.join(_EXIT_SECONDS)

    def leak_in_child(self) -> Storage:
        """Mark the handle as useless after a fork and return what no destructor may touch."""
        self._closed = "forked"
        return self._storage

    def find_key(self, key: bytes) -> CommitReceipt | None:
        """Return the receipt of the commit with this key among the newest 65,536.

        Raises:
            ConfigError: the key is not 16 bytes.
            SessionClosedError: closed, forked or failed.
        """
        self._check_open()
        check_key(key)
        with self._queue.changed:
            self._keys.load(self._storage.read_commits, self._queue.stored.seq)
            seq = self._keys.find(key, self.seq)
        return None if seq is None else self._receipt(seq)

    # --- one append --------------------------------------------------------------------------

    def _accept(
        self,
        ids: Ids,
        messages: Sequence[MessageRecord],
        size: int,
        *,
        what: tuple[int, bytes, int],
        follows: Outcome | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> tuple[CommitReceipt, Outcome]:
        """Queue one commit; waits while the queue is full.

        Args:
            ids: int32[n].
            messages: the rows that tile them.
            size: payload bytes.
            what: `(op, key, ts_us)`.
            follows: outcome of the part before this one; it must not have failed meanwhile.
            settings: the new map, for a settings message.
        """
        queue, outcome = self._queue, Outcome()
        with queue.changed:
            queue.changed.wait_for(lambda: queue.has_room or self._writer.error)
            self._check_open()
            if follows is not None and follows.error is not None:
                raise follows.error
            before = queue.accepted
            pending = pending_commit(before, ids, messages, size, what, settings, outcome)
            queue.accept(pending)
            self._keys.forget_after(before.seq)
            self._keys.add(what[1], pending.after.seq)
            self._writer.wake()
        receipt = CommitReceipt(
            seq=pending.after.seq,
            span=Span(before.n_tokens, pending.after.n_tokens),
            first_message=before.n_messages,
            n_messages=len(messages),
        )
        return receipt, outcome

    def _part_keys(self, key: bytes | None, n_parts: int) -> list[bytes]:
        if key is None:
            return [NO_KEY] * n_parts
        check_key(key)
        return [key] if n_parts == 1 else [part_key(key, at) for at in range(n_parts)]

    def _stored_parts(
        self, keys: Sequence[bytes], parts: Sequence[tuple[Ids, list[MessageRecord], int]]
    ) -> list[CommitReceipt]:
        """Return the receipts of the leading parts that are stored already."""
        found: list[CommitReceipt] = []
        for key, (ids, messages, _size) in zip(keys, parts, strict=True):
            receipt = self.find_key(key)
            if receipt is None:
                break
            if not self._holds(receipt, ids, messages):
                raise ConfigError(
                    f"this idempotency key was used for other content at commit {receipt.seq}; "
                    "use a new key for new content",
                    field="idempotency_key",
                    value=None,
                )
            found.append(receipt)
        if 0 < len(found) < len(parts) and found[-1].span.end != self.n_tokens:
            raise ConfigError(
                f"the append with this idempotency key was cut short at token {found[-1].span.end} "
                f"and other content follows; append the rest under a new key",
                field="idempotency_key",
                value=None,
            )
        return found

    def _repeated(self, found: Sequence[CommitReceipt]) -> Ticket:
        """Return the ticket of an append that was made before."""
        receipt = _joined(found, duplicate=True)
        with self._queue.changed:
            for pending in self._queue.appends:
                if pending.after.seq == receipt.seq:
                    return Ticket(receipt, pending.outcome)
        return Ticket(receipt)

    def _holds(self, receipt: CommitReceipt, ids: Ids, messages: Sequence[MessageRecord]) -> bool:
        """Tell whether a commit holds this content; times may differ, a retry is later."""
        first, stop = receipt.first_message, receipt.first_message + receipt.n_messages
        rows = self.messages(first, stop)
        check_remembered(rows, receipt.seq)
        if receipt.n_messages != len(messages) or receipt.span.n_tokens != len(ids):
            return False
        same = all(
            (message.role, message.trust, message.flags, message.n_tokens)
            == (row["role"], row["trust"], row["flags"], row["n_tokens"])
            for message, row in zip(messages, rows, strict=True)
        )
        bodies = self.bodies(np.arange(first, stop, dtype=np.int64))
        same = same and bodies == [message.body for message in messages]
        return same and np.array_equal(self.token_ids(receipt.span), ids)

    def _receipt(self, seq: int) -> CommitReceipt:
        with self._queue.changed:
            late = [pending for pending in self._queue.appends if pending.after.seq == seq]
        row = (
            np.frombuffer(late[0].row, COMMIT) if late else self._storage.read_commits(seq, seq + 1)
        )
        start = int(row["start"][0])
        return CommitReceipt(
            seq=seq,
            span=Span(start, start + int(row["n_tokens"][0])),
            first_message=int(row["first_message"][0]),
            n_messages=int(row["n_messages"][0]),
            duplicate=True,
        )

    # --- checks ------------------------------------------------------------------------------

    def _failure(self) -> SessionClosedError | None:
        return self._writer.error

    def _check_writable(self) -> None:
        self._check_open()
        if self._read_only:
            raise ReadOnlyError(
                f"the memory at {self._storage.path} was opened with read_only=True; open it for "
                "writing to append",
                why="opened with read_only=True",
                path=str(self._storage.path),
            )
