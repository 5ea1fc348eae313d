"""Manifests: numbered, immutable lists of what a store consists of, each with its own digest.

The highest number is in force. A number is published with `link`, which fails where it exists, so
nothing is ever replaced. What the segments hold is `segments`' business.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from hashlib import blake2b
from typing import TYPE_CHECKING

import msgspec

from megacontext_filesystem.careful import open_to_read
from megacontext_filesystem.faults import corrupt
from megacontext_filesystem.segments import KINDS, SegmentInfo
from megacontext_sdk.errors import FormatVersionError

if TYPE_CHECKING:
    from pathlib import Path

    from megacontext_sdk.contracts.disk import Disk

__all__ = [
    "FORMAT",
    "TEMPORARY",
    "Manifest",
    "decode_manifest",
    "encode_manifest",
    "log_name",
    "manifest_name",
    "numbers",
    "publish",
    "read_manifest",
]

FORMAT = 1
TEMPORARY = "manifest.part"
_MAX_BYTES = 16 * 2**20
_MARK = b',"digest":"'
_SUFFIX_BYTES = len(_MARK) + 64 + len(b'"}\n')
_MANIFEST = re.compile(r"manifest-(\d{6,12})\.json")
_LOG = re.compile(r"log-(\d{6,12})\.mcl")


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a store consists of, and where it stood when the log was begun.

    Attributes:
        number: its own.
        block_bytes: width of a block.
        salt: 16 hexadecimal digits that every frame of this store is checked with.
        log: number of the log that holds what came later.
        seq: newest sealed commit, and the state after it.
        chain: hexadecimal.
        tail: hexadecimal.
        segments: everything sealed, each kind in order.
    """

    format: int = FORMAT
    number: int
    block_bytes: int
    salt: str
    log: int
    seq: int
    chain: str
    n_tokens: int
    n_blocks: int
    n_messages: int
    setting: int
    tail: str
    segments: tuple[SegmentInfo, ...] = ()


class _FormatOnly(msgspec.Struct):
    format: int


def manifest_name(number: int) -> str:
    """Return the file name of a manifest."""
    return f"manifest-{number:06d}.json"


def log_name(number: int) -> str:
    """Return the file name of a log."""
    return f"log-{number:06d}.mcl"


def numbers(folder: Path) -> tuple[list[int], list[int]]:
    """Return the numbers of the manifests and of the logs in a folder, ascending."""
    names = [entry.name for entry in os.scandir(folder)]
    found = []
    for pattern in (_MANIFEST, _LOG):
        matches = (pattern.fullmatch(name) for name in names)
        found.append(sorted(int(match[1]) for match in matches if match))
    return found[0], found[1]


def _digest(body: bytes) -> bytes:
    return blake2b(body, digest_size=32).hexdigest().encode()


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of a manifest: JSON that ends with the digest of what precedes."""
    body = msgspec.json.encode(manifest)[:-1]
    return body + _MARK + _digest(body) + b'"}\n'


def decode_manifest(data: bytes, path: Path) -> Manifest:
    """Return what a manifest says.

    Raises:
        CorruptError: the bytes do not match their digest, or make no sense.
        FormatVersionError: a newer format.
    """
    body = data[:-_SUFFIX_BYTES]
    # The digest comes first: a parser never sees bytes that we did not write.
    if data != body + _MARK + _digest(body) + b'"}\n':
        raise corrupt(path, "does not match its own digest")
    try:
        found = msgspec.json.decode(data, type=_FormatOnly).format
        if found != FORMAT:
            raise FormatVersionError(
                f"{path} has format {found}, this version reads {FORMAT}; upgrade "
                "megacontext-filesystem",
                path=str(path.parent),
                found=found,
                supported=FORMAT,
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise corrupt(path, "is not understood") from error
    if not _is_sane(manifest) or manifest_name(manifest.number) != path.name:
        raise corrupt(path, "holds values that cannot be")
    return manifest


def _is_sane(manifest: Manifest) -> bool:
    """Tell whether the rows of each kind follow each other and lead to the counts."""
    ends: dict[tuple[str, int, int], int] = {("commit", 0, 0): 1}
    for info in manifest.segments:
        key = (info.kind, info.version, info.lod)
        if info.kind not in KINDS or info.rows <= 0 or info.payload < 0 or info.first < 0:
            return False
        before = ends.get(key, 0)
        if info.first != before:
            return False
        ends[key] = info.end
    wanted = {
        "commit": manifest.seq + 1,
        "block": manifest.n_blocks,
        "message": manifest.n_messages,
        "body": manifest.n_messages,
    }
    is_hex = re.fullmatch("[0-9a-f]{32}", manifest.chain) and re.fullmatch(
        "[0-9a-f]{16}", manifest.salt
    )
    counts_agree = all(ends.get((kind, 0, 0), 0) == end for kind, end in wanted.items())
    return bool(is_hex and re.fullmatch("([0-9a-f]{2})*", manifest.tail) and counts_agree)


def read_manifest(folder: Path, number: int) -> Manifest:
    """Return the manifest of a number.

    Raises:
        ConfigError: it is no regular file.
        CorruptError: see `decode_manifest`.
        FileNotFoundError: there is none.
        FormatVersionError: see `decode_manifest`.
    """
    path = folder / manifest_name(number)
    with open(open_to_read(path), "rb") as file:  # noqa: PTH123 - the descriptor refused links
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise corrupt(path, f"is larger than {_MAX_BYTES} bytes")
    return decode_manifest(data, path)


def publish(disk: Disk, folder: Path, manifest: Manifest) -> None:
    """Put a manifest in force. Its name becomes durable with the folder, which the caller syncs.

    Raises:
        FileExistsError: the number exists.
        OSError: as the disk does.
    """
    temporary = folder / TEMPORARY
    if os.path.lexists(temporary):
        disk.unlink(temporary)  # left over by somebody who died
    descriptor = disk.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        disk.write(descriptor, [encode_manifest(manifest)])
        disk.sync(descriptor)
    finally:
        disk.close(descriptor)
    disk.link(temporary, folder / manifest_name(manifest.number))
    with suppress(OSError):  # it is in force: nothing after that may look like a failure
        disk.unlink(temporary)
