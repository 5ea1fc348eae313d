"""The switch of generations: the next one is built beside the present one, then put in force.

Whatever cannot be done by appending goes this way. The one step that decides is the rename of
MEMORY: a crash before it, and nothing happened; after it, and the next open finishes the rest. What
the new generation holds is up to the caller.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import attrs
import msgspec

from megacontext_sdk.errors import StorageError
from megacontext_sdk.memory.directory.durable import remove_tree
from megacontext_sdk.memory.directory.generations import data_folder, keep_names, remove_leftovers
from megacontext_sdk.memory.directory.head import HeadFile
from megacontext_sdk.memory.directory.locks import watch_process
from megacontext_sdk.memory.directory.manifest import read_meta, replace_meta
from megacontext_sdk.memory.directory.paths import translated
from megacontext_sdk.memory.directory.stores import (
    build_store,
    head_of,
    start_journal,
    verify_store,
)
from megacontext_sdk.memory.writer import Guard

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from megacontext_sdk.contracts.disk import Disk
    from megacontext_sdk.contracts.storage import Storage
    from megacontext_sdk.memory.directory.head import Head
    from megacontext_sdk.memory.directory.locks import DirectoryLock
    from megacontext_sdk.memory.directory.manifest import MemoryMeta
    from megacontext_sdk.memory.directory.opened import OpenedMemory

__all__ = ["build_next", "discard", "is_in_force", "next_meta", "switch"]

_log = logging.getLogger(__name__)


def switch(
    opened: OpenedMemory,
    build: Callable[[Storage, Storage], None],
    *,
    keep_old: bool,
    readers_timeout: float | None,
    settle: Callable[[Path], None] | None = None,
) -> OpenedMemory:
    """Move an open memory to its next generation; see `OpenedMemory.switch`."""
    with opened.journal.paused():
        if opened.path is None or opened.lock is None or opened.head is None:
            return _in_process(opened, build)
        with translated(opened.path):
            return _on_disk(
                opened,
                build,
                (opened.path, opened.lock, opened.head),
                keep_old=keep_old,
                timeout=readers_timeout,
                settle=settle,
            )


def _in_process(opened: OpenedMemory, build: Callable[[Storage, Storage], None]) -> OpenedMemory:
    """Swap the stores of a memory that has no directory."""
    storage = opened.factory(opened.storage.path, opened.options)
    built = build_store(storage, opened.meta, lambda target: build(opened.storage, target))
    verify_store(storage, opened.meta, built, str(opened.storage.path))
    meta = msgspec.structs.replace(opened.meta, generation=opened.meta.generation + 1)
    opened.journal.retire()
    journal = start_journal(storage, "write", meta, clock=opened.clock)
    return _watched(attrs.evolve(opened, journal=journal, storage=storage, meta=meta))


def _on_disk(
    opened: OpenedMemory,
    build: Callable[[Storage, Storage], None],
    held: tuple[Path, DirectoryLock, HeadFile],
    *,
    keep_old: bool,
    timeout: float | None,
    settle: Callable[[Path], None] | None,
) -> OpenedMemory:
    directory, lock, head = held
    meta, disk = next_meta(opened.meta, keep_old=keep_old), opened.disk
    storage = opened.factory(data_folder(directory, meta.generation), opened.options)
    with lock.without_readers(timeout):
        pass  # sooner rather than after a long build
    try:
        new = build_next(
            directory, meta, storage, lambda target: build(opened.storage, target), disk
        )
        with lock.without_readers(timeout):
            head.announce(new)
            replace_meta(directory, meta, disk)
            return _go_on(opened, held, meta, settle)
    except BaseException:
        if is_in_force(directory, meta):
            opened.journal.retire("failed")  # the next open goes on from here
        else:
            discard(directory, meta, disk)
        raise


def _go_on(
    opened: OpenedMemory,
    held: tuple[Path, DirectoryLock, HeadFile],
    meta: MemoryMeta,
    settle: Callable[[Path], None] | None,
) -> OpenedMemory:
    """Leave the old generation and open the new one, which is in force already."""
    directory, lock, old_head = held
    opened.journal.retire()
    old_head.close()
    remove_leftovers(directory, meta, opened.disk)
    if settle is not None:
        settle(directory)
    cache = directory / "cache"
    if not cache.exists():
        opened.disk.mkdir(cache)
    storage = opened.factory(data_folder(directory, meta.generation), opened.options)
    head = HeadFile(directory / "HEAD", meta.generation, opened.disk)
    guard = Guard(head.write, before_flush=lock.check_held, flushed=head.sync)
    sync = opened.durability != "os"
    try:
        head.open(writable=True)
        journal = start_journal(storage, "write", meta, clock=opened.clock, guard=guard, sync=sync)
    except BaseException:
        head.close()
        raise
    new = attrs.evolve(
        opened, journal=journal, storage=storage, meta=meta, head=head, cache_dir=cache
    )
    opened.lock = opened.head = None  # now the new handle's
    return _watched(new)


def _watched(opened: OpenedMemory) -> OpenedMemory:
    watch_process(opened)
    return opened


def next_meta(meta: MemoryMeta, *, keep_old: bool) -> MemoryMeta:
    """Return the MEMORY of the next generation."""
    return msgspec.structs.replace(
        meta, generation=meta.generation + 1, rescue=meta.generation if keep_old else 0
    )


def build_next(
    directory: Path,
    meta: MemoryMeta,
    storage: Storage,
    fill: Callable[[Storage], None],
    disk: Disk,
) -> Head:
    """Build and verify the data of a generation, and what keeps the one before if it is kept.

    Returns:
        What HEAD has to say once it is in force.

    Raises:
        CorruptError: what was built does not hold.
        OSError: a file could not be made.
        StorageError: the store could not be written.
    """
    remove_tree(disk, storage.path)  # of a switch that failed and could not clean up
    built = build_store(storage, meta, fill)
    verify_store(storage, meta, built, str(directory))
    if meta.rescue:
        keep_names(directory, meta.rescue, disk)
    disk.sync_directory(directory)  # the data folder's name, before MEMORY says it
    return head_of(meta, meta.generation, built)


def is_in_force(directory: Path, meta: MemoryMeta) -> bool:
    """Tell whether MEMORY names this generation; True if in doubt, for then nothing may go."""
    try:
        found = read_meta(directory)
    except (OSError, StorageError):
        return True
    return found is None or found.generation == meta.generation


def discard(directory: Path, meta: MemoryMeta, disk: Disk) -> None:
    """Remove what a failed switch has built; what cannot be removed is left to the next open."""
    before = msgspec.structs.replace(meta, generation=meta.generation - 1, rescue=0)
    try:
        remove_leftovers(directory, before, disk)
    except OSError as error:
        _log.warning("%s keeps remains of a failed switch (%s)", directory, type(error).__name__)
