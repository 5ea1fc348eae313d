"""The in-memory store: arrays that grow, and nothing on disk.

For sessions that need not survive their process, for tests, and as the plain reference that other
backends are compared with. It keeps the whole contract except durability.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs
import numpy as np

from megacontext_sdk.contracts.checks import check_batch, check_interval, check_numbers
from megacontext_sdk.contracts.storage import (
    COMMIT,
    MESSAGE,
    NO_OPTIONS,
    NO_SETTING,
    Capabilities,
    GistRows,
    Storage,
    StoreState,
)
from megacontext_sdk.errors import ReadOnlyError, SessionClosedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bytes2D, Indices
    from megacontext_sdk.contracts.storage import (
        Batch,
        GistBatch,
        Header,
        OpenMode,
    )

__all__ = ["InMemoryStorage"]


_EMPTY = StoreState(
    seq=0,
    chain=bytes(16),
    n_tokens=0,
    n_blocks=0,
    n_messages=0,
    tail=b"",
    setting=NO_SETTING,
    gist_rows=(),
)


class _Rows:
    """An array that grows by doubling; views of it stay valid because rows never change."""

    def __init__(self, empty: NDArray[np.generic]) -> None:
        self._rows = empty
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def extend(self, rows: NDArray[np.generic]) -> None:
        needed = self._n + len(rows)
        if needed > len(self._rows):
            shape = (max(needed, 2 * len(self._rows), 64), *self._rows.shape[1:])
            grown = np.zeros(shape, self._rows.dtype)
            grown[: self._n] = self._rows[: self._n]
            self._rows = grown
        self._rows[self._n : needed] = rows
        self._n = needed

    @property
    def all(self) -> NDArray[np.generic]:
        n = self._n  # first: rows may be replaced by a longer copy meanwhile, never shortened
        view = self._rows[:n].view()
        view.flags.writeable = False
        return view


class _Level:
    """Gist rows of one version and level, ascending by node."""

    def __init__(self, row_bytes: int) -> None:
        self.nodes = _Rows(np.empty(0, np.uint64))
        self.trust = _Rows(np.empty(0, np.uint8))
        self.rows = _Rows(np.empty((0, row_bytes), np.uint8))


class InMemoryStorage(Storage):
    """Keeps every row in this process; `open` after `close` finds them again, another process not.

    Example:
        >>> from pathlib import Path
        >>> store = InMemoryStorage(Path("unused"))
        >>> store.open("create", Header(block_bytes=64))
        >>> store.state().seq
        0
    """

    capabilities: ClassVar[Capabilities] = Capabilities(durability=frozenset(), local=False)

    def __init__(self, path: Path, options: Mapping[str, str] = NO_OPTIONS) -> None:
        super().__init__(path, options)
        self._mode: str | None = None
        self._clear(0)

    def _clear(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._commits = _Rows(np.empty(0, COMMIT))
        self._messages = _Rows(np.empty(0, MESSAGE))
        self._blocks = _Rows(np.empty((0, block_bytes), np.uint8))
        self._bodies: list[bytes] = []
        self._state = _EMPTY
        self._gists: dict[tuple[int, int], _Level] = {}

    def open(self, mode: OpenMode, header: Header) -> None:
        """Start empty, or go on with what this object already holds."""
        if mode == "create":
            self._clear(header.block_bytes)
        self._mode = mode

    def state(self) -> StoreState:
        """Return what is committed."""
        self._check_open()
        counts = ((*key, len(level.nodes)) for key, level in sorted(self._gists.items()))
        return attrs.evolve(self._state, gist_rows=tuple(counts))

    def commit(self, batch: Batch, *, sync: bool = True) -> None:  # noqa: ARG002 - nothing to sync
        """Keep a batch. The state goes last: a reader never sees a commit without its rows."""
        self._check_writable()
        check_batch(batch, self._state, self._block_bytes)
        self._blocks.extend(batch.blocks)
        self._messages.extend(batch.messages)
        self._bodies.extend(batch.bodies)
        self._commits.extend(batch.commits)
        head = batch.commits[-1]
        self._state = StoreState(
            seq=int(head["seq"]),
            chain=head["chain"].tobytes(),
            n_tokens=int(head["start"]) + int(head["n_tokens"]),
            n_blocks=len(self._blocks),
            n_messages=len(self._messages),
            tail=batch.tail,
            setting=int(head["setting"]),
            gist_rows=(),
        )

    def put_gists(self, batch: GistBatch) -> None:
        """Keep gist rows."""
        self._check_writable()
        key = (batch.version, batch.lod)
        level = self._gists.setdefault(key, _Level(batch.rows.shape[1]))
        level.trust.extend(batch.trust)
        level.rows.extend(batch.rows)
        level.nodes.extend(batch.nodes)

    def read_commits(self, start: int, stop: int) -> NDArray[np.void]:
        """Return COMMIT[n] with `start <= seq < stop`."""
        self._check_open()
        return _interval("commit", self._commits, start, stop, first=1)

    def read_blocks(self, blocks: Indices) -> Bytes2D:
        """Return uint8[n, block_bytes]."""
        self._check_open()
        rows: Bytes2D = _picked("block", self._blocks, blocks)  # type: ignore[assignment]
        return rows

    def read_messages(self, start: int, stop: int) -> NDArray[np.void]:
        """Return MESSAGE[n]."""
        self._check_open()
        return _interval("message", self._messages, start, stop, first=0)

    def read_bodies(self, messages: Indices) -> list[bytes]:
        """Return the bodies asked."""
        self._check_open()
        wanted = np.asarray(messages)
        check_numbers("message", wanted, len(self._bodies))
        return [self._bodies[number] for number in wanted.tolist()]

    def read_gists(self, version: int, lod: int, nodes: Indices) -> GistRows:
        """Return the rows that exist; the others are zero and not `present`."""
        self._check_open()
        wanted = np.asarray(nodes, dtype=np.uint64)
        level = self._gists.get((version, lod))
        if level is None or not len(level.nodes):
            rows = np.zeros((len(wanted), 0), np.uint8)
            return _answer(rows, np.zeros(len(wanted), np.uint8), np.zeros(len(wanted), bool))
        known = level.nodes.all
        at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        present = known[at] == wanted
        found = level.rows.all[at]
        trust = level.trust.all[at]
        found[~present], trust[~present] = 0, 0
        return _answer(found, trust, present)

    def flush(self) -> None:
        """Do nothing: there is no disk."""
        self._check_writable()

    def close(self) -> None:
        """Refuse further use until `open`."""
        self._mode = None

    def _check_open(self) -> None:
        if self._mode is None:
            raise SessionClosedError(
                "the in-memory store is closed; open it again", reason="closed", path=str(self.path)
            )

    def _check_writable(self) -> None:
        self._check_open()
        if self._mode in {"read", "salvage"}:
            raise ReadOnlyError(
                "the in-memory store was opened for reading; open it for writing",
                why="opened for reading",
                path=str(self.path),
            )


def _answer(
    rows: NDArray[np.generic], trust: NDArray[np.generic], present: NDArray[np.generic]
) -> GistRows:
    for array in (rows, trust, present):
        array.flags.writeable = False
    return GistRows(rows=rows, trust=trust, present=present)  # type: ignore[arg-type]


def _picked(kind: str, rows: _Rows, numbers: Indices) -> NDArray[np.generic]:
    wanted = np.asarray(numbers)
    check_numbers(kind, wanted, len(rows))
    picked = rows.all[wanted.astype(np.int64)]
    picked.flags.writeable = False
    return picked


def _interval(kind: str, rows: _Rows, start: int, stop: int, *, first: int) -> NDArray[np.void]:
    check_interval(kind, start, stop, first + len(rows), first=first)
    found: NDArray[np.void] = rows.all[start - first : stop - first]  # type: ignore[assignment]
    return found
