"""Frames of the log: the bytes of one batch or of some gist rows, with their checks.

A frame is a header of 40 bytes and a body. The header has a CRC of its own that covers the length,
and is salted per store: what lies inside a body can never pass for a frame. Files, and where a
frame belongs, are `log`'s and `scan`'s.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple, TypeAlias
from zlib import crc32

import numpy as np

from megacontext_sdk.contracts.storage import COMMIT, MESSAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.storage import Batch, GistBatch

__all__ = [
    "BATCH",
    "GISTS",
    "HEADER_BYTES",
    "MAGIC",
    "MAX_FRAME_BYTES",
    "BatchBody",
    "FrameHeader",
    "GistsBody",
    "batch_frame",
    "flushed_of",
    "gists_frame",
    "parse_batch",
    "parse_gists",
    "parse_header",
]

Buffer: TypeAlias = "bytes | memoryview"

MAGIC = b"MCLF"
BATCH, GISTS = 1, 2
HEADER_BYTES = 40
MAX_FRAME_BYTES = 64 * 2**20

_FORMAT = 1
_HEAD = struct.Struct("<4sBBHQIII8s")  # ... commits, length of the body, CRC32 of it, chain
_CRC = struct.Struct("<I")
_BATCH = struct.Struct("<QIIII")  # flushed, blocks, messages, tail bytes, block bytes
_GISTS = struct.Struct("<QQIIHBx")  # flushed, first node, rows, row bytes, version, lod
_FLUSHED = struct.Struct("<Q")


class FrameHeader(NamedTuple):
    """What a header says.

    Attributes:
        kind: BATCH or GISTS.
        first_seq: first commit of a batch; for gists the one that comes next.
        n_commits: 0 for gists.
        n_bytes: length of the body.
        body_crc: CRC32 of the body.
        chain: the first 8 bytes of the chain this frame follows.
    """

    kind: int
    first_seq: int
    n_commits: int
    n_bytes: int
    body_crc: int
    chain: bytes


class BatchBody(NamedTuple):
    """Where the parts of a batch are, as offsets inside its body."""

    n_blocks: int
    n_messages: int
    block_bytes: int
    commits_at: int
    blocks_at: int
    tail_at: int
    messages_at: int
    lengths_at: int
    bodies_at: int
    end: int


class GistsBody(NamedTuple):
    """Where the parts of a gists frame are, as offsets inside its body."""

    version: int
    lod: int
    first: int
    n_rows: int
    row_bytes: int
    trust_at: int
    rows_at: int
    end: int


# --- writing ---------------------------------------------------------------------------------


def _frame(
    kind: int,
    follows: tuple[int, bytes],
    n_commits: int,
    parts: Sequence[Buffer],
    salt: bytes,
) -> list[Buffer]:
    seq, chain = follows
    body_crc = 0
    for part in parts:
        body_crc = crc32(part, body_crc)
    length = sum(len(part) for part in parts)
    head = _HEAD.pack(MAGIC, kind, 0, _FORMAT, seq + 1, n_commits, length, body_crc, chain[:8])
    return [head + _CRC.pack(crc32(head, crc32(salt))), *parts]


def _raw(array: NDArray[np.generic]) -> memoryview:
    """Return the bytes of an array without a copy, if they lie in order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _batch_body(
    n_commits: int, n_blocks: int, n_messages: int, n_tail: int, block_bytes: int, n_text: int
) -> BatchBody:
    blocks_at = _BATCH.size + n_commits * COMMIT.itemsize
    tail_at = blocks_at + n_blocks * block_bytes
    messages_at = tail_at + n_tail
    lengths_at = messages_at + n_messages * MESSAGE.itemsize
    bodies_at = lengths_at + 4 * n_messages
    return BatchBody(
        n_blocks=n_blocks,
        n_messages=n_messages,
        block_bytes=block_bytes,
        commits_at=_BATCH.size,
        blocks_at=blocks_at,
        tail_at=tail_at,
        messages_at=messages_at,
        lengths_at=lengths_at,
        bodies_at=bodies_at,
        end=bodies_at + n_text,
    )


def batch_frame(
    batch: Batch, *, follows: tuple[int, bytes], flushed: int, salt: bytes
) -> tuple[list[Buffer], BatchBody]:
    """Return the buffers of a batch's frame, and where its parts are.

    Args:
        batch: checked by the caller.
        follows: seq and chain before the batch.
        flushed: how much of the log is known to be durable.
        salt: of the store.
    """
    n_blocks, block_bytes = batch.blocks.shape
    prefix = _BATCH.pack(flushed, n_blocks, len(batch.messages), len(batch.tail), block_bytes)
    lengths = np.array([len(body) for body in batch.bodies], "<u4")
    commits = np.ascontiguousarray(batch.commits, COMMIT)
    messages = np.ascontiguousarray(batch.messages, MESSAGE)
    parts: list[Buffer] = [
        prefix,
        commits.tobytes(),
        _raw(batch.blocks),
        batch.tail,
        messages.tobytes(),
        lengths.tobytes(),
        b"".join(batch.bodies),
    ]
    counts = (len(commits), n_blocks, len(messages), len(batch.tail), block_bytes)
    body = _batch_body(*counts, len(parts[-1]))
    return _frame(BATCH, follows, len(commits), parts, salt), body


def gists_frame(
    batch: GistBatch, *, follows: tuple[int, bytes], flushed: int, salt: bytes
) -> tuple[list[Buffer], GistsBody]:
    """Return the buffers of a frame of gist rows, and where its parts are; see `batch_frame`."""
    n_rows, row_bytes = batch.rows.shape
    first = int(batch.nodes[0])
    prefix = _GISTS.pack(flushed, first, n_rows, row_bytes, batch.version, batch.lod)
    parts: list[Buffer] = [prefix, _raw(batch.trust), _raw(batch.rows)]
    body = _gists_body(batch.version, batch.lod, first, n_rows, row_bytes)
    return _frame(GISTS, follows, 0, parts, salt), body


def _gists_body(version: int, lod: int, first: int, n_rows: int, row_bytes: int) -> GistsBody:
    rows_at = _GISTS.size + n_rows
    end = rows_at + n_rows * row_bytes
    return GistsBody(version, lod, first, n_rows, row_bytes, _GISTS.size, rows_at, end)


# --- reading ---------------------------------------------------------------------------------


def parse_header(data: Buffer, salt: bytes) -> FrameHeader | None:
    """Return what 40 bytes say, None if they are no header of this store."""
    if len(data) < HEADER_BYTES or data[:4] != MAGIC:
        return None
    if _CRC.unpack_from(data, HEADER_BYTES - 4)[0] != crc32(data[: HEADER_BYTES - 4], crc32(salt)):
        return None
    _magic, kind, _flags, version, seq, n_commits, n_bytes, crc, chain = _HEAD.unpack_from(data)
    if version != _FORMAT or kind not in {BATCH, GISTS} or n_bytes > MAX_FRAME_BYTES:
        return None
    return FrameHeader(kind, seq, n_commits, n_bytes, crc, chain)


def flushed_of(body: Buffer) -> int:
    """Return how much of the log was durable when the frame of this body was written."""
    return int(_FLUSHED.unpack_from(body)[0])


def parse_batch(header: FrameHeader, body: Buffer) -> BatchBody | None:
    """Return where the parts of a checked batch are, None if they do not add up."""
    if len(body) < _BATCH.size or not header.n_commits:
        return None
    _flushed, n_blocks, n_messages, n_tail, block_bytes = _BATCH.unpack_from(body)
    parts = _batch_body(header.n_commits, n_blocks, n_messages, n_tail, block_bytes, 0)
    if parts.end > len(body):
        return None
    lengths = np.frombuffer(body, "<u4", n_messages, parts.lengths_at)
    if parts.end + int(lengths.sum(dtype=np.int64)) != len(body):
        return None
    return parts


def parse_gists(body: Buffer) -> GistsBody | None:
    """Return where the parts of a checked gists frame are, None if they do not add up."""
    if len(body) < _GISTS.size:
        return None
    _flushed, first, n_rows, row_bytes, version, lod = _GISTS.unpack_from(body)
    parts = _gists_body(version, lod, first, n_rows, row_bytes)
    return parts if n_rows and parts.end == len(body) else None
