"""Stores in a temporary folder, what they hold as plain values, and programs in other processes."""

import os
import subprocess
import sys

import numpy as np
import pytest

from megacontext_filesystem import store as store_module
from megacontext_filesystem.store import FilesystemStorage
from megacontext_sdk.contracts.storage import Header
from megacontext_sdk.testing.storage import Oracle

HEADER = Header(block_bytes=64)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data-000001"


@pytest.fixture
def opened(folder):
    """Open stores of 64-byte blocks that are closed at the end of the test."""
    handles = []

    def open_one(mode="write", path=None, **options):
        handles.append(FilesystemStorage(folder if path is None else path, **options))
        handles[-1].open(mode, HEADER)
        return handles[-1]

    yield open_one
    for handle in handles:
        handle.close()


@pytest.fixture
def oracle():
    return Oracle()


@pytest.fixture
def eager(monkeypatch):
    """Seal at every flush, however little there is."""
    monkeypatch.setattr(store_module, "_FLUSH_SEAL_BYTES", 1)
    monkeypatch.setattr(store_module, "_SEALED_PER_LOG", 10**9)


@pytest.fixture
def contents():
    """Return everything a store holds, as plain values."""

    def read(store):
        state = store.state()
        return {
            "state": state,
            "commits": store.read_commits(1, state.seq + 1).tobytes(),
            "blocks": store.read_blocks(np.arange(state.n_blocks)).tobytes(),
            "messages": store.read_messages(0, state.n_messages).tobytes(),
            "bodies": store.read_bodies(np.arange(state.n_messages)),
            "gists": [
                store.read_gists(version, lod, np.arange(count)).rows.tobytes()
                for version, lod, count in state.gist_rows
            ],
        }

    return read


@pytest.fixture
def snapshot():
    """Return the names and bytes of a folder."""

    def read(folder):
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    return read


@pytest.fixture
def victim():
    """Start a program in another process; it may die as it likes."""
    started = []

    def start(code, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()
