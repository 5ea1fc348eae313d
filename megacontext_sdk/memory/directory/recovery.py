"""Recovery: the longest verified prefix of a damaged memory becomes its next generation.

One explicit call, never a side effect of opening. The damaged generation is kept in rescue/, and
without damage nothing changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from megacontext_sdk.contracts.disk import REAL_DISK
from megacontext_sdk.contracts.storage import NO_OPTIONS
from megacontext_sdk.errors import CorruptError, SessionNotFoundError
from megacontext_sdk.memory.directory.bounded import BoundedStorage
from megacontext_sdk.memory.directory.generation_switch import (
    build_next,
    discard,
    is_in_force,
    next_meta,
)
from megacontext_sdk.memory.directory.generations import (
    data_folder,
    remove_leftovers,
    rescue_folder,
)
from megacontext_sdk.memory.directory.head import HeadFile
from megacontext_sdk.memory.directory.locks import DirectoryLock
from megacontext_sdk.memory.directory.manifest import read_meta, replace_meta
from megacontext_sdk.memory.directory.paths import check_directory, check_location, translated
from megacontext_sdk.memory.directory.replay import copy_commits, copy_level
from megacontext_sdk.memory.directory.survivors import find_survivors
from megacontext_sdk.receipts import Recovery

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from megacontext_sdk.contracts.disk import Disk
    from megacontext_sdk.contracts.storage import Storage
    from megacontext_sdk.memory.directory.head import Head
    from megacontext_sdk.memory.directory.manifest import MemoryMeta
    from megacontext_sdk.memory.directory.replay import Progress
    from megacontext_sdk.memory.directory.stores import StorageFactory
    from megacontext_sdk.memory.directory.survivors import Survivors

__all__ = ["recover_memory"]


def recover_memory(
    path: object,
    *,
    factory_of: Callable[[str], StorageFactory],
    options: Mapping[str, str] = NO_OPTIONS,
    dry_run: bool = False,
    timeout: float | None = None,
    progress: Progress | None = None,
    disk: Disk = REAL_DISK,
) -> Recovery:
    """Find out what of a memory holds, and make that the memory unless it is only asked.

    Args:
        path: directory of the memory, which nobody has open for writing.
        factory_of: returns the storage of a name that MEMORY says.
        options: for the backend.
        dry_run: report only; no byte changes.
        timeout: seconds to wait for the lock; None does not wait.
        progress: called with tokens read and tokens in all.
        disk: system calls that change files.

    Raises:
        ConfigError: the path is no directory of ours.
        CorruptError: MEMORY cannot be read, or names data that are not there while others are.
        SessionLockedError: somebody has it open.
        SessionNotFoundError: there is no memory.
        StorageError: what survives could not be written. The memory is as before.
    """
    directory = check_location(path)
    if not check_directory(directory):
        raise _not_found(directory)
    with translated(directory):
        lock = DirectoryLock(directory, timeout=timeout)
        try:
            if not dry_run:
                lock.acquire_write(concurrent_readers=False)
            elif (directory / "READERS").exists():
                lock.acquire_read()
            meta = _read_meta(directory)
            storage = factory_of(meta.backend)(data_folder(directory, meta.generation), options)
            case = _Case(directory=directory, meta=meta, storage=storage, disk=disk)
            try:
                return case.run(factory_of(meta.backend), options, progress, dry_run=dry_run)
            finally:
                storage.close()
        finally:
            lock.close_descriptors()


def _not_found(directory: Path) -> SessionNotFoundError:
    return SessionNotFoundError(
        f"there is no memory at {directory}; check the path", path=str(directory)
    )


def _read_meta(directory: Path) -> MemoryMeta:
    meta = read_meta(directory)
    others = [entry.name for entry in directory.glob("data-??????")]
    if meta is None and not others:
        raise _not_found(directory)
    if meta is None or (others and data_folder(directory, meta.generation).name not in others):
        what = "is missing" if meta is None else f"names generation {meta.generation}"
        raise CorruptError(
            f"MEMORY of {directory} {what}, while its data are {', '.join(sorted(others))}. "
            "Nothing was changed. Restore this one file from a copy of the directory",
            path=str(directory),
            where="MEMORY",
            offset=None,
            have_seq=None,
        )
    return meta


@attrs.frozen(kw_only=True)
class _Case:
    """One memory under recovery; its store is not open yet."""

    directory: Path
    meta: MemoryMeta
    storage: Storage
    disk: Disk

    def run(
        self,
        factory: StorageFactory,
        options: Mapping[str, str],
        progress: Progress | None,
        *,
        dry_run: bool,
    ) -> Recovery:
        """Examine, and unless `dry_run` recover what is damaged."""
        head, reasons = self._head()
        found = find_survivors(self.storage, self.meta, progress)
        differs = self._differs(found, head)
        reasons = (*reasons, *found.reasons, *differs)
        lost = None if head is None or differs else max(0, head.seq - found.place.seq)
        if lost:
            reasons = (*reasons, f"{lost} acknowledged commits are missing")
        result = Recovery(
            dry_run=dry_run,
            path=str(self.directory),
            is_damaged=bool(reasons),
            reason="; ".join(reasons),
            have_seq=found.place.seq,
            want_seq=None if head is None else head.seq,
            n_tokens=found.place.n_tokens,
            n_messages=found.place.n_messages,
            lost_commits=lost,
        )
        if dry_run or not reasons:
            return result
        generation = self.meta.generation
        following = factory(data_folder(self.directory, generation + 1), options)
        self._recover(found, following, is_head_good=head is not None)
        return attrs.evolve(result, rescue=str(rescue_folder(self.directory, generation)))

    def _head(self) -> tuple[Head | None, tuple[str, ...]]:
        file = HeadFile(self.directory / "HEAD", self.meta.generation)
        try:
            return file.open(writable=False), ()
        except CorruptError:
            return None, ("HEAD says nothing any more",)
        finally:
            file.close()

    def _differs(self, found: Survivors, head: Head | None) -> tuple[str, ...]:
        """Tell whether the commit that HEAD knows is another one now."""
        if head is None or head.seq > found.place.seq:
            return ()
        chain = self.meta.root
        if head.seq:
            chain = self.storage.read_commits(head.seq, head.seq + 1)["chain"].tobytes()
        if chain == head.chain:
            return ()
        return (f"commit {head.seq} is not the one that was acknowledged",)

    def _recover(self, found: Survivors, following: Storage, *, is_head_good: bool) -> None:
        """Put what survives in force as the next generation."""
        directory, disk = self.directory, self.disk
        meta = next_meta(self.meta, keep_old=True)
        try:
            new = build_next(
                directory, meta, following, lambda target: self._copy(found, target), disk
            )
            if is_head_good:
                self._announce(new)
            else:
                HeadFile.replace(directory / "HEAD", new, disk)
            self.storage.close()
            replace_meta(directory, meta, disk)
            remove_leftovers(directory, meta, disk)
        except BaseException:
            if not is_in_force(directory, meta):
                discard(directory, meta, disk)
            raise

    def _announce(self, new: Head) -> None:
        file = HeadFile(self.directory / "HEAD", self.meta.generation, self.disk)
        try:
            file.open(writable=True)
            file.announce(new)
        finally:
            file.close()

    def _copy(self, found: Survivors, target: Storage) -> None:
        if not found.is_open:
            return
        token_bytes = self.meta.token_bytes
        source = BoundedStorage(self.storage, found.place.seq, token_bytes)
        copy_commits(source, target, root=self.meta.root, token_bytes=token_bytes)
        for key, n_rows in found.levels:
            copy_level(source, target, key, n_rows)
