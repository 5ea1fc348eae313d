"""A memory in this process: one store that trees are opened over, closed and opened again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.contracts.storage import Header, Storage
from megacontext_sdk.memory.journal import Journal, MessageRecord
from megacontext_sdk.memory.tree import MegaContextTree
from megacontext_sdk.testing.gist import TableServices

VOCAB = 300


class CountingStorage(Storage):
    """Passes everything on and counts what is read; can lose the newest gists like a crash."""

    capabilities = InMemoryStorage.capabilities

    def __init__(self, inner):
        super().__init__(inner.path)
        self.inner = inner
        self.calls = 0
        self.rows = 0
        self.lost = {}

    def _count(self, n):
        self.calls += 1
        self.rows += n

    def reset(self):
        self.calls = self.rows = 0

    def open(self, mode, header):
        self.inner.open(mode, header)

    def state(self):
        return self.inner.state()

    def commit(self, batch, *, sync=True):
        self.inner.commit(batch, sync=sync)

    def put_gists(self, batch):
        self.inner.put_gists(batch)

    def read_commits(self, start, stop):
        return self.inner.read_commits(start, stop)

    def read_blocks(self, blocks):
        self._count(len(blocks))
        return self.inner.read_blocks(blocks)

    def read_messages(self, start, stop):
        self._count(stop - start)
        return self.inner.read_messages(start, stop)

    def read_bodies(self, messages):
        return self.inner.read_bodies(messages)

    def read_gists(self, version, lod, nodes):
        self._count(len(nodes))
        return self.inner.read_gists(version, lod, nodes)

    def flush(self):
        self.inner.flush()

    def close(self):
        self.inner.close()


class Memory:
    """One store and the trees opened over it, one at a time."""

    def __init__(self, folder, width=8):
        self.folder = folder
        self.services = TableServices(VOCAB, width)
        self.store = CountingStorage(InMemoryStorage(Path("unused")))
        self.store.open("create", Header(block_bytes=64))
        self.journal = None
        self.tree = None

    def open(self, *, slots=1, encoder=None, read_only=False, **settings):
        """Open a tree, closing the one before."""
        self.close()
        self.store.open("read" if read_only else "write", Header(block_bytes=64))
        self.journal = Journal(
            self.store, root=bytes(16), token_bytes=2, clock=lambda: 0, read_only=read_only
        )
        self.tree = MegaContextTree(
            self.journal,
            encoder or MeanGistEncoder(slots),
            self.services,
            access_path=self.folder / "access.bin",
            read_only=read_only,
            **settings,
        )
        self.tree.open()
        return self.tree

    def close(self):
        """Close tree and journal, so that everything lies in the store."""
        if self.journal is not None:
            self.tree.close()
            self.journal.close()
            self.journal = None

    def crash(self, counts):
        """Lose the gists behind a count per level, as a crash before the next flush may."""
        self.close()
        for (_, lod), level in self.store.inner._gists.items():
            keep = counts.get(lod, 0)
            for rows in (level.nodes, level.trust, level.rows):
                rows._n = min(rows._n, keep)


def records(*lengths, trust=3, role=0):
    """One message of each length."""
    return [
        MessageRecord(role=role, trust=trust, flags=0, ts_us=0, n_tokens=n, body=b"")
        for n in lengths
    ]


def append(tree, ids, step=None):
    """Append ids in one call, or in calls of so many."""
    step = step or max(1, len(ids))
    for at in range(0, len(ids), step):
        part = ids[at : at + step]
        tree.append(part, records(len(part))).wait()


def token_stream(n, seed=0):
    """Ids with a drift, so that every node has a gist of its own."""
    noise = np.random.default_rng(seed).integers(0, VOCAB // 2, n)
    return (noise + np.arange(n) * (VOCAB // 2) // max(1, n)).astype(np.int32)


@pytest.fixture
def memory(tmp_path):
    memory = Memory(tmp_path)
    yield memory
    memory.close()


@pytest.fixture(scope="session")
def build():
    """The functions above, for tests: `build.append`, `build.ids`, `build.records`."""

    class Build:
        append = staticmethod(append)
        ids = staticmethod(token_stream)
        records = staticmethod(records)
        memory = Memory

    return Build
