"""The engine behind the store: how it is connected, locked down and listened to.

Everything about DuckDB that is not a table of ours: settings, attaching, checkpoints, the meaning
of its errors. It knows no commit and no block.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

import duckdb

from megacontext_sdk.errors import (
    ConfigError,
    CorruptError,
    ReadOnlyError,
    SessionClosedError,
    SessionLockedError,
    StorageError,
    StorageFullError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["Engine", "engine_options"]

_MIN_MEMORY_MB = 256
_FREE_BYTES = 64 * 2**20

# Not stored in the file: without them at every attach, checkpoints rewrite large row groups.
_ATTACH = "BLOCK_SIZE 16384, ROW_GROUP_SIZE 2048, STORAGE_VERSION 'v1.5.0'"

_AFTER_ATTACH = (
    "USE m",
    "SET checkpoint_threshold='1GB'",  # the writer thread decides, not a commit
    # A forked child that exits must not checkpoint its parent's file.
    "PRAGMA disable_checkpoint_on_shutdown",
    "SET enable_external_access=false",
    "SET lock_configuration=true",
)

_FULL = re.compile(r"No space left|File too large|quota exceeded", re.IGNORECASE)
_DENIED = re.compile(r"Permission denied|Read-only file system|Operation not permitted")
_LOCKED = re.compile(r"Could not set lock|already attached|file handle conflict")
_HOLDER = re.compile(r"\(PID (\d+)\)")
_FATAL = re.compile(r"invalidated|FATAL", re.IGNORECASE)
_UNFLUSHED = re.compile(r"fsync|fdatasync", re.IGNORECASE)
_INTERRUPTED = "Query interrupted"
_BUSY = re.compile(r"active|transaction", re.IGNORECASE)


def engine_options(options: Mapping[str, str]) -> dict[str, str | bool | int]:
    """Return the engine's configuration.

    Args:
        options: `memory_limit_mb` (at least 256) and `threads`, as text.

    Raises:
        ConfigError: an unknown option, or a value that is no such number.
    """
    known = {"memory_limit_mb": (_MIN_MEMORY_MB, 256), "threads": (1, 2)}
    values = {name: default for name, (_least, default) in known.items()}
    for name, value in options.items():
        if name not in known or not value.isdecimal() or int(value) < known[name][0]:
            raise ConfigError(
                f"storage duckdb has no option {name}={value!r}; it takes memory_limit_mb (at "
                f"least {_MIN_MEMORY_MB}) and threads (at least 1)",
                field="options",
                value=f"{name}={value}",
            )
        values[name] = int(value)
    return {
        "threads": values["threads"],
        "async_threads": 0,  # the default starts eight more per instance
        "memory_limit": f"{values['memory_limit_mb']}MB",  # replaying a log needs it
        "max_temp_directory_size": "0B",
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "allow_community_extensions": False,
        "allow_persistent_secrets": False,
        "python_enable_replacements": False,
    }


class Engine:
    """One instance with one file attached as `m`.

    Args:
        file: the database.
        options: of the store.
    """

    def __init__(self, file: Path, options: Mapping[str, str]) -> None:
        self.file = file
        self.log = file.with_name(file.name + ".wal")
        self._options = options
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._idle: list[duckdb.DuckDBPyConnection] = []
        self._failure: SessionClosedError | None = None

    def connect(self, *, read_only: bool) -> None:
        """Attach the file and lock the instance down.

        Raises:
            ConfigError: options, or a path the engine cannot take.
            CorruptError: the engine refuses the file.
            ReadOnlyError: no permission.
            SessionLockedError: another process has the file.
            StorageFullError: no space.
        """
        path = self._checked_path().replace("'", "''")
        suffix = ", READ_ONLY" if read_only else ""
        connection = duckdb.connect(":memory:", config=engine_options(self._options))
        try:
            connection.execute(f"ATTACH '{path}' AS m ({_ATTACH}{suffix})")
            for statement in _AFTER_ATTACH:
                connection.execute(statement)
        except duckdb.Error as error:
            connection.close()
            raise self._at_open(error) from error
        self._connection = connection

    def _checked_path(self) -> str:
        raw = os.fsencode(self.file)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{raw!r} is not UTF-8, which this storage needs; rename the directory",
                field="path",
                value=raw.decode(errors="replace"),
            ) from error

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """The writer's connection.

        Raises:
            SessionClosedError: closed or failed.
        """
        if self._failure is not None:
            raise self._failure
        if self._connection is None:
            raise SessionClosedError(
                f"{self.file} is closed; open the memory again",
                reason="closed",
                path=str(self.file),
            )
        return self._connection

    @contextmanager
    def reading(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Lend a cursor; each thread that reads at the same time gets its own.

        Raises:
            CorruptError: a block does not match its checksum.
            KeyboardInterrupt: the user pressed Ctrl-C; the engine calls that a RuntimeError.
            SessionClosedError: closed or failed.
        """
        connection = self.connection
        try:
            cursor = self._idle.pop()
        except IndexError:
            cursor = connection.cursor()
        try:
            yield cursor
        except duckdb.Error as error:
            raise self._at_read(error) from error
        except RuntimeError as error:
            if str(error) == _INTERRUPTED:
                raise KeyboardInterrupt from error
            raise
        finally:
            self._idle.append(cursor)

    @contextmanager
    def writing(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Run one transaction: all of it is durable afterwards, or nothing of it happened.

        Raises:
            SessionClosedError: the engine cannot write any more.
            StorageFullError: the disk is full; nothing is kept and writing may go on later.
        """
        connection = self.connection
        try:
            connection.execute("BEGIN")
            yield connection
            connection.execute("COMMIT")
        except (duckdb.Error, OSError) as error:
            raise self._at_write(error, connection) from error
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    def checkpoint(self) -> bool:
        """Fold the log into the file; False if that has to wait for space or for a reader.

        Raises:
            SessionClosedError: it failed, which makes the instance useless. The log holds
                everything acknowledged.
        """
        if not self.log.exists() or self.log.stat().st_size == 0:
            return False
        free = shutil.disk_usage(self.file.parent).free
        if free < 2 * self.log.stat().st_size + _FREE_BYTES:
            return False
        try:
            self.connection.execute("CHECKPOINT m")
        except (duckdb.Error, OSError) as error:
            if isinstance(error, duckdb.TransactionException) and _BUSY.search(str(error)):
                return False
            self._failure = self._failed(error)
            raise self._failure from error
        return True

    def close(self) -> None:
        """Close the instance without a checkpoint; idempotent."""
        connection, self._connection = self._connection, None
        idle, self._idle = self._idle, []
        for cursor in idle:
            cursor.close()
        if connection is not None:
            connection.close()

    # --- what errors mean --------------------------------------------------------------------

    def _at_open(self, error: duckdb.Error) -> StorageError:
        text = str(error)
        if _LOCKED.search(text):
            holder = _HOLDER.search(text)
            pid = int(holder[1]) if holder else None
            return SessionLockedError(
                f"{self.file} is in use by {'pid ' + str(pid) if pid else 'another session'}; "
                "close it there",
                path=str(self.file),
                holder="writer",
                owner_pid=pid,
                owner_host=None,
                since=None,
            )
        if _DENIED.search(text):
            return ReadOnlyError(
                f"{self.file} cannot be opened: permission denied; change its permissions",
                path=str(self.file),
                why="permission denied",
            )
        if _FULL.search(text):
            return self._full()
        if isinstance(error, duckdb.OutOfMemoryException):
            return StorageError(
                f"{self.file} needs more memory to open; raise memory_limit_mb", path=str(self.file)
            )
        return self._corrupt(error)

    def _at_read(self, error: duckdb.Error) -> StorageError:
        if self._connection is None:
            return SessionClosedError(
                f"{self.file} was closed during a read; open the memory again",
                reason="closed",
                path=str(self.file),
            )
        if _FATAL.search(str(error)):
            self._failure = self._failed(error)
            return self._failure
        if isinstance(error, duckdb.OutOfMemoryException):
            return StorageError(
                f"{self.file} needs more memory for this read; ask for less at once, or raise "
                "memory_limit_mb",
                path=str(self.file),
            )
        return self._corrupt(error)

    def _at_write(
        self, error: Exception, connection: duckdb.DuckDBPyConnection
    ) -> StorageFullError | SessionClosedError:
        text = str(error)
        # A flush that failed is never tried again, for lack of space or not: pages may be gone.
        is_full = _FULL.search(text) and not _UNFLUSHED.search(text)
        if is_full and not _FATAL.search(text):
            try:
                connection.execute("ROLLBACK")
            except duckdb.Error as second:
                # A COMMIT that failed has rolled back already and says so.
                if _FATAL.search(str(second)):
                    self._failure = self._failed(error)
                    return self._failure
            return self._full()
        self._failure = self._failed(error)
        return self._failure

    def _full(self) -> StorageFullError:
        free = shutil.disk_usage(self.file.parent).free
        return StorageFullError(
            f"the volume of {self.file} is full ({free} bytes are free). Nothing of the append was "
            "kept; free space and call append again",
            path=str(self.file),
            needed=0,
            free=free,
        )

    def _failed(self, error: Exception) -> SessionClosedError:
        return SessionClosedError(
            f"{self.file} cannot be used any more ({type(error).__name__}). Everything "
            "acknowledged is kept: close the memory and open it again",
            reason="failed",
            path=str(self.file),
        )

    def _corrupt(self, error: Exception) -> CorruptError:
        return CorruptError(
            f"{self.file} is damaged: the engine refuses it ({type(error).__name__}). Nothing was "
            "changed; keep a copy of the directory before doing anything else",
            path=str(self.file),
            where=self.file.name,
            offset=None,
            have_seq=None,
        )
