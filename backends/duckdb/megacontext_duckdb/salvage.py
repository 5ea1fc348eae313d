"""What can still be read of a database that the engine refuses, on a copy of it.

Three things are tried, each undoing one kind of damage: a header put right by its checksum, or put
back from its twin or from an empty database, the log cut where the engine still replays it, and the
commits cut where their rows can still be read. The memory's own files are only copied. Whether what
is shown is what was written is for core to check, commit by commit.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megacontext_duckdb import tables
from megacontext_duckdb.engine import Engine
from megacontext_sdk.contracts.storage import StoreState
from megacontext_sdk.errors import (
    CorruptError,
    SessionClosedError,
    StorageError,
    StorageFullError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["SalvagedCopy", "mended", "readable_prefix", "state_at"]

_HEADER = 4096
"""Bytes of a header: one says what the file is, two say in turn where the newest checkpoint is."""

_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_INVERSE = np.uint64(pow(0xBF58476D1CE4E5B9, -1, 2**64))
_SEED = np.uint64(5381)

_BLOCK_TOKENS = 32
"""Ids in a block: the tail of a commit holds those after the last full one."""

_MAX_TRIES = 48
"""Prefixes of the log to try; halving gets to the byte in a log of any size."""


class SalvagedCopy:
    """A copy, outside the memory, of a database and of as much of its log as the engine takes.

    Args:
        file: the database; nobody has it open, and core holds the memory's lock.
        options: of the store.
    """

    def __init__(self, file: Path, options: Mapping[str, str]) -> None:
        self._source = file
        self._options = options
        self._folder = tempfile.TemporaryDirectory(prefix="megacontext-salvage-")
        self.file = Path(self._folder.name) / file.name

    def make(self) -> None:
        """Copy and mend until the engine takes the copy.

        Raises:
            CorruptError: it never does.
            StorageFullError: no space for the copy.
        """
        log = self._source.with_name(self._source.name + ".wal")
        try:
            shutil.copyfile(self._source, self.file)
            self._mend_headers()
            if log.exists():
                self._cut_log(log)
        except OSError as error:
            folder = Path(self._folder.name)
            raise StorageFullError(
                f"{self._source} cannot be copied to {folder.parent} to look what survives "
                f"({error.strerror}); free space there, or set TMPDIR",
                path=str(self._source),
                needed=self._source.stat().st_size,
                free=shutil.disk_usage(folder).free,
            ) from error

    def remove(self) -> None:
        """Delete the copy; idempotent."""
        self._folder.cleanup()

    def _mend_headers(self) -> None:
        """Replace a damaged header; the older of the twins leads to the checkpoint before."""
        failure = self._refusal()
        if failure is None:
            return
        for headers in self._other_headers():
            with self.file.open("r+b") as stream:
                stream.write(b"".join(headers))
            if self._refusal() is None:
                return
        raise failure

    def _other_headers(self) -> Iterator[tuple[bytes, bytes, bytes]]:
        main, first, second = self._read_headers(self.file)
        yield mended(main), mended(first), mended(second)
        yield main, first, first
        yield main, second, second
        fresh = self._fresh_header()
        yield fresh, first, second
        yield fresh, first, first
        yield fresh, second, second

    def _fresh_header(self) -> bytes:
        """Return the first header of an empty database of this engine and these options."""
        empty = self.file.with_name("empty.duckdb")
        engine = Engine(empty, self._options)
        engine.connect(read_only=False)
        engine.close()
        return self._read_headers(empty)[0]

    @staticmethod
    def _read_headers(file: Path) -> list[bytes]:
        with file.open("rb") as stream:
            return [stream.read(_HEADER) for _ in range(3)]

    def _cut_log(self, log: Path) -> None:
        """Keep the longest beginning of the log that the engine replays."""
        copy = self.file.with_name(log.name)
        content = log.read_bytes()

        def is_taken(n_bytes: int) -> bool:
            copy.write_bytes(content[:n_bytes])
            return self._refusal() is None

        if is_taken(len(content)):
            return
        good, bad = 0, len(content)
        for _ in range(_MAX_TRIES):
            if bad - good <= 1:
                break
            middle = (good + bad) // 2
            good, bad = (middle, bad) if is_taken(middle) else (good, middle)
        copy.write_bytes(content[:good])

    def _refusal(self) -> CorruptError | None:
        """Return why the engine does not take the copy as it is now."""
        engine = Engine(self.file, self._options)
        try:
            engine.connect(read_only=True)
        except CorruptError as error:
            return error
        finally:
            engine.close()
        return None


def mended(header: bytes) -> bytes:
    """Return a header with one damaged byte put right, if its checksum says which one it is.

    The checksum is the exclusive or of all words, each times an odd constant: what a word has to be
    for the others to be right follows from it. Most of a header is zero, so a word that becomes
    zero is the one. A header is left as it is if no word is off by one byte, or several could be.
    """
    if len(header) != _HEADER:
        return header
    words = np.frombuffer(header, "<u8")
    products = words[1:] * _FACTOR
    found = np.bitwise_xor.reduce(products) ^ _SEED
    off = np.concatenate([[found], (words[0] ^ found ^ products) * _INVERSE]) ^ words
    bytes_off = np.count_nonzero(off.view(np.uint8).reshape(-1, 8), axis=1)
    (suspects,) = np.nonzero(bytes_off == 1)
    if np.count_nonzero(words[suspects] == off[suspects]) == 1:
        suspects = suspects[words[suspects] == off[suspects]]
    if found == words[0] or len(suspects) != 1:
        return header
    right = words.copy()
    right[suspects] ^= off[suspects]
    return right.tobytes()


def readable_prefix(engine: Engine) -> int:
    """Return up to which commit all rows of the commit table can be read; 0 if none can.

    Raises:
        CorruptError: there is no such table.
    """
    with engine.reading() as cursor:
        found = cursor.execute(tables.N_COMMITS).fetchone()
    n_commits = 0 if found is None else int(found[0])
    if _is_readable(engine, 1, n_commits):
        return n_commits
    good, bad = 0, n_commits
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if _is_readable(engine, good + 1, middle) else (good, middle)
    return good


def _is_readable(engine: Engine, first: int, last: int) -> bool:
    try:
        with engine.reading() as cursor:
            found = cursor.execute(tables.COMMITS, [first, last]).fetchnumpy()
    except SessionClosedError:
        raise
    except StorageError:
        return False
    return len(found["seq"]) == last - first + 1


def state_at(engine: Engine, seq: int) -> StoreState | None:
    """Return the state at the newest commit up to `seq` that ended a batch; None if none did.

    Raises:
        CorruptError: a row cannot be read.
    """
    with engine.reading() as cursor:
        row = cursor.execute(tables.HEAD_UP_TO, [seq]).fetchone()
    if row is None:
        return None
    seq, chain, n_tokens, n_messages, setting, tail = row
    return StoreState(
        seq=seq,
        chain=chain,
        n_tokens=n_tokens,
        n_blocks=n_tokens // _BLOCK_TOKENS,
        n_messages=n_messages,
        tail=tail or b"",
        setting=setting,
        gist_rows=(),
    )
