"""The directory of a memory: creating it, opening it in a fixed order, closing it.

An open trusts nothing before it is checked and changes no byte before it has succeeded: locks,
MEMORY, a read-only probe of the store, HEAD, and only then the store for writing. What is inside
the store is the journal's.
"""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from megacontext_sdk.contracts.disk import REAL_DISK
from megacontext_sdk.contracts.storage import NO_OPTIONS
from megacontext_sdk.errors import (
    CommittedDataLostError,
    ConfigError,
    CorruptError,
    ModelMismatchError,
    SessionNotFoundError,
)
from megacontext_sdk.memory.directory.bounded import BoundedStorage
from megacontext_sdk.memory.directory.damage import advice
from megacontext_sdk.memory.directory.durable import remove_file
from megacontext_sdk.memory.directory.generations import (
    check_content,
    data_folder,
    remove_leftovers,
    remove_new,
)
from megacontext_sdk.memory.directory.head import HeadFile
from megacontext_sdk.memory.directory.locks import DirectoryLock, watch_process
from megacontext_sdk.memory.directory.making import create_here, make_memory, new_uuid
from megacontext_sdk.memory.directory.manifest import MemoryMeta, read_meta, replace_meta
from megacontext_sdk.memory.directory.opened import Fingerprints, OpenedMemory, now_us
from megacontext_sdk.memory.directory.paths import (
    check_directory,
    check_location,
    check_mount,
    check_parent,
    translated,
)
from megacontext_sdk.memory.directory.probe import Prober
from megacontext_sdk.memory.directory.stores import header_of, start_journal
from megacontext_sdk.memory.writer import Guard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from megacontext_sdk.contracts.disk import Disk
    from megacontext_sdk.contracts.storage import OpenMode, Storage
    from megacontext_sdk.memory.directory.head import Head
    from megacontext_sdk.memory.directory.stores import StorageFactory

__all__ = ["Fingerprints", "OpenedMemory", "make_memory", "now_us", "open_memory"]

_log = logging.getLogger(__name__)


def open_memory(
    path: Path | None,
    *,
    backend: str,
    factory: StorageFactory,
    fingerprints: Fingerprints,
    vocab_size: int,
    read_only: bool = False,
    create: bool = True,
    options: Mapping[str, str] = NO_OPTIONS,
    durability: str = "sync",
    clock: Callable[[], int] = now_us,
    timeout: float | None = None,
    allow_network_fs: bool = False,
    root: bytes | None = None,
    at_seq: int | None = None,
    adopt_base: bool = False,
    name: str = "",
    disk: Disk = REAL_DISK,
) -> OpenedMemory:
    """Open a memory, or create it.

    Args:
        path: its directory; None only for a backend that keeps nothing on disk.
        backend: name of the storage, recorded in the memory.
        factory: makes the backend's store of a data folder and options.
        fingerprints: of the model; they must be those the memory was made with.
        vocab_size: decides how many bytes an id takes in a new memory.
        read_only: change no byte; appends are refused.
        create: make the memory if there is none.
        options: for the backend.
        durability: one of the words the backend declares.
        clock: microseconds since 1970.
        timeout: seconds to wait for the lock; None does not wait.
        allow_network_fs: accept a file system whose locks may not hold.
        root: chain before the first commit of a new memory, 16 bytes; random if absent.
        at_seq: show the memory as it was after this commit; only with `read_only`.
        adopt_base: let a memory of another base with the same tokenizer be this base's from now on.
        name: what the caller calls a new memory.
        disk: system calls that change files.

    Raises:
        CommittedDataLostError: the store ends before what was acknowledged.
        ConfigError: the path cannot hold a memory, another backend made it, or there is no commit
            `at_seq`.
        CorruptError: MEMORY, HEAD or the store fail a check.
        FormatVersionError: a format this version does not read.
        ModelMismatchError: another base or tokenizer.
        ReadOnlyError: no permission to write.
        SessionLockedError: somebody else has it open.
        SessionNotFoundError: there is none, and `create` or writing is off.
        StorageFullError: no space for a new memory.
    """
    if at_seq is not None and not read_only:
        raise ConfigError(
            f"a memory can be opened at commit {at_seq} for reading only; give read_only=True, or "
            "restore it",
            field="at_seq",
            value=at_seq,
        )
    opener = _Opener(
        backend=backend,
        factory=factory,
        fingerprints=fingerprints,
        token_bytes=2 if vocab_size <= 65_535 else 4,
        read_only=read_only,
        options=options,
        clock=clock,
        timeout=timeout,
        allow_network_fs=allow_network_fs,
        root=root or secrets.token_bytes(16),
        durability=durability,
        at_seq=at_seq,
        adopt_base=adopt_base,
        name=name,
        disk=disk,
    )
    sample = factory(data_folder(Path(), 1) if path is None else Path(path), options)
    if not sample.capabilities.local:
        return opener.in_process(sample)
    _check_durability(sample, backend, durability)
    directory = check_location(path)
    if not check_directory(directory) and (read_only or not create):
        raise _not_found(directory)
    check_parent(directory.parent)
    with translated(directory):
        return opener.on_disk(directory, create=create and not read_only)


def _check_durability(storage: Storage, backend: str, durability: str) -> None:
    words = sorted(storage.capabilities.durability)
    if durability not in words:
        raise ConfigError(
            f"storage {backend!r} does not offer durability={durability!r}; it offers "
            f"{', '.join(words)}",
            field="durability",
            value=durability,
        )


def _not_found(directory: Path) -> SessionNotFoundError:
    return SessionNotFoundError(
        f"there is no memory at {directory}; check the path, or open it for writing with "
        "create=True to make one",
        path=str(directory),
    )


@attrs.frozen(kw_only=True)
class _Opener:
    """The arguments of one open, and its steps."""

    backend: str
    factory: StorageFactory
    fingerprints: Fingerprints
    token_bytes: int
    read_only: bool
    options: Mapping[str, str]
    clock: Callable[[], int]
    timeout: float | None
    allow_network_fs: bool
    root: bytes
    durability: str
    at_seq: int | None
    adopt_base: bool
    name: str
    disk: Disk

    # --- not on disk -------------------------------------------------------------------------

    def in_process(self, storage: Storage) -> OpenedMemory:
        """Open a store that has no directory: no MEMORY, no HEAD, no lock."""
        meta = self._new_meta()
        journal = start_journal(storage, "create", meta, clock=self.clock)
        opened = self._handle(journal=journal, storage=storage, created=True, path=None, meta=meta)
        watch_process(opened)
        return opened

    # --- on disk -----------------------------------------------------------------------------

    def on_disk(self, directory: Path, *, create: bool) -> OpenedMemory:
        """Open or create the memory of a directory; a failure leaves nothing behind."""
        is_new = not directory.exists()
        if not is_new and not check_content(directory) and not create:
            raise _not_found(directory)
        if not self.read_only and not self.allow_network_fs:
            check_mount(directory.parent if is_new else directory)
        if is_new:
            try:
                self.disk.mkdir(directory)
            except FileExistsError:  # somebody creates it at this moment: the lock decides
                is_new = False
        lock = DirectoryLock(directory, timeout=self.timeout)
        try:
            before = {entry.name for entry in directory.iterdir()}
            self._acquire(directory, lock)
            return self._locked(directory, lock, before, is_new=is_new)
        except BaseException:
            lock.close_descriptors()
            raise

    def _acquire(self, directory: Path, lock: DirectoryLock) -> None:
        if self.read_only:
            lock.acquire_read()
        else:
            concurrent = self._storage(directory, 1).capabilities.concurrent_readers
            lock.acquire_write(concurrent_readers=concurrent)

    def _locked(
        self, directory: Path, lock: DirectoryLock, before: set[str], *, is_new: bool
    ) -> OpenedMemory:
        """Go on as the holder of the lock: only now may what this open made be removed again."""
        try:
            meta = read_meta(directory)
            if meta is not None:
                return self._checked(directory, meta, lock, created=False)
        except BaseException:
            self._remove_locks(directory, before)
            raise
        if self.read_only:
            raise _not_found(directory)
        try:
            meta = self._new_meta()
            create_here(directory, meta, factory=self.factory, options=self.options, disk=self.disk)
            return self._checked(directory, meta, lock, created=True)
        except BaseException:
            remove_new(directory, before, self.disk, is_new=is_new)
            raise

    def _remove_locks(self, directory: Path, before: set[str]) -> None:
        """Take away the lock files a refused open made: it changes nothing, names included."""
        for name in {"LOCK", "READERS"} - before:
            if not self.read_only:
                remove_file(self.disk, directory / name)

    def _checked(
        self, directory: Path, meta: MemoryMeta, lock: DirectoryLock, *, created: bool
    ) -> OpenedMemory:
        self._check_fit(directory, meta)
        head = HeadFile(directory / "HEAD", meta.generation, self.disk)
        try:
            self._probe(directory, meta, head.open(writable=not self.read_only))
            return self._opened(directory, meta, head, lock, created=created)
        except BaseException:
            head.close()
            raise

    def _opened(
        self,
        directory: Path,
        meta: MemoryMeta,
        head: HeadFile,
        lock: DirectoryLock,
        *,
        created: bool,
    ) -> OpenedMemory:
        """Open the store for use. Everything was checked: from here on bytes may change."""
        cache, mode = None, self._mode
        if not self.read_only:
            lock.note_owner()
            for gone in remove_leftovers(directory, meta, self.disk):
                _log.warning("removed %s, left over by an unfinished switch", directory / gone)
            cache = directory / "cache"
            if not cache.is_dir():
                self.disk.mkdir(cache)
            meta = self._adopted(directory, meta)
        storage = self._storage(directory, meta.generation)
        if self.at_seq is not None:
            storage = BoundedStorage(storage, self.at_seq, meta.token_bytes)
        guard = Guard(head.write, before_flush=lock.check_held, flushed=head.sync)
        sync = self.durability != "os"
        journal = start_journal(storage, mode, meta, clock=self.clock, guard=guard, sync=sync)
        opened = self._handle(
            journal=journal,
            storage=storage,
            created=created,
            path=directory,
            meta=meta,
            cache_dir=cache,
            lock=lock,
            head=head,
        )
        watch_process(opened)
        return opened

    def _handle(self, **parts: Any) -> OpenedMemory:  # noqa: ANN401 - its constructor checks them
        return OpenedMemory(
            factory=self.factory,
            options=self.options,
            clock=self.clock,
            durability=self.durability,
            disk=self.disk,
            **parts,
        )

    def _adopted(self, directory: Path, meta: MemoryMeta) -> MemoryMeta:
        """Return what MEMORY says once the base given is the memory's own."""
        if meta.base_fp == self.fingerprints.base:
            return meta
        adopted = msgspec.structs.replace(meta, base_fp=self.fingerprints.base)
        replace_meta(directory, adopted, self.disk)
        return adopted

    def _check_fit(self, directory: Path, meta: MemoryMeta) -> None:
        if meta.backend != self.backend:
            raise ConfigError(
                f"{directory} was made with storage={meta.backend!r}, not {self.backend!r}; open "
                "it with that",
                field="storage",
                value=self.backend,
            )
        given = self.fingerprints
        if meta.tokenizer_fp != given.tokenizer:
            raise _mismatch(
                directory,
                ("tokenizer", meta.tokenizer_fp, given.tokenizer),
                "Open it with its own model, or make the ids anew from the text: "
                f'MemorySession.load("{directory}", into=..., retokenize=True)',
            )
        if meta.base_fp != given.base and (self.read_only or not self.adopt_base):
            raise _mismatch(
                directory,
                ("base", meta.base_fp, given.base),
                "Open it with its own model, or let this one take over, for writing and with "
                "adopt_model=True: its gists are made anew",
            )

    def _probe(self, directory: Path, meta: MemoryMeta, head: Head) -> None:
        """Check the newest commits and that nothing acknowledged is missing."""
        storage = self._storage(directory, meta.generation)
        storage.open("read", header_of(meta))
        try:
            prober = Prober(
                storage=storage, root=meta.root, token_bytes=meta.token_bytes, path=str(directory)
            )
            state = prober.check()
            if state.seq < head.seq:
                raise _lost(directory, state.seq, head.seq)
            if prober.chain_at(head.seq) != head.chain:
                raise CorruptError(
                    f"{directory}: commit {head.seq} is not the one that was acknowledged (HEAD). "
                    f"{advice(directory)}",
                    path=str(directory),
                    where="HEAD",
                    offset=None,
                    have_seq=state.seq,
                )
            if self.at_seq is not None and not 0 <= self.at_seq <= state.seq:
                raise ConfigError(
                    f"{directory} has no commit {self.at_seq!r}; they run from 1 to {state.seq}",
                    field="at_seq",
                    value=self.at_seq,
                )
        finally:
            storage.close()

    # --- small parts -------------------------------------------------------------------------

    def _storage(self, directory: Path, generation: int) -> Storage:
        return self.factory(data_folder(directory, generation), self.options)

    @property
    def _mode(self) -> OpenMode:
        return "read" if self.read_only else "write"

    def _new_meta(self) -> MemoryMeta:
        return MemoryMeta(
            uuid=new_uuid(),
            root=self.root,
            backend=self.backend,
            generation=1,
            token_bytes=self.token_bytes,
            base_fp=self.fingerprints.base,
            tokenizer_fp=self.fingerprints.tokenizer,
            name=self.name,
        )


def _lost(directory: Path, have_seq: int, want_seq: int) -> CommittedDataLostError:
    return CommittedDataLostError(
        f"{directory} ends at commit {have_seq}, but {want_seq} were acknowledged (HEAD). "
        f"{advice(directory)}",
        path=str(directory),
        where="HEAD",
        offset=None,
        have_seq=have_seq,
        want_seq=want_seq,
    )


def _mismatch(directory: Path, what: tuple[str, str, str], fix: str) -> ModelMismatchError:
    kind, stored, given = what
    return ModelMismatchError(
        f"{directory} was written with {kind} {stored[:12]}, the model given has {given[:12]}. "
        f"{fix}",
        kind=kind,
        stored=stored,
        given=given,
    )
