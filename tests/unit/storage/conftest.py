"""A small durable store for tests of the vault: frames of msgpack in one file, replayed at open."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.contracts.disk import Disk
from megacontext_sdk.contracts.storage import COMMIT, MESSAGE, Batch, Capabilities
from megacontext_sdk.errors import CorruptError
from megacontext_sdk.memory.directory.vault import Fingerprints, open_memory
from megacontext_sdk.memory.journal import MessageRecord


class LogStorage(InMemoryStorage):
    """Durable and plain; one writer, and readers beside it only if `concurrent_readers` says so."""

    capabilities = Capabilities(durability=frozenset({"sync"}))

    @property
    def log(self):
        return self.path / "log"

    def open(self, mode, header):
        super().open("create", header)
        if mode == "create":
            self.path.mkdir(mode=0o700)
            self.log.touch(mode=0o600)
        elif not self.log.exists():
            raise CorruptError("the log is missing", where="log", offset=None, have_seq=None)
        elif mode == "salvage":
            with contextlib.suppress(Exception):
                self._replay()
        else:
            self._replay()
        self._mode = mode

    def _replay(self):
        data = self.log.read_bytes()
        while data:
            size = int.from_bytes(data[:4], "little")
            if len(data) < 4 + size:
                return  # a torn tail
            commits, blocks, tail, messages, bodies = msgspec.msgpack.decode(data[4 : 4 + size])
            super().commit(
                Batch(
                    commits=np.frombuffer(commits, COMMIT),
                    blocks=np.frombuffer(blocks, np.uint8).reshape(-1, self._block_bytes),
                    tail=tail,
                    messages=np.frombuffer(messages, MESSAGE),
                    bodies=tuple(bodies),
                )
            )
            data = data[4 + size :]

    def commit(self, batch, *, sync=True):
        super().commit(batch, sync=sync)
        frame = msgspec.msgpack.encode(
            [
                batch.commits.tobytes(),
                batch.blocks.tobytes(),
                batch.tail,
                batch.messages.tobytes(),
                list(batch.bodies),
            ]
        )
        with self.log.open("ab") as file:
            file.write(len(frame).to_bytes(4, "little") + frame)


class Died(BaseException):
    """What a process feels that is killed: nothing behind it runs on the disk any more."""


class FailingDisk(Disk):
    """Counts calls; the one numbered `at` fails, and with `error` None all behind it too."""

    def __init__(self, at=None, error=None):
        self.calls = []
        self.at, self.error = at, error

    def _note(self, name):
        self.calls.append(name)
        if self.at is not None and len(self.calls) >= self.at:
            if self.error is None:
                raise Died
            if len(self.calls) == self.at:
                raise self.error


for _name in [name for name in vars(Disk) if not name.startswith("_")]:

    def _failing(self, *arguments, _name=_name):
        self._note(_name)
        return getattr(Disk, _name)(self, *arguments)

    setattr(FailingDisk, _name, _failing)


PRINTS = Fingerprints("a" * 64, "b" * 64)


@pytest.fixture
def opened(tmp_path):
    """Open memories that are closed at the end of the test."""
    handles = []

    def open_one(path=None, **changes):
        settings = {
            "backend": "log",
            "factory": LogStorage,
            "fingerprints": PRINTS,
            "vocab_size": 50_000,
            **changes,
        }
        handles.append(open_memory(tmp_path / "alice.mc" if path is None else path, **settings))
        return handles[-1]

    yield open_one
    for handle in handles:
        handle.close()


def append_ids(memory, ids, body=b"text"):
    ids = np.asarray(ids, np.int32)
    message = MessageRecord(role=0, trust=3, flags=0, ts_us=1, n_tokens=len(ids), body=body)
    return memory.journal.append(ids, [message]).wait()


@pytest.fixture
def append():
    return append_ids


@pytest.fixture
def failing_disk():
    return FailingDisk


@pytest.fixture
def died():
    return Died


@pytest.fixture
def log_storage():
    return LogStorage


@pytest.fixture
def fingerprints():
    return PRINTS


@pytest.fixture
def snapshot():
    """Take every name, content and mode below a directory, to show that nothing changed."""

    def take(directory):
        return {
            str(path.relative_to(directory)): (
                path.lstat().st_mode,
                path.read_bytes() if path.is_file() and not path.is_symlink() else None,
            )
            for path in sorted(Path(directory).rglob("*"))
        }

    return take


@pytest.fixture
def in_child():
    """Run Python in another process and return what it printed."""

    def run(code, *arguments, **options):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            **options,
        )
        assert 0 == done.returncode, done.stderr
        return done.stdout.strip()

    return run
