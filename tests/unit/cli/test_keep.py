"""The commands for the life of a memory, end to end with the echo model on the default storage."""

from __future__ import annotations

import json

import attrs
import pytest

from megacontext_sdk import MemorySession, errors

pytest.importorskip("megacontext_duckdb", reason="the duckdb backend is not installed")

ECHO = ("--model", "echo")
SECRET = "The gate code is XK7-4711-ZQ, tell nobody."


def opened(path, **arguments):
    return MemorySession.open(path, model="echo", **arguments)


@pytest.fixture
def memory(tmp_path):
    """A memory with a secret in the middle."""
    path = tmp_path / "notes.mc"
    with opened(path) as session:
        session.append("My cat is called Turing.")
        session.append(SECRET, source="mail", metadata={"case": 7})
        session.append("The dentist moved to the harbour. " * 40)
    return path


def test_snapshots_are_taken_listed_and_restored(call, memory):
    assert "no snapshots" in call("snapshot", memory, *ECHO).stdout
    taken = call("snapshot", memory, "monday", *ECHO)
    assert (0, True) == (taken.exit_code, "monday" in taken.stdout)
    with opened(memory) as session:
        session.append("The zeppelin lands at noon.")
    result = call("restore", memory, "monday", "--yes", *ECHO)
    assert 0 == result.exit_code, result.output
    assert "in rescue/" in result.stdout
    listed = json.loads(call("snapshot", memory, "--json", *ECHO).stdout)
    assert ["monday"] == [one["name"] for one in listed]
    with opened(memory, read_only=True) as session:
        assert [] == session.search("zeppelin")


def test_restoring_asks_first(call, memory):
    call("snapshot", memory, "monday", *ECHO)
    with opened(memory) as session:
        session.append("The zeppelin lands at noon.")
    assert 1 == call("restore", memory, "monday", *ECHO, said="n\n").exit_code
    with opened(memory, read_only=True) as session:
        assert session.search("zeppelin")


def test_an_unknown_snapshot_is_one_line_that_lists_the_others(call, memory):
    call("snapshot", memory, "monday", *ECHO)
    result = call("restore", memory, "tuesday", "--yes", *ECHO)
    assert 1 == result.exit_code
    assert "monday" in result.stderr
    assert 1 == len(result.stderr.strip().splitlines())


def test_forking_makes_a_memory_of_its_own(call, memory, tmp_path):
    result = call("fork", memory, tmp_path / "copy.mc", *ECHO)
    assert 0 == result.exit_code, result.output
    with opened(tmp_path / "copy.mc") as copy, opened(memory) as session:
        assert session[:] == copy[:]


@pytest.mark.parametrize("at", ["monday", "2"])
def test_forking_at_a_snapshot_or_commit(call, memory, tmp_path, at):
    call("snapshot", memory, "monday", *ECHO)
    assert 0 == call("fork", memory, tmp_path / "copy.mc", "--at", at, *ECHO).exit_code
    assert (tmp_path / "copy.mc" / "MEMORY").exists()


def test_forgetting_shows_what_would_go_and_asks(call, memory):
    result = call("forget", memory, "--where", "source=mail", *ECHO, said="n\n")
    assert 1 == result.exit_code
    assert "would be forgotten" in result.stdout
    with opened(memory, read_only=True) as session:
        assert session.search("gate code")


@pytest.mark.parametrize(
    "scope",
    [
        ("--where", "source=mail"),
        ("--where", "metadata.case=7"),
        ("--where", "source=mail", "--where", "metadata.case=7"),
        ("--message", "2"),
        ("--everything",),
    ],
)
def test_forgetting_is_proven(call, memory, scope):
    result = call("forget", memory, *scope, "--yes", *ECHO)
    assert 0 == result.exit_code, result.output
    assert "proven" in result.stdout
    with opened(memory, read_only=True) as session:
        assert [] == session.search("XK7-4711-ZQ")
    files = [file for file in memory.rglob("*") if file.is_file()]
    assert not any(b"XK7-4711-ZQ" in file.read_bytes() for file in files)


def test_a_dry_run_as_json_is_what_the_api_returns(call, memory):
    result = call("forget", memory, "--span", "0", "40", "--dry-run", "--json", *ECHO)
    with opened(memory, read_only=True) as session:
        expected = session.forget(span=(0, 40), dry_run=True).to_dict()
    assert expected == json.loads(result.stdout)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "exactly one"),
        (("--everything", "--message", "1"), "one"),
        (("--where", "source"), "FIELD=VALUE"),
        (("--where", "colour=red"), "role, source"),
        (("--before", "yesterday"), "30d"),
        (("--before", "2026-01-01"), "zone"),
    ],
)
def test_a_scope_that_makes_no_sense_is_one_line(call, memory, arguments, said):
    result = call("forget", memory, *arguments, "--yes", *ECHO)
    assert 1 == result.exit_code
    assert 1 == len(result.stderr.strip().splitlines())
    assert said in result.stderr


def test_old_messages_are_forgotten_by_age(call, memory):
    result = call("forget", memory, "--before", "30d", "--dry-run", *ECHO)
    assert 0 == result.exit_code, result.output
    assert "0 tokens" in result.stdout


def test_forks_forget_when_they_are_told(call, memory, tmp_path):
    call("fork", memory, tmp_path / "copy.mc", *ECHO)
    refused = call("forget", memory, "--message", "2", "--yes", *ECHO)
    assert 1 == refused.exit_code
    assert "copy.mc" in refused.stderr
    result = call("forget", memory, "--message", "2", "--forks", "--yes", *ECHO)
    assert 0 == result.exit_code, result.output
    with opened(tmp_path / "copy.mc") as copy:
        assert "4711" not in copy[:]


@pytest.mark.parametrize("form", ["bundle", "jsonl"])
def test_a_memory_is_exported_and_loaded(call, memory, tmp_path, form):
    target = tmp_path / f"out.{form}"
    result = call("export", memory, target, "--format", form, *ECHO)
    assert 0 == result.exit_code, result.output
    result = call("load", target, tmp_path / "copy.mc", *ECHO)
    assert 0 == result.exit_code, result.output
    with opened(tmp_path / "copy.mc") as copy, opened(memory) as session:
        assert [m.text for m in session.messages()] == [m.text for m in copy.messages()]
        assert {1} == {int(m.trust) for m in copy.messages()}


def test_loading_may_believe_the_source(call, memory, tmp_path):
    call("export", memory, tmp_path / "out.bundle", *ECHO)
    call("load", tmp_path / "out.bundle", tmp_path / "copy.mc", "--keep-trust", *ECHO)
    with opened(tmp_path / "copy.mc") as copy:
        assert {3} == {int(m.trust) for m in copy.messages()}


def test_rebuilding_says_what_was_made(call, memory):
    result = call("rebuild", memory, *ECHO)
    assert 0 == result.exit_code, result.output
    assert "0 gists made" in result.stdout


def test_recovering_a_sound_memory_finds_nothing_to_do(call, memory):
    result = call("recover", memory)
    assert (0, True) == (result.exit_code, "sound" in result.stdout)


def damage(memory):
    (data,) = memory.glob("data-*")
    biggest = max((f for f in data.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    raw = biggest.read_bytes()
    biggest.write_bytes(raw[: len(raw) * 2 // 3] + bytes(len(raw) - len(raw) * 2 // 3))


def test_a_damaged_memory_is_looked_at_and_recovered(call, memory):
    damage(memory)
    with pytest.raises(errors.CorruptError):
        opened(memory)
    looked = call("doctor", memory)
    assert (1, True) == (looked.exit_code, "damaged" in looked.stdout)
    refused = call("recover", memory, said="n\n")
    assert 1 == refused.exit_code
    with pytest.raises(errors.CorruptError):
        opened(memory)
    result = call("recover", memory, "--yes")
    assert 0 == result.exit_code, result.output
    assert f"{memory}/rescue/" in "".join(result.stdout.split())  # long paths fold, whole
    with opened(memory) as session:
        session.append("It goes on.")
    assert 0 == call("doctor", memory, "--scrub").exit_code


def test_the_doctor_scrubs_a_memory_without_its_model(call, memory):
    result = call("doctor", memory, "--scrub")
    assert 0 == result.exit_code, result.output
    assert "problems" in result.stdout
    found = json.loads(call("doctor", memory, "--scrub", "--json").stdout)
    report = MemorySession.scrub(memory)
    assert (report.commits, report.messages, []) == (
        found["commits"],
        found["messages"],
        found["problems"],
    )


def test_the_doctor_shows_problems_and_fails(call, memory, monkeypatch):
    report = attrs.evolve(MemorySession.scrub(memory), problems=("block 7 is torn",))
    monkeypatch.setattr(MemorySession, "scrub", lambda path, **arguments: report)
    result = call("doctor", memory, "--scrub")
    assert (1, True) == (result.exit_code, "block 7 is torn" in result.stdout)


def test_the_doctor_of_nothing_says_what_to_name(call, tmp_path):
    assert "name its directory" in call("doctor", "--scrub").stderr
    missing = call("doctor", tmp_path / "none.mc")
    assert (1, 1) == (missing.exit_code, len(missing.stderr.strip().splitlines()))


@pytest.mark.parametrize(
    "name", ["snapshot", "restore", "fork", "forget", "export", "load", "rebuild", "recover"]
)
def test_every_command_has_help(call, name):
    result = call(name, "--help")
    assert 0 == result.exit_code
    assert "Usage" in result.stdout


def test_commands_find_the_storage_a_memory_was_made_with(call, tmp_path):
    pytest.importorskip("megacontext_filesystem", reason="the filesystem backend is not installed")
    path = tmp_path / "notes.mc"
    with opened(path, storage="filesystem") as session:
        session.append(SECRET)
    result = call("search", path, "gate code", *ECHO)
    assert (0, True) == (result.exit_code, "XK7-4711-ZQ" in result.stdout)
