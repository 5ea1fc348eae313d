"""Stretches of stored commits: consecutive rows together with everything that they hold.

Whoever reads a whole memory (replay, recovery, scrub) reads it in stretches of bounded size. What
they mean to the reader, and what to do about damage, is the reader's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs
import numpy as np

from megacontext_sdk.contracts.storage import COMMIT, MESSAGE
from megacontext_sdk.errors import CorruptError
from megacontext_sdk.memory.chain import MAX_COMMIT_BYTES, decode_ids, link
from megacontext_sdk.memory.lod import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bytes2D, Ids, Indices
    from megacontext_sdk.contracts.storage import GistRows, StoreState

__all__ = ["Place", "Source", "Stretch", "read_ids", "read_stretch", "stretches"]

_MAX_BYTES = 8 * 2**20  # of a stretch; a larger commit goes alone
_MAX_MESSAGES = 4_096
_FIRST_MESSAGES = 64
_PAGE = 1_024
_HEAD_BYTES = COMMIT.itemsize - 16
_MAX_COMMIT_TOKENS = MAX_COMMIT_BYTES // 4


class Source(Protocol):
    """What a memory can be read from; every `Storage` is one."""

    def state(self) -> StoreState:
        """Return what is committed."""

    def read_commits(self, start: int, stop: int) -> NDArray[np.void]:
        """Return COMMIT[n] with `start <= seq < stop`."""

    def read_blocks(self, blocks: Indices) -> Bytes2D:
        """Return uint8[n, block_bytes]."""

    def read_messages(self, start: int, stop: int) -> NDArray[np.void]:
        """Return MESSAGE[n]."""

    def read_bodies(self, messages: Indices) -> list[bytes]:
        """Return the bodies asked."""

    def read_gists(self, version: int, lod: int, nodes: Indices) -> GistRows:
        """Return the gist rows that exist."""


@attrs.frozen
class Place:
    """Where a commit begins: the commit before it, its chain value, and what precedes it."""

    seq: int
    chain: bytes
    n_tokens: int
    n_messages: int


@attrs.frozen(eq=False, kw_only=True)
class Stretch:
    """Consecutive commits.

    Attributes:
        rows: COMMIT[c >= 1].
        ids: int32[n], -1 where forgotten.
        messages: MESSAGE[m].
        bodies: m byte strings.
    """

    rows: NDArray[np.void]
    ids: Ids
    messages: NDArray[np.void]
    bodies: Sequence[bytes]

    @property
    def n_bytes(self) -> int:
        """Bytes of everything, ids as four each."""
        fixed = self.rows.nbytes + 4 * len(self.ids) + self.messages.nbytes
        return fixed + sum(map(len, self.bodies))

    def links(self, before: bytes) -> list[bytes]:
        """Return the chain value after each commit if the first one follows `before`."""
        chains: list[bytes] = []
        for at in range(len(self.rows)):
            chains.append(self.link(at, chains[-1] if chains else before))
        return chains

    def link(self, at: int, before: bytes) -> bytes:
        """Return the chain value after the commit at a position that follows `before`."""
        row = self.rows[at]
        begin = int(row["start"]) - int(self.rows["start"][0])
        first = int(row["first_message"]) - int(self.rows["first_message"][0])
        last = first + int(row["n_messages"])
        return link(
            before,
            row.tobytes()[:_HEAD_BYTES],
            self.ids[begin : begin + int(row["n_tokens"])],
            self.messages[first:last].tobytes(),
            self.bodies[first:last],
        )

    def check(self, place: Place) -> tuple[Place, str]:
        """Check commit by commit that the stretch follows a place.

        Returns:
            The place behind the last commit that holds, and what is wrong with the one after it;
            an empty text if all hold.
        """
        start, first = int(self.rows["start"][0]), int(self.rows["first_message"][0])
        for at, row in enumerate(self.rows):
            what = self._problem(row, place, start, first)
            if not what and self.link(at, place.chain) != row["chain"].tobytes():
                what = f"the chain does not hold at commit {place.seq + 1}"
            if what:
                return place, what
            place = Place(
                place.seq + 1,
                row["chain"].tobytes(),
                place.n_tokens + int(row["n_tokens"]),
                place.n_messages + int(row["n_messages"]),
            )
        return place, ""

    def _problem(self, row: np.void, place: Place, start: int, first: int) -> str:
        """Return what is wrong with the counts of a commit, its chain apart."""
        seq = place.seq + 1
        if int(row["seq"]) != seq:
            return f"commit {seq} is missing"
        if (int(row["start"]), int(row["first_message"])) != (place.n_tokens, place.n_messages):
            return f"commit {seq} does not start where the one before it ends"
        begin = place.n_messages - first
        messages = self.messages[begin : begin + int(row["n_messages"])]
        if len(messages) != int(row["n_messages"]):
            return f"commit {seq} lacks messages"
        ends = np.concatenate(([place.n_tokens], messages["start"] + messages["n_tokens"]))
        end = place.n_tokens + int(row["n_tokens"])
        if int(ends[-1]) != end or not np.array_equal(ends[:-1], messages["start"]):
            return f"messages of commit {seq} do not tile its tokens"
        if end - start > len(self.ids):
            return f"commit {seq} lacks tokens"
        return ""


def read_ids(source: Source, state: StoreState, token_bytes: int, start: int, end: int) -> Ids:
    """Return the ids of `[start, end)`, int32[n]; fewer if the store does not hold them all."""
    first, last = start // BLOCK_SIZE, min(-(-end // BLOCK_SIZE), state.n_blocks)
    rows = source.read_blocks(np.arange(first, max(first, last), dtype=np.int64))
    tail = np.frombuffer(state.tail, np.uint8).reshape(1, -1)
    ids = [decode_ids(rows, token_bytes).ravel()]
    if end > state.n_blocks * BLOCK_SIZE:
        ids.append(decode_ids(tail, token_bytes).ravel())
    at = first * BLOCK_SIZE if first < last else min(start, state.n_blocks * BLOCK_SIZE)
    return np.concatenate(ids)[start - at : end - at]


def read_stretch(
    source: Source, state: StoreState, rows: NDArray[np.void], token_bytes: int
) -> Stretch:
    """Return commits with what they hold.

    Args:
        source: a store.
        state: of the store; its tail is used where the last block is not full.
        rows: COMMIT[c >= 1], consecutive.
        token_bytes: 2 or 4.

    Raises:
        CorruptError: the store finds damage, or rows name what does not exist.
    """
    first = int(rows["first_message"][0])
    stop = int(rows["first_message"][-1]) + int(rows["n_messages"][-1])
    start, end = int(rows["start"][0]), int(rows["start"][-1]) + int(rows["n_tokens"][-1])
    # Damaged counts are noticed before anything is allocated for them.
    fits = start <= end <= state.n_tokens and first <= stop <= state.n_messages
    if not fits or int(rows["n_tokens"].max()) > _MAX_COMMIT_TOKENS:
        raise CorruptError(
            f"the commits from {int(rows['seq'][0])} on name tokens or messages that do not exist",
            where="commits",
            offset=None,
            have_seq=None,
        )
    return Stretch(
        rows=rows,
        ids=read_ids(source, state, token_bytes, start, end),
        messages=source.read_messages(first, stop),
        bodies=source.read_bodies(np.arange(first, stop, dtype=np.int64)),
    )


def stretches(
    source: Source, state: StoreState, token_bytes: int, *, first: int = 1
) -> Iterator[Stretch]:
    """Yield everything a store holds from commit `first` on, in stretches of about 8 MiB.

    Raises:
        CorruptError: the store finds damage, or rows name what does not exist.
    """
    n_messages, seq = _FIRST_MESSAGES, first
    page = source.read_commits(first, first)
    while seq <= state.seq:
        if not len(page):
            page = source.read_commits(seq, min(seq + _PAGE, state.seq + 1))
        rows = page[: _n_fitting(page, n_messages)]
        rows = rows[: _n_measured(source, rows)]
        stretch = read_stretch(source, state, rows, token_bytes)
        yield stretch
        seq, page = seq + len(rows), page[len(rows) :]
        # How long bodies are is known only once they were read: follow what came last.
        mean = sum(map(len, stretch.bodies)) // max(1, len(stretch.bodies)) + MESSAGE.itemsize
        n_messages = max(1, min(2 * n_messages, _MAX_BYTES // mean, _MAX_MESSAGES))


def _n_fitting(page: NDArray[np.void], n_messages: int) -> int:
    """Return how many of the leading commits make one stretch, at least one."""
    # Damaged counts must neither overflow nor ask for more than a commit can hold.
    tokens = np.cumsum(np.minimum(page["n_tokens"], _MAX_COMMIT_TOKENS).astype(np.int64))
    messages = np.cumsum(page["n_messages"].astype(np.int64))
    fits = (4 * tokens <= _MAX_BYTES) & (messages <= n_messages)
    return max(1, int(np.searchsorted(~fits, True)))  # noqa: FBT003 - the value searched for


def _n_measured(source: Source, rows: NDArray[np.void]) -> int:
    """Return how many of the commits fit by the lengths of their bodies, at least one.

    Only a source that knows these lengths beforehand is asked; a file from elsewhere is one, and
    could have small bodies first and then large ones.
    """
    body_sizes = getattr(source, "body_sizes", None)
    if body_sizes is None:
        return len(rows)
    first = int(rows["first_message"][0])
    stops = (rows["first_message"] + rows["n_messages"]).astype(np.int64) - first
    sums = np.concatenate([[0], np.cumsum(body_sizes(first, first + int(stops[-1])))])
    return max(1, int(np.searchsorted(sums[stops], _MAX_BYTES, side="right")))
