"""The `Storage` contract: fixed-size byte rows and variable bodies, committed atomically.

A backend stores bytes and nothing more. Locks, HEAD, the hash chain, the writer queue and
idempotency belong to core (`memory.journal`, `memory.directory.vault`), so an author has nothing to
get wrong there. Source: the project's storage specification, sections 2 and 3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import attrs
import numpy as np

from megacontext_sdk.errors import InvariantError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bools, Bytes2D, Indices, Nodes

__all__ = [
    "COMMIT",
    "MESSAGE",
    "NO_OPTIONS",
    "NO_SETTING",
    "Batch",
    "Capabilities",
    "GistBatch",
    "GistRows",
    "Header",
    "OpenMode",
    "Storage",
    "StoreState",
]

COMMIT = np.dtype(
    [
        ("seq", "<u8"),
        ("ts_us", "<i8"),
        ("start", "<u8"),
        ("first_message", "<u8"),
        ("setting", "<u8"),
        ("n_tokens", "<u4"),
        ("n_messages", "<u4"),
        ("op", "u1"),
        ("pad", "V7"),
        ("key", "V16"),
        ("chain", "V16"),
    ]
)
"""One commit, 88 bytes."""

MESSAGE = np.dtype(
    [
        ("start", "<u8"),
        ("ts_us", "<i8"),
        ("n_tokens", "<u4"),
        ("role", "u1"),
        ("trust", "u1"),
        ("flags", "<u2"),
    ]
)
"""One message row, 24 bytes; its body is a byte string beside it."""

OpenMode: TypeAlias = Literal["create", "read", "write", "salvage"]
"""How a store is opened; see `Storage.open`."""

NO_OPTIONS: Mapping[str, str] = MappingProxyType({})
NO_SETTING = 2**64 - 1
"""`COMMIT.setting` before the first settings message."""


@attrs.frozen(kw_only=True)
class Capabilities:
    """What a backend declares about itself; nothing is sniffed.

    Attributes:
        durability: the words `durability=` accepts; empty for a store that dies with its process.
        concurrent_readers: other processes may read while one writes.
        cheap_fork: `clone` shares bytes instead of copying them.
        local: the data is a directory on this machine, so core keeps MEMORY, HEAD and LOCK.
    """

    durability: frozenset[str] = frozenset({"sync"})
    concurrent_readers: bool = False
    cheap_fork: bool = False
    local: bool = True


@attrs.frozen(kw_only=True)
class Header:
    """What a backend must know to lay out its rows; fixed when the memory is created."""

    block_bytes: int


@attrs.frozen(kw_only=True)
class Batch:
    """The atomic unit of writing.

    Attributes:
        commits: COMMIT[c >= 1], following `state().seq`.
        blocks: uint8[n, block_bytes]; the first one is block number `state().n_blocks`.
        tail: the 0 to 31 ids after the last full block, complete each time, as bytes.
        messages: MESSAGE[m]; the first one is message number `state().n_messages`.
        bodies: m byte strings.
    """

    commits: NDArray[np.void]
    blocks: Bytes2D
    tail: bytes
    messages: NDArray[np.void]
    bodies: tuple[bytes, ...]


@attrs.frozen(kw_only=True)
class GistBatch:
    """Gist rows of one version and level.

    Attributes:
        nodes: uint64[n], ascending, each written once per version and level.
        trust: uint8[n].
        rows: uint8[n, row_bytes].
    """

    version: int
    lod: int
    nodes: Nodes
    trust: NDArray[np.uint8]
    rows: Bytes2D


@attrs.frozen(kw_only=True)
class GistRows:
    """Answer to `read_gists`: rows uint8[n, row_bytes], trust uint8[n], present bool[n]."""

    rows: Bytes2D
    trust: NDArray[np.uint8]
    present: Bools


@attrs.frozen(kw_only=True)
class StoreState:
    """What is committed: head sequence number and chain, counts, tail, newest setting.

    `gist_rows` is a tuple of `(version, lod, count)`, ascending.
    """

    seq: int
    chain: bytes
    n_tokens: int
    n_blocks: int
    n_messages: int
    tail: bytes
    setting: int
    gist_rows: tuple[tuple[int, int, int], ...]


class Storage(ABC):
    """Where one generation of a memory keeps its rows.

    Calls that write (`commit`, `put_gists`, `flush`, `close`) come from one writer thread of core;
    reads come from any thread at any time, and each sees a committed prefix. Arrays handed out are
    read-only and valid until `close`.

    Raises (all methods): `LookupError` for an unknown id, naming kind, id and range (gists
    excepted); `ReadOnlyError` for a write in read mode; `CorruptError` for a failed check;
    `StorageFullError` when the disk is full (nothing of the batch is kept, reads go on);
    `SessionClosedError("failed")` after a failed flush, then and ever after; `InvariantError` for a
    gap in `seq`, a wrong dtype or shape.
    """

    capabilities: ClassVar[Capabilities]

    def __init__(self, path: Path, options: Mapping[str, str] = NO_OPTIONS) -> None:
        """Remember where the data is. Does no I/O.

        Args:
            path: this backend's own folder, `data-<generation>` inside the memory.
            options: backend-specific settings, as text.
        """
        self.path = path
        self.options = options

    @abstractmethod
    def open(self, mode: OpenMode, header: Header) -> None:
        """Open the store.

        Args:
            mode: "create" makes it, "write" goes on with it, "read" changes no byte on disk.
                "salvage" is "read" of a store that "read" refuses: it shows the longest prefix of
                commits the store can still give, and raises only if there is none. What it shows
                is checked by core; a store that cannot do better treats it as "read".
            header: fixed when the memory was created.
        """

    @abstractmethod
    def state(self) -> StoreState:
        """Return what is committed; in read mode this picks up newer commits."""

    @abstractmethod
    def commit(self, batch: Batch, *, sync: bool = True) -> None:
        """Write a batch whole or not at all; when it returns it is durable as asked."""

    @abstractmethod
    def put_gists(self, batch: GistBatch) -> None:
        """Accept gist rows: readable at once, durable at `flush`; never wrong after a crash.

        The node numbers of a (version, lod) arrive in ascending order without a gap.
        """

    @abstractmethod
    def read_commits(self, start: int, stop: int) -> NDArray[np.void]:
        """Return COMMIT[n] with `start <= seq < stop`."""

    @abstractmethod
    def read_blocks(self, blocks: Indices) -> Bytes2D:
        """Return uint8[n, block_bytes] in the order and with the repeats asked."""

    @abstractmethod
    def read_messages(self, start: int, stop: int) -> NDArray[np.void]:
        """Return MESSAGE[n] of message numbers `[start, stop)`."""

    @abstractmethod
    def read_bodies(self, messages: Indices) -> list[bytes]:
        """Return the bodies of the messages asked, in order."""

    @abstractmethod
    def read_gists(self, version: int, lod: int, nodes: Indices) -> GistRows:
        """Return the gist rows that exist; a missing one is `present == False`, not an error."""

    @abstractmethod
    def flush(self) -> None:
        """Make everything accepted durable; the moment to checkpoint or seal."""

    @abstractmethod
    def close(self) -> None:
        """Release everything; idempotent. Not a durability point."""

    def clone(self, target: Path, upto_seq: int) -> None:
        """Make a store at `target` that ends at a commit of this one and shares its bytes.

        Only with `capabilities.cheap_fork`; the store is open and was flushed. Gist rows of nodes
        that are complete at the cut come along. When it returns the clone is durable, closed, and
        independent: nothing written to either is ever seen through the other.

        Args:
            target: folder of the new store; does not exist yet.
            upto_seq: last commit of the clone.

        Raises:
            InvariantError: the store declares no `cheap_fork`.
            LookupError: there is no such commit.
        """
        raise InvariantError(
            f"{type(self).__name__} declares no cheap_fork, so {target} cannot share its bytes up "
            f"to commit {upto_seq}",
            code="capability",
            detail="cheap_fork",
            epoch=None,
        )
