"""The commit chain: what a commit is as bytes, and how each one is linked to the one before.

Pure functions and values. This module does not queue, lock or store anything; it is shared by the
journal, which extends the chain, and by the vault, which checks the newest links at every open.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

import attrs
import numpy as np

from megacontext_sdk.contracts.storage import MESSAGE, NO_SETTING
from megacontext_sdk.memory.lod import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bytes2D, Ids
    from megacontext_sdk.memory.lod import Span

__all__ = [
    "FLAG_CONTINUES",
    "FLAG_FORGOTTEN",
    "MAX_COMMIT_BYTES",
    "NO_KEY",
    "NO_SETTINGS",
    "OP_APPEND",
    "OP_CREATE",
    "OP_GENERATE",
    "OP_SETTING",
    "ROLES",
    "ROLE_SETTING",
    "CommitReceipt",
    "MessageRecord",
    "Position",
    "decode_ids",
    "encode_ids",
    "frozen",
    "link",
    "pack_head",
    "pack_message",
    "part_key",
    "split",
]

OP_CREATE = 0
OP_APPEND = 1
OP_GENERATE = 2
OP_SETTING = 3

ROLES = ("user", "assistant", "system", "tool", "setting")
"""Names of the codes in `MESSAGE.role`."""
ROLE_SETTING = ROLES.index("setting")

FLAG_CONTINUES = 1
"""Bit of `MESSAGE.flags`: this row continues the message before it."""
FLAG_FORGOTTEN = 2
"""Bit of `MESSAGE.flags`: content was forgotten, so the body is empty and some ids read as -1."""

MAX_COMMIT_BYTES = 16 * 2**20
"""Payload of one commit: ids as four bytes each, message rows, bodies."""

NO_KEY = bytes(16)
NO_SETTINGS: Mapping[str, object] = MappingProxyType({})

_HEAD = struct.Struct("<QqQQQIIB7x16s")  # COMMIT without its chain
_MESSAGE = struct.Struct("<QqIBBH")  # MESSAGE
_LENGTH = struct.Struct("<I")
_FORGOTTEN = 0xFFFF

_Scalar = TypeVar("_Scalar", bound=np.generic)


def frozen(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """Forbid writes to an array of ours before it is handed out."""
    array.flags.writeable = False
    return array


@attrs.frozen
class MessageRecord:
    """One message row before it has a place: role, trust and flags are codes, body is bytes."""

    role: int
    trust: int
    flags: int
    ts_us: int
    n_tokens: int
    body: bytes


@attrs.frozen(kw_only=True)
class CommitReceipt:
    """Where an append landed. `seq` is its last commit, `duplicate` tells of a repeated key."""

    seq: int
    span: Span
    first_message: int
    n_messages: int
    duplicate: bool = False


@attrs.frozen(kw_only=True)
class Position:
    """A place in the history: everything the next commit follows from.

    `tail` is int32[0..31], the ids after the last full block; `setting` the number of the newest
    settings message and `settings` what it says.
    """

    seq: int
    chain: bytes
    n_tokens: int
    n_messages: int
    tail: Ids
    setting: int = NO_SETTING
    settings: Mapping[str, object] = NO_SETTINGS

    @property
    def n_blocks(self) -> int:
        """Full blocks before this place."""
        return self.n_tokens // BLOCK_SIZE


def encode_ids(ids: Ids, token_bytes: int) -> bytes:
    """Return ids as little-endian unsigned integers; -1 becomes all ones."""
    return ids.astype(f"<u{token_bytes}").tobytes()


def decode_ids(rows: Bytes2D, token_bytes: int) -> Ids:
    """Return the ids of byte rows.

    Args:
        rows: uint8[n, 32 * token_bytes].
        token_bytes: 2 or 4.

    Returns:
        int32[n, 32], -1 where a token was forgotten.
    """
    if token_bytes == 4:
        return rows.view("<i4").astype(np.int32)
    ids = rows.view("<u2").astype(np.int32)
    ids[ids == _FORGOTTEN] = -1
    return ids


def pack_head(
    before: Position,
    *,
    ts_us: int,
    setting: int,
    n_tokens: int,
    n_messages: int,
    op: int,
    key: bytes,
) -> bytes:
    """Return the 72 bytes of a COMMIT row that the chain covers."""
    return _HEAD.pack(
        before.seq + 1,
        ts_us,
        before.n_tokens,
        before.n_messages,
        setting,
        n_tokens,
        n_messages,
        op,
        key,
    )


def pack_message(start: int, message: MessageRecord) -> bytes:
    """Return one MESSAGE row, 24 bytes."""
    return _MESSAGE.pack(
        start, message.ts_us, message.n_tokens, message.role, message.trust, message.flags
    )


def link(previous: bytes, head: bytes, ids: Ids, rows: bytes, bodies: Sequence[bytes]) -> bytes:
    """Return the chain value after a commit.

    Args:
        previous: chain value before it, 16 bytes.
        head: its row without the chain, 72 bytes.
        ids: int32[n], hashed as four bytes each whatever the store keeps.
        rows: its MESSAGE rows, 24 bytes each.
        bodies: one per row.
    """
    digest = blake2b(previous, digest_size=16)
    digest.update(head)
    digest.update(np.ascontiguousarray(ids, dtype="<i4").data)
    for at, body in enumerate(bodies):
        digest.update(rows[at * MESSAGE.itemsize : (at + 1) * MESSAGE.itemsize])
        digest.update(_LENGTH.pack(len(body)))
        digest.update(body)
    return digest.digest()


def part_key(key: bytes, part: int) -> bytes:
    """Return the key of one commit of an append that needs several."""
    return blake2b(key + _LENGTH.pack(part), digest_size=16).digest()


def _cut(message: MessageRecord, n_tokens: int) -> tuple[MessageRecord, MessageRecord]:
    """Cut a message after `n_tokens`; the body stays with the first row."""
    first = attrs.evolve(message, n_tokens=n_tokens)
    rest = attrs.evolve(
        message,
        n_tokens=message.n_tokens - n_tokens,
        flags=message.flags | FLAG_CONTINUES,
        body=b"",
    )
    return first, rest


def split(
    ids: NDArray[np.int32], messages: Sequence[MessageRecord], limit: int = MAX_COMMIT_BYTES
) -> list[tuple[Ids, list[MessageRecord], int]]:
    """Split an append into commits of at most `limit` payload bytes.

    A message longer than a commit is cut; its later rows carry `FLAG_CONTINUES`.

    Returns:
        `(ids, messages, payload bytes)` of each commit, in order; one even for an empty append.
    """
    parts: list[tuple[Ids, list[MessageRecord], int]] = []
    start = end = size = 0
    rows: list[MessageRecord] = []

    def close_part() -> None:
        nonlocal start, size, rows
        parts.append((ids[start:end], rows, size))
        start, size, rows = end, 0, []

    queue = list(reversed(messages))
    while queue:
        message = queue.pop()
        fixed = MESSAGE.itemsize + len(message.body)
        if rows and size + fixed + min(message.n_tokens, 1) * 4 > limit:
            close_part()
        # A body alone may fill a commit (both limits are 16 MiB): its row still goes through.
        room = max((limit - size - fixed) // 4, 1)
        if message.n_tokens > room:
            message, rest = _cut(message, room)
            queue.append(rest)
        rows.append(message)
        end += message.n_tokens
        size += fixed + 4 * message.n_tokens
    close_part()
    return parts
