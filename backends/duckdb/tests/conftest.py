"""Memories on DuckDB, and victims in other processes."""

import os
import subprocess
import sys

import numpy as np
import pytest

from megacontext_duckdb.store import DuckDBStorage
from megacontext_sdk.memory.directory.vault import Fingerprints, open_memory
from megacontext_sdk.memory.journal import MessageRecord

PRINTS = Fingerprints("a" * 64, "b" * 64)


@pytest.fixture
def opened(tmp_path):
    """Open memories that are closed at the end of the test."""
    handles = []

    def open_one(path=None, **changes):
        settings = {
            "backend": "duckdb",
            "factory": DuckDBStorage,
            "fingerprints": PRINTS,
            "vocab_size": 50_000,
            **changes,
        }
        handles.append(open_memory(tmp_path / "alice.mc" if path is None else path, **settings))
        return handles[-1]

    yield open_one
    for handle in handles:
        handle.close()


@pytest.fixture
def append():
    def append_ids(memory, ids, body=b"text", **options):
        ids = np.asarray(ids, np.int32)
        message = MessageRecord(role=0, trust=3, flags=0, ts_us=1, n_tokens=len(ids), body=body)
        return memory.journal.append(ids, [message], **options).wait()

    return append_ids


PRELUDE = """
import os, signal, sys
from pathlib import Path
import numpy as np
from megacontext_duckdb.store import DuckDBStorage
from megacontext_sdk.contracts.storage import GistBatch
from megacontext_sdk.memory.journal import MessageRecord
from megacontext_sdk.memory.directory.vault import Fingerprints, open_memory

def content(seq):
    n = 1 + (seq * 37) % 90
    return np.random.default_rng(seq).integers(0, 50_000, n).astype(np.int32)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def opened(factory=DuckDBStorage, **options):
    return open_memory(Path(sys.argv[1]), backend="duckdb", factory=factory,
                       fingerprints=Fingerprints("a" * 64, "b" * 64), vocab_size=50_000, **options)

def append(memory, seq):
    ids = content(seq)
    message = MessageRecord(role=0, trust=3, flags=0, ts_us=1, n_tokens=len(ids),
                            body=b"body %d" % seq)
    return memory.journal.append(ids, [message])

def gists(memory):
    at, stop = memory.journal.gist_count(0, 1), memory.journal.n_blocks
    if stop > at:
        nodes = np.arange(at, stop, dtype=np.uint64)
        rows = np.repeat((nodes % 251).astype(np.uint8)[:, None], 16, axis=1)
        memory.journal.put_gists(GistBatch(version=0, lod=1, nodes=nodes,
                                           trust=np.full(len(nodes), 3, np.uint8), rows=rows))

def acknowledge(seq):
    os.write(1, seq.to_bytes(8, "little"))
"""


@pytest.fixture
def victim():
    """Start a program that uses the names of the prelude; it may die as it likes."""
    started = []

    def start(code, *arguments, **options):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            **options,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run_victim(victim):
    """Run such a program to its end and return what it printed."""

    def run(code, *arguments, **options):
        process = victim(code, *arguments, **options)
        out, err = process.communicate(timeout=60)
        assert b"Traceback" not in err, err.decode()
        return out

    return run


@pytest.fixture
def content():
    """Return the ids that a victim appends as commit `seq`."""
    names = {}
    exec(PRELUDE, names)
    return names["content"]
