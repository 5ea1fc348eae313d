"""Row 23: a session that was closed, forked, pickled or sent elsewhere; and T11, what may be read.

Whoever holds a dead handle gets `SessionClosedError` or `TypeError`, and the error says what to do.
"""

import asyncio
import copy
import os
import pickle
import shutil
import stat

import pytest

from megacontext_sdk import AsyncMemorySession, errors

CALLS = {
    "append": lambda s: s.append("x"),
    "generate": lambda s: s.generate("x"),
    "stream": lambda s: next(s.stream("x")),
    "search": lambda s: s.search("x"),
    "read": lambda s: s.read((0, 1)),
    "slice": lambda s: s[0:1],
    "messages": lambda s: s.messages(),
    "stats": lambda s: s.stats(),
    "audit": lambda s: s.audit(),
    "flush": lambda s: s.flush(),
    "report": lambda s: s.focus.report(),
    "pin": lambda s: s.focus.pin((0, 1)),
    "unpin": lambda s: s.focus.unpin((0, 1)),
    "expand": lambda s: s.focus.expand((0, 1)),
    "collapse": lambda s: s.focus.collapse((0, 1)),
    "history": lambda s: s.focus.history(),
    "snapshot": lambda s: s.snapshot("one"),
    "snapshots": lambda s: s.snapshots(),
    "restore": lambda s: s.restore("one"),
    "forget": lambda s: s.forget(everything=True),
    "plan": lambda s: s.forget(everything=True, dry_run=True),
    "rebuild": lambda s: s.rebuild(),
    "verify": lambda s: s.verify(),
    "fork": lambda s: s.fork(None if s.path is None else s.path.with_name("fork.mc")),
}


# --- row 23 ----------------------------------------------------------------------------------


@pytest.fixture
def closed(backend, standing_sessions, open_session):
    session = open_session(backend)
    session.append("Said before it was closed.")
    session.close()
    return session


def test_row23_a_closed_session_refuses_every_call(closed):
    closed.close()  # idempotent
    wrong = {}
    for name, call in CALLS.items():
        try:
            call(closed)
        except errors.SessionClosedError as error:
            if error.reason != "closed" or "open it again" not in str(error):
                wrong[name] = str(error)
        else:
            wrong[name] = "was answered"
    assert {} == wrong
    assert "(closed)" in repr(closed)


def test_row23_the_table_of_calls_is_every_public_call(quick):
    public = {name for name in dir(type(quick)) if not name.startswith("_")}
    on_focus = {name for name in dir(type(quick.focus)) if not name.startswith("_")}
    made_or_asked = {"open", "close", "path", "focus", "load", "recover", "scrub", "export"}
    assert set() == (public | on_focus) - made_or_asked - set(CALLS)


FORKED = """
import os, sys, traceback
from megacontext_sdk import MemorySession, errors

session = MemorySession.open(sys.argv[1], model="echo", storage=sys.argv[2], w_max=512, sinks=())
session.append("Said by the parent.")
child = os.fork()
if child == 0:
    wrong = []
    for name in ("append", "search", "generate", "read", "forget", "stats", "flush"):
        arguments = {"read": [(0, 1)], "flush": [], "forget": [], "stats": []}.get(name, ["x"])
        try:
            getattr(session, name)(*arguments)
            wrong.append(name)
        except errors.SessionClosedError as error:
            if error.reason != "forked":
                wrong.append(f"{name}: {error.reason}")
        except BaseException as error:
            wrong.append(f"{name}: {type(error).__name__}")
    session.close()  # nothing of the parent's is touched
    os._exit(len(wrong) and print(wrong, file=sys.stderr) is None)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
session.append("Said after the child.")
session.close()
with MemorySession.open(sys.argv[1], model="echo", storage=sys.argv[2], w_max=512) as session:
    print([message.text for message in session.messages()])
"""


def test_row23_a_forked_child_is_refused_and_the_parent_goes_on(durable, in_child, tmp_path):
    said = in_child(FORKED, tmp_path / "alice.mc", durable)
    assert "['Said by the parent.', 'Said after the child.']" == said


@pytest.mark.parametrize(
    "send",
    [
        pickle.dumps,
        lambda s: pickle.dumps(s, protocol=0),
        copy.copy,
        copy.deepcopy,
        lambda s: pickle.dumps([{"session": s}]),
    ],
    ids=["pickle", "pickle 0", "copy", "deepcopy", "inside"],
)
def test_row23_a_session_cannot_be_sent_and_the_error_names_what_can(standing, state_of, send):
    """What Ray and multiprocessing do is pickling: the error is the same."""
    before = state_of(standing)
    with pytest.raises(TypeError, match=r"session\.path"):
        send(standing)
    assert before == state_of(standing)


def test_row23_an_asynchronous_session_refuses_after_close(backend, echo, tmp_path):
    async def attempt():
        path = None if backend == "memory" else tmp_path / "alice.mc"
        session = await AsyncMemorySession.open(path, model=echo, storage=backend, w_max=512)
        await session.append("Once.")
        await session.close()
        await session.close()
        with pytest.raises((errors.SessionClosedError, RuntimeError)):
            await session.append("Twice.")
        return repr(session)

    assert "(closed)" in asyncio.run(attempt())


# --- T11: what may be read --------------------------------------------------------------------


@pytest.fixture
def kept(durable, open_session, tmp_path):
    with open_session(durable) as session:
        session.append("Kept for reading. " * 10)
    return tmp_path / "alice.mc"


def test_a_missing_memory_is_not_found_and_not_made(durable, open_session, unchanged):
    with unchanged(errors.SessionNotFoundError):
        open_session(durable, create=False)
    with unchanged(errors.SessionNotFoundError):
        open_session(durable, read_only=True)


def test_an_empty_directory_is_no_memory_to_a_reader(durable, open_session, unchanged, tmp_path):
    (tmp_path / "alice.mc").mkdir()
    with unchanged(errors.SessionNotFoundError):
        open_session(durable, read_only=True)


@pytest.mark.parametrize("name", ["MEMORY", "HEAD"])
def test_a_memory_without_one_of_its_files_is_refused_and_left_alone(
    durable, open_session, unchanged, kept, name
):
    (kept / name).unlink()
    for read_only in (True, False):
        with unchanged((errors.StorageError, errors.ConfigError)):
            open_session(durable, read_only=read_only)


def test_a_memory_without_its_data_is_refused_and_left_alone(
    durable, open_session, unchanged, kept
):
    shutil.rmtree(kept / "data-000001")
    for read_only in (True, False):
        with unchanged(errors.CorruptError):
            open_session(durable, read_only=read_only)


def test_a_memory_of_another_storage_is_refused_and_left_alone(
    durable, open_session, unchanged, kept, monkeypatch
):
    others = {"duckdb": "filesystem", "filesystem": "duckdb"}
    try:
        with unchanged() as caught:
            open_session(others[durable])
    except errors.UnknownProviderError:
        pytest.skip(f"{others[durable]} is not installed")
    assert "storage" == caught.value.field


READ_IT = """
import os, sys
os.setgid(65534); os.setuid(65534)
from megacontext_sdk import MemorySession, errors
try:
    MemorySession.open(sys.argv[1], model="echo", storage=sys.argv[2], w_max=512)
    print("opened for writing")
except errors.MegaContextError as error:
    print(type(error).__name__)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_memory_of_somebody_else_is_refused(durable, kept, in_child, tmp_path):
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            pytest.skip("the test's folder cannot be reached by others")
    kept.chmod(0o777)
    assert in_child(READ_IT, kept, durable) in {"ConfigError", "ReadOnlyError"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_can_be_read(durable, open_session, kept):
    for path in (kept, *kept.rglob("*")):
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        with pytest.raises(errors.ReadOnlyError):
            open_session(durable)
        with open_session(durable, read_only=True) as session:
            assert "Kept for reading." in session[:]
    finally:
        for path in (kept, *kept.rglob("*")):
            path.chmod(0o700 if path.is_dir() else 0o600)


def test_a_session_for_reading_refuses_every_write_and_changes_no_byte(
    durable, open_session, kept, snapshot
):
    before = snapshot(kept)
    with open_session(durable, read_only=True) as session:
        for name in ("append", "generate", "flush", "pin", "snapshot", "forget", "rebuild"):
            with pytest.raises(errors.ReadOnlyError) as caught:
                CALLS[name](session)
            assert "read_only=True" == caught.value.why
        assert "Kept for reading." in session[:]
        assert session.search("reading")
    assert before == snapshot(kept)
