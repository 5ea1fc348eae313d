"""Snapshots and going back to them: the same history at the cut, and nothing of what followed."""

from __future__ import annotations

import numpy as np
import pytest

from megacontext_sdk import Span, errors


def test_a_snapshot_names_the_present_end(place, fill):
    with place.open() as session:
        fill(session, 3)
        seq = session._parts.journal.seq
        made = session.snapshot("before-lunch")
        assert ("before-lunch", seq) == (made.name, made.seq)
        assert session.stats().n_tokens == made.n_tokens
        assert (made,) == session.snapshots()


def test_snapshots_are_listed_from_the_oldest_place_on(place, fill):
    with place.open() as session:
        for name in ("b", "a", "c"):
            fill(session, 1)
            session.snapshot(name)
        assert ["b", "a", "c"] == [one.name for one in session.snapshots()]


def test_a_name_is_given_once(place):
    with place.open() as session:
        session.snapshot("one")
        with pytest.raises(errors.ConfigError, match="already"):
            session.snapshot("one")


@pytest.mark.parametrize(
    "name", ["", " ", "../x", "a/b", "a\n", "é", "-a", "x" * 129, 1, None, b"a"]
)
def test_row01_a_name_is_plain(place, name):
    with place.open() as session:
        before = session._parts.journal.seq
        for call in (session.snapshot, session.restore):
            with pytest.raises(errors.ConfigError) as caught:
                call(name)
            assert "name" == caught.value.field
        assert before == session._parts.journal.seq


def test_an_unknown_name_is_refused_with_those_there_are(place):
    with place.open() as session:
        session.snapshot("one")
        session.snapshot("two")
        with pytest.raises(errors.ConfigError, match="one, two"):
            session.restore("three")


def test_restoring_gives_the_same_tokens_and_the_same_chain_at_the_cut(place, fill, chain):
    with place.open() as session:
        fill(session, 30)
        before = chain(session)
        ids = session._parts.tree.token_ids(Span(0, before[2]))
        text = session[:]
        session.snapshot("here")
        fill(session, 20, word="dog")

        session.restore("here")

        journal = session._parts.journal
        assert text == session[:]
        assert np.array_equal(ids, session._parts.tree.token_ids(Span(0, journal.n_tokens)))
        (row,) = session._parts.memory.storage.read_commits(before[0], before[0] + 1)
        assert before[1] == row["chain"].tobytes()
        # One commit more: the settings that say which snapshots there are.
        assert before[0] + 1 == journal.seq


def test_gists_are_carried_over_and_not_made_again(place, fill):
    with place.open() as session:
        fill(session, 40)
        node = np.arange(10)
        gists = session._parts.tree.gists(1, node).copy()
        session.snapshot("here")
        fill(session, 40, word="dog")
        session.restore("here")
        assert {} == dict(session._parts.tree.encode_calls)
        assert 0 == session.stats().gists_missing
        assert np.array_equal(gists, session._parts.tree.gists(1, node))


def test_what_followed_is_found_no_more(place, fill):
    with place.open() as session:
        fill(session, 5)
        session.snapshot("here")
        session.append("The zeppelin lands at noon.")
        assert session.search("zeppelin")
        session.restore("here")
        assert [] == session.search("zeppelin")
        assert "zeppelin" not in session.generate("zeppelin?", max_new_tokens=4).text


def test_a_restored_session_goes_on(place, fill):
    with place.open() as session:
        fill(session, 20)
        session.snapshot("here")
        fill(session, 20)
        session.restore("here")
        session.append("A new beginning by the sea.")
        assert "beginning" in session.search("new beginning", 1)[0].text
        report = session.focus.report()
        assert report.n_tokens == session.stats().n_tokens
        assert session.audit(8).top1_agreement > 0


def test_the_focus_handle_follows(place, fill):
    with place.open() as session:
        fill(session, 20)
        session.snapshot("here")
        focus = session.focus
        fill(session, 20)
        session.restore("here")
        assert session.stats().n_tokens == focus.report().n_tokens
        focus.pin((0, 32))
        assert focus.report().entries[0].pinned


def test_later_snapshots_go_with_their_history_and_earlier_ones_stay(place, fill):
    with place.open() as session:
        for name in ("one", "two", "three"):
            fill(session, 2)
            session.snapshot(name)
        session.restore("two")
        assert ["one", "two"] == [one.name for one in session.snapshots()]
        session.restore("one")
        assert ["one"] == [one.name for one in session.snapshots()]


def test_the_same_snapshot_can_be_restored_again_and_again(place, fill):
    with place.open() as session:
        fill(session, 3)
        session.snapshot("here")
        text = session[:]
        for _ in range(3):
            fill(session, 3)
            session.restore("here")
            assert text == session[:]


def test_pins_are_those_of_the_snapshot(place, fill):
    with place.open() as session:
        fill(session, 20)
        session.focus.pin((64, 96))
        session.snapshot("here")
        session.focus.unpin((64, 96))
        session.focus.pin((128, 160))
        session.restore("here")
        pinned = [entry.span for entry in session.focus.report().entries if entry.pinned]
        assert [Span(64, 96)] == pinned


def test_a_stream_that_is_open_ends_before_the_restore(place, fill):
    with place.open() as session:
        fill(session, 3)
        session.snapshot("here")
        text = session[:]
        stream = session.stream("Hello?", max_new_tokens=200)
        next(stream)
        session.restore("here")
        assert text == session[:]
        assert [] == list(stream)


def test_what_was_cut_off_is_kept_in_rescue(disk, fill):
    with disk.open() as session:
        fill(session, 3)
        session.snapshot("here")
        fill(session, 3)
        session.restore("here")
        assert 2 == session.stats().generation
        (kept,) = (session.path / "rescue").iterdir()
        assert kept.name.startswith("data-000001")


def test_a_restored_memory_reopens_as_it_was(disk, fill, chain):
    with disk.open() as session:
        fill(session, 20)
        session.snapshot("here")
        fill(session, 20)
        session.restore("here")
        fill(session, 2, word="bird")
        before, text = chain(session), session[:]
    with disk.open() as session:
        assert before == chain(session)
        assert text == session[:]
        assert ["here"] == [one.name for one in session.snapshots()]


def test_a_failed_restore_leaves_the_session_where_it_was(disk, fill, chain, monkeypatch):
    with disk.open() as session:
        fill(session, 10)
        session.snapshot("here")
        fill(session, 10)
        before, text = chain(session), session[:]

        def fail(*arguments, **keywords):
            raise errors.CorruptError("no")

        monkeypatch.setattr("megacontext_sdk.keeping.copy_gists", fail)
        with pytest.raises(errors.CorruptError, match="no"):
            session.restore("here")
        monkeypatch.undo()

        assert before == chain(session)
        assert text == session[:]
        session.append("It goes on.")
        session.restore("here")
        assert "goes on" not in session[:]


def test_a_session_that_cannot_be_renewed_is_failed_and_the_memory_is_whole(
    disk, fill, monkeypatch
):
    session = disk.open()
    fill(session, 10)
    session.snapshot("here")
    text = session[:]
    fill(session, 10)
    monkeypatch.setattr("megacontext_sdk.parts.Parts.settle", None)
    with pytest.raises(TypeError):
        session.restore("here")
    monkeypatch.undo()
    with pytest.raises(errors.SessionClosedError):
        session.append("no")
    session.close()
    with disk.open() as again:
        assert text == again[:]


def test_a_restore_that_fails_once_it_is_in_force_ends_the_handle(disk, fill, monkeypatch):
    session = disk.open()
    fill(session, 10)
    session.snapshot("here")
    text = session[:]
    fill(session, 10)

    def fail(*arguments, **keywords):
        raise errors.StorageError("no")

    monkeypatch.setattr("megacontext_sdk.memory.directory.generation_switch.start_journal", fail)
    with pytest.raises(errors.StorageError, match="no"):
        session.restore("here")
    monkeypatch.undo()
    with pytest.raises(errors.SessionClosedError):
        session.append("no")
    with pytest.raises(errors.SessionClosedError):
        session.close()
    with disk.open() as again:
        assert text == again[:]


def test_an_interruption_while_text_is_indexed_again_costs_nothing(place, fill, monkeypatch):
    with place.open() as session:
        fill(session, 40)
        session.snapshot("here")
        text = session[:]
        fill(session, 10, word="dog")
        with monkeypatch.context() as patch:
            patch.setattr("megacontext_sdk.runtime.scribe._CATCH_UP_MESSAGES", 8)
            calls = []

            def interrupt(*arguments):
                calls.append(arguments)
                if len(calls) == 3:
                    raise KeyboardInterrupt
                return original(*arguments)

            original = session._parts.scribe._page_rows.__func__
            patch.setattr("megacontext_sdk.runtime.scribe.Scribe._page_rows", interrupt)
            with pytest.raises(KeyboardInterrupt):
                session.restore("here")
        assert text == session[:]
        session.append("The zeppelin lands at noon.")
        assert session.search("zeppelin", 1)
        for number in (0, 20, 39):
            assert f"Anna{number}" in session.search(f"Anna{number}", 1)[0].text


def test_reading_only_takes_no_snapshot(disk, fill):
    with disk.open() as session:
        fill(session, 1)
        session.snapshot("here")
    with disk.open(read_only=True) as session:
        for call in (session.snapshot, session.restore):
            with pytest.raises(errors.ReadOnlyError):
                call("here")


@pytest.mark.parametrize("by", ["name", "number"])
def test_a_view_shows_the_memory_as_it_was(disk, fill, by):
    with disk.open() as session:
        fill(session, 40)
        text = session[:]
        made = session.snapshot("here")
        fill(session, 10, word="dog")
        n_tokens = session.stats().n_tokens
    at = "here" if by == "name" else made.seq
    with disk.open(at=at, read_only=True) as view:
        assert text == view[:]
        assert [] == view.search("dog")
        assert made.n_tokens == view.focus.report().n_tokens
        with pytest.raises(errors.ReadOnlyError):
            view.append("no")
    with disk.open() as session:
        assert n_tokens == session.stats().n_tokens


@pytest.mark.parametrize("at", ["there", -1, 10**9, 1.5, True])
def test_a_view_of_nowhere_is_refused(disk, fill, at):
    with disk.open() as session:
        fill(session, 1)
        session.snapshot("here")
    with pytest.raises(errors.ConfigError) as caught:
        disk.open(at=at, read_only=True)
    assert "at" == caught.value.field


def test_a_view_is_for_reading(disk, fill):
    with disk.open() as session:
        fill(session, 1)
        session.snapshot("here")
    with pytest.raises(errors.ConfigError, match="read_only=True"):
        disk.open(at="here")
