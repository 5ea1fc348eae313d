"""The errors of this backend, worded once: damage, a full disk, a failed flush, a refused file.

They name the file and the place in it, and never what it holds.
"""

from __future__ import annotations

import errno
import shutil
from typing import TYPE_CHECKING

from megacontext_sdk.errors import (
    ConfigError,
    CorruptError,
    InvariantError,
    ReadOnlyError,
    SessionClosedError,
    StorageFullError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from megacontext_sdk.errors import StorageError

__all__ = ["FULL", "broken", "closed", "corrupt", "failed", "full", "read_only", "refused"]

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def corrupt(
    path: Path, what: str, *, offset: int | None = None, have_seq: int | None = None
) -> CorruptError:
    """Return the error of a file that is not as it was written."""
    place = "" if offset is None else f" at byte {offset}"
    return CorruptError(
        f"{path} {what}{place}. Nothing was changed; keep a copy of the directory before doing "
        "anything else",
        path=str(path.parent),
        where=path.name,
        offset=offset,
        have_seq=have_seq,
    )


def refused(
    path: Path, error: OSError | None, why: str | None = None
) -> StorageError | ConfigError:
    """Return the error of a file that must not be used: a link, a device, somebody else's."""
    if error is not None and error.errno in _DENIED:
        return ReadOnlyError(
            f"{path} cannot be opened ({error.strerror}); change its permissions",
            path=str(path.parent),
            why=str(error.strerror),
        )
    return ConfigError(
        f"{path} {why or 'is not a regular file; remove it and look who made it'}",
        field="path",
        value=str(path),
    )


def full(folder: Path, needed: int) -> StorageFullError:
    """Return the error of a disk without space."""
    place = folder if folder.exists() else folder.parent  # a clone that failed is gone
    free = shutil.disk_usage(place).free
    return StorageFullError(
        f"{folder} needs {needed} bytes for this write, {free} are free on its volume. Nothing of "
        "it was kept; free space and call again",
        path=str(folder),
        needed=needed,
        free=free,
    )


def failed(folder: Path, error: OSError) -> SessionClosedError:
    """Return the error of a store whose disk failed: it is never written again."""
    return SessionClosedError(
        f"{folder} cannot be written any more ({error.strerror or type(error).__name__}). "
        "Everything acknowledged is kept: close the memory and open it again",
        reason="failed",
        path=str(folder),
    )


def closed(folder: Path) -> SessionClosedError:
    """Return the error of a store that is not open."""
    return SessionClosedError(
        f"{folder} is closed; open the memory again", reason="closed", path=str(folder)
    )


def read_only(folder: Path) -> ReadOnlyError:
    """Return the error of a write to a store opened for reading."""
    return ReadOnlyError(
        f"{folder} was opened for reading; open it for writing",
        why="opened for reading",
        path=str(folder),
    )


def broken(what: str) -> InvariantError:
    """Return the error of a caller that breaks the contract."""
    return InvariantError(what, code="batch", detail=what, epoch=None)
