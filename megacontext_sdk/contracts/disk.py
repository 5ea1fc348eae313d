"""`Disk`: the system calls that change files, or make changes durable, in one place.

Core keeps MEMORY, HEAD and the generations through it, and so does a backend that writes files
itself; the crash kit puts a disk in its place that fails a call, or loses what was never flushed.
Reading goes past it: a read can neither lose nor reorder anything.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, TypeAlias

from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["REAL_DISK", "Disk"]

_Buffer: TypeAlias = "bytes | bytearray | memoryview"
_MAX_BUFFERS = 1_024  # IOV_MAX of Linux


class Disk:
    """The real one. Holds no state; may be shared between threads.

    Raises (all methods): `OSError` as the system call does.
    """

    def open(self, path: Path, flags: int) -> int:
        """Open a regular file without following a link; a new one gets mode 0600.

        Raises:
            ConfigError: it is no regular file.
        """
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o600)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ConfigError(
                f"{path} is not a regular file; remove it and look who made it",
                field="path",
                value=str(path),
            )
        return descriptor

    def close(self, descriptor: int) -> None:
        """Close a file; says nothing about durability."""
        os.close(descriptor)

    def write(self, descriptor: int, buffers: Sequence[_Buffer]) -> None:
        """Append all buffers at the file's position.

        Raises:
            OSError: nothing, or only a part, was written; the caller cuts the part away.
        """
        pending = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        while pending:
            written = os.writev(descriptor, pending[:_MAX_BUFFERS])
            if written == 0:
                raise OSError(errno.ENOSPC, "nothing was written")
            while pending and written >= len(pending[0]):
                written -= len(pending.pop(0))
            if written:
                pending[0] = pending[0][written:]

    def pwrite(self, descriptor: int, data: _Buffer, offset: int) -> None:
        """Write at an offset, in one call.

        Raises:
            OSError: the write failed or was short.
        """
        if os.pwrite(descriptor, data, offset) != len(data):
            raise OSError(errno.ENOSPC, "a short write")

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut a file to `size` bytes."""
        os.ftruncate(descriptor, size)

    def sync(self, descriptor: int) -> None:
        """Make the content of a file durable. An error is final: never try again."""
        os.fdatasync(descriptor)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name; fails if the name exists."""
        os.link(source, target, follow_symlinks=False)

    def rename(self, source: Path, target: Path) -> None:
        """Replace a name at once."""
        source.rename(target)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        path.unlink()

    def mkdir(self, path: Path) -> None:
        """Make a directory of mode 0700."""
        path.mkdir(mode=0o700)

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        path.rmdir()

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


REAL_DISK = Disk()
"""The one to use where nothing else is given; it has no state."""
