"""Journals over the in-memory store, one of them held back at each commit, and content."""

import threading
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.contracts.storage import GistBatch, Header
from megacontext_sdk.memory.journal import Journal, MessageRecord

ROOT = bytes(range(16))


def _make_journal(storage=None, *, token_bytes=2, mode="create", **options):
    storage = storage or InMemoryStorage(Path("in-memory"))
    storage.open(mode, Header(block_bytes=32 * token_bytes))
    ticks = count(1_700_000_000_000_000)
    return Journal(
        storage, root=ROOT, token_bytes=token_bytes, clock=lambda: next(ticks), **options
    )


def _ids_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, 60_000, n).astype(np.int32)


def _message(n_tokens, body=b"text", **changes):
    fields = {"role": 0, "trust": 3, "flags": 0, "ts_us": 7, "n_tokens": n_tokens, "body": body}
    return MessageRecord(**{**fields, **changes})


def _append(journal, ids, **options):
    return journal.append(ids, [_message(len(ids))], **options)


def _gist_batch(first, stop, *, lod=1, version=0, row_bytes=8):
    nodes = np.arange(first, stop, dtype=np.uint64)
    rows = np.repeat((nodes % 251).astype(np.uint8)[:, None], row_bytes, axis=1)
    trust = np.full(len(nodes), 3, np.uint8)
    return GistBatch(version=version, lod=lod, nodes=nodes, trust=trust, rows=rows)


class GatedStorage(InMemoryStorage):
    """Holds each commit until told to go on, and fails it when told so."""

    def __init__(self, path):
        super().__init__(path)
        self.gate = threading.Event()
        self.gate.set()
        self.failure = None
        self.batches = []

    def commit(self, batch, *, sync=True):
        self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.batches.append(len(batch.commits))
        super().commit(batch, sync=sync)


@pytest.fixture
def gated():
    storage = GatedStorage(Path("gated"))
    journal = _make_journal(storage)
    yield journal, storage
    storage.gate.set()
    journal.close()


@pytest.fixture
def journal():
    journal = _make_journal()
    yield journal
    journal.close()


@pytest.fixture
def make_journal():
    return _make_journal


@pytest.fixture
def ids_of():
    return _ids_of


@pytest.fixture
def message():
    return _message


@pytest.fixture
def append():
    return _append


@pytest.fixture
def gist_batch():
    return _gist_batch
