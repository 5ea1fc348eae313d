"""Sessions on every installed backend, and proofs that a refused call changed nothing.

The rows tested in this folder are those of the table of bad input (docs/explanation/durability.md).
"""

import hashlib
import os
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import attrs
import pytest

from megacontext_sdk import MemorySession, errors
from megacontext_sdk.builtin.echo import EchoModel
from megacontext_sdk.memory.forget.forgetting import plan_forget
from megacontext_sdk.messages import load_messages
from megacontext_sdk.plugins import default_plugins

IN_TREE = ("duckdb", "filesystem")
"""A backend of somebody else may be installed here too; it is tested by its own suite."""


def durable_backends():
    return [name for name in default_plugins().names("storage") if name in IN_TREE]


def pytest_generate_tests(metafunc):
    """`backend` runs over all that are installed, `durable` over those that keep files."""
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", ["memory", *durable_backends()])
    if "durable" in metafunc.fixturenames:
        names = durable_backends()
        skip = pytest.mark.skip(reason="no durable backend is installed")
        metafunc.parametrize("durable", names or [pytest.param("none", marks=skip)])


@pytest.fixture(scope="session")
def echo():
    return EchoModel()


@pytest.fixture
def open_session(tmp_path, echo):
    """Open sessions that are closed at the end of the test."""
    opened = []

    def open_one(backend, path=None, **settings):
        where = None if backend == "memory" else tmp_path / "alice.mc" if path is None else path
        arguments = {"model": echo, "storage": backend, "w_max": 512, "sinks": ()} | settings
        opened.append(MemorySession.open(where, **arguments))
        return opened[-1]

    yield open_one
    for session in opened:
        session.close()


@pytest.fixture
def session(backend, open_session):
    """Return a session of its own that knows a little."""
    return _filled(open_session(backend))


@pytest.fixture(scope="session")
def standing_sessions(tmp_path_factory, echo):
    """One session per backend for all the calls that are refused, which change nothing."""
    opened = {}

    def standing(backend):
        if backend not in opened:
            folder = tmp_path_factory.mktemp(backend)
            where = None if backend == "memory" else folder / "standing.mc"
            opened[backend] = _filled(
                MemorySession.open(where, model=echo, storage=backend, w_max=512, sinks=())
            )
        return opened[backend]

    yield standing
    for session in opened.values():
        session.close()


@pytest.fixture
def standing(backend, standing_sessions):
    return standing_sessions(backend)


@pytest.fixture
def quick(standing_sessions):
    """Return the standing session in this process, where the backend can make no difference."""
    return standing_sessions("memory")


def _filled(session):
    session.append("The harbour master of Aran keeps a red boat and a grey cat.", source="notes")
    session.append([{"role": "assistant", "content": "Noted: " + "a red boat, " * 20}])
    session.focus.pin((0, 32))
    session.flush()
    return session


def _state(session):
    """Everything a call may change, and sizes and times of the files; no file is opened.

    Opening a file of a live engine would drop its lock, so bytes are compared after closing.
    """
    parts, stats = session._parts, session.stats()
    journal = parts.journal
    return {
        "seq": journal.seq,
        "chain": journal.chain,
        "n_tokens": stats.n_tokens,
        "n_messages": journal.n_messages,
        "settings": dict(journal.settings),
        "pins": list(parts.state.wc.pins),
        "indexed": parts.lexical.end,
        "files": _sizes(session.path),
    }


def _sizes(path):
    if path is None:
        return {}
    found = ((file, file.lstat()) for file in sorted(Path(path).rglob("*")))
    return {str(file.relative_to(path)): (stat.st_size, stat.st_mtime_ns) for file, stat in found}


@pytest.fixture
def state_of():
    return _state


@pytest.fixture
def refused(state_of):
    """A block that must raise a typed error and leave the session as it was."""

    @contextmanager
    def check(session, kind=errors.ConfigError, field=None):
        before = state_of(session)
        with pytest.raises(kind) as caught:
            yield caught
        assert isinstance(caught.value, errors.MegaContextError)
        assert before == state_of(session)
        if field is not None:
            assert field == caught.value.field

    return check


def _snapshot(folder):
    """Every name, mode and digest below a folder."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file() and not path.is_symlink()
            else None,
        )
        for path in sorted(Path(folder).rglob("*"))
    }


@pytest.fixture
def snapshot():
    return _snapshot


@pytest.fixture
def unchanged(tmp_path):
    """A block that must raise a typed error and change no byte below the test's folder."""

    @contextmanager
    def check(kind=errors.ConfigError, folder=tmp_path):
        before = _snapshot(folder)
        with pytest.raises(kind) as caught:
            yield caught
        assert isinstance(caught.value, errors.MegaContextError)
        assert before == _snapshot(folder)

    return check


@pytest.fixture
def in_child():
    """Run Python in another process and return what it printed."""

    def run(code, *arguments, **options):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            **options,
        )
        assert 0 == done.returncode, done.stderr
        return done.stdout.strip()

    return run


@pytest.fixture
def unknown_field(refused):
    """Check that a filter by a field that does not exist is refused with those that do."""

    def check(session, key):
        with refused(session, field="where") as caught:
            session.forget(where={key: "x"}, dry_run=True)
        assert "role, source, actor, trust, origin, metadata" in str(caught.value)

    return check


@pytest.fixture
def pasted_sql(monkeypatch):
    """Plant a bug: the keys of a filter become a part of a statement."""

    def plan(journal, *, where=None, **scope):
        if not isinstance(where, dict) or not where:
            return plan_forget(journal, where=where, **scope)
        condition = " AND ".join(f"{key} = ?" for key in where)
        with closing(sqlite3.connect(":memory:")) as database:
            database.execute("CREATE TABLE message (id, role, source, actor, trust, origin)")
            database.executemany(
                "INSERT INTO message (id, role, source) VALUES (?, ?, ?)",
                [
                    (message.message_id, message.role, message.source)
                    for message in load_messages(journal, 0, journal.n_messages, str)
                ],
            )
            query = f"SELECT id FROM message WHERE {condition}"
            found = database.execute(query, list(map(str, where.values()))).fetchall()
        return plan_forget(journal, **scope | {"message_ids": [number for (number,) in found]})

    monkeypatch.setattr("megacontext_sdk.keeping.plan_forget", plan)


@pytest.fixture
def evolve():
    return attrs.evolve
