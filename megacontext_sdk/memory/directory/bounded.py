"""A store as it was after an earlier commit: a read-only prefix of one that may be longer.

History is never rewritten in place, so a prefix needs no copy; only the tail and the newest nodes
have to be taken from what followed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NoReturn

import numpy as np

from megacontext_sdk.contracts.checks import check_interval, check_numbers
from megacontext_sdk.contracts.storage import (
    NO_SETTING,
    Capabilities,
    GistRows,
    Storage,
    StoreState,
)
from megacontext_sdk.errors import ReadOnlyError
from megacontext_sdk.memory.chain import frozen
from megacontext_sdk.memory.lod import BLOCK_SIZE, n_nodes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bytes2D, Indices
    from megacontext_sdk.contracts.storage import Batch, GistBatch, Header, OpenMode

__all__ = ["BoundedStorage"]

_EMPTY = StoreState(
    seq=0,
    chain=bytes(16),
    n_tokens=0,
    n_blocks=0,
    n_messages=0,
    tail=b"",
    setting=NO_SETTING,
    gist_rows=(),
)


class BoundedStorage(Storage):
    """Shows the commits up to one, and nothing behind it. May be shared between threads.

    Args:
        storage: the whole store.
        upto_seq: last commit shown; 0 shows an empty store.
        token_bytes: 2 or 4.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(durability=frozenset())

    def __init__(self, storage: Storage, upto_seq: int, token_bytes: int) -> None:
        super().__init__(storage.path, storage.options)
        self._storage = storage
        self._upto_seq = upto_seq
        self._token_bytes = token_bytes
        self._state: StoreState | None = None

    def open(self, mode: OpenMode, header: Header) -> None:
        """Open the whole store, which must be for reading.

        Raises:
            ReadOnlyError: another mode.
            StorageError: the store cannot be opened.
        """
        if mode not in {"read", "salvage"}:
            self._refuse()
        self._storage.open(mode, header)

    def state(self) -> StoreState:
        """Return the state after the last commit shown.

        Raises:
            LookupError: there is no such commit.
        """
        if self._state is None:
            self._state = self._cut(self._storage.state())
        return self._state

    def _cut(self, whole: StoreState) -> StoreState:
        if self._upto_seq == 0:
            return _EMPTY
        row = self._storage.read_commits(self._upto_seq, self._upto_seq + 1)[0]
        n_tokens = int(row["start"]) + int(row["n_tokens"])
        counts = [
            (version, lod, min(count, n_nodes(n_tokens, lod)))
            for version, lod, count in whole.gist_rows
        ]
        return StoreState(
            seq=self._upto_seq,
            chain=row["chain"].tobytes(),
            n_tokens=n_tokens,
            n_blocks=n_tokens // BLOCK_SIZE,
            n_messages=int(row["first_message"]) + int(row["n_messages"]),
            tail=self._tail(n_tokens, whole),
            setting=int(row["setting"]),
            gist_rows=tuple(level for level in counts if level[2]),
        )

    def _tail(self, n_tokens: int, whole: StoreState) -> bytes:
        """Return the ids behind the last full block; that block may have been filled since."""
        block, rest = divmod(n_tokens, BLOCK_SIZE)
        size = rest * self._token_bytes
        if not size or block >= whole.n_blocks:
            return whole.tail[:size]
        return self._storage.read_blocks(np.array([block], np.int64)).tobytes()[:size]

    def read_commits(self, start: int, stop: int) -> NDArray[np.void]:
        """Return COMMIT[n] with `start <= seq < stop`."""
        check_interval("commit", start, stop, self._upto_seq + 1, first=1)
        return self._storage.read_commits(start, stop)

    def read_blocks(self, blocks: Indices) -> Bytes2D:
        """Return uint8[n, block_bytes]."""
        check_numbers("block", np.asarray(blocks), self.state().n_blocks)
        return self._storage.read_blocks(blocks)

    def read_messages(self, start: int, stop: int) -> NDArray[np.void]:
        """Return MESSAGE[n]."""
        check_interval("message", start, stop, self.state().n_messages)
        return self._storage.read_messages(start, stop)

    def read_bodies(self, messages: Indices) -> list[bytes]:
        """Return the bodies asked."""
        check_numbers("message", np.asarray(messages), self.state().n_messages)
        return self._storage.read_bodies(messages)

    def read_gists(self, version: int, lod: int, nodes: Indices) -> GistRows:
        """Return the rows of nodes that were complete at the cut; others are not `present`."""
        wanted = np.asarray(nodes).astype(np.int64)
        inside = wanted < n_nodes(self.state().n_tokens, lod)
        found = self._storage.read_gists(version, lod, wanted[inside])
        if inside.all():
            return found
        rows = np.zeros((len(wanted), found.rows.shape[1]), np.uint8)
        trust, present = np.zeros(len(wanted), np.uint8), np.zeros(len(wanted), np.bool_)
        rows[inside], trust[inside], present[inside] = found.rows, found.trust, found.present
        return GistRows(rows=frozen(rows), trust=frozen(trust), present=frozen(present))

    def close(self) -> None:
        """Close the whole store; idempotent."""
        self._storage.close()

    def commit(self, batch: Batch, *, sync: bool = True) -> None:
        """Refuse: a prefix does not grow."""
        self._refuse(batch, sync)

    def put_gists(self, batch: GistBatch) -> None:
        """Refuse: a prefix does not grow."""
        self._refuse(batch)

    def flush(self) -> None:
        """Refuse: there is nothing to write."""
        self._refuse()

    def _refuse(self, *_given: object) -> NoReturn:
        raise ReadOnlyError(
            f"{self.path} is shown as it was at commit {self._upto_seq}; open it without that to "
            "write",
            why="an earlier state",
            path=str(self.path),
        )
