"""The directory of a memory: creating it, opening it in a fixed order, closing it.

An open trusts nothing before it is checked and changes no byte before it has succeeded: locks,
MEMORY, a read-only probe of the store, HEAD, and only then the store for writing. What is inside
the store is the journal's.
"""

from __future__ import annotations

import secrets
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import attrs

from megacontext_sdk.contracts.storage import NO_OPTIONS, Header
from megacontext_sdk.errors import (
    CommittedDataLostError,
    ConfigError,
    CorruptError,
    MegaContextError,
    ModelMismatchError,
    SessionNotFoundError,
)
from megacontext_sdk.memory.generations import (
    check_content,
    data_folder,
    remove_leftovers,
    remove_new,
)
from megacontext_sdk.memory.head import Head, HeadFile
from megacontext_sdk.memory.journal import Journal
from megacontext_sdk.memory.locks import DirectoryLock, watch_process
from megacontext_sdk.memory.lod import BLOCK_SIZE
from megacontext_sdk.memory.manifest import MemoryMeta, read_meta, replace_meta
from megacontext_sdk.memory.paths import (
    check_directory,
    check_location,
    check_mount,
    check_parent,
    fsync_directory,
    translated,
)
from megacontext_sdk.memory.probe import Prober
from megacontext_sdk.memory.writer import Guard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from megacontext_sdk.contracts.storage import Storage

    StorageFactory: TypeAlias = Callable[[Path, Mapping[str, str]], Storage]

__all__ = ["Fingerprints", "OpenedMemory", "now_us", "open_memory"]

_MAX_UNFINISHED_BYTES = 64 * 2**10


def now_us() -> int:
    """Return the wall clock in microseconds since 1970."""
    return time.time_ns() // 1_000


@attrs.frozen
class Fingerprints:
    """What a memory must agree with a model about."""

    base: str
    tokenizer: str


@attrs.frozen(kw_only=True, eq=False, weakref_slot=True)
class OpenedMemory:
    """An open memory: its journal, and where things beside the journal may be kept.

    Attributes:
        journal: the truth.
        created: this open made it.
        path: its directory; None if it is not on disk.
        meta: what MEMORY says.
        cache_dir: for views that can be made again; None where nothing may be written.
    """

    journal: Journal
    created: bool
    path: Path | None
    meta: MemoryMeta
    cache_dir: Path | None
    _lock: DirectoryLock | None = None
    _head: HeadFile | None = None

    def close(self) -> None:
        """Drain the journal, then let go of the locks. Idempotent.

        Raises:
            StorageError: what was accepted could not be written; everything is closed all the same.
        """
        try:
            self.journal.close()
        finally:
            if self._head is not None:
                self._head.close()
            if self._lock is not None:
                self._lock.release()

    def after_fork_in_child(self) -> object:
        """Disable this handle in a forked child; the parent keeps its locks and its engine."""
        if self._head is not None:
            self._head.close()
        if self._lock is not None:
            self._lock.close_descriptors()
        return self.journal.leak_in_child()

    def at_exit(self) -> None:
        """End the writer thread: nobody closed the memory, so there is no checkpoint."""
        self.journal.abandon()

    def __reduce__(self) -> tuple[object, ...]:
        """Refuse pickling: an open memory is a lock and a live engine."""
        raise TypeError(
            f"an open memory cannot be pickled; send the path {str(self.path)!r} and open it there"
        )


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

    Raises:
        CommittedDataLostError: the store ends before what was acknowledged.
        ConfigError: the path cannot hold a memory, or another backend made it.
        CorruptError: MEMORY, HEAD or the store fail a check.
        FormatVersionError: a format this version does not read.
        ModelMismatchError: another base or tokenizer.
        ReadOnlyError: no permission to write.
        SessionLockedError: somebody else has it open.
        SessionNotFoundError: there is none, and `create` or writing is off.
        StorageFullError: no space for a new memory.
    """
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

    # --- not on disk -------------------------------------------------------------------------

    def in_process(self, storage: Storage) -> OpenedMemory:
        """Open a store that has no directory: no MEMORY, no HEAD, no lock."""
        meta = self._new_meta()
        storage.open("create", self._header(meta))
        journal = self._journal(storage, meta, guard=None)
        opened = OpenedMemory(journal=journal, created=True, path=None, meta=meta, cache_dir=None)
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
            directory.mkdir(mode=0o700)
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
        meta = read_meta(directory)
        if meta is not None:
            return self._checked(directory, meta, lock, created=False)
        if self.read_only:
            raise _not_found(directory)
        try:
            return self._checked(directory, self._create(directory), lock, created=True)
        except BaseException:
            remove_new(directory, before, is_new=is_new)
            raise

    def _checked(
        self, directory: Path, meta: MemoryMeta, lock: DirectoryLock, *, created: bool
    ) -> OpenedMemory:
        self._check_fit(directory, meta)
        head = HeadFile(directory / "HEAD", meta.generation)
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
        cache = None
        if not self.read_only:
            lock.note_owner()
            remove_leftovers(directory, meta.generation)
            cache = directory / "cache"
            cache.mkdir(mode=0o700, exist_ok=True)
        storage = self._storage(directory, meta.generation)
        try:
            storage.open("read" if self.read_only else "write", self._header(meta))
            guard = Guard(head.write, before_flush=lock.check_held, flushed=head.sync)
            journal = self._journal(storage, meta, guard)
        except BaseException:
            storage.close()
            raise
        opened = OpenedMemory(
            journal=journal,
            created=created,
            path=directory,
            meta=meta,
            cache_dir=cache,
            lock=lock,
            head=head,
        )
        watch_process(opened)
        return opened

    def _check_fit(self, directory: Path, meta: MemoryMeta) -> None:
        if meta.backend != self.backend:
            raise ConfigError(
                f"{directory} was made with storage={meta.backend!r}, not {self.backend!r}; open "
                "it with that",
                field="storage",
                value=self.backend,
            )
        given = self.fingerprints
        for kind, stored, offered in (
            ("base", meta.base_fp, given.base),
            ("tokenizer", meta.tokenizer_fp, given.tokenizer),
        ):
            if stored != offered:
                raise ModelMismatchError(
                    f"{directory} was written with {kind} {stored[:12]}, the model given has "
                    f"{offered[:12]}; open it with its own model",
                    kind=kind,
                    stored=stored,
                    given=offered,
                )

    def _probe(self, directory: Path, meta: MemoryMeta, head: Head) -> None:
        """Check the newest commits and that nothing acknowledged is missing."""
        storage = self._storage(directory, meta.generation)
        storage.open("read", self._header(meta))
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
                    "Nothing was changed; keep a copy of the directory before doing anything else",
                    path=str(directory),
                    where="HEAD",
                    offset=None,
                    have_seq=state.seq,
                )
        finally:
            storage.close()

    # --- creating ----------------------------------------------------------------------------

    def _create(self, directory: Path) -> MemoryMeta:
        """Build generation 1 completely, then put it in force."""
        meta = self._new_meta()
        self._clear_unfinished(directory, meta)
        storage = self._storage(directory, 1)
        try:
            storage.open("create", self._header(meta))
            storage.flush()
        finally:
            storage.close()
        HeadFile.create(directory / "HEAD", Head(1, 0, meta.root))
        replace_meta(directory, meta)
        fsync_directory(directory.parent)
        return meta

    def _clear_unfinished(self, directory: Path, meta: MemoryMeta) -> None:
        """Remove a create that never finished; refuse if it looks like a memory without MEMORY."""
        data = data_folder(directory, 1)
        if data.is_symlink():
            raise ConfigError(
                f"{data} is a symbolic link; remove it and look who made it",
                field="path",
                value=str(directory),
            )
        if data.exists() and self._holds_commits(data, meta):
            raise CorruptError(
                f"{directory} has no MEMORY file but its data hold commits. Nothing was changed; "
                "restore MEMORY from a copy",
                path=str(directory),
                where="MEMORY",
                offset=None,
                have_seq=None,
            )
        if data.exists():
            shutil.rmtree(data)
        (directory / "HEAD").unlink(missing_ok=True)

    def _holds_commits(self, data: Path, meta: MemoryMeta) -> bool:
        storage = self.factory(data, self.options)
        try:
            storage.open("read", self._header(meta))
            return storage.state().seq > 0
        except MegaContextError:
            # A create that was cut short cannot be read, but is small; a memory is neither.
            size = sum(file.stat().st_size for file in data.rglob("*") if file.is_file())
            return size > _MAX_UNFINISHED_BYTES
        finally:
            storage.close()

    # --- small parts -------------------------------------------------------------------------

    def _storage(self, directory: Path, generation: int) -> Storage:
        return self.factory(data_folder(directory, generation), self.options)

    def _header(self, meta: MemoryMeta) -> Header:
        return Header(block_bytes=BLOCK_SIZE * meta.token_bytes)

    def _journal(self, storage: Storage, meta: MemoryMeta, guard: Guard | None) -> Journal:
        return Journal(
            storage,
            root=meta.root,
            token_bytes=meta.token_bytes,
            clock=self.clock,
            read_only=self.read_only,
            guard=guard,
        )

    def _new_meta(self) -> MemoryMeta:
        return MemoryMeta(
            uuid=secrets.token_hex(16),
            root=self.root,
            backend=self.backend,
            generation=1,
            token_bytes=self.token_bytes,
            base_fp=self.fingerprints.base,
            tokenizer_fp=self.fingerprints.tokenizer,
        )


def _lost(directory: Path, have_seq: int, want_seq: int) -> CommittedDataLostError:
    return CommittedDataLostError(
        f"{directory} ends at commit {have_seq}, but {want_seq} were acknowledged (HEAD). Nothing "
        "was changed; keep a copy of the directory before doing anything else",
        path=str(directory),
        where="HEAD",
        offset=None,
        have_seq=have_seq,
        want_seq=want_seq,
    )
