"""MEMORY: the one small file that says what a directory is, with its own digest.

It names the format, the backend, the generation in force and the fingerprints of the model. It is
replaced as a whole, never edited. Whether it fits the caller is decided in
`memory.directory.vault`.
"""

from __future__ import annotations

import os
import re
from hashlib import blake2b
from typing import TYPE_CHECKING

import msgspec

from megacontext_sdk.contracts.disk import REAL_DISK
from megacontext_sdk.errors import CorruptError, FormatVersionError
from megacontext_sdk.memory.directory.durable import replace_file
from megacontext_sdk.memory.lod import BLOCK_SIZE

if TYPE_CHECKING:
    from pathlib import Path

    from megacontext_sdk.contracts.disk import Disk

__all__ = ["FORMAT", "MemoryMeta", "decode_meta", "encode_meta", "read_meta", "replace_meta"]

FORMAT = (1, 0)
_FEATURES: frozenset[str] = frozenset()
_MAX_BYTES = 64 * 2**10
_MARK = b',"digest":"'
_SUFFIX_BYTES = len(_MARK) + 32 + len(b'"}\n')
_HEX = re.compile("[0-9a-f]{32}")


class MemoryMeta(msgspec.Struct, frozen=True, kw_only=True):
    """What MEMORY says.

    Attributes:
        format, features, block_size: what a reader must understand.
        uuid: of this memory; a fork has its own.
        root: chain before the first commit, 16 bytes (base64 on disk).
        backend: name of the storage.
        generation: the one in force.
        token_bytes: bytes of an id, 2 or 4.
        base_fp, tokenizer_fp: of the model it was made with.
        parent: where it was forked or loaded from.
        name: what the one who made it calls it; may be empty.
        rescue: generation before this one if it is to be kept in rescue/, else 0.
    """

    format: tuple[int, int] = FORMAT
    features: tuple[str, ...] = ()
    uuid: str
    root: bytes
    backend: str
    generation: int
    block_size: int = BLOCK_SIZE
    token_bytes: int
    base_fp: str
    tokenizer_fp: str
    parent: dict[str, str | int] | None = None
    name: str = ""
    rescue: int = 0


class _FormatOnly(msgspec.Struct):
    format: tuple[int, int]
    features: tuple[str, ...]


def _digest(body: bytes) -> bytes:
    return blake2b(body, digest_size=16).hexdigest().encode()


def encode_meta(meta: MemoryMeta) -> bytes:
    """Return the bytes of MEMORY: one line of JSON that ends with the digest of what precedes."""
    plain: dict[str, object] = msgspec.to_builtins(meta)
    for optional in ("name", "rescue"):  # written only where they say something
        if not plain[optional]:
            del plain[optional]
    body = msgspec.json.encode(plain)[:-1]
    return body + _MARK + _digest(body) + b'"}\n'


def decode_meta(data: bytes, path: str) -> MemoryMeta:
    """Return what MEMORY says.

    Raises:
        CorruptError: the bytes do not match their digest, or make no sense.
        FormatVersionError: a newer format, an unknown feature, another block size.
    """
    body = data[:-_SUFFIX_BYTES]
    # The digest comes first: a parser never sees bytes that we did not write.
    if data != body + _MARK + _digest(body) + b'"}\n':
        raise _corrupt(path, "does not match its own digest")
    try:
        found = msgspec.json.decode(data, type=_FormatOnly)
        _check_format(found, path)
        meta = msgspec.json.decode(data, type=MemoryMeta)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _corrupt(path, "is not understood") from error
    _check_values(meta, path)
    return meta


def _check_format(found: _FormatOnly, path: str) -> None:
    unknown = sorted(set(found.features) - _FEATURES)
    if found.format[0] != FORMAT[0] or unknown:
        raise FormatVersionError(
            f"{path} has format {found.format[0]}.{found.format[1]}"
            f"{' with ' + ', '.join(unknown) if unknown else ''}, this version reads "
            f"{FORMAT[0]}.x; upgrade megacontext-sdk",
            path=path,
            found=unknown or list(found.format),
            supported=list(FORMAT),
        )


def _check_values(meta: MemoryMeta, path: str) -> None:
    if meta.block_size != BLOCK_SIZE:
        raise FormatVersionError(
            f"{path} has blocks of {meta.block_size} tokens, this version reads {BLOCK_SIZE}; it "
            "cannot be opened here",
            path=path,
            found=meta.block_size,
            supported=BLOCK_SIZE,
        )
    sane = (
        meta.token_bytes in {2, 4}
        and 0 < meta.generation < 10**6
        and _HEX.fullmatch(meta.uuid)
        and len(meta.root) == 16
        and 0 <= meta.rescue < meta.generation
    )
    if not sane:
        raise _corrupt(path, "holds values that cannot be")


def _corrupt(path: str, what: str) -> CorruptError:
    return CorruptError(
        f"MEMORY of {path} {what}. Nothing was changed. Restore this one file from a copy of the "
        "directory: without it nobody can say what the data are",
        path=path,
        where="MEMORY",
        offset=None,
        have_seq=None,
    )


def read_meta(directory: Path) -> MemoryMeta | None:
    """Return what MEMORY of a directory says, None if there is no such file.

    Raises:
        ConfigError: MEMORY is no regular file.
        CorruptError: see `decode_meta`.
        FormatVersionError: see `decode_meta`.
    """
    try:
        descriptor = REAL_DISK.open(directory / "MEMORY", os.O_RDONLY)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:  # noqa: PTH123 - the descriptor refused links
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise _corrupt(str(directory), f"is larger than {_MAX_BYTES} bytes")
    return decode_meta(data, str(directory))


def replace_meta(directory: Path, meta: MemoryMeta, disk: Disk = REAL_DISK) -> None:
    """Put a new MEMORY in force, durably and all at once.

    Raises:
        OSError: it could not be written; see `durable.replace_file`.
    """
    replace_file(disk, directory / "MEMORY", encode_meta(meta))
