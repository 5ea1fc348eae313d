"""`FaultDisk`: a disk whose N-th call fails, once or for ever, whole or half done.

It counts calls that change files; what it lets through happens for real. It also notices a flush
that is tried again after it failed, which no program may do: the kernel may have dropped the pages.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from megacontext_sdk.contracts.disk import Disk

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FaultDisk"]


class FaultDisk(Disk):
    """Fails on purpose.

    Args:
        nth: number of the first call that fails, from 1; 0 never fails.
        code: `errno` of the failure.
        is_short: a write that fails has written its first half.
        is_for_ever: every later call fails as well.

    Attributes:
        n_calls: calls that change files, so far.
        n_failed: how many of them failed.
        retried: paths whose flush was tried again after it had failed.
    """

    def __init__(
        self,
        nth: int = 0,
        code: int = errno.EIO,
        *,
        is_short: bool = False,
        is_for_ever: bool = False,
    ) -> None:
        self._nth = nth
        self._code = code
        self._is_short = is_short
        self._is_for_ever = is_for_ever
        self._failed_syncs: set[object] = set()
        self.n_calls = 0
        self.n_failed = 0
        self.retried: list[str] = []

    def heal(self) -> None:
        """Let everything through from now on."""
        self._nth = 0

    def _is_due(self) -> bool:
        self.n_calls += 1
        due = self.n_calls == self._nth or (self._is_for_ever and 0 < self._nth < self.n_calls)
        self.n_failed += due
        return due

    def _step(self, path: object) -> None:
        if self._is_due():
            raise OSError(self._code, os.strerror(self._code), str(path))

    def open(self, path: Path, flags: int) -> int:
        """Open a file; counts if it may make one."""
        if flags & os.O_CREAT:
            self._step(path)
        return super().open(path, flags)

    def close(self, descriptor: int) -> None:
        """Close a file; never fails."""
        self._failed_syncs.discard(descriptor)
        super().close(descriptor)

    def write(self, descriptor: int, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Append buffers, or half of their bytes, or none."""
        if self._is_due():
            data = b"".join(bytes(buffer) for buffer in buffers)
            if self._is_short:
                super().write(descriptor, [data[: len(data) // 2]])
            raise OSError(self._code, os.strerror(self._code))
        super().write(descriptor, buffers)

    def pwrite(self, descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write at an offset, or half of it, or nothing."""
        if self._is_due():
            if self._is_short:
                super().pwrite(descriptor, data[: len(data) // 2], offset)
            raise OSError(self._code, os.strerror(self._code))
        super().pwrite(descriptor, data, offset)

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut a file."""
        self._step(descriptor)
        super().truncate(descriptor, size)

    def sync(self, descriptor: int) -> None:
        """Flush a file; a second try after a failure is noted."""
        self._sync(descriptor, str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        super().sync(descriptor)

    def sync_directory(self, path: Path) -> None:
        """Flush a directory; a directory that is opened anew may be tried anew."""
        self._step(path)
        super().sync_directory(path)

    def _sync(self, key: object, name: str) -> None:
        if key in self._failed_syncs:
            self.retried.append(name)
        if self._is_due():
            self._failed_syncs.add(key)
            raise OSError(self._code, os.strerror(self._code), name)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name."""
        self._step(target)
        super().link(source, target)

    def rename(self, source: Path, target: Path) -> None:
        """Replace a name."""
        self._step(target)
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        self._step(path)
        super().unlink(path)

    def mkdir(self, path: Path) -> None:
        """Make a directory."""
        self._step(path)
        super().mkdir(path)
