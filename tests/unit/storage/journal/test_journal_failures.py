"""The journal when the disk is full, a write fails, threads meet and handles end."""

import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.contracts.storage import Header
from megacontext_sdk.errors import (
    ReadOnlyError,
    SessionClosedError,
    StorageFullError,
)
from megacontext_sdk.memory import chain as chain_module
from megacontext_sdk.memory.lod import Span

KEY = b"0123456789abcdef"


def full():
    return StorageFullError("the disk is full", needed=1, free=0)


def test_full_disk_rolls_back_to_what_is_stored_and_writing_resumes(
    ids_of, append, gist_batch, gated
):
    journal, storage = gated
    append(journal, ids_of(64)).wait()
    journal.update_settings({"a": 1}).wait()
    journal.put_gists(gist_batch(0, 2))
    chain = journal.chain
    storage.gate.clear()
    storage.failure = full()
    first = append(journal, ids_of(100, 1), key=KEY)
    journal.put_gists(gist_batch(2, 5))
    second = journal.update_settings({"a": 2})
    storage.gate.set()
    for ticket in (first, second):
        with pytest.raises(StorageFullError):
            ticket.wait()
    assert (2, 64, chain, 1) == (journal.seq, journal.n_tokens, journal.chain, journal.n_rollbacks)
    assert {"a": 1} == dict(journal.settings)
    assert 2 == journal.gist_count(0, 1)
    assert journal.find_key(KEY) is None
    assert np.array_equal(ids_of(64), journal.token_ids(Span(0, 64)))
    journal.put_gists(gist_batch(2, 5))  # late rows of blocks that were given up are dropped
    assert 2 == journal.gist_count(0, 1)
    storage.failure = None
    assert Span(64, 74) == append(journal, ids_of(10), key=KEY).wait().span
    journal.flush()
    assert ((0, 1, 2),) == storage.state().gist_rows


def test_any_other_failure_ends_the_handle(ids_of, append, gist_batch, gated):
    journal, storage = gated
    append(journal, ids_of(40)).wait()
    storage.failure = OSError(5, "Input/output error")
    ticket = append(journal, ids_of(3))
    for call in (
        ticket.wait,
        lambda: append(journal, ids_of(3)),
        lambda: journal.put_gists(gist_batch(0, 1)),
        lambda: journal.token_ids(Span(0, 1)),
        journal.flush,
    ):
        with pytest.raises(SessionClosedError) as caught:
            call()
        assert "failed" == caught.value.reason
    assert isinstance(caught.value.__cause__, OSError)
    journal.close()
    assert 40 == len(journal._storage._messages) * 40


def test_close_drains_the_queue_and_is_idempotent(make_journal, ids_of, append, gist_batch):
    storage = InMemoryStorage(Path("closing"))
    journal = make_journal(storage)
    tickets = [append(journal, ids_of(3, seed)) for seed in range(50)]
    journal.put_gists(gist_batch(0, 4))
    journal.close()
    journal.close()
    assert all(ticket.done() for ticket in tickets)
    storage.open("write", Header(block_bytes=64))
    assert (50, ((0, 1, 4),)) == (storage.state().seq, storage.state().gist_rows)
    with pytest.raises(SessionClosedError) as caught:
        append(journal, ids_of(1))
    assert "closed" == caught.value.reason


def test_abandoned_journal_writes_what_was_accepted_and_ends_its_thread(
    make_journal, ids_of, append
):
    storage = InMemoryStorage(Path("abandoned"))
    journal = make_journal(storage)
    tickets = [append(journal, ids_of(3, seed)) for seed in range(20)]
    journal.abandon()
    journal.abandon()
    assert all(ticket.done() for ticket in tickets)
    assert not journal._writer._thread.is_alive()
    assert 20 == storage.state().seq
    with pytest.raises(SessionClosedError):
        append(journal, ids_of(1))


def test_head_is_told_before_the_append_is_acknowledged(make_journal, ids_of, append):
    told = []
    journal = make_journal(on_durable=lambda seq, chain: told.append((seq, chain)))
    append(journal, ids_of(3)).wait()
    assert [(1, journal.chain)] == told
    journal.close()


def test_read_only_journal_refuses_writes(make_journal, ids_of, append, gist_batch):
    storage = InMemoryStorage(Path("read-only"))
    journal = make_journal(storage)
    append(journal, ids_of(40))
    journal.close()
    reader = make_journal(storage, mode="read", read_only=True)
    assert np.array_equal(ids_of(40), reader.token_ids(Span(0, 40)))
    for write in (
        lambda: append(reader, ids_of(1)),
        lambda: reader.update_settings({"a": 1}),
        lambda: reader.put_gists(gist_batch(0, 1)),
    ):
        with pytest.raises(ReadOnlyError):
            write()
    reader.flush()
    reader.close()


def test_row23_journal_refuses_pickling_and_names_the_path(journal):
    with pytest.raises(TypeError, match="in-memory"):
        pickle.dumps(journal)


def test_repr_says_where_and_never_what(ids_of, message, journal):
    journal.append(ids_of(3), [message(3, b"secret canary")]).wait()
    assert "in-memory" in repr(journal)
    assert "canary" not in repr(journal)


def test_writers_and_readers_in_threads_see_committed_prefixes(make_journal, ids_of, append):
    journal = make_journal()
    content = ids_of(32 * 400)
    stop = threading.Event()
    problems = []

    def read():
        rng = np.random.default_rng(0)
        while not stop.is_set():
            n = journal.n_tokens
            start = int(rng.integers(0, n + 1))
            seen = journal.token_ids(Span(start, n))
            if not np.array_equal(content[start:n], seen):
                problems.append((start, n))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for at in range(0, len(content), 17):
        append(journal, content[at : at + 17])
    stop.set()
    for reader in readers:
        reader.join()
    assert [] == problems
    assert np.array_equal(content, journal.token_ids(Span(0, len(content))))
    journal.close()


def test_two_threads_never_mix_the_parts_of_an_append(make_journal, ids_of, append, monkeypatch):
    monkeypatch.setattr(chain_module.split, "__defaults__", (500,))
    journal = make_journal()
    receipts = []

    def write(seed):
        ids = ids_of(1_000, seed)
        receipts.append((ids, append(journal, ids).wait()))

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    for ids, receipt in receipts:
        assert np.array_equal(ids, journal.token_ids(receipt.span))
    journal.close()


def test_queue_counts_come_back_to_zero(ids_of, append, gist_batch, journal):
    for seed in range(30):
        append(journal, ids_of(40, seed))
        journal.put_gists(gist_batch(journal.gist_count(0, 1), journal.n_blocks))
    journal.flush()
    queue = journal._queue
    assert (0, [], []) == (queue.n_bytes, queue.appends, queue.gists)
