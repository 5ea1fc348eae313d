"""The thread that builds gists: when blocks go, when the disk is full, when others want in."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.contracts.storage import Header
from megacontext_sdk.errors import ModelError, StorageFullError
from megacontext_sdk.memory.gist_builder import GistBuilder
from megacontext_sdk.memory.journal import Journal, MessageRecord
from megacontext_sdk.memory.tree import MegaContextTree
from megacontext_sdk.testing.encoders import TrailingMean
from megacontext_sdk.testing.gist import TableServices, blocks_of

IDS = np.random.default_rng(5).integers(0, 512, 32 * 400).astype(np.int32)


class Stepping(TrailingMean):
    """Notes what it is asked for, and can be held within a call."""

    def __init__(self):
        super().__init__()
        self.called = threading.Event()
        self.go = threading.Event()
        self.go.set()
        self.sizes = []
        self.n_at_once = self.most_at_once = 0

    def encode_blocks(self, blocks, services):
        self.n_at_once += 1
        self.most_at_once = max(self.most_at_once, self.n_at_once)
        self.sizes.append(len(blocks))
        self.called.set()
        try:
            assert self.go.wait(20)
            return super().encode_blocks(blocks, services)
        finally:
            self.n_at_once -= 1


class Memory:
    """A tree in this process whose store can be made full."""

    def __init__(self):
        self.encoder = Stepping()
        self.store = InMemoryStorage(Path("unused"))
        self.store.open("create", Header(block_bytes=64))
        self.journal = Journal(self.store, root=bytes(16), token_bytes=2, clock=lambda: 0)
        self.services = TableServices()
        self.tree = MegaContextTree(
            self.journal, self.encoder, self.services, gist_dtype="f4", background="on"
        )
        self.tree.open()

    def append(self, ids):
        record = MessageRecord(role=0, trust=3, flags=0, ts_us=0, n_tokens=len(ids), body=b"")
        return self.tree.append(ids, [record])

    def check(self, ids):
        """Everything is made, and made of these tokens."""
        self.tree.wait_for_gists()
        assert 0 == self.tree.stats().n_missing_gists
        n = len(ids) // 32
        history = ids[: n * 32].reshape(n, 32)
        due = TrailingMean().encode_blocks(blocks_of(history, 0, n, 80), self.services)
        np.testing.assert_array_equal(due.rows, self.tree.gists(1, np.arange(n)))

    def close(self):
        self.encoder.go.set()
        self.tree.close()
        self.journal.close()


@pytest.fixture
def memory():
    memory = Memory()
    yield memory
    memory.close()


def full(batch, *, sync=True):
    raise StorageFullError("the volume is full", needed=1, free=0, path="")


def test_chunks_are_bounded_and_cut_alike_whenever_they_are_made(memory, monkeypatch):
    memory.encoder.go.clear()
    memory.append(IDS[: 32 * 5]).wait()
    assert memory.encoder.called.wait(20)
    memory.append(IDS[32 * 5 :]).wait()
    memory.encoder.go.set()
    memory.check(IDS)
    assert [5, 123, 128, 128, 16] == memory.encoder.sizes
    assert 1 == memory.encoder.most_at_once


def test_gists_of_blocks_that_a_full_disk_took_back_are_not_stored(memory, monkeypatch):
    memory.append(IDS[:100]).wait()
    memory.tree.wait_for_gists()
    memory.encoder.go.clear()
    memory.encoder.called.clear()
    may_fail = threading.Event()

    def later(batch, *, sync=True):
        assert may_fail.wait(20)
        full(batch)

    with monkeypatch.context() as patch:
        patch.setattr(memory.store, "commit", later)
        ticket = memory.append(IDS[100:1_000])
        assert memory.encoder.called.wait(20), "the blocks are read while they are on their way"
        may_fail.set()
        with pytest.raises(StorageFullError):
            ticket.wait()
    other = IDS[::-1][:900]
    memory.append(other).wait()
    memory.encoder.go.set()
    memory.check(np.concatenate([IDS[:100], other]))


def test_with_a_full_disk_the_builder_gives_up_and_goes_on_when_there_is_room(memory, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(memory.store, "put_gists", full)
        memory.append(IDS).wait()
        started = time.monotonic()
        memory.tree.wait_for_gists()
        assert time.monotonic() - started < 10
        assert memory.tree.stats().n_missing_gists > 0
        assert memory.journal.n_queued_gists <= 2
        memory.append(IDS[:7]).wait()
    memory.check(np.concatenate([IDS, IDS[:7]]))


def test_a_pause_keeps_the_builder_out_and_loses_nothing(memory):
    memory.encoder.go.clear()
    memory.append(IDS).wait()
    assert memory.encoder.called.wait(20)
    with memory.tree.paused():
        memory.encoder.go.set()
        counts = [memory.tree.gist_store.count(1) for _ in range(20) if not time.sleep(0.005)]
        assert {0} == set(counts), "what was in hand waits for the end of the pause"
    memory.check(IDS)
    assert sum(memory.encoder.sizes) == len(IDS) // 32, "and was not made again"


def test_an_idle_pause_waits_for_the_encoder(memory):
    memory.encoder.go.clear()
    memory.append(IDS).wait()
    assert memory.encoder.called.wait(20)
    threading.Timer(0.1, memory.encoder.go.set).start()
    with memory.tree.paused(idle=True):
        assert 0 == memory.encoder.n_at_once
        n_calls = len(memory.encoder.sizes)
        time.sleep(0.02)
        assert n_calls == len(memory.encoder.sizes)
    memory.check(IDS)


def test_pauses_may_be_nested_and_end_with_an_error(memory):
    with pytest.raises(KeyError), memory.tree.paused(), memory.tree.paused(idle=True):
        raise KeyError
    memory.append(IDS).wait()
    memory.check(IDS)


def test_what_is_wanted_goes_before_what_is_missing(memory):
    memory.encoder.go.clear()
    memory.append(IDS).wait()
    assert memory.encoder.called.wait(20)
    needing = threading.Thread(
        target=memory.tree.need, args=(np.ones(3, np.uint8), np.array([390, 391, 399]))
    )
    needing.start()
    memory.encoder.go.set()
    needing.join(20)
    assert [128, 2, 1] == memory.encoder.sizes[:3]
    assert not memory.tree.is_provisional(np.ones(1, np.uint8), np.array([399]))[0]
    memory.check(IDS)


def test_without_stand_ins_a_gist_that_is_pending_is_an_error(memory):
    memory.encoder.go.clear()
    memory.append(IDS).wait()
    with pytest.raises(ModelError, match="LOD1:399 is not made yet"):
        memory.tree.gists(1, np.array([399]))


def test_a_journal_that_is_closed_ends_the_work(memory):
    memory.encoder.go.clear()
    memory.append(IDS).wait()
    assert memory.encoder.called.wait(20)
    memory.journal.close()
    memory.encoder.go.set()
    memory.tree.wait_for_gists()
    assert memory.tree.encoder_error is not None


def test_an_encoder_that_ends_its_thread_is_told_of(memory, monkeypatch):
    class EndOfThreadError(BaseException):
        """Not an `Exception`: nobody catches it."""

    def leave(blocks, services):
        raise EndOfThreadError

    monkeypatch.setattr(memory.encoder, "encode_blocks", leave)
    caught = []
    monkeypatch.setattr(threading, "excepthook", lambda found: caught.append(found.exc_type))
    memory.append(IDS).wait()
    memory.tree.wait_for_gists()
    assert "EndOfThreadError" in str(memory.tree.encoder_error)
    memory.tree.need(np.ones(1, np.uint8), np.array([3]))
    memory.append(IDS[:64]).wait()
    memory.tree.wait_for_gists()
    memory.tree.close()
    assert [EndOfThreadError] == caught


def test_a_builder_that_was_never_asked_has_no_thread_and_closes(memory, lag):
    builder = GistBuilder(memory.journal, memory.tree.gist_store.levels)
    builder.wait()
    builder.close()
    builder.wake()
    builder.wait()
    assert () == builder.make([(1, np.array([0]))], 0.1)
    builder.close()


def test_at_the_end_of_the_process_the_thread_is_let_go(memory, lag):
    memory.append(IDS).wait()
    builder = memory.tree.gist_store._builder
    builder.at_exit()
    assert [] == lag.builders()
    assert builder is builder.after_fork_in_child()
