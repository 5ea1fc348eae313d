"""Sealed segments: files of rows that never change, checked page by page when first read.

Header of 64 bytes, payload, CRC32 of each 16 KiB of payload, blake2b-256 of header and CRCs (which
the manifest repeats). Payload by kind: fixed-width rows; bodies as `u64` offsets and one blob;
gists as rows and then the trust of each (their nodes are dense, so no numbers are stored). Which
segments a store consists of is the manifest's business.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from hashlib import blake2b
from typing import TYPE_CHECKING
from zlib import crc32

import attrs
import msgspec
import numpy as np

from megacontext_filesystem.careful import open_to_read
from megacontext_filesystem.faults import corrupt, refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.disk import Disk

__all__ = ["KINDS", "PAGE", "Segment", "SegmentInfo", "n_pages", "read_header", "write_segment"]

KINDS = ("block", "commit", "message", "body", "gist")
PAGE = 16 * 2**10
HEADER_BYTES = 64

_MAGIC = b"MCSG"
_FORMAT = 1
_DIGEST_BYTES = 32
_CHUNK = 256 * PAGE
# magic, kind, format, gist version, lod, stride, first, rows, payload bytes
_HEAD = struct.Struct("<4sBxHHBxIQQQ20x")
_CRC = struct.Struct("<I")


class SegmentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a segment holds; the same words in its header and in the manifest.

    Attributes:
        kind: one of KINDS.
        first: number of the first row; of gists the first node.
        rows: how many.
        stride: bytes of a row; 0 for bodies.
        payload: bytes between header and CRCs.
        version: of gists.
        lod: of gists.
        digest: blake2b-256 of header and CRCs, hexadecimal.
    """

    kind: str
    first: int
    rows: int
    stride: int
    payload: int
    version: int = 0
    lod: int = 0
    digest: str = ""

    @property
    def name(self) -> str:
        """Name of the file."""
        level = f"-v{self.version}-l{self.lod}" if self.kind == "gist" else ""
        return f"{self.kind}{level}-{self.first:015d}.mcs"

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return HEADER_BYTES + self.payload + 4 * n_pages(self.payload) + _DIGEST_BYTES

    @property
    def end(self) -> int:
        """Number after the last row."""
        return self.first + self.rows


def n_pages(payload: int) -> int:
    """Return how many pages a payload has."""
    return -(-payload // PAGE)


def _pack(info: SegmentInfo) -> bytes:
    head = _HEAD.pack(
        _MAGIC,
        KINDS.index(info.kind),
        _FORMAT,
        info.version,
        info.lod,
        info.stride,
        info.first,
        info.rows,
        info.payload,
    )
    return head + _CRC.pack(crc32(head))


def _unpack(head: bytes) -> SegmentInfo | None:
    if len(head) != HEADER_BYTES or _CRC.unpack_from(head, _HEAD.size)[0] != crc32(head[:-4]):
        return None
    magic, kind, version, gist_version, lod, stride, first, rows, payload = _HEAD.unpack(head[:-4])
    if (magic, version) != (_MAGIC, _FORMAT) or kind >= len(KINDS):
        return None
    return SegmentInfo(
        kind=KINDS[kind],
        first=first,
        rows=rows,
        stride=stride,
        payload=payload,
        version=gist_version,
        lod=lod,
    )


# --- writing ---------------------------------------------------------------------------------


def _chunks(pieces: Iterable[memoryview]) -> Iterator[memoryview]:
    """Yield the same bytes in whole pages; large pieces pass without a copy."""
    held = bytearray()
    for piece in pieces:
        rest = piece
        if held:
            missing = -len(held) % PAGE
            held += rest[:missing]
            rest = rest[missing:]
            is_whole = not len(held) % PAGE
            if is_whole and (len(held) >= _CHUNK or len(rest) >= PAGE):
                yield memoryview(held)
                held = bytearray()
        if not held and len(rest) >= PAGE:
            whole = len(rest) - len(rest) % PAGE
            yield rest[:whole]
            rest = rest[whole:]
        held += rest
    if held:
        yield memoryview(held)


def write_segment(
    disk: Disk, folder: Path, info: SegmentInfo, pieces: Iterable[memoryview]
) -> tuple[SegmentInfo, int]:
    """Write a new segment; return it with its digest, and the open descriptor to sync and close.

    Args:
        disk: to write with.
        folder: where.
        info: without digest.
        pieces: `info.payload` bytes.

    Raises:
        OSError: as the disk does; the file is left to the caller.
    """
    descriptor = disk.open(folder / info.name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        head = _pack(info)
        crcs: list[int] = []
        disk.write(descriptor, [head])
        for chunk in _chunks(pieces):
            crcs += [crc32(chunk[at : at + PAGE]) for at in range(0, len(chunk), PAGE)]
            disk.write(descriptor, [chunk])
        table = np.array(crcs, "<u4").tobytes()
        digest = blake2b(head + table, digest_size=_DIGEST_BYTES)
        disk.write(descriptor, [table, digest.digest()])
    except BaseException:
        disk.close(descriptor)
        raise
    return msgspec.structs.replace(info, digest=digest.hexdigest()), descriptor


# --- reading ---------------------------------------------------------------------------------


def _open(path: Path) -> int:
    try:
        return open_to_read(path)
    except FileNotFoundError as error:
        raise corrupt(path, "is missing") from error


def read_header(path: Path) -> SegmentInfo | None:
    """Return what an unlisted file says it is, None if its own words do not hold."""
    descriptor = _open(path)
    try:
        info = _unpack(os.pread(descriptor, HEADER_BYTES, 0))
        if info is None or os.fstat(descriptor).st_size != info.n_bytes:
            return None
        end = os.pread(descriptor, info.n_bytes, HEADER_BYTES + info.payload)
    finally:
        os.close(descriptor)
    digest = blake2b(_pack(info) + end[:-_DIGEST_BYTES], digest_size=_DIGEST_BYTES)
    if digest.digest() != end[-_DIGEST_BYTES:]:
        return None
    return msgspec.structs.replace(info, digest=digest.hexdigest())


@attrs.define(eq=False)
class Segment:
    """A sealed file, mapped when first read.

    Attributes:
        path: of the file.
        info: what the manifest says about it.
        crcs: uint32 per page, once mapped.
        data: the payload, while mapped.
    """

    path: Path
    info: SegmentInfo
    crcs: NDArray[np.uint32] | None = None
    data: NDArray[np.uint8] | None = None

    def check_size(self) -> None:
        """Check that the file is there at its size; its content is checked when read.

        Raises:
            CorruptError: it is not.
            ConfigError: it is no regular file.
        """
        try:
            found = self.path.lstat()
        except FileNotFoundError as error:
            raise corrupt(self.path, "is missing") from error
        if not stat.S_ISREG(found.st_mode):
            raise refused(self.path, None)
        if found.st_size != self.info.n_bytes:
            raise corrupt(
                self.path,
                f"has {found.st_size} bytes instead of {self.info.n_bytes}",
                offset=min(found.st_size, self.info.n_bytes),
            )

    def map(self) -> NDArray[np.uint8]:
        """Return the payload, uint8[payload]; header and CRCs are checked on the way.

        Raises:
            CorruptError: they do not hold.
            ConfigError: it is no regular file.
        """
        size = self.info.n_bytes
        descriptor = _open(self.path)
        try:
            if os.fstat(descriptor).st_size != size:
                raise corrupt(self.path, f"has not the {size} bytes it was sealed with")
            mapped = np.frombuffer(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ), np.uint8)
        finally:
            os.close(descriptor)
        end = HEADER_BYTES + self.info.payload
        head, table = mapped[:HEADER_BYTES].tobytes(), mapped[end:-_DIGEST_BYTES].tobytes()
        digest = blake2b(head + table, digest_size=_DIGEST_BYTES)
        if head != _pack(self.info):
            raise corrupt(self.path, "has another header than it was sealed with", offset=0)
        if digest.hexdigest() != self.info.digest:
            raise corrupt(self.path, "has page checksums that do not hold", offset=end)
        if digest.digest() != mapped[-_DIGEST_BYTES:].tobytes():
            raise corrupt(self.path, "does not match its digest", offset=size - _DIGEST_BYTES)
        self.crcs = np.frombuffer(table, "<u4")
        self.data = mapped[HEADER_BYTES:end]
        return self.data

    def is_page_good(self, data: NDArray[np.uint8], page: int) -> bool:
        """Tell whether a page of the mapped payload matches its checksum."""
        return self.crcs is not None and crc32(data[page * PAGE : (page + 1) * PAGE].data) == int(
            self.crcs[page]
        )

    def check_page(self, data: NDArray[np.uint8], page: int) -> None:
        """Check a page of the mapped payload.

        Raises:
            CorruptError: it does not match its checksum.
        """
        if not self.is_page_good(data, page):
            raise corrupt(
                self.path,
                "does not match the checksum of a page",
                offset=HEADER_BYTES + page * PAGE,
            )
