"""Idempotency keys of the newest commits: which commit carries a key. Bounded; not the commits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megacontext_sdk.memory.chain import NO_KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["KEPT_COMMITS", "KeyTable"]

KEPT_COMMITS = 65_536
"""How far back a key is remembered, in commits."""

_PAGE = 8_192


class KeyTable:
    """Maps a key to the sequence number of its commit, for the newest `KEPT_COMMITS`.

    Filled from the store on first use, so that opening a memory does not pay for it. Not thread
    safe: the journal calls it under its own lock.
    """

    def __init__(self) -> None:
        self._seqs: dict[bytes, int] = {}  # in order of seq
        self._loaded = False

    def load(self, read_commits: Callable[[int, int], NDArray[np.void]], seq: int) -> None:
        """Read the keys of the commits up to `seq`, once."""
        if self._loaded:
            return
        late, self._seqs = self._seqs, {}
        for start in range(max(1, seq - KEPT_COMMITS + 1), seq + 1, _PAGE):
            rows = read_commits(start, min(start + _PAGE, seq + 1))
            keys = rows["key"].tobytes()
            for at, number in enumerate(rows["seq"].tolist()):
                self.add(keys[16 * at : 16 * at + 16], number)
        self._seqs.update(late)
        self._loaded = True

    def add(self, key: bytes, seq: int) -> None:
        """Note a commit; the oldest keys fall out."""
        if key == NO_KEY:
            return
        self._seqs.pop(key, None)  # a key that aged out and came back moves to the end
        self._seqs[key] = seq
        while next(iter(self._seqs.values())) <= seq - KEPT_COMMITS:
            del self._seqs[next(iter(self._seqs))]

    def find(self, key: bytes, head: int) -> int | None:
        """Return the commit that carries the key, if it is among the newest up to `head`."""
        seq = self._seqs.get(key)
        return seq if seq is not None and head - KEPT_COMMITS < seq <= head else None

    def forget_after(self, seq: int) -> None:
        """Drop the keys of commits that were rolled back."""
        while self._seqs and next(reversed(self._seqs.values())) > seq:
            self._seqs.popitem()
