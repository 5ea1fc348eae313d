"""Memories on every storage that is installed, with markers that can be found in raw bytes."""

from __future__ import annotations

import contextlib
import sqlite3

import numpy as np
import pytest

from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.memory.chain import MessageRecord
from megacontext_sdk.memory.directory.vault import Fingerprints, open_memory
from megacontext_sdk.memory.forget.forgetting import forget, plan_forget
from megacontext_sdk.memory.tree import MegaContextTree
from megacontext_sdk.messages import MessageBody, encode_body
from megacontext_sdk.plugins import default_plugins
from megacontext_sdk.testing.gist import TableServices

STORAGES = [
    name
    for name in ("memory", "duckdb", "filesystem")
    if name in default_plugins().names("storage")
]
DURABLE = [name for name in STORAGES if name != "memory"]
VOCAB = 4_000
SERVICES = TableServices(VOCAB, 32)
ROOT = bytes(range(16))


class Memory:
    """One memory with its tree, through forgets and reopens.

    Args:
        storage: name of the backend.
        path: its directory, or None.
    """

    def __init__(self, storage, path, **options):
        self.storage = storage
        self.path = path
        self.opened = self.open_handle(path, **options)
        self.tree = self.tree_over(self.opened)

    def open_handle(self, path, **options):
        return open_memory(
            path,
            backend=self.storage,
            factory=default_plugins().resolve("storage", self.storage),
            fingerprints=Fingerprints("a" * 64, "b" * 64),
            root=ROOT,
            clock=lambda: 1_000,
            **({"vocab_size": VOCAB} | options),
        )

    @staticmethod
    def tree_over(opened):
        tree = MegaContextTree(opened.journal, MeanGistEncoder(1), SERVICES, filler_id=7)
        tree.open()
        return tree

    @property
    def journal(self):
        return self.opened.journal

    def append(self, *texts, role=0, trust=3, ts_us=1, n_tokens=40, flags=0, key=None, **body):
        """Append messages with random ids; the text None stores ids alone."""
        records, ids = [], []
        for text in texts:
            seed = self.journal.n_messages + len(records)
            ids.append(np.random.default_rng(seed).integers(0, VOCAB, n_tokens).astype(np.int32))
            raw = encode_body(MessageBody(text=text, **body)) if text is not None else b""
            records.append(MessageRecord(role, trust, flags, ts_us, n_tokens, raw))
        self.tree.append(np.concatenate(ids), records, key=key).wait()
        return self.journal.n_messages - len(texts)

    def plan(self, **scope):
        return plan_forget(self.journal, **scope)

    def forget(self, *, dry_run=False, cascade=None, open_fork=None, **scope):
        """Forget a scope and go on over the next generation."""
        self.opened, receipt = forget(
            self.opened,
            self.tree,
            self.plan(**scope),
            dry_run=dry_run,
            cascade=cascade,
            open_fork=open_fork or self.open_handle,
        )
        if not dry_run:
            self.tree = self.tree_over(self.opened)
        return receipt

    def ids(self):
        return self.journal.token_ids(self.whole)

    @property
    def whole(self):
        return span(0, self.journal.n_tokens)

    def gists(self):
        """Return the stored rows of every level."""
        found = {}
        self.journal.flush()
        for version, lod, count in self.opened.storage.state().gist_rows:
            found[lod] = self.opened.storage.read_gists(version, lod, np.arange(count)).rows.copy()
        return found

    def reopen(self):
        self.close()
        self.opened = self.open_handle(self.path)
        self.tree = self.tree_over(self.opened)

    def close(self):
        self.tree.close()
        self.opened.close()


def span(start, end):
    from megacontext_sdk.memory.lod import Span

    return Span(start, end)


@pytest.fixture(scope="session")
def vocab():
    return VOCAB


@pytest.fixture(scope="session")
def services():
    return SERVICES


@pytest.fixture
def make_memory(tmp_path):
    """Make memories that are closed at the end."""
    made = []

    def make(storage="memory", name="a.mc", **options):
        path = None if storage == "memory" else tmp_path / name
        made.append(Memory(storage, path, **options))
        return made[-1]

    yield make
    for memory in made:
        memory.close()


@pytest.fixture(params=STORAGES)
def memory(request, make_memory):
    """A memory on each storage."""
    return make_memory(request.param)


@pytest.fixture
def here(make_memory):
    """A memory in this process, where the storage makes no difference."""
    return make_memory()


@pytest.fixture(params=DURABLE)
def durable(request, make_memory):
    """A memory on each storage that keeps files."""
    return make_memory(request.param)


@pytest.fixture
def terms_left():
    """Return which of some words the index of a session still finds, or holds in its file."""

    def left(session, words):
        lexical = session._parts.lexical
        found = [word for word in words if len(lexical.search(word, 5))]
        if found or session.path is None:
            return found
        index = session.path / "cache" / "lexical.sqlite"
        with contextlib.closing(sqlite3.connect(index)) as database:
            dump = "".join(map(str, database.execute("SELECT quote(block) FROM terms_data")))
        raw = index.read_bytes()
        return [w for w in words if w.encode().hex().upper() in dump or w[:4].encode() in raw]

    return left


@pytest.fixture
def bytes_below():
    """Read every file below a directory."""

    def read(directory):
        return b"\n".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())

    return read
