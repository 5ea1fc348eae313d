"""Writing a bundle: one file that holds a memory whole, for a backup, a move, another backend.

It streams in two passes, one that measures and one that writes, so memory stays bounded at any
length. The same memory gives the same bytes: nothing of the clock, the path or the backend is in
them. Reading is `memory.exchange.bundle_reader`'s, what is done with it
`memory.exchange.loading`'s.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.contracts.disk import REAL_DISK
from megacontext_sdk.contracts.storage import COMMIT, MESSAGE
from megacontext_sdk.errors import CorruptError, QuotaError
from megacontext_sdk.memory.chain import FLAG_CONTINUES, ROLE_SETTING
from megacontext_sdk.memory.directory.bounded import BoundedStorage
from megacontext_sdk.memory.exchange.bundle_format import (
    MAGIC,
    MAX_PARTS,
    MAX_PIECE_BYTES,
    MAX_PIECE_ROWS,
    PREFIX,
    BundleHeader,
    BundleParent,
    Part,
    encode_header,
)
from megacontext_sdk.memory.exchange.new_file import NewFile
from megacontext_sdk.memory.lod import BLOCK_SIZE, n_nodes
from megacontext_sdk.receipts import Exported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from megacontext_sdk.contracts.disk import Disk
    from megacontext_sdk.contracts.storage import Storage, StoreState
    from megacontext_sdk.memory.directory.manifest import MemoryMeta
    from megacontext_sdk.memory.directory.replay import Progress

__all__ = ["write_bundle"]

_CHUNK_BYTES = 4 * 2**20
_MAX_CHUNK_MESSAGES = 256  # metadata may be 64 KiB each
_BYTES_PER_TOKEN = 8  # more than the text of a token takes, mostly


def write_bundle(
    source: Storage,
    meta: MemoryMeta,
    path: Path,
    *,
    upto_seq: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    disk: Disk = REAL_DISK,
) -> Exported:
    """Write a memory as a bundle; a failure leaves nothing behind.

    Args:
        source: its store, opened and flushed; nobody appends to it meanwhile.
        meta: what its MEMORY says.
        path: of the new file.
        upto_seq: last commit to write; all if absent.
        overwrite: replace a file of this name.
        progress: called with tokens done and tokens in all.
        disk: writes the file.

    Raises:
        ConfigError: the path exists, or is none that can be written.
        CorruptError: the store finds damage.
        LookupError: there is no commit `upto_seq`.
        QuotaError: more bodies than a bundle may have parts.
        StorageFullError: no space.
    """
    if upto_seq is not None:
        source = BoundedStorage(source, upto_seq, meta.token_bytes)
    plan = _Plan(source, meta)
    header = plan.header()
    with NewFile(path, overwrite=overwrite, disk=disk) as file:
        raw = encode_header(header)
        file.write(PREFIX.pack(MAGIC, len(raw)))
        file.write(raw)
        size = PREFIX.size + len(raw) + sum(part.length for part in header.parts)
        for part in header.parts:
            for chunk in plan.content(part):
                file.write(chunk)
            if progress is not None:
                progress(header.n_tokens * file.n_bytes // size, header.n_tokens)
        file.write(file.digest)
        file.commit()
    return Exported(
        path=str(file.path),
        format="bundle",
        n_tokens=header.n_tokens,
        n_messages=_n_said(source, header.n_messages),
        n_bytes=file.n_bytes,
    )


class _Plan:
    """Where everything will lie, and how it is read from the store.

    Args:
        source: read twice, with the same answers.
        meta: of the memory.
    """

    def __init__(self, source: Storage, meta: MemoryMeta) -> None:
        self._source = source
        self._meta = meta
        self._state: StoreState = source.state()
        self._trust: dict[tuple[int, int], list[bytes]] = {}

    # --- measuring -----------------------------------------------------------------------------

    def header(self) -> BundleHeader:
        """Measure everything.

        Raises:
            QuotaError: too many parts.
        """
        meta, state, parts, at = self._meta, self._state, [], 0
        for kind, key, first, rows, stride, length in self._runs():
            part = Part(
                kind=kind,  # type: ignore[arg-type]
                version=key[0],
                lod=key[1],
                first=first,
                rows=rows,
                stride=stride,
                offset=at,
                length=length,
            )
            at += length
            parts.append(part)
        if len(parts) > MAX_PARTS:
            raise QuotaError(
                f"this memory makes {len(parts)} parts, a bundle holds {MAX_PARTS}; copy its "
                "directory instead",
                field="path",
                value=len(parts),
                quota="bundle_parts",
                limit=MAX_PARTS,
            )
        return BundleHeader(
            uuid=meta.uuid,
            root=meta.root.hex(),
            token_bytes=meta.token_bytes,
            base_fp=meta.base_fp,
            tokenizer_fp=meta.tokenizer_fp,
            parent=_parent(meta),
            seq=state.seq,
            chain=(state.chain if state.seq else meta.root).hex(),
            n_tokens=state.n_tokens,
            n_messages=state.n_messages,
            parts=tuple(parts),
        )

    def _runs(self) -> Iterator[tuple[str, tuple[int, int], int, int, int, int]]:
        """Yield `(kind, (version, lod), first, rows, stride, length)` of each part."""
        state, token_bytes = self._state, self._meta.token_bytes
        for kind, first, rows, stride in (
            ("commits", 1, state.seq, COMMIT.itemsize),
            ("blocks", 0, state.n_blocks, BLOCK_SIZE * token_bytes),
            ("tail", 0, state.n_tokens % BLOCK_SIZE, token_bytes),
            ("messages", 0, state.n_messages, MESSAGE.itemsize),
        ):
            if rows:
                yield kind, (0, 0), first, rows, stride, rows * stride
        for first, rows, length in self._pieces():
            yield "bodies", (0, 0), first, rows, 0, length
        for version, lod, count in sorted(state.gist_rows):
            rows = min(count, n_nodes(state.n_tokens, lod))
            if rows:
                found = self._source.read_gists(version, lod, np.zeros(1, np.int64))
                stride = found.rows.shape[1]
                yield "gist_rows", (version, lod), 0, rows, stride, rows * stride
                yield "gist_trust", (version, lod), 0, rows, 1, rows

    def _pieces(self) -> Iterator[tuple[int, int, int]]:
        """Yield `(first, rows, length)` of each piece of bodies."""
        first = rows = size = 0
        for body in _bodies(self._source, 0, self._state.n_messages):
            grown = size + 4 + len(body)
            if rows and (rows == MAX_PIECE_ROWS or grown > MAX_PIECE_BYTES // 4):
                yield first, rows, size
                first, rows, grown = first + rows, 0, 4 + len(body)
            rows, size = rows + 1, grown
        if rows:
            yield first, rows, size

    # --- reading -------------------------------------------------------------------------------

    def content(self, part: Part) -> Iterator[bytes]:
        """Yield the bytes of a part in chunks.

        Raises:
            CorruptError: the store gives other rows than it said.
        """
        n_bytes = 0
        for chunk in self._content(part):
            n_bytes += len(chunk)
            yield chunk
        if n_bytes != part.length:
            raise self._moved(part)

    def _content(self, part: Part) -> Iterator[bytes]:
        if part.kind == "tail":
            yield self._state.tail
        elif part.kind == "bodies":
            bodies = list(_bodies(self._source, part.first, part.first + part.rows))
            yield np.array([len(body) for body in bodies], "<u4").tobytes()
            yield b"".join(bodies)
        elif part.kind == "gist_trust":
            yield from self._trust.pop((part.version, part.lod))
        else:
            read = self._reader(part)
            step = max(1, _CHUNK_BYTES // part.stride)
            edges = [*range(part.first, part.first + part.rows, step), part.first + part.rows]
            for start, stop in pairwise(edges):
                yield read(start, stop)

    def _reader(self, part: Part) -> Callable[[int, int], bytes]:
        """Return what reads rows `[start, stop)` of a part with rows of one size."""
        source = self._source
        if part.kind == "commits":
            return lambda start, stop: source.read_commits(start, stop).tobytes()
        if part.kind == "messages":
            return lambda start, stop: source.read_messages(start, stop).tobytes()
        if part.kind == "blocks":
            return lambda start, stop: source.read_blocks(np.arange(start, stop)).tobytes()
        return lambda start, stop: self._gists(part, start, stop)

    def _gists(self, part: Part, start: int, stop: int) -> bytes:
        """Return gist rows; their trust is kept for the part that follows, a byte each."""
        key = (part.version, part.lod)
        found = self._source.read_gists(*key, np.arange(start, stop))
        if not found.present.all():
            raise self._moved(part)
        self._trust.setdefault(key, []).append(found.trust.tobytes())
        return found.rows.tobytes()

    def _moved(self, part: Part) -> CorruptError:
        return CorruptError(
            f"the {part.kind} of {self._source.path} are not what they were a moment ago; check "
            "the memory with megacontext doctor --scrub",
            path=str(self._source.path),
            where=part.kind,
            offset=None,
            have_seq=self._state.seq,
        )


def _bodies(source: Storage, first: int, stop: int) -> Iterator[bytes]:
    """Yield bodies one by one; few are held, however long they are."""
    n_chunk = 64
    while first < stop:
        rows = source.read_messages(first, min(first + n_chunk, stop))
        sizes = np.cumsum(rows["n_tokens"].astype(np.int64)) * _BYTES_PER_TOKEN
        n = max(1, int(np.searchsorted(sizes, _CHUNK_BYTES, side="right")))
        bodies = source.read_bodies(np.arange(first, first + n))
        yield from bodies
        first += n
        mean = sum(map(len, bodies)) // n + 1
        n_chunk = max(1, min(2 * n, _CHUNK_BYTES // mean, _MAX_CHUNK_MESSAGES))


def _n_said(source: Storage, n_rows: int) -> int:
    """Return how many rows begin what people call a message."""
    total = 0
    for start in range(0, n_rows, MAX_PIECE_ROWS):
        rows = source.read_messages(start, min(start + MAX_PIECE_ROWS, n_rows))
        said = (rows["role"] != ROLE_SETTING) & ((rows["flags"] & FLAG_CONTINUES) == 0)
        total += int(said.sum())
    return total


def _parent(meta: MemoryMeta) -> BundleParent | None:
    if meta.parent is None:
        return None
    parent = meta.parent
    return BundleParent(
        uuid=str(parent["uuid"]), seq=int(parent["seq"]), chain=str(parent["chain"])
    )
