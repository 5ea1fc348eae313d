"""HEAD: how far a memory was acknowledged, in two slots that are overwritten in turn.

It is never ahead of a flush, so a store that ends before it has lost commits. A damaged slot costs
nothing as long as the other one holds. What HEAD means for an open is decided in
`memory.directory.vault`.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING
from zlib import crc32

import attrs

from megacontext_sdk.contracts.disk import REAL_DISK
from megacontext_sdk.errors import CorruptError
from megacontext_sdk.memory.directory.damage import advice
from megacontext_sdk.memory.directory.durable import replace_file

if TYPE_CHECKING:
    from pathlib import Path

    from megacontext_sdk.contracts.disk import Disk

__all__ = ["SLOT_BYTES", "Head", "HeadFile", "pack_slot", "unpack_slot"]

SLOT_BYTES = 512
_MAGIC = b"MCHD"
_VERSION = 1
_SLOT = struct.Struct("<4sIQQ16s")  # magic, version, generation, seq, chain; CRC32 ends the slot
_CRC = struct.Struct("<I")


@attrs.frozen(order=True)
class Head:
    """The newest acknowledged commit of a generation."""

    generation: int
    seq: int
    chain: bytes


def pack_slot(head: Head) -> bytes:
    """Return the 512 bytes of a slot."""
    body = _SLOT.pack(_MAGIC, _VERSION, head.generation, head.seq, head.chain)
    body = body.ljust(SLOT_BYTES - _CRC.size, b"\0")
    return body + _CRC.pack(crc32(body))


def unpack_slot(slot: bytes) -> Head | None:
    """Return what a slot says, None if it is damaged."""
    if len(slot) != SLOT_BYTES or _CRC.unpack(slot[-4:])[0] != crc32(slot[:-4]):
        return None
    magic, version, generation, seq, chain = _SLOT.unpack_from(slot)
    if (magic, version) != (_MAGIC, _VERSION):
        return None
    return Head(generation, seq, chain)


class HeadFile:
    """The open HEAD of a memory. Only one thread writes it.

    Args:
        path: of the file.
        generation: whose slots count.
        disk: system calls.
    """

    def __init__(self, path: Path, generation: int, disk: Disk = REAL_DISK) -> None:
        self._path = path
        self._disk = disk
        self._generation = generation
        self._descriptor = -1
        self._next_slot = 0

    @staticmethod
    def create(path: Path, head: Head, disk: Disk = REAL_DISK) -> None:
        """Make a durable HEAD whose two slots say the same.

        Raises:
            FileExistsError: there is one.
        """
        descriptor = disk.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            disk.pwrite(descriptor, pack_slot(head) * 2, 0)
            disk.sync(descriptor)
        finally:
            disk.close(descriptor)

    @staticmethod
    def replace(path: Path, head: Head, disk: Disk = REAL_DISK) -> None:
        """Put a new HEAD in the place of one that says nothing any more.

        Raises:
            OSError: it could not be written; the old one is untouched.
        """
        replace_file(disk, path, pack_slot(head) * 2)

    def open(self, *, writable: bool) -> Head:
        """Open the file and return the newest slot of this generation.

        Raises:
            CorruptError: the file is absent, or neither slot holds.
        """
        try:
            flags = os.O_RDWR if writable else os.O_RDONLY
            self._descriptor = self._disk.open(self._path, flags)
        except FileNotFoundError as error:
            raise self._corrupt("is missing") from error
        both = os.pread(self._descriptor, 2 * SLOT_BYTES, 0)
        slots = [unpack_slot(both[:SLOT_BYTES]), unpack_slot(both[SLOT_BYTES:])]
        ours = {
            at: head
            for at, head in enumerate(slots)
            if head and head.generation == self._generation
        }
        if not ours:
            self.close()
            raise self._corrupt("has no readable slot")
        newest = max(ours, key=lambda at: ours[at].seq)
        self._next_slot = 1 - newest
        return ours[newest]

    def write(self, seq: int, chain: bytes) -> None:
        """Say that a commit was flushed; overwrites the older slot.

        Raises:
            OSError: the write failed or was short.
        """
        slot = pack_slot(Head(self._generation, seq, chain))
        self._disk.pwrite(self._descriptor, slot, self._next_slot * SLOT_BYTES)
        self._next_slot = 1 - self._next_slot

    def announce(self, head: Head) -> None:
        """Write the older slot for the next generation, durably.

        The newer slot still counts for this generation, and the next `write` goes over the older
        one again: until MEMORY names the next generation nothing has happened.

        Raises:
            OSError: the write or the flush failed.
        """
        self._disk.pwrite(self._descriptor, pack_slot(head), self._next_slot * SLOT_BYTES)
        self.sync()

    def sync(self) -> None:
        """Flush the file."""
        self._disk.sync(self._descriptor)

    def close(self) -> None:
        """Close the file; idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self._disk.close(descriptor)

    def _corrupt(self, what: str) -> CorruptError:
        return CorruptError(
            f"{self._path} {what}, so nobody can say how far this memory was acknowledged. "
            f"{advice(self._path.parent)}",
            path=str(self._path.parent),
            where="HEAD",
            offset=None,
            have_seq=None,
        )
