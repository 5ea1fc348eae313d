"""Sessions on DuckDB: reading only, what is no memory, lost caches, interruption, forks."""

import os
import shutil
import tempfile
import warnings
from pathlib import Path

import msgspec
import numpy as np
import pytest

from megacontext_sdk import MemorySession, TextDelta, errors
from megacontext_sdk.builtin.sinks import InMemorySink
from megacontext_sdk.memory.lod import Span


def test_a_session_for_reading_reads_everything_and_changes_no_byte(
    open_session, layout_of, found, bytes_of, copy
) -> None:
    with open_session(copy) as session:
        told, layout, text = found(session), layout_of(session), session[:]
    before = bytes_of(copy)
    writes = (
        lambda s: s.append("x"),
        lambda s: s.append([]),
        lambda s: s.generate("x"),
        lambda s: s.stream("x"),
        lambda s: s.flush(),
        lambda s: s.focus.pin((0, 32)),
        lambda s: s.focus.unpin((64, 96)),
        lambda s: s.focus.expand((320, 352)),
        lambda s: s.focus.collapse((320, 352)),
    )
    with open_session(copy, read_only=True) as first, open_session(copy, read_only=True) as second:
        for session in (first, second):
            assert (told, layout, text) == (found(session), layout_of(session), session[:])
            assert session.audit().kl_mean_nats < 1e-9
            assert session.focus.report("Where is the key?").cost <= 512
            assert len(session.messages()) > 60
            for write in writes:
                with pytest.raises(errors.ReadOnlyError, match="open it for writing"):
                    write(session)
    assert before == bytes_of(copy)


def no_memory(path: Path) -> None:
    """There is nothing."""


def a_file(path: Path) -> None:
    path.write_text("my diary")


def a_database(path: Path) -> None:
    path.write_bytes(b"DUCK" * 4_096)


def another_directory(path: Path) -> None:
    path.mkdir()
    (path / "holiday.jpg").write_bytes(b"beach")


def a_link(path: Path) -> None:
    path.with_name("there").mkdir()
    path.symlink_to(path.with_name("there"))


def garbled_memory_file(path: Path) -> None:
    with MemorySession.open(path, model="echo", storage="duckdb", sinks=()) as session:
        session.append("x")
    (path / "MEMORY").write_text('{"format": ' + "[" * 100_000)


@pytest.mark.parametrize(
    ("make", "arguments", "kind", "fix"),
    [
        (no_memory, {"create": False}, errors.SessionNotFoundError, "create=True"),
        (no_memory, {"read_only": True}, errors.SessionNotFoundError, "check the path"),
        (a_file, {}, errors.ConfigError, "choose another path"),
        (a_file, {"read_only": True}, errors.ConfigError, "choose another path"),
        (a_database, {}, errors.ConfigError, "choose another path"),
        (another_directory, {}, errors.ConfigError, "give a new or empty directory"),
        (another_directory, {"create": False}, errors.MegaContextError, ""),
        (a_link, {}, errors.ConfigError, "give the directory it points to"),
        (garbled_memory_file, {}, errors.CorruptError, "MEMORY"),
        (no_memory, {"w_max": 5}, errors.ConfigError, "64"),
        (no_memory, {"model": "gpt-9"}, errors.UnknownProviderError, "echo"),
        (no_memory, {"focus": "psychic"}, errors.UnknownProviderError, "heuristic"),
        (no_memory, {"durability": "maybe"}, errors.ConfigError, "sync"),
    ],
)
def test_what_is_no_memory_is_refused_by_name_and_left_as_it_is(
    open_session, bytes_of, path, make, arguments, kind, fix
) -> None:
    make(path)
    before = bytes_of(path.parent)

    with pytest.raises(kind) as caught:
        open_session(path, **arguments)

    assert fix in str(caught.value)
    assert before == bytes_of(path.parent)
    assert path.is_symlink() or path.exists() == bool(make is not no_memory)


def test_a_memory_of_another_storage_says_which(open_session, copy) -> None:
    text = (copy / "MEMORY").read_text()
    assert '"duckdb"' in text
    with pytest.raises(errors.ConfigError, match="w_max"):
        open_session(copy, w_max=10_000)
    assert text == (copy / "MEMORY").read_text()


def test_a_directory_nobody_may_write_is_refused_and_can_still_be_read(
    bytes_of, kept, path, python, request
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody without permissions")
    folder = Path(tempfile.mkdtemp())  # not below pytest's folder, which nobody else may enter
    request.addfinalizer(lambda: shutil.rmtree(folder))
    folder.chmod(0o755)
    alice = folder / "alice.mc"
    shutil.copytree(kept, alice)
    for found_path in (alice, *alice.rglob("*")):
        os.chown(found_path, 65_534, 65_534)
        found_path.chmod(0o500 if found_path.is_dir() else 0o400)
    before = bytes_of(alice)
    code = """
        import os, sys
        from megacontext_sdk import MemorySession, errors
        from megacontext_sdk.plugins import Plugins
        given = {"model": "echo", "w_max": 512, "plugins": Plugins.load()}
        with MemorySession.open(sys.argv[2], **given) as session:
            session.append("Everything is imported while we may still read the libraries.")
        os.setgid(65_534); os.setuid(65_534)
        for path in (sys.argv[1], os.path.dirname(sys.argv[1]) + "/new.mc"):
            try:
                MemorySession.open(path, **given)
            except errors.ReadOnlyError as error:
                print(error.path == path, "permissions" in str(error))
        with MemorySession.open(sys.argv[1], read_only=True, **given) as session:
            print(session.search("saffron")[0].text.startswith("A kilogram"))
    """
    assert ["True True", "True True", "True"] == python(code, alice, path).splitlines()
    assert before == bytes_of(alice)


def test_row75_a_lower_budget_makes_room_on_reopening(open_session, copy) -> None:
    for w_max in (960, 320, 512):
        with open_session(copy, w_max=w_max) as session:
            stats = session.stats()
            assert stats.rows <= w_max - 64
            assert (Span(64, 96),) == session._parts.state.wc.pins
            assert session.generate("Go on.", max_new_tokens=34).usage.window_rows <= w_max


def test_row75_pins_too_large_for_a_lower_budget_are_refused_before_any_change(
    open_session, bytes_of, copy
) -> None:
    with open_session(copy) as session:
        session.focus.unpin((64, 96))
        session.focus.pin((320, 448))
    before = bytes_of(copy)
    with pytest.raises(errors.BudgetError, match="pin") as caught:
        open_session(copy, w_max=256)
    assert caught.value.needed > caught.value.available
    assert before == bytes_of(copy)
    with open_session(copy) as session:
        assert (Span(320, 448),) == session._parts.state.wc.pins


@pytest.mark.parametrize(
    ("n_items", "how"), [(2, "leave"), (3, "close"), (20, "throw"), (40, "leave"), (50, "throw")]
)
def test_what_an_interrupted_stream_showed_is_there_after_reopening(
    open_session, path, n_items, how
) -> None:
    shown = ""
    session = open_session(path)
    session.append("The ferry to Aran leaves at nine.")
    stream = session.stream("Tell me.", max_new_tokens=120)
    for _ in range(n_items):
        item = next(stream)
        shown += item.text if isinstance(item, TextDelta) else ""
    if how == "close":
        stream.close()
    if how == "throw":
        with pytest.raises(KeyboardInterrupt):
            stream.throw(KeyboardInterrupt)
    session.close()
    with open_session(path) as session:
        assert shown == session.messages()[-1].text
        assert "assistant" == session.messages()[-1].role
        assert session.generate("And now?", max_new_tokens=40).text == session.messages()[-1].text


def _garbage(n: int) -> bytes:
    return np.random.default_rng(n).bytes(n)


_LAYOUTS = {
    "deleted": None,
    "empty": b"",
    "noise": _garbage(700),
    "a number": msgspec.msgpack.encode(7),
    "a list": msgspec.msgpack.encode([1, 2]),
    "nothing": msgspec.msgpack.encode(None),
    "another version": msgspec.msgpack.encode({"version": 99}),
    "a map without columns": msgspec.msgpack.encode({"version": 1}),
}


@pytest.mark.parametrize("case", [*_LAYOUTS, "cut", "of a longer history", "that does not tile"])
def test_a_layout_file_that_cannot_be_used_costs_the_layout_only(
    open_session, fill, layout_of, copy, tmp_path, case
) -> None:
    file = copy / "cache/layout.msgpack"
    good = file.read_bytes()
    raw = _LAYOUTS.get(case, good[: len(good) // 2])
    if case == "of a longer history":
        with open_session(tmp_path / "longer.mc") as session:
            fill(session, 150)
            session.focus.pin((4_000, 4_064))
        raw = (tmp_path / "longer.mc/cache/layout.msgpack").read_bytes()
    if case == "that does not tile":
        saved = msgspec.msgpack.decode(good)
        raw = msgspec.msgpack.encode(saved | {"index": saved["index"][8:] + saved["index"][:8]})
    file.unlink() if raw is None else file.write_bytes(raw)

    with open_session(copy) as session:
        session._parts.state.wc.check()
        assert (Span(64, 96),) == session._parts.state.wc.pins
        assert session.stats().n_tokens == session.focus.report().n_tokens
        session.generate("Go on.", max_new_tokens=34)
        expected = layout_of(session)
    with open_session(copy) as session:
        assert expected == layout_of(session)


def spoil(file: Path, how: str) -> None:
    if how == "deleted":
        file.unlink()
    elif how == "noise":
        file.write_bytes(_garbage(5_000))
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        raw = bytearray(file.read_bytes())
        raw[4_096:] = _garbage(len(raw) - 4_096)
        file.write_bytes(bytes(raw))


@pytest.mark.parametrize(
    ("how", "read_only"),
    [
        ("deleted", False),
        ("noise", False),
        ("empty", False),
        ("cut", False),
        ("garbled pages", False),
        ("noise", True),
    ],
)
def test_a_lost_lexical_index_is_built_again_and_answers_the_same(
    open_session, found, bytes_of, copy, how, read_only
) -> None:
    with open_session(copy) as session:
        answers, n_rows = found(session), session._parts.lexical.n_rows
    assert all(answers)
    spoil(copy / "cache/lexical.sqlite", how)
    before = bytes_of(copy)
    with open_session(copy, read_only=read_only) as session:
        again, n_again = found(session), session._parts.lexical.n_rows
    if read_only:
        assert before == bytes_of(copy)
    assert answers == again
    assert n_rows == n_again
    with open_session(copy) as session:
        assert answers == found(session)


def test_without_any_cache_the_memory_is_whole(
    counted, open_session, tree_of, found, counts_of, copy
) -> None:
    with open_session(copy) as session:
        told, tree = found(session), tree_of(session)
    shutil.rmtree(copy / "cache")
    (copy / "access.bin").unlink()
    sink = InMemorySink()
    with open_session(copy, sinks=(sink,)) as session:
        assert (told, tree) == (found(session), tree_of(session))
        assert counted(sink.events) == counts_of(session)


def test_a_forked_child_is_refused_and_harms_nothing(open_session, copy) -> None:
    with open_session(copy) as session:
        session.search("ferry")
        session.append("Before the fork.")
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # we mean to fork with a thread
            child = os.fork()
        if child == 0:
            for call in (lambda: session.append("x"), session.stats, lambda: session.search("x")):
                try:
                    call()
                    os.write(writer, b"went through\n")
                except errors.SessionClosedError as error:
                    os.write(writer, f"{error.reason} {'open it again' in str(error)}\n".encode())
            session.close()
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as lines:
            assert ["forked True"] * 3 == lines.read().splitlines()
        os.waitpid(child, 0)
        session.append("After the fork.")
    with open_session(copy) as session:
        assert ["Before the fork.", "After the fork."] == [m.text for m in session.messages()[-2:]]
