"""What victims do until they are killed; each function runs in a process of its own.

A scenario acknowledges only what the memory acknowledged to it. Whatever it raises is a finding.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import os
import resource
import shutil
import signal
import sys
import warnings
from collections import deque
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.errors import (
    InvariantError,
    MegaContextError,
    SessionClosedError,
    SessionLockedError,
    StorageFullError,
)
from megacontext_sdk.memory.journal import MessageRecord
from megacontext_sdk.memory.lod import Span
from megacontext_sdk.testing.encoders import NumberedMean, TrailingMean
from megacontext_sdk.testing.machine import open_session, plugins_of
from megacontext_sdk.testing.story import Story, Truth, kept, secret
from megacontext_sdk.testing.victims import acknowledge

if TYPE_CHECKING:
    from collections.abc import Callable

    from megacontext_sdk.contracts.storage import Storage
    from megacontext_sdk.memory.directory.vault import OpenedMemory
    from megacontext_sdk.memory.journal import Journal, Ticket

__all__ = [
    "append",
    "count_descriptors",
    "endure",
    "endure_calls",
    "fill",
    "forget_session",
    "fork",
    "hold",
    "lag_session",
    "log",
    "race",
    "read_as_nobody",
    "rebuild_session",
    "store_class",
    "threads",
    "tiny_appends",
]

_NOBODY = 65_534


def store_class(storage: str) -> type[Storage]:
    """Return the class an import string names."""
    module, _, name = storage.partition(":")
    found: type[Storage] = getattr(import_module(module), name)
    return found


def _opened(storage: str, path: str, **options: object) -> OpenedMemory:
    return kept(Path(path), store_class(storage), **options)


def append(
    storage: str,
    path: str,
    *,
    story: dict[str, int],
    steps: int = 10**9,
    flush_every: int = 0,
    in_flight: int = 3,
    is_closed: bool = False,
) -> None:
    """Tell a story for ever, or so many steps; gists as blocks fill, flushes in between."""
    memory = _opened(storage, path)
    acknowledge(memory.journal.seq)
    waiting: deque[tuple[int, Ticket]] = deque()

    def settle(n_left: int) -> None:
        while len(waiting) > n_left:
            last, ticket = waiting.popleft()
            ticket.wait()
            acknowledge(last)

    teller = Story(**story)
    for number in range(1, steps + 1):
        waiting.append(teller.tell(memory.journal))
        teller.put_gists(memory.journal)
        settle(in_flight)
        if flush_every and number % flush_every == 0:
            settle(0)
            memory.journal.flush()
    settle(0)
    if is_closed:
        memory.close()


def log(storage: str, path: str, *, glob: str, before: int, after: int) -> None:
    """Tell some steps, flush, tell some more; acknowledge each with the size of the newest log."""
    memory = _opened(storage, path)
    teller = Story()
    for _ in range(before):
        teller.tell(memory.journal)[1].wait()
    memory.journal.flush()
    for _ in range(after):
        last, ticket = teller.tell(memory.journal)
        ticket.wait()
        newest = max(Path(path).glob(glob))
        acknowledge(f"{last} {newest.relative_to(path)} {newest.stat().st_size}")


def hold(storage: str, path: str) -> None:
    """Open, append, touch every file of the data as a careless backup would, and stay."""
    memory = _opened(storage, path)
    teller = Story()
    last, ticket = teller.tell(memory.journal)
    ticket.wait()
    for file in Path(path).rglob("*"):
        if file.is_file():
            file.read_bytes()
    acknowledge(last)
    signal.pause()


def race(storage: str, path: str, *, gate: str) -> None:
    """Wait with others for the gate, try to open; the winner appends and stays."""
    with Path(gate).open("rb") as file:
        acknowledge("ready")
        fcntl.flock(file, fcntl.LOCK_SH)  # returns for all at once, when the test lets go
    try:
        memory = _opened(storage, path)
    except SessionLockedError as error:
        acknowledge(f"locked {error.owner_pid} {error.owner_host} {error.holder}")
        return
    teller = Story()
    last, ticket = teller.tell(memory.journal)
    ticket.wait()
    acknowledge(f"won {last}")
    signal.pause()


def fork(storage: str, path: str, *, ending: str) -> None:
    """Append, fork a child that ends in some way, append more, and die."""
    warnings.simplefilter("ignore")  # a fork beside threads is what this is about
    memory = _opened(storage, path)
    teller = Story()
    for _ in range(10):
        last, ticket = teller.tell(memory.journal)
        ticket.wait()
        acknowledge(last)
    memory.journal.token_ids(Span(0, memory.journal.n_tokens))  # a reader's handle is open too
    child = os.fork()
    if child == 0:
        _end_child(memory, ending)
    os.waitpid(child, 0)
    for _ in range(10):
        last, ticket = teller.tell(memory.journal)
        ticket.wait()
        acknowledge(last)
    os.kill(os.getpid(), signal.SIGKILL)


def _end_child(memory: OpenedMemory, ending: str) -> None:
    try:
        Story().tell(memory.journal)
    except SessionClosedError as error:
        acknowledge(error.reason, pid=os.getppid())
    if ending == "close":
        memory.close()
    if ending == "collect":
        del memory
        gc.collect()
    if ending == "exit":
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - for the exit
        with contextlib.suppress(SystemExit):
            atexit._run_exitfuncs()  # noqa: SLF001 - as the end of an interpreter does
    os._exit(0)


# --- errors of the disk -----------------------------------------------------------------------


def endure(
    open_one: Callable[[], OpenedMemory], say: Callable[[object], None], *, steps: int = 12
) -> None:
    """Tell a story through errors: go on after a full disk, reopen after anything else.

    Raises:
        Exception: whatever is not one of our errors; an `InvariantError` is a bug, too.
    """
    teller, memory = Story(), None
    for number in range(steps):
        try:
            memory = memory or open_one()
            last, ticket = teller.tell(memory.journal)
            teller.put_gists(memory.journal)
            ticket.wait()
            say(last)
            if number % 4 == 3:
                memory.journal.flush()
        except InvariantError:
            raise
        except MegaContextError as error:
            say(type(error).__name__)
            if memory is not None and not isinstance(error, StorageFullError):
                _close(memory, say)
                memory = None
    if memory is not None:
        _close(memory, say)


def _close(memory: OpenedMemory, say: Callable[[object], None]) -> None:
    try:
        memory.close()
    except InvariantError:
        raise
    except MegaContextError as error:
        say(type(error).__name__)


def endure_calls(storage: str, path: str, *, nth: int, code: int, is_for_ever: bool) -> None:
    """Tell a story while the N-th call of the engine fails (needs `testing.preload`)."""
    library = ctypes.CDLL(None)
    folder = os.fsencode(path) + b"/"
    library.megacontext_arm(folder, ctypes.c_long(nth), code, int(is_for_ever))
    endure(lambda: _opened(storage, path), acknowledge)
    calls, retried = library.megacontext_calls(), library.megacontext_retried()
    acknowledge(f"calls {calls} retried {retried}")


def fill(
    storage: str, path: str, *, body_bytes: int, limit: int = 0, ballast: str = "", copy: str = ""
) -> None:
    """Append until the disk is full, read, make room, append again, close."""
    teller, truth = Story(body_bytes=body_bytes), Truth(Story(body_bytes=body_bytes))
    if ballast:
        Path(ballast).write_bytes(bytes(2**20))
    memory = _opened(storage, path)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    if limit:
        newest = max(file.stat().st_size for file in Path(path).glob("data-*/*"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(newest, 1_024) + limit, hard))
    last = _fill(memory.journal, teller)
    truth.check(memory, at_least=last)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    if ballast:
        Path(ballast).unlink()
    for _ in range(5):
        last, ticket = teller.tell(memory.journal)
        ticket.wait()
        acknowledge(last)
    truth.check(memory, at_least=last)
    memory.close()
    if copy:
        shutil.copytree(path, copy)


def _fill(journal: Journal, teller: Story) -> int:
    kept_seq = journal.seq
    for _ in range(5_000):
        last, ticket = teller.tell(journal)
        try:
            ticket.wait()
        except StorageFullError:
            acknowledge("full")
            return kept_seq
        kept_seq = last
        acknowledge(last)
    message = "the disk never filled"
    raise AssertionError(message)


# --- limits of the process --------------------------------------------------------------------


def count_descriptors(storage: str, path: str, *, limit: int) -> None:
    """Work with few descriptors, then open memories until there are none left."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    memory = _opened(storage, path)
    teller = Story()
    for number in range(60):
        last, ticket = teller.tell(memory.journal)
        ticket.wait()
        if number % 20 == 19:
            memory.journal.flush()
    Truth().check(memory, at_least=last)
    acknowledge(last)
    others: list[OpenedMemory] = []
    try:
        while len(others) < limit:
            others.append(_opened(storage, f"{path}-{len(others)}"))
    except MegaContextError as error:
        acknowledge(type(error).__name__)
    for other in others:
        other.close()
    last, ticket = teller.tell(memory.journal)
    ticket.wait()
    memory.close()
    acknowledge(last)


def tiny_appends(storage: str, path: str, *, count: int) -> None:
    """Append so many single tokens; acknowledge resident memory after each tenth, in KiB."""
    memory = _opened(storage, path)
    ids = np.ones(1, np.int32)
    for number in range(1, count + 1):
        message = MessageRecord(role=0, trust=3, flags=0, ts_us=1, n_tokens=1, body=b"x")
        ticket = memory.journal.append(ids, [message])
        if number % (count // 10) == 0:
            ticket.wait()
            memory.journal.flush()
            gc.collect()
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            acknowledge(status.partition("VmRSS:")[2].split()[0])
    memory.close()


def read_as_nobody(storage: str, path: str) -> None:
    """Become a user without permissions: writing is refused with our error, reading works."""
    if os.geteuid() == 0:
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    for place in (path, str(Path(path).parent / "new.mc")):
        try:
            _opened(storage, place)
        except MegaContextError as error:
            acknowledge(type(error).__name__)
    memory = _opened(storage, path, read_only=True)
    acknowledge(Truth().check(memory, at_least=1))
    memory.close()


def threads(storage: str, path: str, *, writers: int, readers: int) -> None:
    """Append from some threads for ever, while others see prefixes that only grow."""
    memory = _opened(storage, path)
    journal = memory.journal
    acknowledge("open")  # before a writer can acknowledge its first commit
    for reader in range(readers):
        Thread(target=_watch, args=(journal, reader), daemon=True).start()
    for writer in range(writers):
        Thread(target=_write, args=(journal, writer), daemon=True).start()
    signal.pause()


def _write(journal: Journal, writer: int) -> None:
    number = 0
    while True:
        number += 1
        ids = np.full(1 + (number * 7 + writer) % 50, 1 + writer, np.int32)
        body = f"{writer} {number}".encode()
        message = MessageRecord(role=0, trust=3, flags=0, ts_us=1, n_tokens=len(ids), body=body)
        receipt = journal.append(ids, [message]).wait()
        acknowledge(f"{writer} {number} {receipt.first_message} {receipt.span.start}")


def _watch(journal: Journal, reader: int) -> None:
    rng = np.random.default_rng(reader)
    seen = np.empty(0, np.int32)
    while True:
        start = max(0, len(seen) - int(rng.integers(0, 500)))
        now = journal.token_ids(Span(start, journal.n_tokens))
        if not np.array_equal(seen[start:], now[: len(seen) - start]):
            acknowledge(f"reader {reader} saw history change")
        seen = np.concatenate([seen[:start], now])


# --- sessions ---------------------------------------------------------------------------------


def forget_session(storage: str, path: str, *, first: int) -> None:
    """Forget message after message; acknowledge how many are."""
    session = open_session(Path(path), plugins_of(storage))
    acknowledge(first)
    for number, message in enumerate(session.messages()):
        if number >= first:
            assert session.forget(message_ids=[message.message_id]).verified
            acknowledge(number + 1)
    signal.pause()


def rebuild_session(storage: str, path: str, *, first: int) -> None:
    """Make all gists again with one encoder after the other; acknowledge how many are through."""
    session = open_session(Path(path), plugins_of(storage))
    acknowledge(first)
    for number in range(first, 2**20):
        assert session.rebuild(gist=NumberedMean(number)).encoded
        acknowledge(number + 1)


def lag_session(storage: str, path: str) -> None:
    """Append message after message while their gists lag; acknowledge how many there are."""
    encoder = TrailingMean(seconds=0.004)
    session = open_session(Path(path), plugins_of(storage), gist=encoder)
    for number in range(len(session.messages()), 2**20):
        session.append(secret(number))
        acknowledge(number + 1)
