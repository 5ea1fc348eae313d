"""Forks that hold what is forgotten: they stand in the way, or are told first."""

from __future__ import annotations

import shutil

import msgspec
import numpy as np
import pytest

from megacontext_sdk.errors import ForgetBlockedError
from megacontext_sdk.memory.directory.forking import fork_memory
from megacontext_sdk.memory.directory.manifest import read_meta, replace_meta
from megacontext_sdk.memory.lod import Span

TEXT = "The secret of the garden, told to everybody who came along in number {}."


def fork(memory, name, *, at_seq=None):
    """Fork a memory and note it, as a session does; return its directory."""
    path = memory.path.with_name(name)
    journal = memory.journal
    seq = journal.seq if at_seq is None else at_seq
    memory.tree.flush()
    row = memory.opened.storage.read_commits(seq, seq + 1)[0]
    meta = fork_memory(memory.opened, path, at_seq=seq)
    entry = {
        "uuid": meta.uuid,
        "path": str(path),
        "seq": seq,
        "n_tokens": int(row["start"]) + int(row["n_tokens"]),
    }
    known = journal.settings.get("forks", [])
    journal.update_settings({"forks": [*known, entry]}).wait()
    return path


@pytest.fixture
def told(durable):
    """A memory of ten messages, with a fork that continues on its own."""
    for number in range(10):
        durable.append(TEXT.format(number))
    path = fork(durable, "fork.mc")
    copy = durable.open_handle(path)
    tree = durable.tree_over(copy)
    ids = np.arange(50, dtype=np.int32)
    tree.append(ids, [message(50)]).wait()
    copy.close()
    return durable, path


def message(n_tokens):
    from megacontext_sdk.memory.chain import MessageRecord

    return MessageRecord(0, 3, 0, 9, n_tokens, b"")


def test_a_fork_that_holds_it_stands_in_the_way_and_is_named(told):
    memory, path = told
    seq = memory.journal.seq
    with pytest.raises(ForgetBlockedError, match="cascade") as caught:
        memory.forget(message_ids=[3])
    assert (str(path),) == caught.value.holders
    assert "garden" not in str(caught.value)
    assert seq == memory.journal.seq
    dry = memory.forget(message_ids=[3], dry_run=True)
    assert (str(path),) == dry.forks


def test_row14_a_fork_is_told_first_and_keeps_what_is_its_own(told, bytes_below):
    memory, path = told
    before = memory.journal.n_tokens
    receipt = memory.forget(everything=True, cascade="forks")
    assert (True, (str(path),)) == (receipt.verified, receipt.forks)
    assert b"garden" not in bytes_below(path)
    copy = memory.open_handle(path)
    ids = copy.journal.token_ids(Span(0, copy.journal.n_tokens))
    assert (ids[:before] == -1).all()
    assert list(range(50)) == ids[before:].tolist()
    copy.close()


def test_forks_of_forks_are_told_too(durable, bytes_below):
    for number in range(10):
        durable.append(TEXT.format(number))
    first = fork(durable, "first.mc")
    copy = type(durable)(durable.storage, first)
    second = fork(copy, "second.mc")
    third = fork(copy, "third.mc")
    copy.close()
    paths = [first, second, third]
    sibling = fork(durable, "sibling.mc")
    receipt = durable.forget(message_ids=[4, 5], cascade="forks")
    assert {str(path) for path in [*paths, sibling]} == set(receipt.forks)
    for path in [*paths, sibling]:
        raw = bytes_below(path)
        gone = [TEXT.format(number).encode() in raw for number in (2, 3, 4, 5)]
        assert [True, False, False, True] == gone, path
    assert receipt.verified


def test_a_fork_that_was_cut_off_before_it_is_left_alone(durable):
    for number in range(10):
        durable.append(TEXT.format(number))
    path = fork(durable, "early.mc", at_seq=4)
    generation = read_meta(path).generation
    n_tokens = durable.journal.settings["forks"][0]["n_tokens"]
    receipt = durable.forget(span=(n_tokens, n_tokens + 50))
    assert () == receipt.forks
    with pytest.raises(ForgetBlockedError):
        durable.forget(span=(n_tokens - 1, n_tokens))
    assert generation == read_meta(path).generation


def test_a_fork_that_was_deleted_or_replaced_does_not_stand_in_the_way(told):
    memory, path = told
    meta = read_meta(path)
    replace_meta(path, msgspec.structs.replace(meta, uuid="0" * 32))
    assert () == memory.forget(message_ids=[3]).forks
    replace_meta(path, meta)
    shutil.rmtree(path)
    assert () == memory.forget(message_ids=[4]).forks


def test_a_fork_that_cannot_be_opened_changes_nothing_anywhere(told):
    memory, path = told
    other = fork(memory, "other.mc")
    held = memory.open_handle(path)
    seq, generation = memory.journal.seq, read_meta(other).generation
    with pytest.raises(ForgetBlockedError, match="SessionLockedError") as caught:
        memory.forget(message_ids=[3], cascade="forks")
    assert (str(path),) == caught.value.holders
    assert (seq, generation) == (memory.journal.seq, read_meta(other).generation)
    held.close()
    assert 2 == len(memory.forget(message_ids=[3], cascade="forks").forks)


def test_a_damaged_fork_is_in_the_way_rather_than_overlooked(told):
    memory, path = told
    (path / "MEMORY").write_bytes(b"{}")
    with pytest.raises(ForgetBlockedError):
        memory.forget(message_ids=[3])


def test_a_fork_that_went_back_and_on_keeps_what_is_not_shared(told, make_memory):
    """After a restore other messages stand at the numbers of those that were shared."""
    memory, path = told
    shutil.rmtree(path)
    other = make_memory(memory.storage, "fork.mc")
    for number in range(12):
        other.append(f"What is only mine, number {number}, and nobody else's.", ts_us=77)
    uuid = memory.journal.settings["forks"][0]["uuid"]
    other.close()
    replace_meta(path, msgspec.structs.replace(read_meta(path), uuid=uuid))
    receipt = memory.forget(everything=True, cascade="forks")
    assert () == receipt.forks
    other.opened = other.open_handle(path)
    ids = other.journal.token_ids(Span(0, other.journal.n_tokens))
    assert (ids >= 0).all()


def test_exports_that_may_hold_it_are_named(memory):
    memory.append("The beginning.")
    memory.append("The end.")
    exports = [
        {"path": "/early.bundle", "format": "bundle", "n_tokens": 40, "ts_us": 1},
        {"path": "/late.bundle", "format": "bundle", "n_tokens": 80, "ts_us": 2},
    ]
    memory.journal.update_settings({"exports": exports}).wait()
    assert ("/late.bundle",) == memory.forget(span=(40, 50)).exports
    assert ("/early.bundle", "/late.bundle") == memory.forget(span=(0, 1)).exports
