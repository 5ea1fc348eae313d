"""Reading a bundle: its digest first, then its header, then rows by number as a store gives them.

An opened bundle can be read like a store that nobody writes to; nothing is held in memory but the
header and the lengths of one piece of bodies. Whether the rows make a sound history is found out in
`memory.exchange.bundle_check`.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING, Self

import attrs
import numpy as np

from megacontext_sdk.contracts.checks import check_interval, check_numbers
from megacontext_sdk.contracts.storage import COMMIT, MESSAGE, NO_SETTING, GistRows, StoreState
from megacontext_sdk.errors import ConfigError, SessionNotFoundError
from megacontext_sdk.memory.chain import frozen
from megacontext_sdk.memory.directory.paths import check_location
from megacontext_sdk.memory.exchange.bundle_format import (
    DIGEST_BYTES,
    MAGIC,
    MAX_HEADER_BYTES,
    PREFIX,
    bundle_error,
    decode_header,
    part_name,
    pieces_of,
)

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bytes2D, Indices
    from megacontext_sdk.errors import BundleError
    from megacontext_sdk.memory.exchange.bundle_format import BundleHeader, Part

__all__ = ["MAX_BODY_BYTES", "Bundle", "open_bundle"]

MAX_BODY_BYTES = 16 * 2**20
_CHUNK_BYTES = 2**20
_U4 = np.dtype("<u4")


def open_bundle(path: Path) -> Bundle:
    """Open a bundle whose bytes are those that were written, and whose header fits them.

    Raises:
        BundleError: it is no bundle, or is damaged.
        ConfigError: the path is no local file.
        FormatVersionError: a newer format.
        SessionNotFoundError: there is nothing at this path.
    """
    place = check_location(path)
    descriptor = _open(place)
    try:
        size = os.fstat(descriptor).st_size
        length = _header_length(descriptor, size, str(place))
        _check_digest(descriptor, size, str(place))
        raw = _read(descriptor, PREFIX.size, length, str(place), "header")
        start = PREFIX.size + length
        header = decode_header(raw, str(place), size - start - DIGEST_BYTES)
        return Bundle(place, descriptor, header, start)
    except BaseException:
        os.close(descriptor)
        raise


def _open(path: Path) -> int:
    """Open a regular file for reading; a link to one may be followed, nothing is written."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise SessionNotFoundError(
            f"there is no bundle at {path}; check the path", path=str(path)
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); give a bundle",
            field="path",
            value=str(path),
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigError(
            f"{path} is not a regular file; give a bundle", field="path", value=str(path)
        )
    return descriptor


def _header_length(descriptor: int, size: int, path: str) -> int:
    """Return the length of the header, checked against its limit and the file."""
    if size < PREFIX.size + DIGEST_BYTES:
        raise bundle_error(path, f"{size} bytes are too few", part="prefix", offset=size)
    magic, length = PREFIX.unpack(_read(descriptor, 0, PREFIX.size, path, "prefix"))
    if magic != MAGIC:
        raise bundle_error(path, "it does not begin as one", part="prefix", offset=0)
    limit = min(MAX_HEADER_BYTES, size - PREFIX.size - DIGEST_BYTES)
    if length > limit:
        raise bundle_error(
            path,
            f"a header of {length} bytes, at most {limit} are possible",
            part="header",
            offset=len(MAGIC),
            limit=limit,
        )
    return int(length)


def _check_digest(descriptor: int, size: int, path: str) -> None:
    digest, at, end = blake2b(digest_size=DIGEST_BYTES), 0, size - DIGEST_BYTES
    while at < end:
        chunk = _read(descriptor, at, min(_CHUNK_BYTES, end - at), path, "digest")
        digest.update(chunk)
        at += len(chunk)
    if digest.digest() != _read(descriptor, end, DIGEST_BYTES, path, "digest"):
        raise bundle_error(path, "its bytes do not match their digest", part="digest", offset=end)


def _read(descriptor: int, offset: int, length: int, path: str, part: str) -> bytes:
    """Return exactly these bytes.

    Raises:
        BundleError: the file became shorter, or the disk cannot read it.
    """
    chunks, at = [], offset
    while at < offset + length:
        try:
            chunk = os.pread(descriptor, offset + length - at, at)
        except OSError as error:
            what = f"it cannot be read ({error.strerror})"
            raise bundle_error(path, what, part=part, offset=at) from error
        if not chunk:
            raise bundle_error(path, "it ends too early", part=part, offset=at)
        chunks.append(chunk)
        at += len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


@attrs.frozen(eq=False)
class _Lengths:
    """Where the bodies of one piece lie: int64[rows + 1] absolute offsets."""

    part: Part
    offsets: Indices


class Bundle:
    """An open bundle, read like a store (`directory.stretch.Source`). Not for several threads.

    Args:
        path: of the file.
        descriptor: open for reading; the bundle closes it.
        header: as it was checked.
        start: byte where the parts begin.
    """

    def __init__(self, path: Path, descriptor: int, header: BundleHeader, start: int) -> None:
        self.path = path
        self.header = header
        self._descriptor = descriptor
        self._start = start
        self._parts: dict[tuple[str, int, int], Part] = {
            (part.kind, part.version, part.lod): part for part in header.parts
        }
        self._pieces = pieces_of(header, "bodies")
        self._firsts = [piece.first for piece in self._pieces]
        self._lengths: _Lengths | None = None
        self._state: StoreState | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def error(
        self, what: str, kind: str, row: int | None = None, *, limit: int | None = None
    ) -> BundleError:
        """Return the error of what is wrong in a part, at a row where one can be named."""
        part = self._parts.get((kind, 0, 0))
        if kind == "bodies" and self._pieces and row is not None:
            part = self._pieces[max(0, bisect_right(self._firsts, row) - 1)]
        if part is None:
            return bundle_error(str(self.path), what, part=kind, limit=limit)
        offset = self._start + part.offset
        if row is not None:
            offset += (
                4 * (row - part.first) if kind == "bodies" else part.stride * (row - part.first)
            )
        return bundle_error(str(self.path), what, part=part_name(part), offset=offset, limit=limit)

    # --- as a store ----------------------------------------------------------------------------

    def state(self) -> StoreState:
        """Return what the bundle holds."""
        if self._state is None:
            self._state = self._read_state()
        return self._state

    def _read_state(self) -> StoreState:
        header, setting = self.header, NO_SETTING
        if header.seq:
            setting = int(self.read_commits(header.seq, header.seq + 1)["setting"][0])
        tail = self._parts.get(("tail", 0, 0))
        return StoreState(
            seq=header.seq,
            chain=bytes.fromhex(header.chain),
            n_tokens=header.n_tokens,
            n_blocks=header.n_tokens // header.block_size,
            n_messages=header.n_messages,
            tail=b"" if tail is None else self._rows(tail, 0, tail.rows),
            setting=setting,
            gist_rows=tuple(
                (part.version, part.lod, part.rows) for part in pieces_of(header, "gist_rows")
            ),
        )

    def read_commits(self, start: int, stop: int) -> NDArray[np.void]:
        """Return COMMIT[n] with `start <= seq < stop`."""
        if not 1 <= start <= stop <= self.header.seq + 1:
            raise LookupError(
                f"there are no commits [{start}, {stop}); they run from 1 to {self.header.seq}"
            )
        if start == stop:
            return np.empty(0, COMMIT)
        part = self._parts["commits", 0, 0]
        return np.frombuffer(self._rows(part, start - 1, stop - 1), COMMIT)

    def read_blocks(self, blocks: Indices) -> Bytes2D:
        """Return uint8[n, block_bytes] in the order asked."""
        n_blocks = self.header.n_tokens // self.header.block_size
        check_numbers("block", np.asarray(blocks), n_blocks)
        width = self.header.block_size * self.header.token_bytes
        if not len(blocks):
            return np.empty((0, width), np.uint8)
        return self._picked(self._parts["blocks", 0, 0], blocks)

    def read_messages(self, start: int, stop: int) -> NDArray[np.void]:
        """Return MESSAGE[n]."""
        check_interval("message", start, stop, self.header.n_messages)
        if start == stop:
            return np.empty(0, MESSAGE)
        return np.frombuffer(self._rows(self._parts["messages", 0, 0], start, stop), MESSAGE)

    def read_bodies(self, messages: Indices) -> list[bytes]:
        """Return the bodies asked, in order."""
        numbers = np.asarray(messages, dtype=np.int64)
        check_numbers("message", numbers, self.header.n_messages)
        bodies: list[bytes] = []
        for run in _runs(numbers):
            at, stop = int(run[0]), int(run[-1]) + 1
            while at < stop:
                lengths = self._piece_of(at)
                end = min(stop, lengths.part.first + lengths.part.rows)
                bodies += self._bodies(lengths, at, end)
                at = end
        return bodies

    def body_sizes(self, start: int, stop: int) -> Indices:
        """Return how long the bodies of messages `[start, stop)` are, int64[n], without them."""
        check_interval("message", start, stop, self.header.n_messages)
        sizes, at = [np.empty(0, np.int64)], start
        while at < stop:
            lengths = self._piece_of(at)
            first = lengths.part.first
            end = min(stop, first + lengths.part.rows)
            sizes.append(np.diff(lengths.offsets[at - first : end - first + 1]))
            at = end
        return np.concatenate(sizes)

    def read_gists(self, version: int, lod: int, nodes: Indices) -> GistRows:
        """Return the gist rows that exist."""
        wanted = np.asarray(nodes, dtype=np.int64)
        rows = self._parts.get(("gist_rows", version, lod))
        present = np.zeros(len(wanted), bool)
        if rows is None:
            empty = np.zeros((len(wanted), 0), np.uint8)
            return GistRows(
                rows=frozen(empty),
                trust=frozen(np.zeros(len(wanted), np.uint8)),
                present=frozen(present),
            )
        present = (wanted >= 0) & (wanted < rows.rows)
        found = np.zeros((len(wanted), rows.stride), np.uint8)
        trust = np.zeros(len(wanted), np.uint8)
        found[present] = self._picked(rows, wanted[present])
        levels = self._parts["gist_trust", version, lod]
        trust[present] = self._picked(levels, wanted[present]).ravel()
        return GistRows(rows=frozen(found), trust=frozen(trust), present=frozen(present))

    # --- bytes ---------------------------------------------------------------------------------

    def _rows(self, part: Part, start: int, stop: int) -> bytes:
        """Return rows `[start, stop)` of a part, counted from its first."""
        offset = self._start + part.offset + start * part.stride
        length = (stop - start) * part.stride
        return _read(self._descriptor, offset, length, str(self.path), part_name(part))

    def _picked(self, part: Part, numbers: Indices) -> Bytes2D:
        """Return uint8[n, stride] of the rows asked."""
        raw = [self._rows(part, int(run[0]), int(run[-1]) + 1) for run in _runs(numbers)]
        return np.frombuffer(b"".join(raw), np.uint8).reshape(-1, part.stride)

    def _piece_of(self, message: int) -> _Lengths:
        """Return the lengths of the piece that holds a message; the newest is kept."""
        part = self._pieces[bisect_right(self._firsts, message) - 1]
        if self._lengths is None or self._lengths.part is not part:
            self._lengths = _Lengths(part, self._read_lengths(part))
        return self._lengths

    def _read_lengths(self, part: Part) -> Indices:
        start = self._start + part.offset
        raw = _read(self._descriptor, start, 4 * part.rows, str(self.path), part_name(part))
        lengths = np.frombuffer(raw, _U4).astype(np.int64)
        if int(lengths.sum()) != part.length - 4 * part.rows:
            raise self.error("the lengths of its bodies do not add up", "bodies", part.first)
        longest = int(lengths.argmax())
        if int(lengths[longest]) > MAX_BODY_BYTES:
            raise self.error(
                f"a body of {int(lengths[longest])} bytes",
                "bodies",
                part.first + longest,
                limit=MAX_BODY_BYTES,
            )
        return np.cumsum(np.concatenate([[start + 4 * part.rows], lengths]))

    def _bodies(self, lengths: _Lengths, start: int, stop: int) -> list[bytes]:
        """Return the bodies of messages `[start, stop)` of one piece."""
        first = lengths.part.first
        offsets = lengths.offsets[start - first : stop - first + 1]
        begin = int(offsets[0])
        raw = _read(
            self._descriptor,
            begin,
            int(offsets[-1]) - begin,
            str(self.path),
            part_name(lengths.part),
        )
        edges = (offsets - begin).tolist()
        return [raw[a:b] for a, b in pairwise(edges)]


def _runs(numbers: Indices) -> list[Indices]:
    """Split numbers into runs of consecutive ones."""
    if not len(numbers):
        return []
    return np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
