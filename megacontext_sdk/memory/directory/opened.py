"""An open memory as a value: its journal, and what stands around it.

How one comes to be is `memory.directory.vault`'s, how it moves to the next generation
`memory.directory.generation_switch`'s; what is inside the store is the journal's.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import attrs

from megacontext_sdk.contracts.disk import REAL_DISK
from megacontext_sdk.memory.directory import generation_switch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from megacontext_sdk.contracts.disk import Disk
    from megacontext_sdk.contracts.storage import Storage
    from megacontext_sdk.memory.directory.head import HeadFile
    from megacontext_sdk.memory.directory.locks import DirectoryLock
    from megacontext_sdk.memory.directory.manifest import MemoryMeta
    from megacontext_sdk.memory.directory.stores import StorageFactory
    from megacontext_sdk.memory.journal import Journal

__all__ = ["Fingerprints", "OpenedMemory", "now_us"]


def now_us() -> int:
    """Return the wall clock in microseconds since 1970."""
    return time.time_ns() // 1_000


@attrs.frozen
class Fingerprints:
    """What a memory must agree with a model about."""

    base: str
    tokenizer: str


@attrs.define(kw_only=True, eq=False, weakref_slot=True)
class OpenedMemory:
    """An open memory: its journal, and where things beside the journal may be kept.

    Attributes:
        journal: the truth.
        storage: the open store, for reading; what is queued is not in it before a flush.
        created: this open made it.
        path: its directory; None if it is not on disk.
        meta: what MEMORY says.
        cache_dir: for views that can be made again; None where nothing may be written.
        factory: makes a store of this backend.
        options: for the backend.
        clock: microseconds since 1970.
        durability: the word asked for.
        disk: the system calls that change files.
        lock, head: of the directory; None for a handle that gave them to its successor.
    """

    journal: Journal
    storage: Storage
    created: bool
    path: Path | None
    meta: MemoryMeta
    factory: StorageFactory
    options: Mapping[str, str]
    clock: Callable[[], int]
    cache_dir: Path | None = None
    durability: str = "sync"
    disk: Disk = REAL_DISK
    lock: DirectoryLock | None = None
    head: HeadFile | None = None

    @property
    def backend(self) -> str:
        """Name of the storage."""
        return self.meta.backend

    def switch(
        self,
        build: Callable[[Storage, Storage], None],
        *,
        keep_old: bool,
        readers_timeout: float | None = None,
        settle: Callable[[Path], None] | None = None,
    ) -> OpenedMemory:
        """Build the next generation of this memory and put it in force.

        Appends of other threads wait meanwhile and are refused afterwards. On any error before
        the new generation is in force, this handle is untouched and usable; afterwards it is
        closed. The lock goes over to the new handle.

        Args:
            build: fills its second argument, an empty store opened by this thread, from its first,
                the present one. Must not append to the journal.
            keep_old: move the present generation to rescue/ instead of deleting it.
            readers_timeout: seconds to wait for readers to leave; as for opening if absent.
            settle: called with the directory once the new generation is in force and before its
                store is opened: the one moment at which this process may read every file.

        Raises:
            CorruptError: what was built does not hold.
            ReadOnlyError: opened for reading.
            SessionLockedError: readers did not leave.
            StorageError: something could not be written.
        """
        return generation_switch.switch(
            self, build, keep_old=keep_old, readers_timeout=readers_timeout, settle=settle
        )

    def close(self) -> None:
        """Drain the journal, then let go of the locks. Idempotent.

        Raises:
            StorageError: what was accepted could not be written; everything is closed all the same.
        """
        try:
            self.journal.close()
        finally:
            if self.head is not None:
                self.head.close()
            if self.lock is not None:
                self.lock.release()

    def after_fork_in_child(self) -> object:
        """Disable this handle in a forked child; the parent keeps its locks and its engine."""
        if self.head is not None:
            self.head.close()
        if self.lock is not None:
            self.lock.close_descriptors()
        return self.journal.leak_in_child()

    def at_exit(self) -> None:
        """End the writer thread: nobody closed the memory, so there is no checkpoint."""
        self.journal.abandon()

    def __reduce__(self) -> tuple[object, ...]:
        """Refuse pickling: an open memory is a lock and a live engine."""
        raise TypeError(
            f"an open memory cannot be pickled; send the path {str(self.path)!r} and open it there"
        )
