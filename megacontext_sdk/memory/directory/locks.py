"""Who may write and who reads: advisory locks that the kernel keeps, and what a fork does to them.

`LOCK` is held by the one writer, `READERS` is shared by readers. `flock` belongs to the open file,
so a second open in the same process is refused too. The text inside LOCK only informs.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import os
import socket
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

import msgspec

from megacontext_sdk.contracts.disk import REAL_DISK
from megacontext_sdk.errors import CorruptError, SessionClosedError, SessionLockedError
from megacontext_sdk.memory.directory.paths import translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["DirectoryLock", "ProcessBound", "watch_process"]

_POLL_SECONDS = 0.02
_MAX_TEXT_BYTES = 4_096
_KERNEL_LOCKS = Path("/proc/locks")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class _Owner(msgspec.Struct):
    """What LOCK says about the one who holds it."""

    pid: int
    host: str
    boot_id: str
    since: str


def _read_owner(descriptor: int) -> _Owner | None:
    """Return what the text says; forged or torn text says nothing."""
    try:
        return msgspec.json.decode(os.pread(descriptor, _MAX_TEXT_BYTES, 0), type=_Owner)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, OSError):
        return None


def _read_holder(descriptor: int) -> int | None:
    """Return the process that holds a lock on the file, where the kernel tells."""
    found = os.fstat(descriptor)
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        lines = _KERNEL_LOCKS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for fields in map(str.split, lines):
        if fields[1:2] == ["FLOCK"] and fields[3:4] == ["WRITE"] and fields[5:6] == [device]:
            return int(fields[4]) if int(fields[4]) > 0 else None
    return None


class DirectoryLock:
    """The locks of one opened memory.

    Args:
        directory: of the memory.
        timeout: seconds to wait for whoever holds them; None does not wait.
        clock: seconds, for the wait.
    """

    def __init__(
        self,
        directory: Path,
        *,
        timeout: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._timeout = timeout or 0.0
        self._clock = clock
        self._descriptors: dict[str, int] = {}
        self._is_alone = False

    def acquire_write(self, *, concurrent_readers: bool) -> None:
        """Become the one writer; where readers cannot stay beside it, wait for them to leave.

        Raises:
            SessionLockedError: somebody else has the memory open.
        """
        self._open("LOCK", os.O_RDWR | os.O_CREAT)
        self._take("LOCK", fcntl.LOCK_EX, "writer")
        self._open("READERS", os.O_RDWR | os.O_CREAT)
        if not concurrent_readers:
            self._take("READERS", fcntl.LOCK_EX, "readers")
            self._is_alone = True

    @contextmanager
    def without_readers(self, timeout: float | None = None) -> Iterator[None]:
        """Keep readers out for a moment, as a switch of generations needs it.

        Does nothing where the writer is alone anyway.

        Args:
            timeout: seconds to wait for readers to leave; as for opening if absent.

        Raises:
            SessionLockedError: they did not leave; `holder` is "readers".
        """
        if self._is_alone:
            yield
            return
        self._take("READERS", fcntl.LOCK_EX, "readers", timeout)
        try:
            yield
        finally:
            fcntl.flock(self._descriptors["READERS"], fcntl.LOCK_UN)

    def acquire_read(self) -> None:
        """Become one of the readers.

        Raises:
            CorruptError: READERS is missing.
            SessionLockedError: a writer that cannot have readers beside it.
        """
        try:
            self._open("READERS", os.O_RDONLY)
        except FileNotFoundError as error:
            raise CorruptError(
                f"{self._directory / 'READERS'} is missing; open the memory once for writing, "
                "which makes it again",
                path=str(self._directory),
                where="READERS",
                offset=None,
                have_seq=None,
            ) from error
        self._take("READERS", fcntl.LOCK_SH, "writer")

    def note_owner(self) -> None:
        """Write down who holds the lock, for the messages of others."""
        boot_id = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
        since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        owner = _Owner(pid=os.getpid(), host=socket.gethostname(), boot_id=boot_id, since=since)
        text = msgspec.json.encode(owner)
        os.pwrite(self._descriptors["LOCK"], text, 0)
        os.ftruncate(self._descriptors["LOCK"], len(text))

    def check_held(self) -> None:
        """Check that LOCK was not deleted or replaced under us.

        Raises:
            SessionClosedError: it was; another writer may be at work.
        """
        if not self._is_current("LOCK"):
            raise SessionClosedError(
                f"{self._directory / 'LOCK'} was deleted or replaced while it was held, so another "
                "writer may be at work; nothing more is written. Open the memory again",
                reason="failed",
                path=str(self._directory),
            )

    def release(self) -> None:
        """Let go; idempotent."""
        if "LOCK" in self._descriptors:
            with suppress(OSError):  # the text only informs; a failing disk shall not keep the lock
                os.ftruncate(self._descriptors["LOCK"], 0)
        self.close_descriptors()

    def close_descriptors(self) -> None:
        """Close the files; in a forked child the parent keeps its locks all the same."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _open(self, name: str, flags: int) -> None:
        self._descriptors[name] = REAL_DISK.open(self._directory / name, flags)

    def _is_current(self, name: str) -> bool:
        held = os.fstat(self._descriptors[name])
        try:
            there = os.lstat(self._directory / name)
        except FileNotFoundError:
            return False
        return (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino)

    def _take(self, name: str, kind: int, holder: str, timeout: float | None = None) -> None:
        deadline = self._clock() + (self._timeout if timeout is None else timeout)
        while True:
            try:
                fcntl.flock(self._descriptors[name], kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if self._clock() >= deadline:
                    raise self._locked(holder) from None
                time.sleep(_POLL_SECONDS)
                continue
            if self._is_current(name):
                return
            # Deleted between open and lock: what we hold guards nothing.
            os.close(self._descriptors.pop(name))
            self._open(name, os.O_RDWR | os.O_CREAT if kind == fcntl.LOCK_EX else os.O_RDONLY)

    def _locked(self, holder: str) -> SessionLockedError:
        owner = self._owner()
        who = "another process" if owner is None else f"pid {owner.pid} on {owner.host}"
        since = f" since {owner.since}" if owner is not None and owner.since else ""
        text = f"{self._directory} is open for writing by {who}{since}. Close it there first"
        if holder == "readers":
            owner = None
            text = (
                f"{self._directory} is being read by other sessions, and what you ask for needs it "
                "alone. Close them first, or give timeout= to wait"
            )
        return SessionLockedError(
            text,
            path=str(self._directory),
            holder=holder,
            owner_pid=None if owner is None else owner.pid,
            owner_host=None if owner is None else owner.host,
            since=None if owner is None else owner.since or None,
        )

    def _owner(self) -> _Owner | None:
        with translated(self._directory):
            try:
                descriptor = REAL_DISK.open(self._directory / "LOCK", os.O_RDONLY)
            except FileNotFoundError:
                return None
        try:
            owner, holder = _read_owner(descriptor), _read_holder(descriptor)
        finally:
            os.close(descriptor)
        if holder is None or (owner is not None and owner.pid == holder):
            return owner
        # It holds the lock and is not yet through with opening; the text is that of one before it.
        return _Owner(pid=holder, host=socket.gethostname(), boot_id="", since="")


class ProcessBound(Protocol):
    """An open handle that must know of a fork and of the end of its process."""

    def after_fork_in_child(self) -> object:
        """Disable the handle; return the object whose destructor must not run here."""

    def at_exit(self) -> None:
        """Let go of threads; the process ends and nobody closed the handle."""


# The exceptions to "no globals": fork handlers cannot be unregistered, so there is one for all
# handles, and it must find them.
_OPEN: WeakSet[ProcessBound] = WeakSet()
_IS_WATCHING: list[bool] = []


def watch_process(handle: ProcessBound) -> None:
    """Tell the handle about forks, in the child, and about the end of the process."""
    if not _IS_WATCHING:
        _IS_WATCHING.append(True)
        os.register_at_fork(after_in_child=_disable_all)
        atexit.register(_leave_all)
    _OPEN.add(handle)


def _disable_all() -> None:
    for handle in list(_OPEN):
        # An engine's destructor would wait for threads that a fork does not copy, or write to the
        # parent's files. One reference too many keeps it from ever running in this child.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(handle.after_fork_in_child()))


def _leave_all() -> None:
    for handle in list(_OPEN):
        handle.at_exit()
