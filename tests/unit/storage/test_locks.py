"""Locks: one writer, named; forged text; deletion; readers; forks."""

import os
import signal
import threading

import msgspec
import pytest

from megacontext_sdk.errors import CorruptError, SessionClosedError, SessionLockedError
from megacontext_sdk.memory.directory.locks import DirectoryLock

HOLD = """
import sys
from pathlib import Path
from megacontext_sdk.memory.directory.locks import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
lock.acquire_write(concurrent_readers=False)
lock.note_owner()
"""


@pytest.fixture
def held(tmp_path):
    lock = DirectoryLock(tmp_path)
    lock.acquire_write(concurrent_readers=False)
    lock.note_owner()
    yield lock
    lock.release()


def attempt(path, **options):
    lock = DirectoryLock(path, **options)
    try:
        lock.acquire_write(concurrent_readers=False)
    finally:
        lock.close_descriptors()


def test_row16_second_writer_in_the_same_process_is_refused_and_the_owner_named(held, tmp_path):
    with pytest.raises(SessionLockedError) as caught:
        attempt(tmp_path)
    error = caught.value
    assert ("writer", os.getpid(), os.uname().nodename) == (
        error.holder,
        error.owner_pid,
        error.owner_host,
    )
    assert error.since.endswith("Z")
    for fact in (str(os.getpid()), error.owner_host, error.since, str(tmp_path)):
        assert fact in str(error)


def test_row16_second_writer_in_another_process_is_refused(held, tmp_path, in_child):
    code = HOLD.replace("lock.acq", "try:\n    lock.acq").replace(
        "lock.note_owner()",
        "except Exception as error:\n    print(type(error).__name__, error.owner_pid)",
    )
    assert f"SessionLockedError {os.getpid()}" == in_child(code, tmp_path)


def test_row25_lock_of_a_dead_process_is_free(tmp_path, in_child):
    in_child(HOLD + "import os; os._exit(0)", tmp_path)
    assert (tmp_path / "LOCK").read_bytes()  # its text is still there
    attempt(tmp_path)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[" * 5000, b'{"pid":"x"}', b"\xff" * 40, b'{"pid":1}']
)
def test_row25_forged_text_changes_only_the_message(held, tmp_path, text):
    (tmp_path / "LOCK").write_bytes(text)
    with pytest.raises(SessionLockedError) as caught:
        attempt(tmp_path)
    assert os.getpid() == caught.value.owner_pid  # the kernel knows, whatever the text says


def test_row25_foreign_host_and_future_clock_do_not_free_a_lock(held, tmp_path):
    forged = {"pid": 1, "host": "elsewhere", "boot_id": "", "since": "2999-01-01T00:00:00Z"}
    (tmp_path / "LOCK").write_bytes(msgspec.json.encode(forged))
    with pytest.raises(SessionLockedError) as caught:
        attempt(tmp_path)
    assert (os.getpid(), os.uname().nodename) == (caught.value.owner_pid, caught.value.owner_host)


def test_text_of_the_owner_is_used_where_the_kernel_does_not_tell(held, tmp_path, monkeypatch):
    monkeypatch.setattr("megacontext_sdk.memory.directory.locks._KERNEL_LOCKS", tmp_path / "absent")
    told = {"pid": 1, "host": "elsewhere", "boot_id": "", "since": "2999-01-01T00:00:00Z"}
    (tmp_path / "LOCK").write_bytes(msgspec.json.encode(told))
    with pytest.raises(SessionLockedError, match="pid 1 on elsewhere since 2999"):
        attempt(tmp_path)
    (tmp_path / "LOCK").write_bytes(b"{")
    with pytest.raises(SessionLockedError, match="another process") as caught:
        attempt(tmp_path)
    assert caught.value.owner_pid is None


@pytest.mark.parametrize("replace", [False, True])
def test_row25_deleted_lock_is_noticed(held, tmp_path, replace):
    held.check_held()
    (tmp_path / "LOCK").unlink()
    if replace:
        (tmp_path / "LOCK").touch()
    with pytest.raises(SessionClosedError) as caught:
        held.check_held()
    assert "failed" == caught.value.reason


def test_release_frees_and_is_idempotent(tmp_path):
    lock = DirectoryLock(tmp_path)
    lock.acquire_write(concurrent_readers=False)
    lock.note_owner()
    lock.release()
    lock.release()
    assert b"" == (tmp_path / "LOCK").read_bytes()
    attempt(tmp_path)


def test_waiting_ends_when_the_lock_is_released(tmp_path):
    lock = DirectoryLock(tmp_path)
    lock.acquire_write(concurrent_readers=False)
    threading.Timer(0.05, lock.release).start()
    attempt(tmp_path, timeout=5)


def test_waiting_ends_at_the_timeout(held, tmp_path):
    ticks = iter(range(100))
    with pytest.raises(SessionLockedError):
        attempt(tmp_path, timeout=2, clock=lambda: next(ticks))
    assert next(ticks) < 10


def test_readers_share_and_keep_a_lone_writer_out(tmp_path):
    attempt(tmp_path)  # makes the files
    readers = [DirectoryLock(tmp_path) for _ in range(2)]
    for reader in readers:
        reader.acquire_read()
    with pytest.raises(SessionLockedError) as caught:
        attempt(tmp_path)
    assert ("readers", None) == (caught.value.holder, caught.value.owner_pid)
    beside = DirectoryLock(tmp_path)
    beside.acquire_write(concurrent_readers=True)
    beside.release()
    for reader in readers:
        reader.close_descriptors()
    attempt(tmp_path)


def test_reader_is_refused_while_a_lone_writer_lives(held, tmp_path):
    reader = DirectoryLock(tmp_path)
    with pytest.raises(SessionLockedError) as caught:
        reader.acquire_read()
    reader.close_descriptors()
    assert ("writer", os.getpid()) == (caught.value.holder, caught.value.owner_pid)


def test_reader_makes_no_file(tmp_path):
    with pytest.raises(CorruptError, match="READERS"):
        DirectoryLock(tmp_path).acquire_read()
    assert [] == list(tmp_path.iterdir())


def test_child_that_closes_its_descriptors_leaves_the_lock_to_its_parent(held, tmp_path):
    child = os.fork()
    if child == 0:
        held.close_descriptors()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with pytest.raises(SessionLockedError):
        attempt(tmp_path)


def test_lock_files_are_private(held, tmp_path):
    assert {0o600} == {(tmp_path / name).stat().st_mode & 0o777 for name in ("LOCK", "READERS")}
