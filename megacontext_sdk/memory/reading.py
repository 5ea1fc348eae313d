"""Reads of one memory: the store for what it holds, the queue for what is still on its way.

Everything here may be called from any thread. It accepts nothing; `memory.journal` does.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.contracts.checks import check_interval, check_numbers
from megacontext_sdk.contracts.storage import NO_SETTING, GistRows
from megacontext_sdk.errors import SessionClosedError
from megacontext_sdk.memory.chain import NO_SETTINGS, Position, decode_ids, frozen
from megacontext_sdk.memory.checks import check_span
from megacontext_sdk.memory.inflight import InFlight
from megacontext_sdk.memory.lod import BLOCK_SIZE, Span
from megacontext_sdk.memory.message_index import MessageIndex, owner_in
from megacontext_sdk.memory.settings import decode_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Ids, Indices
    from megacontext_sdk.contracts.storage import Storage

__all__ = ["JournalReader"]


def _opening_position(storage: Storage, root: bytes, token_bytes: int) -> Position:
    """Return the place the store is at."""
    state = storage.state()
    settings = NO_SETTINGS
    if state.setting != NO_SETTING:
        number = np.array([state.setting], dtype=np.int64)
        settings = decode_settings(storage.read_bodies(number)[0])
    tail = np.frombuffer(state.tail, np.uint8).reshape(1, -1)
    return Position(
        seq=state.seq,
        chain=state.chain if state.seq else root,
        n_tokens=state.n_tokens,
        n_messages=state.n_messages,
        tail=decode_ids(tail, token_bytes).ravel(),
        setting=state.setting,
        settings=settings,
    )


class JournalReader:
    """What a journal can answer.

    Args:
        storage: an opened store.
        root: chain value before the first commit, 16 bytes.
        token_bytes: 2 or 4, as the store was made with.
    """

    def __init__(self, storage: Storage, *, root: bytes, token_bytes: int) -> None:
        self._storage = storage
        self._token_bytes = token_bytes
        counts = {(version, lod): n for version, lod, n in storage.state().gist_rows}
        self._queue = InFlight(_opening_position(storage, root, token_bytes), counts)
        self._index = MessageIndex(storage.read_messages)
        self._closed: str | None = None

    def __repr__(self) -> str:
        """Say where and how much, never what."""
        return f"<Journal {self._storage.path} seq={self.seq} n_tokens={self.n_tokens}>"

    def __reduce__(self) -> tuple[object, ...]:
        """Refuse pickling: a journal is a handle on a live store."""
        raise TypeError(
            f"a Journal cannot be pickled; send the path {str(self._storage.path)!r} and open it "
            "there"
        )

    @property
    def n_tokens(self) -> int:
        """Tokens accepted so far."""
        return self._queue.accepted.n_tokens

    @property
    def n_blocks(self) -> int:
        """Full blocks accepted so far."""
        return self._queue.accepted.n_blocks

    @property
    def n_messages(self) -> int:
        """Message rows accepted so far, settings messages included."""
        return self._queue.accepted.n_messages

    @property
    def seq(self) -> int:
        """Number of the newest accepted commit; 0 before the first."""
        return self._queue.accepted.seq

    @property
    def chain(self) -> bytes:
        """Chain value after the newest accepted commit, 16 bytes."""
        return self._queue.accepted.chain

    @property
    def tail(self) -> Ids:
        """Ids after the last full block, int32[0..31]."""
        return self._queue.accepted.tail

    @property
    def settings(self) -> Mapping[str, object]:
        """The settings map, read-only."""
        return self._queue.accepted.settings

    @property
    def n_rollbacks(self) -> int:
        """How often a full disk made the journal give up what it had accepted."""
        return self._queue.n_rollbacks

    def token_ids(self, span: Span) -> Ids:
        """Return the ids of a span, int32[n], -1 where forgotten.

        Raises:
            ConfigError: the span does not lie inside the history.
            SessionClosedError: closed, forked or failed.
        """
        self._check_open()
        with self._queue.changed:
            check_span(span, self.n_tokens)
            floor = self._queue.stored.n_blocks * BLOCK_SIZE
            late = self._queue.ids(max(span.start, floor), span.end)
        if span.start >= min(span.end, floor):
            return frozen(late)
        first, last = span.start // BLOCK_SIZE, -(-min(span.end, floor) // BLOCK_SIZE)
        rows = self._storage.read_blocks(np.arange(first, last, dtype=np.int64))
        early = decode_ids(rows, self._token_bytes).ravel()
        at = first * BLOCK_SIZE
        early = early[span.start - at : min(span.end, floor) - at]
        return frozen(np.concatenate([early, late]) if len(late) else early)

    def blocks(self, blocks: Indices) -> Ids:
        """Return the ids of full blocks, int32[n, 32], in the order and with the repeats asked.

        Raises:
            LookupError: a number that is no full block.
            SessionClosedError: closed, forked or failed.
        """
        self._check_open()
        numbers = np.asarray(blocks, dtype=np.int64)
        with self._queue.changed:
            check_numbers("block", numbers, self.n_blocks)
            floor = self._queue.stored.n_blocks
            is_late = numbers >= floor
            late = self._late_blocks(numbers[is_late])
        if not len(late):
            return frozen(decode_ids(self._storage.read_blocks(numbers), self._token_bytes))
        ids = np.empty((len(numbers), BLOCK_SIZE), np.int32)
        ids[is_late] = late
        stored = self._storage.read_blocks(numbers[~is_late])
        ids[~is_late] = decode_ids(stored, self._token_bytes)
        return frozen(ids)

    def _late_blocks(self, numbers: Indices) -> Ids:
        """Return the ids of queued blocks, int32[n, 32]; a run of them in one piece."""
        if not len(numbers):
            return np.empty((0, BLOCK_SIZE), np.int32)
        runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
        ids = [
            self._queue.ids(int(run[0]) * BLOCK_SIZE, int(run[-1] + 1) * BLOCK_SIZE) for run in runs
        ]
        return np.concatenate(ids).reshape(-1, BLOCK_SIZE)

    def messages(self, start: int, stop: int) -> NDArray[np.void]:
        """Return the rows of messages `[start, stop)`, MESSAGE[n].

        Raises:
            LookupError: a number outside `[0, n_messages)`.
            SessionClosedError: closed, forked or failed.
        """
        self._check_open()
        with self._queue.changed:
            check_interval("message", start, stop, self.n_messages)
            floor = self._queue.stored.n_messages
            late, _ = self._queue.messages(max(start, floor), stop)
        if start >= min(stop, floor):
            return frozen(late)
        return frozen(np.concatenate([self._storage.read_messages(start, min(stop, floor)), late]))

    def bodies(self, numbers: Indices) -> list[bytes]:
        """Return the bodies of messages, in the order asked.

        Raises:
            LookupError: a number outside `[0, n_messages)`.
            SessionClosedError: closed, forked or failed.
        """
        self._check_open()
        wanted = np.asarray(numbers, dtype=np.int64)
        with self._queue.changed:
            check_numbers("message", wanted, self.n_messages)
            floor = self._queue.stored.n_messages
            late = {
                int(number): self._queue.messages(int(number), int(number) + 1)[1][0]
                for number in np.unique(wanted[wanted >= floor])
            }
        early = wanted[wanted < floor]
        stored = iter(self._storage.read_bodies(early) if len(early) else [])
        return [late[number] if number >= floor else next(stored) for number in wanted.tolist()]

    def message_at(self, token_index: int) -> int:
        """Return the number of the message that owns a token.

        Raises:
            ConfigError: the token does not exist.
            SessionClosedError: closed, forked or failed.
        """
        self._check_open()
        with self._queue.changed:
            check_span(Span(token_index, token_index + 1), self.n_tokens)
            stored = self._queue.stored
            appends = self._queue.appends
            if token_index >= stored.n_tokens:
                at = bisect_right(appends, token_index, key=lambda pending: pending.start) - 1
                return appends[at].first_message + owner_in(appends[at].messages, token_index)
        return self._index.find(token_index, stored)

    def gist_count(self, version: int, lod: int) -> int:
        """Return how many gist rows of a version and level exist, queued ones included."""
        return self._queue.gist_counts.get((version, lod), 0)

    def gists(self, version: int, lod: int, nodes: Indices) -> GistRows:
        """Return the gist rows of nodes; a missing one is `present == False`.

        Raises:
            SessionClosedError: closed, forked or failed.
        """
        self._check_open()
        wanted = np.asarray(nodes, dtype=np.int64)
        key = (version, lod)
        with self._queue.changed:
            late = self._queue.fill_gists(
                key, wanted, (None, np.zeros(len(wanted), np.uint8), np.zeros(len(wanted), bool))
            )
        rows, trust, present = late
        if rows is not None and present.all():
            return GistRows(rows=frozen(rows), trust=frozen(trust), present=frozen(present))
        # Read after the overlay was looked at: a row that left it meanwhile is in the store.
        found = self._storage.read_gists(version, lod, wanted)
        if rows is None:
            return found
        rows[~present] = found.rows[~present] if found.rows.shape[1] == rows.shape[1] else 0
        trust[~present] = found.trust[~present]
        present |= found.present
        return GistRows(rows=frozen(rows), trust=frozen(trust), present=frozen(present))

    def _check_open(self) -> None:
        if self._closed is not None:
            raise SessionClosedError(
                f"the memory at {self._storage.path} is {self._closed} in this process; open it "
                "again",
                reason=self._closed,
                path=str(self._storage.path),
            )
        error = self._failure()
        if error is not None:
            raise error

    def _failure(self) -> SessionClosedError | None:
        """Return what made the handle useless; a reader alone never fails."""
        return None
