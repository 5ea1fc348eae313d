"""Any order of appends, retries, gists, settings, full disks, flushes, reopening: against lists."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from megacontext_sdk.contracts.storage import GistBatch
from megacontext_sdk.errors import StorageFullError
from megacontext_sdk.memory.directory.vault import Fingerprints, open_memory
from megacontext_sdk.memory.journal import MessageRecord
from megacontext_sdk.memory.lod import Span

SIZES = st.lists(st.sampled_from([0, 1, 5, 31, 32, 33, 100]), min_size=1, max_size=4)


class JournalMachine(RuleBasedStateMachine):
    """What is acknowledged is modelled; what a full disk took back is not."""

    factory = None  # a store whose disk is full while `factory.is_full` says so

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.ids, self.bodies, self.owners = [], [], []
        self.values, self.by_key, self.n_gists, self.made = {}, {}, 0, 0
        self.open()

    def open(self):
        self.factory.is_full = False
        self.memory = open_memory(
            Path(self.folder.name) / "alice.mc",
            backend="log",
            factory=self.factory,
            fingerprints=Fingerprints("a", "b"),
            vocab_size=50_000,
        )
        self.journal = self.memory.journal

    def teardown(self):
        self.factory.is_full = False
        self.memory.close()
        self.folder.cleanup()

    def draft(self, sizes):
        self.made += 1
        rng = np.random.default_rng(self.made)
        ids = rng.integers(0, 50_000, sum(sizes)).astype(np.int32)
        bodies = [rng.bytes(int(rng.integers(0, 9))) for _ in sizes]
        return ids, [
            MessageRecord(0, 3, 0, 1, size, body) for size, body in zip(sizes, bodies, strict=True)
        ]

    def keep(self, ids, messages):
        for message in messages:
            self.owners += [len(self.bodies)] * message.n_tokens
            self.bodies.append(message.body)
        self.ids += ids.tolist()

    @rule(sizes=SIZES, wait=st.booleans())
    def append(self, sizes, wait):
        ids, messages = self.draft(sizes)
        ticket = self.journal.append(ids, messages)
        self.keep(ids, messages)
        if wait:
            assert Span(len(self.ids) - len(ids), len(self.ids)) == ticket.wait().span

    @rule(sizes=SIZES)
    def append_with_a_key(self, sizes):
        ids, messages = self.draft(sizes)
        key = (self.made).to_bytes(16, "big")
        receipt = self.journal.append(ids, messages, key=key).wait()
        self.keep(ids, messages)
        self.by_key[key] = (ids, messages, receipt)

    @precondition(lambda self: self.by_key)
    @rule(data=st.data())
    def retry(self, data):
        ids, messages, first = self.by_key[data.draw(st.sampled_from(sorted(self.by_key)))]
        key = next(key for key, kept in self.by_key.items() if kept[2] is first)
        again = self.journal.append(ids, messages, key=key).wait()
        assert again.duplicate
        assert (first.seq, first.span) == (again.seq, again.span)

    @rule(name=st.sampled_from("abc"), value=st.integers(0, 9) | st.none())
    def set_value(self, name, value):
        self.journal.update_settings({name: value})
        self.bodies.append(None)
        self.values[name] = value
        if value is None:
            del self.values[name]

    @rule(share=st.floats(0, 1))
    def put_gists(self, share):
        stop = self.n_gists + round(share * (self.journal.n_blocks - self.n_gists))
        if stop == self.n_gists:
            return
        nodes = np.arange(self.n_gists, stop, dtype=np.uint64)
        self.journal.put_gists(
            GistBatch(
                version=0,
                lod=1,
                nodes=nodes,
                trust=np.full(len(nodes), 3, np.uint8),
                rows=np.repeat((nodes % 251).astype(np.uint8)[:, None], 4, axis=1),
            )
        )
        self.n_gists = stop

    @rule(sizes=SIZES)
    def append_to_a_full_disk(self, sizes):
        self.journal.flush()
        self.factory.is_full = True
        tickets = [self.journal.append(*self.draft(sizes)) for _ in range(2)]
        tickets.append(self.journal.update_settings({"a": 99}))
        for ticket in tickets:
            with pytest.raises(StorageFullError):
                ticket.wait()
        self.factory.is_full = False

    @rule()
    def flush(self):
        self.journal.flush()

    @rule()
    def reopen(self):
        self.memory.close()
        self.open()
        # The double keeps gists in memory only: they are a cache, and made again.
        assert 0 == self.journal.gist_count(0, 1)
        self.n_gists = 0

    @rule(data=st.data())
    def find_owner(self, data):
        if self.owners:
            token = data.draw(st.integers(0, len(self.owners) - 1))
            assert self.owners[token] == self.journal.message_at(token)

    @rule(data=st.data())
    def read_a_span(self, data):
        start = data.draw(st.integers(0, len(self.ids)))
        end = data.draw(st.integers(start, len(self.ids)))
        assert self.ids[start:end] == self.journal.token_ids(Span(start, end)).tolist()

    @invariant()
    def counts_agree(self):
        journal = self.journal
        assert len(self.ids) == journal.n_tokens
        assert len(self.bodies) == journal.n_messages
        assert self.ids[len(self.ids) // 32 * 32 :] == journal.tail.tolist()
        assert self.values == dict(journal.settings)
        assert self.n_gists == journal.gist_count(0, 1)

    @invariant()
    def content_agrees(self):
        journal = self.journal
        blocks = journal.blocks(np.arange(journal.n_blocks))
        assert self.ids[: journal.n_blocks * 32] == blocks.ravel().tolist()
        stored = journal.bodies(np.arange(len(self.bodies)))
        pairs = zip(self.bodies, stored, strict=True)
        assert all(mine is None or mine == theirs for mine, theirs in pairs)
        found = journal.gists(0, 1, np.arange(self.n_gists))
        assert found.present.all()
        if self.n_gists:
            assert (np.arange(self.n_gists) % 251).tolist() == found.rows[:, 0].tolist()


def test_any_order_of_calls_agrees_with_the_model(log_storage):
    class FullAtTimes(log_storage):
        is_full = False

        def commit(self, batch, *, sync=True):
            if FullAtTimes.is_full:
                raise StorageFullError("the disk is full", needed=1, free=0)
            super().commit(batch, sync=sync)

    run_state_machine_as_test(
        type("Machine", (JournalMachine,), {"factory": FullAtTimes}),
        settings=settings(
            max_examples=30,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
