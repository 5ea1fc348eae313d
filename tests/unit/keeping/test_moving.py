"""Out of one memory and into another: what comes along, what is believed, what is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import attrs
import numpy as np
import pytest

from megacontext_sdk import MemorySession, Span, errors
from megacontext_sdk.builtin.echo import EchoModel

STRANGER = "Ada"


@pytest.fixture
def load(place, model):
    """Load something into another memory of the same storage."""

    def call(source, name="copy.mc", **arguments):
        arguments = {"model": model, "w_max": 512, "strict": True} | arguments
        return MemorySession.load(source, into=place.path(name), storage=place.storage, **arguments)

    return call


def told(session):
    when = datetime(2026, 3, 1, 12, tzinfo=UTC)
    session.append(
        [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "My cat is called Turing.", "name": STRANGER},
            {"role": "assistant", "content": "Noted. " * 30},
            {"role": "user", "content": "Grüße aus Köln 🐈", "timestamp": when},
        ],
        source="chat",
        metadata={"channel": "web"},
    )


def essence(session):
    return [
        (m.role, m.text, m.source, m.actor, m.metadata, m.timestamp) for m in session.messages()
    ]


def test_a_bundle_is_not_written_where_it_could_not_be_loaded_from(place, tmp_path):
    with place.open() as session:
        told(session)
        with pytest.raises(errors.ConfigError) as caught:
            session.export(tmp_path / "out.jsonl", format="bundle")
        assert "path" == caught.value.field
        assert not (tmp_path / "out.jsonl").exists()
        assert "jsonl" == session.export(tmp_path / "lines.txt", format="jsonl").format


@pytest.mark.parametrize("form", ["bundle", "jsonl"])
def test_messages_come_through_whole(place, load, tmp_path, form):
    target = tmp_path / f"out.{form}"
    with place.open() as session:
        told(session)
        exported = session.export(target)
        assert (str(target), form) == (exported.path, exported.format)
        assert target.stat().st_size == exported.n_bytes
        with load(target) as copy:
            assert essence(session) == essence(copy)
            assert session[:] == copy[:]
            copy.append("It goes on.")
            assert copy.search("Turing", 1)
            assert copy.verify().is_sound


def test_a_bundle_brings_tokens_and_gists(place, load, fill, tmp_path):
    with place.open() as session:
        fill(session)
        session.export(tmp_path / "out.bundle")
        with load(tmp_path / "out.bundle", trust="keep") as copy:
            nodes = np.arange(8)
            assert {} == dict(copy._parts.tree.encode_calls)
            assert np.array_equal(
                session._parts.tree.gists(1, nodes), copy._parts.tree.gists(1, nodes)
            )


def test_strangers_are_external_unless_they_are_believed(place, load, tmp_path):
    with place.open() as session:
        told(session)
        before = [m.trust for m in session.messages()]
        for form in ("bundle", "jsonl"):
            session.export(tmp_path / f"out.{form}", format=form)
    for form in ("bundle", "jsonl"):
        with load(tmp_path / f"out.{form}", f"{form}-a.mc") as copy:
            assert {1} == {int(m.trust) for m in copy.messages()}
        with load(tmp_path / f"out.{form}", f"{form}-b.mc", trust="keep") as copy:
            assert before == [m.trust for m in copy.messages()]


def test_a_memory_is_loaded_from_its_directory(disk, fill, tmp_path, model):
    with disk.open() as session:
        told(session)
        before = essence(session)
    with MemorySession.load(
        disk.path(), into=tmp_path / "copy.mc", storage=disk.storage, model=model
    ) as copy:
        assert before == essence(copy)


def test_storages_exchange_memories(place, disk, fill, tmp_path, model):
    with place.open("first.mc") as session:
        fill(session, 20)
        session.export(tmp_path / "out.bundle")
        with MemorySession.load(
            tmp_path / "out.bundle", into=disk.path("second.mc"), storage=disk.storage, model=model
        ) as copy:
            whole = Span(0, session.stats().n_tokens)
            assert np.array_equal(
                session._parts.tree.token_ids(whole), copy._parts.tree.token_ids(whole)
            )


def test_a_transcript_is_lines_for_other_tools(place, tmp_path):
    with place.open() as session:
        told(session)
        session.export(tmp_path / "out.jsonl", format="jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert ["system", "user", "assistant", "user"] == [line["role"] for line in lines]
    assert STRANGER == lines[1]["actor"]


def test_lines_of_other_tools_are_loaded(load, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"role": "user", "content": "Hello"}\n\n{"role": "tool", "content": "42"}\n')
    with load(source) as session:
        assert [("user", "Hello"), ("tool", "42")] == [(m.role, m.text) for m in session.messages()]


def test_a_line_that_is_no_message_refuses_the_file(place, load, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"role": "user", "content": "Hello"}\n{"role": "wizard", "content": "x"}\n')
    with pytest.raises(errors.BundleError, match="line 2"):
        load(source)
    assert place.path("copy.mc") is None or not place.path("copy.mc").exists()


def test_an_export_is_noted_and_one_that_failed_is_not(place, tmp_path, monkeypatch):
    with place.open() as session:
        told(session)
        session.export(tmp_path / "out.bundle")
        (note,) = session._parts.journal.settings["exports"]
        assert (str(tmp_path / "out.bundle"), "bundle") == (note["path"], note["format"])
        with pytest.raises(errors.ConfigError):
            session.export(tmp_path / "no" / "such" / "folder.bundle")
        assert [note] == list(session._parts.journal.settings["exports"])


def test_a_file_that_exists_is_left_alone(place, tmp_path, chain):
    target = tmp_path / "out.bundle"
    target.write_text("mine")
    with place.open() as session:
        before = chain(session)
        with pytest.raises(errors.ConfigError, match="exists"):
            session.export(target)
        assert before == chain(session)
    assert "mine" == target.read_text()


@pytest.mark.parametrize("form", ["pickle", "", 1, b"bundle"])
def test_an_unknown_format_is_refused(place, tmp_path, form):
    with place.open() as session, pytest.raises(errors.ConfigError) as caught:
        session.export(tmp_path / "out", format=form)
    assert "format" == caught.value.field


def test_reading_only_exports(disk, tmp_path):
    with disk.open() as session:
        told(session)
        session.snapshot("here")
        session.append("Later.")
    with disk.open(read_only=True) as session:
        session.export(tmp_path / "out.bundle")
    with disk.open(read_only=True, at="here") as view:
        assert 4 == view.export(tmp_path / "out.jsonl", format="jsonl").n_messages
        earlier = view.export(tmp_path / "earlier.bundle")
    assert earlier.n_bytes < (tmp_path / "out.bundle").stat().st_size


def test_a_target_that_exists_is_refused(disk, tmp_path, model):
    with disk.open() as session:
        told(session)
        session.export(tmp_path / "out.bundle")
        with pytest.raises(errors.ConfigError):
            MemorySession.load(
                tmp_path / "out.bundle", into=disk.path(), storage=disk.storage, model=model
            )


def test_a_damaged_bundle_is_refused_and_leaves_nothing(place, load, tmp_path):
    target = tmp_path / "out.bundle"
    with place.open() as session:
        told(session)
        session.export(target)
    raw = bytearray(target.read_bytes())
    raw[len(raw) // 2] ^= 1
    target.write_bytes(raw)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(errors.BundleError):
        load(target)
    assert before == sorted(tmp_path.iterdir())


@pytest.mark.parametrize("trust", ["all", 4, True, b"keep", ""])
def test_an_unknown_trust_is_refused(load, tmp_path, trust):
    with pytest.raises(errors.ConfigError) as caught:
        load(tmp_path / "in.jsonl", trust=trust)
    assert "trust" == caught.value.field


def test_nothing_there_is_not_found(load, tmp_path):
    for name in ("in.jsonl", "in.bundle"):
        with pytest.raises(errors.SessionNotFoundError):
            load(tmp_path / name)


def test_a_storage_on_disk_needs_a_directory(disk, tmp_path, model):
    (tmp_path / "in.jsonl").write_text('{"role": "user", "content": "Hello"}\n')
    with pytest.raises(errors.ConfigError) as caught:
        MemorySession.load(tmp_path / "in.jsonl", into=None, storage=disk.storage, model=model)
    assert "into" == caught.value.field


def other_model(**facts):
    """The echo model under another fingerprint."""

    class Stranger(EchoModel):
        @property
        def info(self):
            return attrs.evolve(super().info, **facts)

    return Stranger()


def test_another_tokenizer_needs_new_ids(place, load, tmp_path):
    stranger = other_model(tokenizer_fingerprint="other")
    with place.open() as session:
        told(session)
        session.export(tmp_path / "out.bundle")
        before = essence(session)
    with pytest.raises(errors.ModelMismatchError, match="retokenize=True"):
        load(tmp_path / "out.bundle", model=stranger)
    with load(tmp_path / "out.bundle", model=stranger, retokenize=True) as copy:
        assert before == essence(copy)
        assert copy.search("Turing", 1)


def test_another_base_takes_a_memory_over_in_place(disk, fill):
    stranger = other_model(fingerprint="other")
    with disk.open() as session:
        fill(session, 20)
        text = session[:]
    with pytest.raises(errors.ModelMismatchError):
        disk.open(model=stranger)
    with disk.open(model=stranger, adopt_model=True) as session:
        assert text == session[:]
        assert session.stats().gists_rebuilt > 0
    with disk.open(model=stranger) as session:
        assert 0 == session.stats().gists_rebuilt
    with pytest.raises(errors.ModelMismatchError):
        disk.open()


def test_recovering_a_sound_memory_changes_nothing(disk, fill):
    with disk.open() as session:
        fill(session, 5)
        n_tokens = session.stats().n_tokens
    for dry_run in (True, False):
        found = MemorySession.recover(disk.path(), dry_run=dry_run)
        assert (False, n_tokens, None) == (found.is_damaged, found.n_tokens, found.rescue)


def test_a_damaged_memory_is_cut_back_to_what_survives(disk, fill):
    with disk.open() as session:
        fill(session, 20)
        seq, n_tokens = session._parts.journal.seq, session.stats().n_tokens
    (data,) = disk.path().glob("data-*")
    biggest = max((f for f in data.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    raw = bytearray(biggest.read_bytes())
    raw[len(raw) // 2 :] = bytes(len(raw) - len(raw) // 2)
    biggest.write_bytes(raw)
    with pytest.raises(errors.CorruptError):
        disk.open()
    found = MemorySession.recover(disk.path(), dry_run=True)
    assert (True, seq) == (found.is_damaged, found.want_seq)
    assert found.have_seq < seq
    done = MemorySession.recover(disk.path())
    assert done.rescue is not None
    with disk.open() as session:
        assert done.n_tokens == session.stats().n_tokens < n_tokens
        assert session.verify().is_sound
        session.append("It goes on.")


def test_an_open_memory_is_not_recovered(disk):
    with disk.open(), pytest.raises(errors.SessionLockedError):
        MemorySession.recover(disk.path())


def test_what_is_no_memory_is_not_recovered(tmp_path):
    with pytest.raises(errors.SessionNotFoundError):
        MemorySession.recover(tmp_path / "none.mc")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("progress", value) for value in (1, "yes", [], True)),
        *(("timeout", value) for value in ("1", -1, float("nan"), True, [])),
        *(("plugins", value) for value in ("duckdb", [], 7)),
    ],
)
def test_arguments_that_make_no_sense_are_refused(disk, field, value):
    disk.open().close()
    for call in (MemorySession.recover, MemorySession.scrub):
        with pytest.raises(errors.ConfigError) as caught:
            call(disk.path(), **{field: value})
        assert field == caught.value.field
    if field == "progress":
        with disk.open() as session:
            for ask in (session.rebuild, session.verify):
                with pytest.raises(errors.ConfigError):
                    ask(progress=value)


def test_scrubbing_needs_no_model(disk, fill):
    with disk.open() as session:
        fill(session, 20)
        commits = session._parts.journal.seq
    report = MemorySession.scrub(disk.path(), bytes_per_second=10**9)
    assert (True, commits, str(disk.path())) == (report.is_sound, report.commits, report.path)
    with pytest.raises(errors.SessionNotFoundError):
        MemorySession.scrub(disk.folder / "none.mc")
    with pytest.raises(errors.ConfigError):
        MemorySession.scrub(disk.path(), bytes_per_second=0)
