"""The check of the newest commits that every open performs before it trusts a store.

Density, tiling and the chain of the newest 64 commits (at most 32 MiB). It reads only; a full check
of everything is a scrub, not this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.errors import CorruptError
from megacontext_sdk.memory.directory.damage import advice
from megacontext_sdk.memory.directory.stretch import Place, read_stretch
from megacontext_sdk.memory.lod import BLOCK_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from megacontext_sdk.contracts.storage import Storage, StoreState

__all__ = ["Prober", "counts_problem"]

_COMMITS = 64
_BYTES = 32 * 2**20
_GROUP = 8


def counts_problem(state: StoreState, token_bytes: int) -> str:
    """Return how the counts of a store contradict each other; empty if they do not."""
    blocks, rest = divmod(state.n_tokens, BLOCK_SIZE)
    if state.n_blocks != blocks or len(state.tail) != rest * token_bytes:
        return "blocks and tail do not add up to the number of tokens"
    if state.seq == 0 and (state.n_tokens or state.n_messages):
        return "there are tokens or messages without a commit"
    return ""


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
        self._refuse(counts_problem(state, self.token_bytes), state)
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

    def _refuse(self, what: str, state: StoreState) -> None:
        """Raise if there is something to say."""
        if what:
            raise self._damaged(what, state)

    def _damaged(self, what: str, state: StoreState) -> CorruptError:
        return CorruptError(
            f"{self.path} is damaged: {what} (newest commit {state.seq}). {advice(self.path)}",
            path=self.path,
            where=what,
            offset=None,
            have_seq=state.seq,
        )

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
            try:
                stretch = read_stretch(self.storage, state, rows[start:stop], self.token_bytes)
            except LookupError as error:
                raise self._damaged("commits name rows that do not exist", state) from error
            row = rows[start]
            place = Place(
                int(row["seq"]) - 1,
                before[16 * start : 16 * start + 16],
                int(row["start"]),
                int(row["first_message"]),
            )
            self._refuse(stretch.check(place)[1], state)
            budget -= stretch.n_bytes
            if budget <= 0:
                return
