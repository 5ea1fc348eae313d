"""A file that appears under its name only when it is complete and durable. It knows no format."""

from __future__ import annotations

import contextlib
import os
from hashlib import blake2b
from typing import TYPE_CHECKING, Self

from megacontext_sdk.contracts.disk import REAL_DISK
from megacontext_sdk.errors import ConfigError
from megacontext_sdk.memory.directory.paths import check_location, check_parent, translated

if TYPE_CHECKING:
    from pathlib import Path

    from megacontext_sdk.contracts.disk import Disk

__all__ = ["DIGEST_BYTES", "NewFile"]

DIGEST_BYTES = 32


class NewFile:
    """A file that appears under its name only when it is complete and durable.

    Args:
        path: where it will be.
        overwrite: a file of this name may be replaced.
        disk: writes it.

    Attributes:
        path: absolute.
        n_bytes: written so far.

    Raises:
        ConfigError: the path exists, or is no place for a file.
        ReadOnlyError: no permission.
        StorageFullError: no space.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, disk: Disk = REAL_DISK) -> None:
        self.path = check_location(path)
        self.n_bytes = 0
        self._part = self.path.with_name(self.path.name + ".part")
        self._overwrite = overwrite
        self._disk = disk
        self._digest = blake2b(digest_size=DIGEST_BYTES)
        self._descriptor = -1

    @property
    def digest(self) -> bytes:
        """Digest of what was written so far, 32 bytes."""
        return self._digest.digest()

    def __enter__(self) -> Self:
        check_parent(self.path.parent)
        self._check_free()
        with translated(self.path):
            # What an export that was killed has left is ours to replace.
            self._part.unlink(missing_ok=True)
            self._descriptor = self._disk.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._descriptor >= 0:
            self._disk.close(self._descriptor)
            self._descriptor = -1
            with contextlib.suppress(OSError):
                self._disk.unlink(self._part)

    def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            StorageFullError: no space.
        """
        with translated(self.path):
            self._disk.write(self._descriptor, [data])
        self._digest.update(data)
        self.n_bytes += len(data)

    def commit(self) -> None:
        """Make the file durable and give it its name.

        Raises:
            ConfigError: somebody made a file of this name meanwhile.
            StorageFullError: no space.
        """
        with translated(self.path):
            self._disk.sync(self._descriptor)
            self._check_free()
            self._disk.rename(self._part, self.path)
            self._disk.close(self._descriptor)
            self._descriptor = -1
            self._disk.sync_directory(self.path.parent)

    def _check_free(self) -> None:
        is_file = self.path.is_file() and not self.path.is_symlink()
        if not os.path.lexists(self.path) or (self._overwrite and is_file):
            return
        raise ConfigError(
            f"{self.path} exists already; choose another name"
            f"{', or overwrite=True' if is_file else ''}",
            field="path",
            value=str(self.path),
        )
