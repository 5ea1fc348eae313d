"""The disk as this store uses it: a flush that fails ends all writing, for good.

After an error of `sync` the kernel may have dropped the pages, so nobody can say what is stored;
trying again would report success. Every other error is the caller's to judge.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from megacontext_filesystem.faults import FULL, failed, full, refused
from megacontext_sdk.contracts.disk import Disk
from megacontext_sdk.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from megacontext_sdk.errors import SessionClosedError

__all__ = ["CarefulDisk", "open_to_read"]


def open_to_read(path: Path) -> int:
    """Open a regular file for reading, without following links.

    Raises:
        ConfigError: it is no regular file.
        FileNotFoundError: there is none.
        ReadOnlyError: no permission.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise refused(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refused(path, None)
    return descriptor


class CarefulDisk(Disk):
    """Passes calls on and remembers a failure.

    Args:
        disk: the one that does it.
        folder: what messages name.
    """

    def __init__(self, disk: Disk, folder: Path) -> None:
        self._disk = disk
        self._folder = folder
        self.failure: SessionClosedError | None = None

    def fail(self, error: OSError) -> SessionClosedError:
        """Remember that nothing may be written any more, and return the error that says so."""
        if self.failure is None:
            self.failure = failed(self._folder, error)
        return self.failure

    def check(self) -> None:
        """Raise what made the store useless.

        Raises:
            SessionClosedError: an earlier call failed for good.
        """
        if self.failure is not None:
            raise self.failure

    @contextmanager
    def writing(self, needed: int) -> Iterator[None]:
        """Turn errors of the disk into those of the contract.

        Raises:
            SessionClosedError: it failed for good.
            StorageFullError: there is no space for `needed` bytes.
        """
        self.check()
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            if error.errno in FULL and self.failure is None:
                raise full(self._folder, needed) from error
            raise self.fail(error) from error

    def open(self, path: Path, flags: int) -> int:
        """Pass it on."""
        return self._disk.open(path, flags)

    def close(self, descriptor: int) -> None:
        """Pass it on."""
        self._disk.close(descriptor)

    def write(self, descriptor: int, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Pass it on."""
        self._disk.write(descriptor, buffers)

    def pwrite(self, descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Pass it on."""
        self._disk.pwrite(descriptor, data, offset)

    def truncate(self, descriptor: int, size: int) -> None:
        """Pass it on."""
        self._disk.truncate(descriptor, size)

    def link(self, source: Path, target: Path) -> None:
        """Pass it on."""
        self._disk.link(source, target)

    def rename(self, source: Path, target: Path) -> None:
        """Pass it on."""
        self._disk.rename(source, target)

    def unlink(self, path: Path) -> None:
        """Pass it on."""
        self._disk.unlink(path)

    def mkdir(self, path: Path) -> None:
        """Pass it on."""
        self._disk.mkdir(path)

    def sync(self, descriptor: int) -> None:
        """Pass it on, once.

        Raises:
            SessionClosedError: it failed.
        """
        self.check()
        try:
            self._disk.sync(descriptor)
        except OSError as error:
            raise self.fail(error) from error

    def sync_directory(self, path: Path) -> None:
        """Pass it on, once.

        Raises:
            SessionClosedError: it failed.
        """
        self.check()
        try:
            self._disk.sync_directory(path)
        except OSError as error:
            raise self.fail(error) from error
