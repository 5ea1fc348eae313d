"""`AcmeStorage`: the storage contract over one table of an SQLite file.

Every record of a memory is a row: commits (with the tail behind them), blocks, message rows,
bodies, and gists by version and level. How rows get to the disk is `database`'s business; locks,
the hash chain and forgetting are the SDK's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

import attrs
import numpy as np

from acme_memory.database import Database
from megacontext_sdk.contracts.checks import check_batch, check_interval
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
from megacontext_sdk.errors import ReadOnlyError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bytes2D, Indices
    from megacontext_sdk.contracts.storage import Batch, GistBatch, Header, OpenMode

__all__ = ["AcmeStorage"]

_ROW = COMMIT.itemsize
_KINDS = {"commit", "block", "message", "body"}
_GISTS = re.compile(r"gist (\d{1,5}) (\d{1,2})")
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


class AcmeStorage(Storage):
    """Keeps one generation of a memory in `acme.sqlite`. One thread writes, any thread reads."""

    capabilities: ClassVar[Capabilities] = Capabilities(durability=frozenset({"sync"}))

    def __init__(self, path: Path, options: Mapping[str, str] = NO_OPTIONS) -> None:
        super().__init__(path, options)
        self._base = Database(path / "acme.sqlite")
        self._mode: str | None = None
        self._block_bytes = 0
        self._state = _EMPTY
        self._gists: dict[tuple[int, int], int] = {}

    def open(self, mode: OpenMode, header: Header) -> None:
        """Open the file; "salvage" can show no more than "read" can."""
        self._block_bytes = header.block_bytes
        try:
            if mode == "create":
                self.path.mkdir(mode=0o700)
                self._base.create()
            else:
                self._base.open(read_only=mode != "write")
            self._mode = mode
            self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        """Find out what is committed; whatever does not fit together is damage."""
        counts = self._base.counts()
        named = {kind: _GISTS.fullmatch(kind) for kind in counts if kind not in _KINDS}
        if not all(named.values()):
            raise self._base.corrupt("holds rows of no kind of ours")
        self._gists = {
            (int(name[1]), int(name[2])): counts[kind] for kind, name in named.items() if name
        }
        seq = counts.get("commit", 1) - 1  # commits count from 1
        self._state = self._after(seq, counts) if seq else _EMPTY
        stored = (counts.get("block", 0), counts.get("message", 0), counts.get("body", 0))
        state = self._state
        if stored != (state.n_blocks, state.n_messages, state.n_messages):
            raise self._base.corrupt("holds rows without a commit, or the reverse")

    def _after(self, seq: int, counts: Mapping[str, int]) -> StoreState:
        (data,) = self._rows("commit", np.array([seq]), seq + 1, first=1)
        row = np.frombuffer(data[:_ROW], COMMIT)[0]
        return StoreState(
            seq=seq,
            chain=row["chain"].tobytes(),
            n_tokens=int(row["start"]) + int(row["n_tokens"]),
            n_blocks=counts.get("block", 0),
            n_messages=int(row["first_message"]) + int(row["n_messages"]),
            tail=data[_ROW:],
            setting=int(row["setting"]),
            gist_rows=(),
        )

    def state(self) -> StoreState:
        """Return what is committed, and how many gists there are."""
        self._base.check_open()
        counts = tuple((*key, self._gists[key]) for key in sorted(self._gists))
        return attrs.evolve(self._state, gist_rows=counts)

    # --- writing -----------------------------------------------------------------------------

    def commit(self, batch: Batch, *, sync: bool = True) -> None:  # noqa: ARG002 - always synced
        """Write a batch in one transaction; the state goes last, so readers see whole batches."""
        before = self._check_writable()
        check_batch(batch, before, self._block_bytes)
        rows = [row.tobytes() for row in batch.commits]
        rows[-1] += batch.tail
        with self._base.transaction():
            self._base.put("commit", before.seq + 1, rows)
            self._base.put("block", before.n_blocks, (row.tobytes() for row in batch.blocks))
            self._base.put("message", before.n_messages, (row.tobytes() for row in batch.messages))
            self._base.put("body", before.n_messages, batch.bodies)
        counts = {"block": before.n_blocks + len(batch.blocks)}
        self._state = self._after(before.seq + len(rows), counts)

    def put_gists(self, batch: GistBatch) -> None:
        """Write gist rows: more than the contract asks, which is durability at `flush`."""
        self._check_writable()
        key = (batch.version, batch.lod)
        rows = zip(batch.trust.tolist(), batch.rows, strict=True)
        with self._base.transaction():
            self._base.put(
                f"gist {batch.version} {batch.lod}",
                int(batch.nodes[0]),
                (bytes([trust]) + row.tobytes() for trust, row in rows),
            )
        self._gists = {**self._gists, key: int(batch.nodes[-1]) + 1}

    def flush(self) -> None:
        """Do nothing more: what was accepted is durable."""
        self._check_writable()

    def close(self) -> None:
        """Close the file; idempotent."""
        self._mode = None
        self._base.close()

    def _check_writable(self) -> StoreState:
        self._base.check_open()
        if self._mode in {"read", "salvage"}:
            raise ReadOnlyError(
                f"{self.path} was opened for reading; open it for writing",
                path=str(self.path),
                why="opened for reading",
            )
        return self._state

    # --- reading -----------------------------------------------------------------------------

    def read_commits(self, start: int, stop: int) -> NDArray[np.void]:
        """Return COMMIT[n] with `start <= seq < stop`."""
        rows = self._interval("commit", start, stop, self.state().seq + 1, first=1)
        return np.frombuffer(b"".join(row[:_ROW] for row in rows), COMMIT)

    def read_messages(self, start: int, stop: int) -> NDArray[np.void]:
        """Return MESSAGE[n] of message numbers `[start, stop)`."""
        rows = self._interval("message", start, stop, self.state().n_messages, first=0)
        return np.frombuffer(b"".join(rows), MESSAGE)

    def read_blocks(self, blocks: Indices) -> Bytes2D:
        """Return uint8[n, block_bytes] in the order and with the repeats asked."""
        rows = self._rows("block", np.asarray(blocks), self.state().n_blocks)
        return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), self._block_bytes)

    def read_bodies(self, messages: Indices) -> list[bytes]:
        """Return the bodies in the order asked."""
        return self._rows("message", np.asarray(messages), self.state().n_messages, kind="body")

    def read_gists(self, version: int, lod: int, nodes: Indices) -> GistRows:
        """Return the gist rows that exist; the others are zero and not `present`."""
        self._base.check_open()
        wanted = np.asarray(nodes).tolist()
        there = self._gists.get((version, lod), 0)
        found = self._base.get(f"gist {version} {lod}", [n for n in {*wanted} if n < there])
        width = max((len(data) for data in found.values()), default=1)
        if len(found) < len({node for node in wanted if 0 <= node < there}):
            raise self._base.corrupt(f"lacks a gist of LOD{lod}")  # they are dense
        absent = bytes(width)
        data = np.frombuffer(b"".join(found.get(node, absent) for node in wanted), np.uint8)
        rows = data.reshape(len(wanted), width)
        present = np.array([node in found for node in wanted], dtype=bool)
        present.flags.writeable = False
        return GistRows(rows=rows[:, 1:], trust=rows[:, 0], present=present)

    def _interval(self, name: str, start: int, stop: int, end: int, *, first: int) -> list[bytes]:
        check_interval(name, start, stop, end, first=first)
        return self._rows(name, np.arange(start, stop), end, first=first)

    def _rows(
        self, name: str, wanted: Indices, end: int, *, first: int = 0, kind: str = ""
    ) -> list[bytes]:
        """Return rows that must exist, in the order asked."""
        bad = wanted[(wanted < first) | (wanted >= end)]
        if len(bad):
            raise LookupError(
                f"there is no {name} {int(bad[0])}; they run from {first} to {end - 1}"
            )
        numbers = wanted.tolist()
        found = self._base.get(kind or name, sorted({*numbers}))
        if len(found) != len({*numbers}):
            raise self._base.corrupt(f"lacks a row: {kind or name}")
        return [found[number] for number in numbers]
