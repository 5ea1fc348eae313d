"""The check of the newest commits that every open performs before it trusts a store.

Density, tiling and the chain of the newest 64 commits (at most 32 MiB). It reads only; a full check
of everything is a scrub, not this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import attrs
import numpy as np

from megacontext_sdk.contracts.storage import MESSAGE
from megacontext_sdk.errors import CorruptError
from megacontext_sdk.memory.chain import decode_ids, link
from megacontext_sdk.memory.lod import BLOCK_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Ids
    from megacontext_sdk.contracts.storage import Storage, StoreState

__all__ = ["Prober"]

_COMMITS = 64
_BYTES = 32 * 2**20
_GROUP = 8


@attrs.frozen(kw_only=True)
class Prober:
    """Checks the head of an opened store.

    Args:
        storage: opened in any mode.
        root: chain value before the first commit.
        token_bytes: 2 or 4.
        path: what messages call the memory.
    """

    storage: Storage
    root: bytes
    token_bytes: int
    path: str

    def check(self) -> StoreState:
        """Check the newest commits and return the state they lead to.

        Raises:
            CorruptError: counts, order, tiling or chain disagree.
        """
        state = self.storage.state()
        self._check_counts(state)
        if state.seq == 0:
            return state
        first = max(1, state.seq - _COMMITS + 1)
        # One more row in front tells the chain value that the first of them follows.
        rows = self.storage.read_commits(max(1, first - 1), state.seq + 1)
        self._check_rows(rows, state)
        before = rows["chain"][:-1].tobytes()
        if first == 1:
            before = self.root + before
        else:
            rows = rows[1:]
        self._check_links(rows, before, state)
        return state

    def chain_at(self, seq: int) -> bytes:
        """Return the chain value after commit `seq`; 0 gives the root."""
        if seq == 0:
            return self.root
        return bytes(self.storage.read_commits(seq, seq + 1)["chain"].tobytes())

    def _refuse(self, where: str, state: StoreState) -> NoReturn:
        raise CorruptError(
            f"{self.path} is damaged: {where} (newest commit {state.seq}). Nothing was changed; "
            "keep a copy of the directory before doing anything else",
            path=self.path,
            where=where,
            offset=None,
            have_seq=state.seq,
        )

    def _check_counts(self, state: StoreState) -> None:
        blocks, rest = divmod(state.n_tokens, BLOCK_SIZE)
        if state.n_blocks != blocks or len(state.tail) != rest * self.token_bytes:
            self._refuse("blocks and tail do not add up to the number of tokens", state)
        if state.seq == 0 and (state.n_tokens or state.n_messages):
            self._refuse("there are tokens or messages without a commit", state)

    def _check_rows(self, rows: NDArray[np.void], state: StoreState) -> None:
        first = int(rows["seq"][0]) if len(rows) else 0
        dense = np.arange(first, state.seq + 1, dtype=np.uint64)
        if not np.array_equal(rows["seq"], dense):
            self._refuse("commit numbers have a gap", state)
        token_ends = rows["start"] + rows["n_tokens"]
        message_ends = rows["first_message"] + rows["n_messages"]
        if not np.array_equal(token_ends[:-1], rows["start"][1:]) or (
            token_ends[-1] != state.n_tokens
        ):
            self._refuse("commits do not tile the tokens", state)
        if not np.array_equal(message_ends[:-1], rows["first_message"][1:]) or (
            message_ends[-1] != state.n_messages
        ):
            self._refuse("commits do not tile the messages", state)

    def _check_links(self, rows: NDArray[np.void], before: bytes, state: StoreState) -> None:
        """Recompute the chain of `rows`; `before` holds the 16 bytes each row follows."""
        budget = _BYTES
        for stop in range(len(rows), 0, -_GROUP):
            start = max(0, stop - _GROUP)
            budget -= self._check_group(rows[start:stop], before[16 * start : 16 * stop], state)
            if budget <= 0:
                return

    def _check_group(self, rows: NDArray[np.void], before: bytes, state: StoreState) -> int:
        token = int(rows["start"][0])
        message = int(rows["first_message"][0])
        ids = self._ids(token, int(rows["start"][-1] + rows["n_tokens"][-1]), state)
        stop = int(rows["first_message"][-1] + rows["n_messages"][-1])
        messages = self.storage.read_messages(message, stop)
        bodies = self.storage.read_bodies(np.arange(message, stop, dtype=np.int64))
        self._check_messages(messages, token, token + len(ids), state)
        packed = messages.tobytes()
        size = MESSAGE.itemsize
        for at, row in enumerate(rows):
            first = int(row["first_message"]) - message
            last = first + int(row["n_messages"])
            begin = int(row["start"]) - token
            value = link(
                before[16 * at : 16 * at + 16],
                row.tobytes()[:72],
                ids[begin : begin + int(row["n_tokens"])],
                packed[first * size : last * size],
                bodies[first:last],
            )
            if value != row["chain"].tobytes():
                self._refuse(f"the chain does not hold at commit {int(row['seq'])}", state)
        return 4 * len(ids) + len(packed) + sum(map(len, bodies))

    def _check_messages(
        self, messages: NDArray[np.void], start: int, end: int, state: StoreState
    ) -> None:
        ends = np.concatenate(([start], messages["start"] + messages["n_tokens"]))
        if ends[-1] != end or not np.array_equal(ends[:-1], messages["start"]):
            self._refuse("messages do not tile the tokens", state)

    def _ids(self, start: int, end: int, state: StoreState) -> Ids:
        """Return the ids of `[start, end)`, int32[n]."""
        first, last = start // BLOCK_SIZE, min(-(-end // BLOCK_SIZE), state.n_blocks)
        numbers = np.arange(first, max(first, last), dtype=np.int64)
        rows = self.storage.read_blocks(numbers)
        tail = np.frombuffer(state.tail, np.uint8).reshape(1, -1)
        ids = np.concatenate(
            [
                decode_ids(rows, self.token_bytes).ravel(),
                decode_ids(tail, self.token_bytes).ravel(),
            ]
        )
        at = first * BLOCK_SIZE
        return ids[start - at : end - at]
