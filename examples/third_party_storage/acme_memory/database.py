"""One SQLite file with one table: rows by kind and number, each with its checksum.

What the rows mean is `store`'s business. Here: the settings that make a COMMIT durable, what each
error of SQLite means for a memory, and reading a file without changing a byte of it.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import RLock
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from zlib import crc32

from megacontext_sdk.errors import (
    ConfigError,
    CorruptError,
    SessionClosedError,
    StorageFullError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["Database"]

_CREATE = """
CREATE TABLE row (kind TEXT, number INTEGER, data BLOB, crc INTEGER, PRIMARY KEY (kind, number))
WITHOUT ROWID
"""
_NO_SPACE = {"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_CANTOPEN"}
"""No room for pages, or for the journal that a transaction begins with."""


class Database:
    """The file of one store. May be shared between threads: calls take turns.

    Args:
        file: its path.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = RLock()
        self._connection: sqlite3.Connection | None = None
        self._copy: TemporaryDirectory[str] | None = None
        self._reason = "closed"

    # --- opening -----------------------------------------------------------------------------

    def create(self) -> None:
        """Make the file, private and durable by name."""
        os.close(os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        self._connect(self.file, "rw")
        with self.transaction():
            self._execute(_CREATE)
        _sync_folder(self.file.parent)

    def open(self, *, read_only: bool) -> None:
        """Open the file; for reading, no byte of it changes.

        Raises:
            ConfigError: a link, or something else that is no plain file of its own.
            CorruptError: there is no such file, or it is not ours.
        """
        if not os.path.lexists(self.file):
            raise self.corrupt("is missing")
        if self.file.is_symlink() or not self.file.is_file() or self.file.stat().st_nlink > 1:
            raise ConfigError(
                f"{self.file} is not a plain file with one name; restore the memory from a copy",
                field="path",
                value=str(self.file),
            )
        file = self._rolled_back() if read_only else self.file
        self._connect(file, "ro" if read_only else "rw")
        self._execute("SELECT kind, number, data, crc FROM row LIMIT 1")

    def _rolled_back(self) -> Path:
        """Return a file to read: a private copy if a killed writer left half a transaction.

        Its journal says how to undo it, which would write to the file.
        """
        journal = self.file.with_name(f"{self.file.name}-journal")
        if not journal.exists():
            return self.file
        self._copy = TemporaryDirectory(prefix="acme-memory-")
        for file in (self.file, journal):
            shutil.copyfile(file, Path(self._copy.name) / file.name)
        copy = Path(self._copy.name) / self.file.name
        with self._translated():
            connection = sqlite3.connect(copy)
            connection.execute("SELECT count(*) FROM sqlite_schema")  # undoes it
            connection.close()
        return copy

    def _connect(self, file: Path, mode: str) -> None:
        uri = f"file:{quote(os.fsencode(file))}?mode={mode}"
        with self._translated():
            connection = sqlite3.connect(
                uri, uri=True, isolation_level=None, check_same_thread=False, cached_statements=32
            )
            self._connection = connection
            # A rollback journal, flushed together with its directory: COMMIT is durable when it
            # returns, and one file is all there is in between.
            for setting in ("journal_mode=DELETE", "synchronous=EXTRA", "cell_size_check=ON"):
                connection.execute(f"PRAGMA {setting}")

    def close(self) -> None:
        """Close the file; idempotent."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()
            if self._copy is not None:
                self._copy.cleanup()
                self._copy = None

    # --- rows --------------------------------------------------------------------------------

    def put(self, kind: str, first: int, rows: Iterable[bytes]) -> None:
        """Insert consecutive rows; only inside a transaction."""
        numbered = ((kind, n, data, _checksum(kind, n, data)) for n, data in enumerate(rows, first))
        with self._translated():
            self._open.executemany("INSERT INTO row VALUES (?, ?, ?, ?)", numbered)

    def get(self, kind: str, numbers: Sequence[int]) -> dict[int, bytes]:
        """Return the rows there are of distinct numbers.

        Raises:
            CorruptError: a row does not match its checksum.
        """
        found = self._execute(
            "SELECT number, data, crc FROM row "
            "WHERE kind = ? AND number IN (SELECT value FROM json_each(?))",
            (kind, json.dumps(list(numbers))),
        )
        for number, data, crc in found:
            if not isinstance(data, bytes) or crc != _checksum(kind, number, data):
                raise self.corrupt(f"holds a damaged row: {kind} {number}")
        return {number: data for number, data, _crc in found}

    def counts(self) -> dict[str, int]:
        """Return how many rows there are of each kind: numbers are dense, so the last one says."""
        counts: dict[str, int] = {}
        kind = ""
        while True:
            ((found,),) = self._execute("SELECT min(kind) FROM row WHERE kind > ?", (kind,))
            if found is None:
                return counts
            ((last,),) = self._execute("SELECT max(number) FROM row WHERE kind = ?", (found,))
            # Damaged pages make an index that contradicts itself; this must end all the same.
            if not isinstance(found, str) or found <= kind or not isinstance(last, int):
                raise self.corrupt("holds damaged keys")
            kind, counts[found] = found, last + 1

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything in the block is durable when it ends, or none of it was written.

        Raises:
            StorageFullError: no space; nothing is kept, and the store goes on.
            SessionClosedError: anything else, a failed flush above all; this store has ended.
        """
        with self._lock:
            try:
                self._execute("BEGIN IMMEDIATE")
                yield
                self._execute("COMMIT")
            except StorageFullError:
                self._roll_back()
                raise
            except CorruptError as error:
                self._fail()
                raise self._ended() from error
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        try:
            if self._open.in_transaction:
                self._open.execute("ROLLBACK")
        except sqlite3.Error:
            self._fail()

    def _fail(self) -> None:
        """End this handle: the kernel may have dropped pages, so nothing is tried again."""
        self._reason = "failed"
        self.close()

    def check_open(self) -> None:
        """Raise SessionClosedError if the file is closed, or a write failed for good."""
        _ = self._open

    @property
    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise self._ended()
        return self._connection

    def _execute(self, statement: str, values: tuple[object, ...] = ()) -> list[Any]:
        with self._lock, self._translated():
            return self._open.execute(statement, values).fetchall()

    # --- errors ------------------------------------------------------------------------------

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if getattr(error, "sqlite_errorname", "") in _NO_SPACE:
                raise StorageFullError(
                    f"there is no space for {self.file}; nothing was kept, free some and try again",
                    path=str(self.file),
                    needed=0,
                    free=shutil.disk_usage(self.file.parent).free,
                ) from error
            raise self.corrupt("is not a store of ours, or is damaged") from error

    def corrupt(self, what: str) -> CorruptError:
        """Return the error for bytes that fail a check."""
        return CorruptError(
            f"{self.file} {what}. Nothing was changed; keep a copy of the directory before doing "
            "anything else",
            path=str(self.file.parent),
            where=self.file.name,
            offset=None,
            have_seq=None,
        )

    def _ended(self) -> SessionClosedError:
        return SessionClosedError(
            f"the store at {self.file.parent} has {self._reason}; open the memory again",
            path=str(self.file.parent),
            reason=self._reason,
        )


def _checksum(kind: str, number: int, data: bytes) -> int:
    """Return a checksum that also covers the row's place, so that no row passes for another."""
    return crc32(data, crc32(f"{kind} {number}".encode()))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
