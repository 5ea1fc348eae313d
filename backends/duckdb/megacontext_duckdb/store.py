"""`DuckDBStorage`: the storage contract over one DuckDB file.

A batch is one transaction and one flush. Gist rows wait in memory for the next transaction and are
read from there meanwhile. Locks between processes, HEAD and the chain are core's.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, TypeVar

import attrs
import numpy as np

from megacontext_duckdb import tables
from megacontext_duckdb.engine import Engine
from megacontext_duckdb.salvage import SalvagedCopy, readable_prefix, state_at
from megacontext_sdk.contracts.checks import check_batch, check_interval, check_numbers
from megacontext_sdk.contracts.storage import (
    NO_OPTIONS,
    NO_SETTING,
    Capabilities,
    GistRows,
    Storage,
    StoreState,
)
from megacontext_sdk.errors import (
    ConfigError,
    CorruptError,
    FormatVersionError,
    ReadOnlyError,
    StorageError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import duckdb
    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bytes2D, Indices
    from megacontext_sdk.contracts.storage import Batch, GistBatch, Header, OpenMode

__all__ = ["DuckDBStorage"]

_WIDTH = "SELECT octet_length(data), page FROM m.mc_block LIMIT 1"  # older tables have no page
_STASH_BYTES = 8 * 2**20

_Scalar = TypeVar("_Scalar", bound=np.generic)


class DuckDBStorage(Storage):
    """Keeps one generation of a memory in `memory.duckdb`.

    One thread writes, any thread reads. Options: `memory_limit_mb`, `threads`.

    Example:
        >>> import tempfile, pathlib
        >>> from megacontext_sdk.contracts.storage import Header
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = DuckDBStorage(pathlib.Path(folder) / "data-000001")
        ...     store.open("create", Header(block_bytes=64))
        ...     print(store.state().seq)
        ...     store.close()
        0
    """

    capabilities: ClassVar[Capabilities] = Capabilities(durability=frozenset({"sync"}))

    def __init__(self, path: Path, options: Mapping[str, str] = NO_OPTIONS) -> None:
        super().__init__(path, options)
        self._file = path / "memory.duckdb"
        self._engine = Engine(self._file, options)
        self._mode: str | None = None
        self._block_bytes = 0
        self._state: StoreState | None = None
        self._gist_counts: dict[tuple[int, int], int] = {}
        self._stash: tuple[GistBatch, ...] = ()
        self._is_log_new = True
        self._copy: SalvagedCopy | None = None

    def __repr__(self) -> str:
        """Say where, never what."""
        return f"DuckDBStorage({str(self.path)!r})"

    def __reduce__(self) -> tuple[object, ...]:
        """Refuse pickling: an engine cannot travel."""
        raise TypeError(
            f"a DuckDBStorage cannot be pickled; send the path {str(self.path)!r} and open it there"
        )

    # --- opening -----------------------------------------------------------------------------

    def open(self, mode: OpenMode, header: Header) -> None:
        """Open the file; "salvage" opens a mended copy of one that "read" refuses.

        Raises:
            ConfigError: a link, a foreign owner, a path or option the engine cannot take.
            CorruptError: no such file, or one the engine or our schema refuses.
            FormatVersionError: tables of a version before the first release.
            ReadOnlyError: no permission.
            SessionLockedError: another process has the file.
        """
        if mode == "salvage":
            self._open_salvaged(header)
        else:
            self._open(mode, header)

    def _open(self, mode: OpenMode, header: Header) -> None:
        if mode == "create":
            self.path.mkdir(mode=0o700)
        else:
            self._check_files()
        self._engine.connect(read_only=mode == "read")
        try:
            if mode == "create":
                self._create()
            self._mode, self._block_bytes = mode, header.block_bytes
            self._load()
        except CorruptError as error:
            refusal = self._other_layout()
            self.close()
            if refusal is not None:
                raise refusal from error
            raise
        except BaseException:
            self.close()
            raise

    def _open_salvaged(self, header: Header) -> None:
        """Open as "read" does, or else what a copy still gives; show the readable commits."""
        try:
            self._open("read", header)
        except CorruptError:
            self._check_files()  # a link or another owner is no damage
            self._copy = SalvagedCopy(self._file, self.options)
        try:
            if self._copy is not None:
                self._copy.make()
                self._engine = Engine(self._copy.file, self.options)
                self._engine.connect(read_only=True)
            self._load_salvaged(header)
        except BaseException:
            self.close()
            raise

    def _load_salvaged(self, header: Header) -> None:
        self._mode, self._block_bytes = "salvage", header.block_bytes
        seq = readable_prefix(self._engine)
        if self._copy is None and self._state is not None and self._state.seq == seq:
            return
        self._state, self._gist_counts = state_at(self._engine, seq), {}
        if self._state is None:
            raise self._corrupt("holds no commit that can be read")
        with suppress(StorageError), self._engine.reading() as cursor:  # gists are a cache
            counts = cursor.execute(tables.GIST_COUNTS).fetchall()
            self._gist_counts = {(version, lod): count for version, lod, count in counts}

    def _other_layout(self) -> FormatVersionError | None:
        """Return what to raise instead of damage, if the file is whole and only older."""
        try:
            with self._engine.reading() as cursor:
                found = cursor.execute(tables.IS_FIRST_LAYOUT).fetchone()
        except StorageError:
            return None
        if found is None or not found[0]:
            return None
        return FormatVersionError(
            f"{self._file} has the tables of a version before the first release; append its "
            "messages to a new memory",
            found=1,
            supported=2,
            path=str(self.path),
        )

    def _check_files(self) -> None:
        if not os.path.lexists(self._file):
            raise self._corrupt("is missing")
        self._check_file(self._file)
        if os.path.lexists(self._engine.log):
            self._check_file(self._engine.log)

    def _check_file(self, file: Path) -> None:
        # stat only: opening and closing the file here would drop the engine's POSIX lock.
        found = file.lstat()
        problem = None
        if not stat.S_ISREG(found.st_mode):
            problem = "is not a regular file; restore the memory from a copy"
        elif found.st_nlink > 1:
            # The engine would open it twice, once per name, and rows would vanish silently.
            problem = "has more than one hard link; copy it to a file of its own"
        elif os.geteuid() not in {0, found.st_uid}:
            problem = f"belongs to uid {found.st_uid}; open it as its owner"
        if problem is not None:
            raise ConfigError(f"{file} {problem}", field="path", value=str(file))

    def _create(self) -> None:
        with self._engine.writing() as connection:
            for statement in tables.CREATE:
                connection.execute(statement)
        self._engine.file.chmod(0o600)
        self._settle_log()

    def _load(self) -> None:
        """Read the state; catches a file that is not ours."""
        with self._engine.reading() as cursor:
            head = cursor.execute(tables.HEAD).fetchone()
            blocks = cursor.execute("SELECT count(*) FROM m.mc_block").fetchone()
            messages = cursor.execute("SELECT count(*) FROM m.mc_message").fetchone()
            counts = cursor.execute(tables.GIST_COUNTS).fetchall()
            width = cursor.execute(_WIDTH).fetchone()
        if width is not None and width[0] != self._block_bytes:
            raise self._corrupt(f"has blocks of {width[0]} bytes, not {self._block_bytes}")
        self._gist_counts = {(version, lod): count for version, lod, count in counts}
        seq, chain, n_tokens, n_messages, setting, tail = head or (
            (0, bytes(16), 0, 0, NO_SETTING, b"")
        )
        if messages is None or blocks is None or messages[0] != n_messages:
            raise self._corrupt("has messages without a commit, or the reverse")
        self._state = StoreState(
            seq=seq,
            chain=chain,
            n_tokens=n_tokens,
            n_blocks=blocks[0],
            n_messages=n_messages,
            tail=tail or b"",
            setting=setting,
            gist_rows=(),
        )

    def _corrupt(self, what: str) -> CorruptError:
        return CorruptError(
            f"{self._file} {what}. Nothing was changed; keep a copy of the directory before "
            "doing anything else",
            path=str(self.path),
            where=self._file.name,
            offset=None,
            have_seq=None,
        )

    def state(self) -> StoreState:
        """Return what is committed, and the gist rows accepted."""
        _ = self._engine.connection  # raises once closed
        state = self._state
        if state is None:
            raise self._corrupt("was not opened")
        counts = dict(self._gist_counts)
        return attrs.evolve(state, gist_rows=tuple((*key, counts[key]) for key in sorted(counts)))

    # --- writing -----------------------------------------------------------------------------

    def commit(self, batch: Batch, *, sync: bool = True) -> None:  # noqa: ARG002 - always synced
        """Write a batch and the gists that wait, in one transaction.

        Raises:
            InvariantError: a gap in `seq`, or wrong shapes.
            ReadOnlyError: opened for reading.
            SessionClosedError: closed, or an earlier write failed for good.
            StorageFullError: no space; nothing of the batch is kept.
        """
        before = self._check_writable()
        check_batch(batch, before, self._block_bytes)
        with self._engine.writing() as connection:
            self._append_gists(connection)
            tables.append(connection, "mc_block", tables.block_rows(batch, before.n_blocks))
            tables.append(connection, "mc_message", tables.message_rows(batch, before.n_messages))
            tables.append(connection, "mc_commit", tables.commit_rows(batch))
        self._settle_log()
        head = batch.commits[-1]
        self._state = StoreState(
            seq=int(head["seq"]),
            chain=head["chain"].tobytes(),
            n_tokens=int(head["start"]) + int(head["n_tokens"]),
            n_blocks=before.n_blocks + len(batch.blocks),
            n_messages=before.n_messages + len(batch.messages),
            tail=batch.tail,
            setting=int(head["setting"]),
            gist_rows=(),
        )
        self._stash = ()

    def put_gists(self, batch: GistBatch) -> None:
        """Accept gist rows; they join the next transaction.

        Raises:
            ReadOnlyError: opened for reading.
            SessionClosedError: closed or failed.
            StorageFullError: no space for what already waits.
        """
        self._check_writable()
        if sum(waiting.rows.nbytes for waiting in self._stash) > _STASH_BYTES:
            self._write_stash()
        self._stash = (*self._stash, batch)
        key = (batch.version, batch.lod)
        self._gist_counts[key] = self._gist_counts.get(key, 0) + len(batch.nodes)

    def flush(self) -> None:
        """Write the gists that wait and fold the log into the file if there is space for it.

        Raises:
            ReadOnlyError: opened for reading.
            SessionClosedError: closed, or this failed; everything acknowledged is in the log.
            StorageFullError: no space for the gists.
        """
        self._check_writable()
        if self._stash:
            self._write_stash()
        if self._engine.checkpoint():
            self._sync_folder()  # the log was unlinked
            self._is_log_new = True  # the next commit makes another

    def close(self) -> None:
        """Close the engine without a checkpoint; idempotent."""
        self._mode = None
        self._engine.close()
        if self._copy is not None:
            self._copy.remove()
            self._copy, self._engine = None, Engine(self._file, self.options)

    def _write_stash(self) -> None:
        with self._engine.writing() as connection:
            self._append_gists(connection)
        self._settle_log()
        self._stash = ()  # after the commit: readers look here first

    def _append_gists(self, connection: duckdb.DuckDBPyConnection) -> None:
        for batch in self._stash:
            tables.append(connection, "mc_gist", tables.gist_rows(batch))

    def _settle_log(self) -> None:
        """Give a log that the engine has just made our mode, and its name durability."""
        if not self._is_log_new or not self._engine.log.exists():
            return
        self._engine.log.chmod(0o600)
        self._sync_folder()
        self._is_log_new = False

    def _sync_folder(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)  # the engine never does
        finally:
            os.close(descriptor)

    def _check_writable(self) -> StoreState:
        _ = self._engine.connection
        if self._mode in {"read", "salvage"} or self._state is None:
            raise ReadOnlyError(
                f"{self.path} was opened for reading; open it for writing",
                why="opened for reading",
                path=str(self.path),
            )
        return self._state

    # --- reading -----------------------------------------------------------------------------

    def read_commits(self, start: int, stop: int) -> NDArray[np.void]:
        """Return COMMIT[n] with `start <= seq < stop`."""
        self._check_interval("commit", start, stop)
        # An empty interval still has to come back with its columns.
        bounds: list[object] = [start, stop - 1] if stop > start else [1, 0]
        return tables.commit_array(self._fetched("commit", tables.COMMITS, bounds, stop - start))

    def read_messages(self, start: int, stop: int) -> NDArray[np.void]:
        """Return MESSAGE[n]."""
        self._check_interval("message", start, stop)
        condition, bounds = tables.interval(start, stop)
        query = tables.MESSAGES + condition + tables.IN_ORDER
        return tables.message_array(self._fetched("message", query, bounds, stop - start))

    def _check_interval(self, kind: str, start: int, stop: int) -> None:
        state = self.state()
        first, end = (1, state.seq + 1) if kind == "commit" else (0, state.n_messages)
        check_interval(kind, start, stop, end, first=first)

    def _fetched(
        self, kind: str, query: str, parameters: list[object], n_rows: int
    ) -> dict[str, NDArray[np.generic]]:
        with self._engine.reading() as cursor:
            found: dict[str, NDArray[np.generic]] = cursor.execute(query, parameters).fetchnumpy()
        if len(next(iter(found.values()))) != n_rows:
            raise self._corrupt(f"lacks {kind}s that its commits count")
        return found

    def read_blocks(self, blocks: Indices) -> Bytes2D:
        """Return uint8[n, block_bytes] in the order and with the repeats asked."""
        ids, at = self._known("block", blocks, self.state().n_blocks)
        if not len(ids):
            return _frozen(np.empty((0, self._block_bytes), np.uint8))
        _, found = self._rows(tables.BLOCKS, ids, "block")
        rows = tables.bytes_rows(found, self._block_bytes)
        # The common case, a run in order, needs no copy.
        return _frozen(rows if np.array_equal(at, np.arange(len(ids))) else rows[at])

    def read_bodies(self, messages: Indices) -> list[bytes]:
        """Return the bodies in the order asked."""
        ids, at = self._known("message", messages, self.state().n_messages)
        if not len(ids):
            return []
        _, found = self._rows(tables.BODIES, ids, "message")
        return [bytes(body) for body in found[at]]  # the engine gives bytearrays

    def _known(
        self, kind: str, numbers: Indices, stop: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.intp]]:
        """Return distinct ascending ids, and where each number asked is among them."""
        wanted = np.asarray(numbers)
        check_numbers(kind, wanted, stop)
        ids, at = np.unique(wanted.astype(np.uint64), return_inverse=True)
        return ids, at

    def _rows(
        self, query: str, ids: NDArray[np.uint64], kind: str
    ) -> tuple[NDArray[np.uint64], NDArray[np.object_]]:
        """Return the ids and data of rows that must exist, in ascending order."""
        condition, parameters = tables.where(ids)
        with self._engine.reading() as cursor:
            found = cursor.execute(query + condition, parameters).fetchnumpy()
        known = tables.numbers(found)
        order = np.argsort(known, kind="stable")
        known, data = known[order], found["data"][order]
        at = np.searchsorted(known, ids)
        if len(known) < len(ids) or not np.array_equal(known[np.minimum(at, len(known) - 1)], ids):
            raise self._corrupt(f"lacks a {kind} between {int(ids[0])} and {int(ids[-1])}")
        return ids, data[at]

    def read_gists(self, version: int, lod: int, nodes: Indices) -> GistRows:
        """Return the gist rows that exist; the others are zero and not `present`."""
        waiting = [
            batch for batch in self._stash if (batch.version, batch.lod) == (version, lod)
        ]  # before the file is read: a row that leaves the stash meanwhile is in the file
        _ = self._engine.connection
        wanted = np.asarray(nodes).astype(np.uint64)
        ids, at = np.unique(wanted, return_inverse=True)
        known, trust, data = self._stored_gists(version, lod, ids)
        width = len(data[0]) if len(data) else (waiting[0].rows.shape[1] if waiting else 0)
        rows = np.zeros((len(ids), width), np.uint8)
        trusts = np.zeros(len(ids), np.uint8)
        present = np.isin(ids, known)
        if len(known):
            where = np.searchsorted(ids, known)
            rows[where], trusts[where] = tables.bytes_rows(data, width), trust
        for batch in waiting:
            _overlay(batch, ids, rows, trusts, present)
        return GistRows(
            rows=_frozen(rows[at]), trust=_frozen(trusts[at]), present=_frozen(present[at])
        )

    def _stored_gists(
        self, version: int, lod: int, ids: NDArray[np.uint64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint8], NDArray[np.object_]]:
        """Return ids, trust and data of those rows that the file holds, ascending."""
        if not len(ids) or (version, lod) not in self._gist_counts:
            return np.empty(0, np.uint64), np.empty(0, np.uint8), np.empty(0, object)
        condition, parameters = tables.where(ids)
        query = f"{tables.GISTS}{condition} AND t.version = ? AND t.lod = ?"
        with self._engine.reading() as cursor:
            found = cursor.execute(query, [*parameters, version, lod]).fetchnumpy()
        known, first = np.unique(tables.numbers(found), return_index=True)
        asked = np.isin(known, ids)
        first = first[asked]
        return known[asked], found["trust"][first], found["data"][first]


def _overlay(
    batch: GistBatch,
    ids: NDArray[np.uint64],
    rows: Bytes2D,
    trust: NDArray[np.uint8],
    present: NDArray[np.bool_],
) -> None:
    """Put the rows of a waiting batch over those read."""
    at = np.minimum(np.searchsorted(batch.nodes, ids), len(batch.nodes) - 1)
    hit = batch.nodes[at] == ids
    rows[hit], trust[hit], present[hit] = batch.rows[at[hit]], batch.trust[at[hit]], True


def _frozen(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    array.flags.writeable = False
    return array
