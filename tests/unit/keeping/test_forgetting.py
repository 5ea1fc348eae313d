"""Forgetting as a session does it: gone from every answer, file and cache, and proven so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from megacontext_sdk import Span, errors

SECRET = "The gate code is XK7-4711-ZQ, tell nobody."


@pytest.fixture
def told(place, fill):
    """A session with 40 messages, a secret in the middle, and the receipt of the secret."""
    with place.open() as session:
        fill(session, 20)
        receipt = session.append(SECRET, source="mail", metadata={"case": 7})
        fill(session, 20, word="dog")
        yield session, receipt


def files_with(session, needle):
    if session.path is None:
        return []
    files = [file for file in session.path.rglob("*") if file.is_file()]
    return [file.name for file in files if needle in file.read_bytes()]


@pytest.mark.parametrize(
    "scope",
    [
        lambda r: {"message_ids": r.message_ids},
        lambda r: {"span": r.span},
        lambda r: {"where": {"source": "mail"}},
        lambda r: {"where": {"metadata": {"case": 7}}},
    ],
    ids=["message_ids", "span", "source", "metadata"],
)
def test_a_forgotten_message_is_shown_no_more(told, scope):
    session, receipt = told
    assert session.search("gate code")
    gone = session.forget(**scope(receipt))
    assert receipt.message_ids == gone.messages
    assert (True, 0) == (gone.verified, gone.hits)
    assert [] == session.search("XK7-4711-ZQ")
    assert "4711" not in session[:]
    assert "4711" not in "".join(message.text for message in session.messages())
    assert "4711" not in session.generate("What is the gate code?", max_new_tokens=32).text
    assert [] == files_with(session, b"XK7-4711-ZQ")


def test_indices_never_move(told):
    session, receipt = told
    n_tokens, n_messages = session.stats().n_tokens, session._parts.journal.n_messages
    after = session.read((receipt.span.end, receipt.span.end + 64))
    session.forget(message_ids=receipt.message_ids)
    assert n_tokens == session.stats().n_tokens
    assert n_messages == session._parts.journal.n_messages - 1  # the receipt is a settings row
    assert after == session.read((receipt.span.end, receipt.span.end + 64))


def test_a_forgotten_message_keeps_its_place(told):
    session, receipt = told
    session.forget(message_ids=receipt.message_ids)
    (message,) = [m for m in session.messages() if m.is_forgotten]
    assert (receipt.message_ids[0], "", None, {}) == (
        message.message_id,
        message.text,
        message.source,
        message.metadata,
    )


def test_reading_what_was_forgotten_raises(told):
    session, receipt = told
    session.forget(span=receipt.span)
    with pytest.raises(errors.DetailUnavailableError) as caught:
        session.read(receipt.span)
    assert (receipt.span, "forgotten") == (caught.value.span, caught.value.why)
    assert not session[receipt.span.start : receipt.span.end]
    assert session.read((receipt.span.start - 4, receipt.span.end))


def test_whole_forgotten_blocks_cannot_be_expanded_or_pinned(told):
    session, _ = told
    session.forget(span=(64, 256))
    for call in (session.focus.expand, session.focus.pin):
        with pytest.raises(errors.DetailUnavailableError):
            call((64, 128))
    session.focus.expand((32, 96))


def test_ancestors_are_made_again(told):
    session, receipt = told
    block = receipt.span.start // 32
    node = np.array([block])
    before = session._parts.tree.gists(1, node).copy()
    above = session._parts.tree.gists(2, node // 32).copy()
    others = session._parts.tree.gists(1, np.array([block - 3])).copy()
    gone = session.forget(message_ids=receipt.message_ids)
    assert gone.gists_dropped == gone.gists_rebuilt > 0
    assert not np.array_equal(before, session._parts.tree.gists(1, node))
    assert not np.array_equal(above, session._parts.tree.gists(2, node // 32))
    assert np.array_equal(others, session._parts.tree.gists(1, np.array([block - 3])))
    assert 0 == session.stats().gists_missing


def test_a_dry_run_changes_nothing(told, chain):
    session, receipt = told
    before, generation = chain(session), session.stats().generation
    gone = session.forget(message_ids=receipt.message_ids, dry_run=True)
    assert (True, None, None) == (gone.dry_run, gone.seq, gone.verified)
    assert receipt.span.n_tokens == gone.tokens
    assert (receipt.span,) == gone.spans
    assert before == chain(session)
    assert generation == session.stats().generation
    assert session.search("gate code")


def test_a_scope_that_matches_nothing_changes_nothing(told, chain):
    session, _ = told
    before = chain(session)
    gone = session.forget(where={"source": "nobody"})
    assert ((), 0) == (gone.messages, gone.tokens)
    assert before == chain(session)
    assert session.search("Anna7")


def test_everything_leaves_an_empty_history_of_the_same_length(told):
    session, _ = told
    n_tokens = session.stats().n_tokens
    gone = session.forget(everything=True)
    assert n_tokens == gone.tokens == session.stats().forgotten_tokens
    assert gone.verified
    assert not session[:]
    assert [] == session.search("harbour")
    session.append("A new beginning.")
    assert session.search("beginning")
    session.generate("Well?", max_new_tokens=8)


def test_old_messages_are_told_by_their_time(place):
    start = datetime(2026, 3, 1, tzinfo=UTC)
    with place.open() as session:
        for day in range(10):
            session.append(f"Day {day} was sunny.", timestamp=start + timedelta(days=day))
        gone = session.forget(before=timedelta(days=3))
        assert 6 == len(gone.messages)
        assert "Day 5" not in session[:]
        assert "Day 6" in session[:]


def test_the_layout_goes_on(told):
    session, receipt = told
    session.focus.pin((32, 64))
    before = [(e.lod, e.span) for e in session.focus.report().entries]
    session.forget(message_ids=receipt.message_ids)
    assert before == [(e.lod, e.span) for e in session.focus.report().entries]
    assert session.focus.report().entries[1].pinned


def test_an_interrupted_proof_ends_the_handle_and_the_forget_holds(disk, fill, monkeypatch):
    session = disk.open()
    fill(session, 5)
    receipt = session.append(SECRET)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("megacontext_sdk.memory.forget.forgetting._Forgetting._proven", interrupt)
        with pytest.raises(KeyboardInterrupt):
            session.forget(message_ids=receipt.message_ids)
    with pytest.raises(errors.SessionClosedError):
        session.append("no")
    with pytest.raises(errors.SessionClosedError):
        session.close()
    with disk.open() as again:
        assert "4711" not in again[:]
        assert again.verify().is_sound


def test_the_receipt_is_kept(told):
    session, receipt = told
    session.forget(message_ids=receipt.message_ids)
    (kept,) = session._parts.journal.settings["receipts"]
    assert receipt.span.n_tokens == kept["tokens"] == session.stats().forgotten_tokens


def test_snapshots_do_not_keep_forgotten_text(told):
    session, receipt = told
    session.snapshot("here")
    session.forget(message_ids=receipt.message_ids)
    session.append("Later.")
    session.restore("here")
    assert "4711" not in session[:]
    assert [] == session.search("XK7-4711-ZQ")


def test_what_a_restore_kept_aside_is_forgotten_too(disk, fill):
    with disk.open() as session:
        fill(session, 3)
        session.snapshot("here")
        receipt = session.append(SECRET)
        session.restore("here")
        assert files_with(session, b"XK7-4711-ZQ")
        session.forget(message_ids=[1])
        assert [] == files_with(session, b"XK7-4711-ZQ")
        assert receipt.span.end > session.stats().n_tokens


def test_a_forgotten_memory_reopens_without_it(disk, fill, chain):
    with disk.open() as session:
        fill(session, 10)
        session.append(SECRET, source="mail")
        fill(session, 10)
        session.forget(where={"source": "mail"})
        before, text = chain(session), session[:]
    with disk.open() as session:
        assert before == chain(session)
        assert text == session[:]
        assert [] == session.search("XK7-4711-ZQ")
        assert session.verify().is_sound


def test_a_memory_with_long_replies_is_sound_and_forgets_them_whole(place, fill):
    with place.open() as session:
        fill(session, 3)
        reply = session.generate("Tell me all about it.", max_new_tokens=150)
        fill(session, 3)
        assert () == session.verify().problems
        gone = session.forget(message_ids=[reply.message_id])
        assert (True, (reply.message_id,)) == (gone.verified, gone.messages)
        assert reply.text.strip() not in session[:]
        assert () == session.verify().problems


def test_forks_stand_in_the_way_unless_they_forget_too(disk, fill):
    with disk.open() as session:
        fill(session, 10)
        receipt = session.append(SECRET)
        session.fork(disk.path("b.mc")).close()
        with pytest.raises(errors.ForgetBlockedError) as caught:
            session.forget(message_ids=receipt.message_ids)
        assert (str(disk.path("b.mc")),) == caught.value.holders
        assert session.search("gate code")
        gone = session.forget(message_ids=receipt.message_ids, cascade="forks")
        assert (str(disk.path("b.mc")),) == gone.forks
        assert gone.verified
    with disk.open("b.mc") as fork:
        assert "4711" not in fork[:]
        assert [] == fork.search("XK7-4711-ZQ")
        assert [] == files_with(fork, b"XK7-4711-ZQ")


def test_what_followed_a_restore_is_in_no_fork_or_export_made_before(disk, fill, tmp_path):
    with disk.open() as session:
        told = session.append("Both know this.")
        session.snapshot("here")
        fill(session, 10)
        session.fork(disk.path("b.mc")).close()
        session.export(tmp_path / "out.bundle")
        session.restore("here")
        receipt = session.append(SECRET)
        gone = session.forget(message_ids=receipt.message_ids)
        assert (True, (), ()) == (gone.verified, gone.forks, gone.exports)
        with pytest.raises(errors.ForgetBlockedError):
            session.forget(message_ids=told.message_ids)
        gone = session.forget(message_ids=told.message_ids, cascade="forks")
        assert (str(tmp_path / "out.bundle"),) == gone.exports
    with disk.open("b.mc") as fork:
        assert "Both know" not in fork[:]
        assert "Anna7" in fork[:]


def test_exports_are_named(told, tmp_path):
    session, receipt = told
    session.export(tmp_path / "out.bundle")
    gone = session.forget(message_ids=receipt.message_ids)
    assert (str(tmp_path / "out.bundle"),) == gone.exports


def test_a_retry_of_what_was_forgotten_says_so(place):
    with place.open() as session:
        receipt = session.append("Say it once.", idempotency_key="k")
        session.forget(message_ids=receipt.message_ids)
        with pytest.raises(errors.ConfigError, match="forgotten"):
            session.append("Say it once.", idempotency_key="k")


@pytest.mark.parametrize(
    "scope",
    [
        {},
        {"span": (0, 4), "everything": True},
        {"message_ids": [10**6]},
        {"span": (4, 2)},
        {"where": {"colour": "red"}},
        {"where": {}},
        {"before": datetime(2026, 1, 1)},  # noqa: DTZ001 - refused for that
        {"everything": 1},
        {"everything": True, "dry_run": "yes"},
        {"everything": True, "cascade": "all"},
    ],
)
def test_row22_a_scope_is_one_and_known(told, scope, chain):
    session, _ = told
    before = chain(session)
    with pytest.raises(errors.ConfigError):
        session.forget(**scope)
    assert before == chain(session)
    assert session.search("gate code")


def test_reading_only_forgets_nothing_but_may_ask(disk, fill):
    with disk.open() as session:
        fill(session, 3)
    with disk.open(read_only=True) as session:
        with pytest.raises(errors.ReadOnlyError):
            session.forget(everything=True)
        assert session.stats().n_tokens == session.forget(everything=True, dry_run=True).tokens


def test_a_failed_forget_leaves_the_session_where_it_was(disk, fill, chain, monkeypatch):
    with disk.open() as session:
        fill(session, 10)
        before = chain(session)

        def fail(*arguments, **keywords):
            raise errors.CorruptError("no")

        monkeypatch.setattr("megacontext_sdk.memory.forget.forgetting.append_settings", fail)
        with pytest.raises(errors.CorruptError, match="no"):
            session.forget(message_ids=[2])
        monkeypatch.undo()
        assert before == chain(session)
        assert session.search("Anna7")
        session.append("It goes on.")
        assert session.search("goes on")
        assert session.forget(message_ids=[2]).verified
        assert Span(0, 32) == session.focus.report().entries[0].span
