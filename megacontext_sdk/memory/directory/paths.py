"""Which paths may hold a memory: local directories of ours, no links, no devices, no URLs.

Every refusal is typed and comes before anything is written. It looks at names, owners and mounts,
and opens nothing.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from megacontext_sdk.errors import (
    ConfigError,
    MegaContextError,
    ReadOnlyError,
    StorageError,
    StorageFullError,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "check_directory",
    "check_location",
    "check_mount",
    "check_parent",
    "translated",
]

logger = logging.getLogger(__name__)

_MAX_PATH_BYTES = 4_095
_MAX_NAME_BYTES = 255
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::|:/)|file:")
_NETWORK = re.compile(r"nfs\d?|cifs|smb\w*|9p|afs|ceph|glusterfs|fuse(\..*)?|fuseblk")
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNUSABLE = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
    *(errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP),
}
"""What file systems answer that hold no files of ours, such as those of the kernel."""


def _refuse(path: object, why: str, fix: str) -> ConfigError:
    return ConfigError(f"{path} {why}; {fix}", field="path", value=str(path))


def check_location(path: object) -> Path:
    """Return an absolute path if the argument names a local place at all.

    Raises:
        ConfigError: another type, a NUL byte, a URL.
    """
    if not isinstance(path, (str, os.PathLike)) or isinstance(os.fspath(path), bytes):
        raise _refuse(shown(path), "is no path", "give a str or a pathlib.Path")
    text = os.fspath(path)
    if not text or "\0" in text:
        raise _refuse(shown(text), "is no path", "leave out NUL bytes and give it a name")
    try:
        raw = os.fsencode(text)
    except UnicodeEncodeError as error:
        raise _refuse(shown(text), "is no path", "leave out halves of surrogate pairs") from error
    if len(raw) > _MAX_PATH_BYTES or max(map(len, raw.split(b"/"))) > _MAX_NAME_BYTES:
        raise _refuse(shown(text), "is longer than a path can be", "choose a shorter name")
    if _URL.match(text):
        scheme = text.split(":", 1)[0]
        raise ConfigError(
            f"a memory is a local directory, got a location starting with {scheme!r}:; copy it "
            "here and give its path",
            field="path",
            value=scheme,  # the rest may hold credentials
        )
    return Path(os.path.abspath(text))  # noqa: PTH100 - resolve() would follow a symlink


def check_directory(path: Path) -> bool:
    """Tell whether there is a directory that may hold a memory; False if there is nothing.

    Raises:
        ConfigError: a symlink, a file, a device, or a directory of somebody else.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    except NotADirectoryError as error:
        raise _refuse(path, "lies below something that is a file", "choose another path") from error
    except OSError as error:  # a name too long, bytes the file system refuses
        raise _refuse(path, f"cannot be used ({error.strerror})", "choose another path") from error
    if stat.S_ISLNK(found.st_mode):
        raise _refuse(path, "is a symbolic link", "give the directory it points to")
    if not stat.S_ISDIR(found.st_mode):
        raise _refuse(path, "is not a directory", "a memory is a directory; choose another path")
    _check_owner(path, found)
    if found.st_mode & stat.S_IWOTH:
        logger.warning("%s can be written by everybody; make it yours with chmod 700", path)
    return True


def check_parent(parent: Path) -> None:
    """Check the folder a memory lies in; warn where anybody could put another one in its place.

    Raises:
        ConfigError: it does not exist.
    """
    if not parent.is_dir():
        raise _refuse(parent, "does not exist, so no memory can be made in it", "create it first")
    mode = parent.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        logger.warning("%s can be written by everybody; anyone may replace a memory in it", parent)


def _check_owner(path: Path, found: os.stat_result) -> None:
    # Root may look after other people's memories; nobody else may.
    if os.geteuid() not in {0, found.st_uid}:
        raise _refuse(path, f"belongs to uid {found.st_uid}", "open it as its owner")


def check_mount(path: Path) -> None:
    """Check that an existing path is not on a network file system, where locks do not hold.

    Raises:
        ConfigError: it is; `allow_network_fs=True` leaves this check out.
    """
    kind = _file_system(path)
    if kind is not None and _NETWORK.fullmatch(kind):
        raise _refuse(
            path,
            f"is on a {kind} file system, where locks and flushes may not hold",
            "use a local disk, or allow_network_fs=True at your own risk",
        )


def _file_system(path: Path, table: Path = Path("/proc/self/mountinfo")) -> str | None:
    """Return the type of the file system, None where the kernel does not say."""
    try:
        device = path.stat().st_dev
        lines = table.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        fields = line.split()
        if len(fields) > 2 and fields[2] == wanted and "-" in fields:
            return fields[fields.index("-") + 1]
    return None


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn refusals of the operating system into typed errors.

    Raises:
        ConfigError: a symbolic link where a file of ours should be, or a place that takes none.
        ReadOnlyError: no permission to write.
        StorageError: anything else.
        StorageFullError: no space.
    """
    try:
        yield
    except MegaContextError:
        raise  # some of ours are an OSError too
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _refuse(
                error.filename or path, "is a symbolic link", "remove it and look who made it"
            ) from error
        if error.errno in _READ_ONLY:
            raise ReadOnlyError(
                f"{path} cannot be written ({error.strerror}); change its permissions, or open it "
                "with read_only=True",
                path=str(path),
                why=str(error.strerror),
            ) from error
        if error.errno in _FULL:
            raise StorageFullError(
                f"{path}: {error.strerror}; free space and try again",
                path=str(path),
                needed=0,
                free=0,
            ) from error
        if error.errno in _UNUSABLE:
            raise _refuse(
                path, f"cannot hold a memory ({error.strerror})", "choose another path"
            ) from error
        raise StorageError(
            f"{path}: {error.strerror}. Nothing acknowledged was lost; look at the disk, then open "
            "the memory again",
            path=str(path),
        ) from error
