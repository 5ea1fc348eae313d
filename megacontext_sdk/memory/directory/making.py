"""Making a memory: the switch to generation 1, in a directory that is there or beside a target.

A memory appears whole or not at all. Where its content comes from is the caller's.
"""

from __future__ import annotations

import logging
import os
import secrets
from typing import TYPE_CHECKING

import msgspec

from megacontext_sdk.contracts.disk import REAL_DISK
from megacontext_sdk.contracts.storage import NO_OPTIONS
from megacontext_sdk.errors import ConfigError, CorruptError, MegaContextError
from megacontext_sdk.memory.directory.durable import remove_file, remove_tree, write_file
from megacontext_sdk.memory.directory.generations import MARKER, check_unfinished, data_folder
from megacontext_sdk.memory.directory.head import HeadFile
from megacontext_sdk.memory.directory.locks import DirectoryLock
from megacontext_sdk.memory.directory.manifest import replace_meta
from megacontext_sdk.memory.directory.paths import (
    check_directory,
    check_location,
    check_mount,
    check_parent,
    translated,
)
from megacontext_sdk.memory.directory.stores import build_store, head_of, header_of, verify_store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from megacontext_sdk.contracts.disk import Disk
    from megacontext_sdk.contracts.storage import Storage
    from megacontext_sdk.memory.directory.manifest import MemoryMeta
    from megacontext_sdk.memory.directory.stores import StorageFactory

__all__ = ["create_here", "fill_nothing", "make_memory", "new_uuid"]

_log = logging.getLogger(__name__)

_MAX_UNFINISHED_BYTES = 64 * 2**10


def new_uuid() -> str:
    """Return the identity of a memory that does not exist yet."""
    return secrets.token_hex(16)


def fill_nothing(_storage: Storage) -> None:
    """Leave a new store empty."""


def make_memory(
    path: object,
    *,
    backend: str,
    factory: StorageFactory,
    meta: MemoryMeta,
    fill: Callable[[Storage], None] = fill_nothing,
    options: Mapping[str, str] = NO_OPTIONS,
    clone_from: Storage | None = None,
    clone_upto: int = 0,
    allow_network_fs: bool = False,
    disk: Disk = REAL_DISK,
) -> MemoryMeta:
    """Make a whole new memory with content.

    It is built in `<name>.part` beside the target and renamed at the end. Two calls for one target
    exclude each other; what a killed one left is built over.

    Args:
        path: directory of the new memory; must not exist.
        backend: name of the storage.
        factory: makes its store.
        meta: what MEMORY will say; backend and generation are set here.
        fill: puts content into the open store.
        options: for the backend.
        clone_from: an open store whose bytes the new one shares; needs `cheap_fork`.
        clone_upto: last commit to share.
        allow_network_fs: accept a file system whose locks may not hold.
        disk: system calls.

    Returns:
        What MEMORY says.

    Raises:
        ConfigError: the path cannot hold a new memory.
        CorruptError: what was built does not hold.
        SessionLockedError: somebody else is making it.
        StorageError: it could not be written. Nothing is left of it.
    """
    directory = check_location(path)
    part = directory.with_name(directory.name + ".part")
    check_parent(directory.parent)
    if not allow_network_fs:
        check_mount(directory.parent)
    meta = msgspec.structs.replace(meta, backend=backend, generation=1, rescue=0)
    with translated(directory):
        _check_free(directory)
        lock = _part_lock(part, disk)
        made = part
        try:
            storage = factory(data_folder(part, 1), options)
            _clear(part, disk)
            write_file(disk, part / MARKER, b"")
            if clone_from is not None:
                clone_from.clone(storage.path, clone_upto)
            built = build_store(storage, meta, fill, "create" if clone_from is None else "write")
            verify_store(factory(storage.path, options), meta, built, str(directory))
            HeadFile.create(part / "HEAD", head_of(meta, 1, built), disk)
            replace_meta(part, meta, disk)
            _check_free(directory)
            disk.rename(part, directory)
            made = directory
            disk.unlink(directory / MARKER)
            disk.sync_directory(directory.parent)
        except BaseException:
            _discard(made, disk)
            raise
        finally:
            lock.release()
    return meta


def _part_lock(part: Path, disk: Disk) -> DirectoryLock:
    """Return the lock of the directory in which a memory is built; makes it if need be."""
    if check_directory(part):
        check_unfinished(part)
    else:
        disk.mkdir(part)
    lock = DirectoryLock(part)
    lock.acquire_write(concurrent_readers=True)
    return lock


def _check_free(directory: Path) -> None:
    if os.path.lexists(directory):
        raise ConfigError(
            f"{directory} exists already; choose another path, or remove it first",
            field="path",
            value=str(directory),
        )


def _discard(part: Path, disk: Disk) -> None:
    try:
        remove_tree(disk, part)
    except OSError as error:  # what made the memory fail is what the caller must hear of
        _log.warning("%s could not be removed (%s)", part, type(error).__name__)


def _clear(directory: Path, disk: Disk) -> None:
    """Remove what a create that never finished left, the lock files apart."""
    remove_tree(disk, data_folder(directory, 1))
    for name in ("MEMORY", "HEAD", "HEAD.part", "MEMORY.part", MARKER):
        remove_file(disk, directory / name)


def create_here(
    directory: Path,
    meta: MemoryMeta,
    *,
    factory: StorageFactory,
    options: Mapping[str, str],
    disk: Disk,
) -> None:
    """Build generation 1, empty, in a locked directory of ours, then put it in force.

    Raises:
        ConfigError: a link where our data should be.
        CorruptError: it looks like a memory whose MEMORY is missing.
        StorageError: it could not be written.
    """
    data = data_folder(directory, 1)
    if data.is_symlink():
        raise ConfigError(
            f"{data} is a symbolic link; remove it and look who made it",
            field="path",
            value=str(directory),
        )
    if data.exists() and _holds_commits(factory(data, options), meta):
        raise CorruptError(
            f"{directory} has no MEMORY file but its data hold commits. Nothing was changed; "
            "restore MEMORY from a copy",
            path=str(directory),
            where="MEMORY",
            offset=None,
            have_seq=None,
        )
    _clear(directory, disk)
    built = build_store(factory(data, options), meta, fill_nothing)
    HeadFile.create(directory / "HEAD", head_of(meta, 1, built), disk)
    disk.sync_directory(directory)  # the data folder's name, before MEMORY says it
    replace_meta(directory, meta, disk)
    disk.sync_directory(directory.parent)


def _holds_commits(storage: Storage, meta: MemoryMeta) -> bool:
    try:
        storage.open("read", header_of(meta))
        return storage.state().seq > 0
    except MegaContextError:
        # A create that was cut short cannot be read, but is small; a memory is neither.
        files = [file for file in storage.path.rglob("*") if file.is_file()]
        return sum(file.stat().st_size for file in files) > _MAX_UNFINISHED_BYTES
    finally:
        storage.close()
