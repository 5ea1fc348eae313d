"""Finding the frames of a log again: which are whole, which follow, and what a bad one means.

A bad frame is a torn tail unless something later proves that it was once durable. Each frame says
how much of the log was flushed when it was written, so proof and guess are told apart. This module
reads bytes and moves a position; it opens and cuts nothing.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

import numpy as np

from megacontext_filesystem import frames
from megacontext_filesystem.faults import corrupt
from megacontext_sdk.contracts.storage import COMMIT, StoreState

if TYPE_CHECKING:
    from pathlib import Path

    from megacontext_filesystem.frames import FrameHeader
    from megacontext_filesystem.pending import Pending

__all__ = ["LogScan", "Position", "after_batch"]

logger = logging.getLogger(__name__)

_WINDOW = 4 * 2**20
_NONE = (0, 0)


class Position(NamedTuple):
    """Where a scan has come to: the state there, the next offset and the frames so far."""

    state: StoreState
    offset: int = 0
    n_frames: int = 0


def after_batch(
    before: StoreState, head: np.void, n_blocks: int, n_messages: int, tail: bytes
) -> StoreState:
    """Return the state after a batch whose last commit is `head`."""
    return StoreState(
        seq=int(head["seq"]),
        chain=head["chain"].tobytes(),
        n_tokens=int(head["start"]) + int(head["n_tokens"]),
        n_blocks=before.n_blocks + n_blocks,
        n_messages=before.n_messages + n_messages,
        tail=tail,
        setting=int(head["setting"]),
        gist_rows=(),
    )


class _Window:
    """Bytes of a file of known size, read in large pieces."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self.size = size
        self._at = 0
        self._held = memoryview(b"")

    def view(self, at: int, n_bytes: int) -> memoryview:
        """Return bytes `[at, at + n_bytes)`, fewer at the end of the file."""
        n_bytes = max(0, min(n_bytes, self.size - at))
        inside = at - self._at
        if inside < 0 or inside + n_bytes > len(self._held):
            self._at, inside = at, 0
            wanted = min(max(n_bytes, _WINDOW), self.size - at)
            self._held = memoryview(os.pread(self._descriptor, max(0, wanted), at))
        return self._held[inside : inside + n_bytes]


class LogScan:
    """One walk over a log.

    Args:
        path: what messages name.
        descriptor: of the log, open for reading.
        salt: of the store.
        block_bytes: width of a block.
        pending: learns where the rows are.
        position: where to start; moves on with each frame.
        tolerant: stop before damage instead of raising; skip what is sealed already.
    """

    def __init__(
        self,
        path: Path,
        descriptor: int,
        *,
        salt: bytes,
        block_bytes: int,
        pending: Pending,
        position: Position,
        tolerant: bool = False,
    ) -> None:
        self._path = path
        self._descriptor = descriptor
        self._salt = salt
        self._block_bytes = block_bytes
        self._pending = pending
        self._tolerant = tolerant
        self.position = position
        self.sealed_gists: dict[tuple[int, int], tuple[int, int]] = {}  # nodes, row bytes

    def run(self, size: int) -> None:
        """Walk on to the last frame that can be trusted; `position.offset` is its end.

        Raises:
            CorruptError: a frame is damaged that was durable once, or frames are out of order.
        """
        window = _Window(self._descriptor, size)
        while self.position.offset < size:
            found = self._frame(window, self.position.offset)
            if found is None:
                resumed = self._resume(window, self.position)
                if resumed is None:
                    return
                self.position = self.position._replace(offset=resumed)
                continue
            problem = self._step(*found)
            if problem and self._tolerant:
                return
            if problem:
                raise self._corrupt(problem, self.position)

    def _step(self, header: FrameHeader, body: memoryview) -> str | None:
        """Take a frame in; return what is wrong with it."""
        at, state = self.position.offset, self.position.state
        is_sealed = self._tolerant and header.first_seq <= state.seq
        if not is_sealed:
            if not self._follows(header, state):
                return "holds frames out of order"
            after = self._note(header, body)
            if after is None:
                return "holds a frame that does not add up"
            state = after
        end = at + frames.HEADER_BYTES + header.n_bytes
        self.position = Position(state, end, self.position.n_frames + 1)
        return None

    def _corrupt(self, what: str, position: Position) -> Exception:
        return corrupt(self._path, what, offset=position.offset, have_seq=position.state.seq)

    def _frame(self, window: _Window, at: int) -> tuple[FrameHeader, memoryview] | None:
        """Return a frame that passes every check of its own."""
        header = frames.parse_header(window.view(at, frames.HEADER_BYTES), self._salt)
        if header is None or at + frames.HEADER_BYTES + header.n_bytes > window.size:
            return None
        body = window.view(at + frames.HEADER_BYTES, header.n_bytes)
        if len(body) != header.n_bytes or crc32(body) != header.body_crc or len(body) < 8:
            return None
        return header, body

    @staticmethod
    def _follows(header: FrameHeader, state: StoreState) -> bool:
        return header.first_seq == state.seq + 1 and header.chain == state.chain[:8]

    def _resume(self, window: _Window, position: Position) -> int | None:
        """Return where the log goes on behind a bad frame, None if that frame is a torn tail.

        Only gist rows can lie between two frames that follow each other; they are made again.

        Raises:
            CorruptError: a later frame proves that the bad one was durable.
        """
        at = position.offset + 1
        while True:
            at = self._find(window, at)
            if at < 0:
                return None
            found = self._frame(window, at)
            if found is None:
                at += 1
                continue
            header, body = found
            if self._follows(header, position.state):
                logger.warning("%s lost gist rows to damage; they are made again", self._path)
                return at
            is_proof = frames.flushed_of(body) > position.offset
            if is_proof and header.first_seq > position.state.seq and not self._tolerant:
                raise self._corrupt("is damaged in the middle: later commits exist,", position)
            at += frames.HEADER_BYTES + header.n_bytes

    @staticmethod
    def _find(window: _Window, at: int) -> int:
        """Return where the next thing that looks like a frame starts, -1 if nowhere."""
        while at < window.size:
            piece = window.view(at, _WINDOW)
            inside = bytes(piece).find(frames.MAGIC)
            if inside >= 0:
                return at + inside
            if len(piece) < _WINDOW:
                return -1
            at += len(piece) - len(frames.MAGIC) + 1
        return -1

    def _note(self, header: FrameHeader, body: memoryview) -> StoreState | None:
        if header.kind == frames.GISTS:
            return self._note_gists(body)
        parts = frames.parse_batch(header, body)
        before = self.position.state
        if parts is None or (parts.n_blocks and parts.block_bytes != self._block_bytes):
            return None
        rows = np.frombuffer(body, COMMIT, header.n_commits, parts.commits_at)
        if int(rows["seq"][-1]) != before.seq + header.n_commits:
            return None
        lengths = np.frombuffer(body, "<u4", parts.n_messages, parts.lengths_at)
        self._pending.add_batch(self.position.offset, header.n_commits, parts, lengths)
        tail = bytes(body[parts.tail_at : parts.messages_at])
        return after_batch(before, rows[-1], parts.n_blocks, parts.n_messages, tail)

    def _note_gists(self, body: memoryview) -> StoreState | None:
        parts = frames.parse_gists(body)
        if parts is None:
            return None
        key = (parts.version, parts.lod)
        runs = self._pending.gists.get(key)
        end, stride = self.sealed_gists.get(key, _NONE)
        if runs is not None:
            end, stride = runs.rows.end, runs.rows.stride
        if parts.row_bytes != (stride or parts.row_bytes):
            return None
        # A frame lost before this one leaves a gap: rows of a level are dense or not there.
        if parts.first == end:
            self._pending.add_gists(self.position.offset, parts)
        return self.position.state
