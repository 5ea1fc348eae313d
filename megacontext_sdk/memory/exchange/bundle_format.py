"""The layout of a bundle: a header of canonical JSON, then parts without gap or overlap.

::

    b"MCBUNDLE" | u32 header length | JSON header | parts | blake2b-256 of all bytes before it

What the header says is checked here against itself and against the size of the file, before a byte
of any part is read. What the parts hold is `memory.exchange.bundle_check`'s business.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import attrs
import msgspec

from megacontext_sdk.contracts.storage import COMMIT, MESSAGE
from megacontext_sdk.errors import BundleError, FormatVersionError
from megacontext_sdk.memory.exchange.new_file import DIGEST_BYTES
from megacontext_sdk.memory.lod import BLOCK_SIZE, MAX_LOD, n_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "BUNDLE_FORMAT",
    "DIGEST_BYTES",
    "MAGIC",
    "MAX_HEADER_BYTES",
    "MAX_PARTS",
    "MAX_PIECE_BYTES",
    "MAX_PIECE_ROWS",
    "PREFIX",
    "BundleHeader",
    "BundleParent",
    "Part",
    "bundle_error",
    "decode_header",
    "encode_header",
    "part_name",
    "pieces_of",
]

MAGIC = b"MCBUNDLE"
PREFIX = struct.Struct("<8sI")
BUNDLE_FORMAT = (1, 0)

MAX_HEADER_BYTES = 16 * 2**20
MAX_PARTS = 65_536
MAX_PIECE_ROWS = 65_536
MAX_PIECE_BYTES = 32 * 2**20
"""Of one piece of bodies, its lengths included; writers end a piece at a quarter of it."""

_MAX_TOKENS = 2**48
_MAX_ROW_BYTES = 64 * 2**10
_HEX_16 = re.compile("[0-9a-f]{32}")
_PRINT = re.compile("[0-9A-Za-z:._+-]{1,256}")

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_Kind: TypeAlias = Literal[
    "commits", "blocks", "tail", "messages", "bodies", "gist_rows", "gist_trust"
]


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run of bytes. `offset` counts from the first byte behind the header.

    Rows of `stride` bytes, numbered from `first`; a piece of bodies has stride 0 and is `rows`
    lengths of four bytes, then the bodies one behind the other.
    """

    kind: _Kind
    version: _Count = 0
    lod: _Count = 0
    first: _Count
    rows: _Count
    stride: _Count
    offset: _Count
    length: _Count


class BundleParent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which memory this one was forked from, and where."""

    uuid: str
    seq: _Count
    chain: str


class BundleHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a stranger needs to read the parts; 16-byte values are hexadecimal."""

    format: tuple[int, int] = BUNDLE_FORMAT
    uuid: str
    root: str
    block_size: int = BLOCK_SIZE
    token_bytes: int
    base_fp: str
    tokenizer_fp: str
    parent: BundleParent | None = None
    seq: _Count
    chain: str
    n_tokens: _Count
    n_messages: _Count
    parts: tuple[Part, ...]


class _FormatOnly(msgspec.Struct):
    format: tuple[int, int]


def bundle_error(
    path: str,
    what: str,
    *,
    part: str,
    offset: int | None = None,
    limit: int | None = None,
    have_seq: int | None = None,
) -> BundleError:
    """Return the error of a bundle that breaks its format.

    Args:
        path: of the bundle.
        what: what is wrong, without any content of it.
        part: which piece: "header", "digest", or the name of a part.
        offset: byte of the file, where one can be named.
        limit: what a size exceeds.
        have_seq: last commit that was found sound.
    """
    place = part if offset is None else f"{part}, byte {offset}"
    return BundleError(
        f"{path} is no sound bundle: {what} ({place}). Nothing was loaded; export it again from "
        "the memory it came from",
        path=path,
        where=part,
        part=part,
        offset=offset,
        limit=limit,
        have_seq=have_seq,
    )


def part_name(part: Part) -> str:
    """Return what errors call a part: `bodies from 4096`, `gist_rows of version 1, LOD2`."""
    if part.kind == "bodies":
        return f"bodies from {part.first}"
    if part.kind.startswith("gist"):
        return f"{part.kind} of version {part.version}, LOD{part.lod}"
    return part.kind


def encode_header(header: BundleHeader) -> bytes:
    """Return the only spelling of a header: no white space, every field, in this order."""
    return msgspec.json.encode(header)


def decode_header(raw: bytes, path: str, n_part_bytes: int) -> BundleHeader:
    """Return a header that fits itself and the file.

    Args:
        raw: the JSON.
        path: of the bundle, for errors.
        n_part_bytes: bytes of the file between header and digest.

    Raises:
        BundleError: no such header; its parts do not fill these bytes, or not with this memory.
        FormatVersionError: a newer format.
    """
    # Counted before anything is decoded: every part costs one brace and far more than its bytes.
    if raw.count(b"{") > MAX_PARTS + 2:
        raise bundle_error(
            path, f"more than {MAX_PARTS} parts", part="header", offset=PREFIX.size, limit=MAX_PARTS
        )
    header = _decoded(raw, path)
    # Comparing with the one spelling finds what a parser would pass over: keys given twice, fields
    # left out, numbers and strings written in another way.
    if encode_header(header) != raw:
        raise bundle_error(
            path, "the header is not in its one spelling", part="header", offset=PREFIX.size
        )
    checker = _HeaderChecker(header, path, PREFIX.size + len(raw))
    checker.check_values()
    checker.check_tiling(n_part_bytes)
    checker.check_kinds()
    return header


def _decoded(raw: bytes, path: str) -> BundleHeader:
    """Decode a header strictly; a format this version does not know is told apart first."""
    try:
        found = msgspec.json.decode(raw, type=_FormatOnly).format
        if found[0] > BUNDLE_FORMAT[0] or (found[0] == BUNDLE_FORMAT[0] and found > BUNDLE_FORMAT):
            raise _newer(path, found)
        return msgspec.json.decode(raw, type=BundleHeader)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        # Not chained: a parser's words may quote the bytes it stumbled over.
        raise bundle_error(
            path,
            f"the header is not understood ({type(error).__name__})",
            part="header",
            offset=PREFIX.size,
        ) from None


def _newer(path: str, found: tuple[int, int]) -> FormatVersionError:
    return FormatVersionError(
        f"{path} is a bundle of format {found[0]}.{found[1]}, this version reads up to "
        f"{BUNDLE_FORMAT[0]}.{BUNDLE_FORMAT[1]}; upgrade megacontext-sdk",
        path=path,
        found=list(found),
        supported=list(BUNDLE_FORMAT),
    )


@attrs.frozen
class _HeaderChecker:
    """Checks a decoded header against itself; `start` is the byte where the parts begin."""

    header: BundleHeader
    path: str
    start: int

    def check_values(self) -> None:
        header = self.header
        sane = (
            header.format[0] == BUNDLE_FORMAT[0]
            and header.format[1] >= 0
            and header.block_size == BLOCK_SIZE
            and header.token_bytes in {2, 4}
            and all(map(_HEX_16.fullmatch, (header.uuid, header.root, header.chain)))
            and _PRINT.fullmatch(header.base_fp)
            and _PRINT.fullmatch(header.tokenizer_fp)
            and header.n_tokens <= _MAX_TOKENS
            and (header.seq > 0 or header.n_tokens + header.n_messages == 0)
            and (header.seq > 0 or header.chain == header.root)
        )
        parent = header.parent
        if parent is not None:
            sane = sane and all(map(_HEX_16.fullmatch, (parent.uuid, parent.chain)))
        if not sane:
            raise self._error("the header holds values that cannot be")

    def check_tiling(self, n_part_bytes: int) -> None:
        """Check that the parts lie one behind the other and fill the file."""
        at = 0
        for part in self.header.parts:
            if part.offset != at:
                what = "a gap before it" if part.offset > at else "it overlaps what is before it"
                raise self._error(what, part)
            if part.rows == 0 or part.length == 0:
                raise self._error("it is empty", part)
            if part.length > n_part_bytes - at:
                raise self._error("it is longer than the file", part, limit=n_part_bytes - at)
            self._check_length(part)
            at += part.length
        if at != n_part_bytes:
            raise self._error(f"{n_part_bytes - at} bytes belong to no part", limit=at)

    def _check_length(self, part: Part) -> None:
        if part.kind != "bodies":
            if part.rows * part.stride != part.length:
                raise self._error("rows times stride is not its length", part)
            return
        if part.stride or part.length < 4 * part.rows:
            raise self._error("its lengths do not fit into it", part)
        if part.rows > MAX_PIECE_ROWS or part.length > MAX_PIECE_BYTES:
            raise self._error("it is too large for one piece", part, limit=MAX_PIECE_BYTES)

    def check_kinds(self) -> None:
        """Check that the parts are those of a memory of this length, each where it belongs."""
        parts = list(self.header.parts)
        for kind, first, rows, stride in _fixed_parts(self.header):
            part = parts.pop(0) if parts else None
            if part is None or (part.kind, part.version, part.lod, part.first, part.rows) != (
                *(kind, 0, 0),
                *(first, rows),
            ):
                raise self._error(f"{rows} rows of {kind} are not where they belong", part)
            if part.stride != stride:
                raise self._error(f"a row of {kind} has {stride} bytes", part, limit=stride)
        self._check_gists(self._after_bodies(parts))

    def _after_bodies(self, parts: list[Part]) -> list[Part]:
        n_bodies = 0
        for number, part in enumerate(parts):
            if part.kind != "bodies":
                parts = parts[number:]
                break
            if (part.version, part.lod, part.first) != (0, 0, n_bodies):
                raise self._error(f"body {n_bodies} comes next", part)
            n_bodies += part.rows
        else:
            parts = []
        if n_bodies != self.header.n_messages:
            raise self._error(f"{self.header.n_messages} messages have {n_bodies} bodies")
        return parts

    def _check_gists(self, parts: Sequence[Part]) -> None:
        if len(parts) % 2:
            raise self._error("a part does not belong here", parts[-1])
        last = (-1, 0)
        for rows, trust in zip(parts[::2], parts[1::2], strict=True):
            key = (rows.version, rows.lod)
            if (rows.kind, trust.kind, trust.version, trust.lod) != (
                "gist_rows",
                "gist_trust",
                *key,
            ):
                raise self._error("a part does not belong here", rows)
            sane = (
                key > last
                and rows.version < 2**16
                and 1 <= rows.lod <= MAX_LOD
                and rows.first == trust.first == 0
                and rows.rows == trust.rows <= n_nodes(self.header.n_tokens, rows.lod)
                and 0 < rows.stride <= _MAX_ROW_BYTES
                and trust.stride == 1
            )
            if not sane:
                raise self._error("no such gists can be", rows)
            last = key

    def _error(self, what: str, part: Part | None = None, limit: int | None = None) -> BundleError:
        name = "header" if part is None else part_name(part)
        offset = PREFIX.size if part is None else self.start + part.offset
        return bundle_error(self.path, what, part=name, offset=offset, limit=limit)


def _fixed_parts(header: BundleHeader) -> Iterator[tuple[str, int, int, int]]:
    """Yield `(kind, first, rows, stride)` of the parts without pieces that a memory needs."""
    for kind, first, rows, stride in (
        ("commits", 1, header.seq, COMMIT.itemsize),
        ("blocks", 0, header.n_tokens // BLOCK_SIZE, BLOCK_SIZE * header.token_bytes),
        ("tail", 0, header.n_tokens % BLOCK_SIZE, header.token_bytes),
        ("messages", 0, header.n_messages, MESSAGE.itemsize),
    ):
        if rows:
            yield kind, first, rows, stride


def pieces_of(header: BundleHeader, kind: str) -> list[Part]:
    """Return the parts of one kind, in order."""
    return [part for part in header.parts if part.kind == kind]
