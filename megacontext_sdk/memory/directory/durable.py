"""Whole files and whole trees, made of the calls of a `Disk`: written at once, removed completely.

It knows neither the names nor the meaning of what it writes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megacontext_sdk.contracts.disk import Disk

__all__ = ["remove_file", "remove_tree", "replace_file", "write_file"]


def write_file(disk: Disk, path: Path, data: bytes) -> None:
    """Write a new file and flush its content; its name is durable with its directory.

    Raises:
        OSError: there is such a file, or the write failed.
    """
    descriptor = disk.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        disk.write(descriptor, [data])
        disk.sync(descriptor)
    finally:
        disk.close(descriptor)


def replace_file(disk: Disk, path: Path, data: bytes) -> None:
    """Put new content in the place of a file, durably and all at once, through `<name>.part`.

    Raises:
        OSError: it failed. Unless the last step did, flushing the directory, the old content is
            untouched.
    """
    temporary = path.with_name(path.name + ".part")
    remove_file(disk, temporary)
    write_file(disk, temporary, data)
    disk.rename(temporary, path)
    disk.sync_directory(path.parent)


def remove_file(disk: Disk, path: Path) -> bool:
    """Remove a file or link if there is one; tell whether there was.

    Raises:
        OSError: it is there and cannot be removed.
    """
    if not os.path.lexists(path):
        return False
    disk.unlink(path)
    return True


def remove_tree(disk: Disk, path: Path) -> int:
    """Remove a directory and all below it, following no link; return how many files that were.

    Raises:
        OSError: something cannot be removed; what was removed before stays so.
    """
    if path.is_symlink() or not path.is_dir():
        return int(remove_file(disk, path))
    n_files = 0
    for folder, folders, files in os.walk(path, topdown=False):
        here = Path(folder)
        links = [name for name in folders if (here / name).is_symlink()]
        for name in files + links:
            disk.unlink(here / name)
        n_files += len(files) + len(links)
        disk.rmdir(here)
    return n_files
