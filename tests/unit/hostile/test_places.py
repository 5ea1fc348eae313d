"""Rows 7 to 10 and 25: paths, links, permissions and lock files, at the door of a session."""

import contextlib
import json
import logging
import os
import socket
import stat
from pathlib import Path

import pytest

from megacontext_sdk import MemorySession, errors

ODD_NAMES = [
    "it's.mc",
    'double".mc',
    "a;b--.mc",
    "'); DROP TABLE mc_commit;--.mc",
    "new\nline.mc",
    "tab\t.mc",
    " .mc",
    "{0}$HOME%s.mc",
    "-rf.mc",
    "été.mc",
    "e\u0301te\u0301.mc",
    "\u202egnp.mc",
    "*.mc",
]


# --- row 7 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ODD_NAMES, ids=range(len(ODD_NAMES)))
def test_row07_an_odd_name_is_a_name(durable, open_session, tmp_path, name):
    with open_session(durable, tmp_path / name) as session:
        session.append("Kept under an odd name.")
    assert [name] == [path.name for path in tmp_path.iterdir()]
    with open_session(durable, tmp_path / name, read_only=True) as session:
        assert "Kept under an odd name." == session.messages()[-1].text


@pytest.mark.parametrize("below", [False, True], ids=["itself", "its folder"])
def test_row07_bytes_that_are_no_text_work_or_are_refused(durable, open_session, tmp_path, below):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    if below:
        odd.mkdir()
    path = odd / "alice.mc" if below else odd
    try:
        with open_session(durable, path) as session:
            session.append("Works.")
    except errors.ConfigError:
        assert not path.exists()
    else:
        assert "Works." == open_session(durable, path).messages()[-1].text


# --- row 8 -----------------------------------------------------------------------------------

SECRET = "AKIA-s3cr3t-canary"
PLACES = [
    f"s3://user:{SECRET}@bucket/alice.mc",
    f"https://{SECRET}@host/alice.mc",
    "file:///tmp/alice.mc",
    "file:alice.mc",
    f"simplecache::s3://{SECRET}/alice.mc",
    "gs://bucket/alice.mc",
    f"postgresql://u:{SECRET}@host/db",
    "ray://head:10001/alice.mc",
    "hf://datasets/x",
]


@pytest.mark.parametrize("place", PLACES, ids=range(len(PLACES)))
def test_row08_only_local_paths_and_no_credential_in_the_error(
    durable, open_session, unchanged, monkeypatch, tmp_path, place
):
    monkeypatch.chdir(tmp_path)
    with unchanged() as caught:
        open_session(durable, place)
    assert "path" == caught.value.field
    assert SECRET not in str(caught.value) + str(vars(caught.value))


@pytest.mark.parametrize(
    "path",
    ["", "a\0b", b"alice.mc", 7, None, ["alice.mc"], object()],
    ids=lambda path: f"{path!r:.12}",  # no address: workers must agree on the name
)
def test_row08_what_is_no_path_is_refused(durable, echo, unchanged, monkeypatch, tmp_path, path):
    monkeypatch.chdir(tmp_path)
    with unchanged() as caught:
        MemorySession.open(path, model=echo, storage=durable, w_max=512)
    assert "path" == caught.value.field


# --- row 9 -----------------------------------------------------------------------------------


def _link_to_memory(path, made):
    path.symlink_to(made)


def _dangling(path, made):
    path.symlink_to(made.parent / "nowhere")


def _file(path, made):
    path.write_bytes(b"not a memory")


def _fifo(path, made):
    os.mkfifo(path)


def _socket(path, made):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def _foreign_folder(path, made):
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")


def _other_memory_format(path, made):
    path.mkdir()
    (path / "MEMORY").write_text("{}")


@pytest.mark.parametrize(
    "plant",
    [_link_to_memory, _dangling, _file, _fifo, _socket, _foreign_folder, _other_memory_format],
    ids=lambda plant: plant.__name__.strip("_"),
)
@pytest.mark.parametrize("read_only", [False, True], ids=["write", "read"])
def test_row09_what_is_no_memory_is_refused_and_left_alone(
    durable, open_session, tmp_path, unchanged, plant, read_only
):
    open_session(durable, tmp_path / "made.mc").close()
    plant(tmp_path / "alice.mc", tmp_path / "made.mc")
    with unchanged((errors.ConfigError, errors.StorageError)):
        open_session(durable, read_only=read_only)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/full", "/proc/alice.mc", "/dev/null/alice.mc"])
def test_row09_devices_and_the_kernels_file_systems_are_refused_as_paths(
    durable, open_session, path
):
    with pytest.raises((errors.ConfigError, errors.ReadOnlyError)) as caught:
        open_session(durable, path)
    assert path in str(caught.value)
    assert "plugin" not in str(caught.value)


def test_row09_a_second_name_of_a_data_file_never_opens_it_twice(durable, open_session, tmp_path):
    """Either the link is refused, or the two memories share nothing."""
    with open_session(durable) as session:
        session.append("One owner.")
    (tmp_path / "twin.mc").mkdir(mode=0o700)
    for file in sorted((tmp_path / "alice.mc").rglob("*")):
        target = tmp_path / "twin.mc" / file.relative_to(tmp_path / "alice.mc")
        target.mkdir(mode=0o700) if file.is_dir() else target.hardlink_to(file)
    first = second = None
    try:
        first = open_session(durable)
        second = open_session(durable, tmp_path / "twin.mc")
    except errors.MegaContextError:
        return
    assert first is second  # both open over the same bytes: rows would vanish


# --- row 10 ----------------------------------------------------------------------------------


def test_row10_a_memory_is_private_whatever_the_umask(durable, open_session, tmp_path):
    old = os.umask(0)
    try:
        with open_session(durable) as session:
            session.append("Private. " * 40)
            session.search("private")
            session.flush()
    finally:
        os.umask(old)
    modes = {
        str(path.relative_to(tmp_path)): stat.S_IMODE(path.lstat().st_mode)
        for path in tmp_path.rglob("*")
    }
    wrong = {
        name: oct(mode)
        for name, mode in modes.items()
        if mode != (0o700 if (tmp_path / name).is_dir() else 0o600)
    }
    assert {} == wrong


def test_row10_places_anyone_may_write_are_warned_about(durable, open_session, tmp_path, caplog):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with caplog.at_level(logging.WARNING):
        open_session(durable, folder / "alice.mc").append("Said in the open.")
    assert any("can be written by everybody" in message for message in caplog.messages)


@pytest.mark.parametrize(
    "name", ["MEMORY", "MEMORY.part", "HEAD", "LOCK", "READERS", "data-000001", "cache"]
)
def test_row10_a_link_planted_at_our_name_is_never_followed(
    durable, open_session, tmp_path, snapshot, name
):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "diary").write_text("untouched")
    target = victim if name in {"data-000001", "cache"} else victim / "diary"
    (tmp_path / "alice.mc").mkdir(mode=0o700)
    (tmp_path / "alice.mc" / name).symlink_to(target)
    before = snapshot(victim)
    try:
        with open_session(durable) as session:
            session.append("Whose folder is this?")
    except errors.MegaContextError:
        pass
    assert before == snapshot(victim)


@pytest.mark.parametrize(
    "name", ["access.bin", "cache/lexical.sqlite", "cache/layout.msgpack", "cache/layout.tmp"]
)
def test_row10_a_link_planted_over_a_cache_is_never_written_through(
    durable, open_session, tmp_path, name
):
    with open_session(durable) as session:
        session.append("There was a cache. " * 20)
    victim = tmp_path / "diary"
    victim.write_text("untouched")
    planted = tmp_path / "alice.mc" / name
    planted.unlink(missing_ok=True)
    planted.symlink_to(victim)
    try:
        with open_session(durable) as session:
            session.append("And another line. " * 20)
            session.search("cache")
    except errors.MegaContextError:
        pass
    assert "untouched" == victim.read_text()


# --- row 25 ----------------------------------------------------------------------------------

TEXTS = [
    b"",
    b"\xff\xfe garbage",
    b"[" * 10_000,
    json.dumps({"pid": 1, "host": "elsewhere", "boot_id": "x", "since": "2099-01-01"}).encode(),
    json.dumps({"pid": -1, "host": "'; --", "boot_id": "", "since": ""}).encode(),
    b'{"pid": 1e400}',
    b"A" * 2**20,
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_row25_the_text_of_a_lock_decides_nothing(durable, open_session, tmp_path, text):
    with open_session(durable) as session:
        session.append("Locked by nobody.")
    (tmp_path / "alice.mc" / "LOCK").write_bytes(text)
    with open_session(durable) as session:
        assert "Locked by nobody." == session.messages()[-1].text


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_row25_forged_text_does_not_open_a_lock_that_is_held(
    durable, open_session, tmp_path, state_of, text
):
    session = open_session(durable)
    before = state_of(session)["chain"]
    with (tmp_path / "alice.mc" / "LOCK").open("r+b") as file:
        file.truncate()
        file.write(text)
    with pytest.raises(errors.SessionLockedError) as caught:
        open_session(durable)
    assert "writer" == caught.value.holder
    assert before == state_of(session)["chain"]


def test_row25_a_lock_deleted_while_held_ends_the_writer(durable, open_session, tmp_path):
    """At the next commit, and at a checkpoint at the latest: another writer may be at work."""
    session = open_session(durable)
    session.append("Acknowledged.")
    (tmp_path / "alice.mc" / "LOCK").unlink()
    with contextlib.suppress(errors.SessionClosedError):
        session.append("Perhaps one more.")
    for call in (session.flush, lambda: session.append("Too late.")):
        with pytest.raises(errors.SessionClosedError) as caught:
            call()
        assert "failed" == caught.value.reason
    with pytest.raises(errors.SessionClosedError):
        session.close()  # says once more that it could not save; a second time is quiet
    session.close()
    assert "Acknowledged." == open_session(durable).messages()[0].text
