"""The open log: the file that new frames go to, and reads of what it already holds.

One writev per batch, one flush, nothing else in the path of an append. What half a write left is
cut away. Where frames start again after a crash is found by `scan`.
"""

from __future__ import annotations

import mmap
import os
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from megacontext_filesystem.careful import open_to_read
from megacontext_filesystem.faults import FULL, refused
from megacontext_filesystem.manifest import log_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from megacontext_filesystem.careful import CarefulDisk

__all__ = ["Log"]

_NOTHING: NDArray[np.uint8] = np.empty(0, np.uint8)


class Log:
    """One open log.

    Args:
        path: of the file.
        descriptor: of it.
        disk: to write with; None for reading.
    """

    def __init__(self, path: Path, descriptor: int, disk: CarefulDisk | None) -> None:
        self.path = path
        self._descriptor = descriptor
        self._disk = disk
        self.size = 0  # the end of the last whole frame
        self.flushed = 0
        self.n_frames = 0
        self._mapped = _NOTHING
        self._mapping = Lock()

    @classmethod
    def create(cls, disk: CarefulDisk, folder: Path, number: int) -> Log:
        """Make an empty log; its name becomes durable with the folder."""
        path = folder / log_name(number)
        descriptor = disk.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL)
        try:
            disk.sync(descriptor)
        except BaseException:
            disk.close(descriptor)
            raise
        return cls(path, descriptor, disk)

    @classmethod
    def open(cls, disk: CarefulDisk | None, folder: Path, number: int) -> Log:
        """Open a log, to go on with it if a disk is given.

        Raises:
            ConfigError: a link, a device, somebody else's file.
            FileNotFoundError: there is none.
            ReadOnlyError: no permission.
        """
        path = folder / log_name(number)
        if disk is None:
            descriptor = open_to_read(path)
        else:
            try:
                descriptor = disk.open(path, os.O_RDWR | os.O_APPEND)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise refused(path, error) from error
        found = os.fstat(descriptor)
        why = None
        if found.st_nlink > 1:
            why = "has more than one hard link; copy it to a file of its own"
        elif os.geteuid() not in {0, found.st_uid}:
            why = f"belongs to uid {found.st_uid}; open it as its owner"
        if why is not None:
            os.close(descriptor)
            raise refused(path, None, why)
        return cls(path, descriptor, disk)

    @property
    def descriptor(self) -> int:
        """Of the open file, for reading."""
        return self._descriptor

    def size_on_disk(self) -> int:
        """Return how many bytes the file has, whole frames or not."""
        return os.fstat(self._descriptor).st_size

    # --- writing -----------------------------------------------------------------------------

    def append(self, disk: CarefulDisk, buffers: Sequence[bytes | memoryview]) -> int:
        """Write one frame; return where it starts. A part that was written is cut away again.

        Raises:
            SessionClosedError: the disk failed.
            StorageFullError: no space; the log is as it was.
        """
        at, n_bytes = self.size, sum(len(buffer) for buffer in buffers)
        with disk.writing(n_bytes):
            try:
                disk.write(self._descriptor, buffers)
            except OSError as error:
                if error.errno in FULL and disk.failure is None:
                    self._cut(disk)
                raise
        self.size = at + n_bytes
        self.n_frames += 1
        return at

    def _cut(self, disk: CarefulDisk) -> None:
        """Cut off what follows the last whole frame."""
        try:
            disk.truncate(self._descriptor, self.size)
        except OSError as error:
            raise disk.fail(error) from error

    def sync(self, disk: CarefulDisk) -> None:
        """Make everything written so far durable.

        Raises:
            SessionClosedError: it failed.
        """
        size = self.size
        disk.sync(self._descriptor)
        self.flushed = size

    def take_back(self, disk: CarefulDisk, at: int) -> None:
        """Cut off a frame that was written whole but could not be accepted."""
        self.size = at
        self._cut(disk)

    def settle(self, disk: CarefulDisk, size: int) -> None:
        """Cut off a torn tail found at open, and make what is left durable."""
        self.size = size
        if self.size_on_disk() != size:
            disk.truncate(self._descriptor, size)
        self.sync(disk)

    # --- reading -----------------------------------------------------------------------------

    def data(self) -> NDArray[np.uint8]:
        """Return the whole frames of the log, uint8[size], mapped."""
        wanted = self.size
        mapped = self._mapped
        if len(mapped) >= wanted:
            return mapped
        with self._mapping:
            if len(self._mapped) < wanted and self._descriptor >= 0:
                shared = mmap.mmap(self._descriptor, self.size, access=mmap.ACCESS_READ)
                self._mapped = np.frombuffer(shared, np.uint8)
            return self._mapped

    def retire(self) -> None:
        """Let go of the file; what was read from it stays readable. Idempotent."""
        self.data()
        self.close()

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._mapping:
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor < 0:
                return
            if self._disk is not None:
                self._disk.close(descriptor)
            else:
                os.close(descriptor)
