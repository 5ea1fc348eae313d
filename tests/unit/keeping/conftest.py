"""Sessions on every storage that is installed, with the echo model and short windows."""

from __future__ import annotations

import random

import pytest

from megacontext_sdk import MemorySession, MemoryStore, errors
from megacontext_sdk.builtin.echo import EchoModel
from megacontext_sdk.plugins import default_plugins

STORAGES = [
    name
    for name in ("memory", "duckdb", "filesystem")
    if name in default_plugins().names("storage")
]
DURABLE = [name for name in STORAGES if name != "memory"]
MODEL = EchoModel()


class Place:
    """A storage and a folder; opens sessions in it.

    Args:
        storage: name of the backend.
        folder: where memories go, unless the backend keeps nothing on disk.
    """

    def __init__(self, storage, folder):
        self.storage = storage
        self.folder = folder

    def path(self, name="a.mc"):
        return None if self.storage == "memory" else self.folder / name

    def open(self, name="a.mc", **arguments):
        arguments = {"model": MODEL, "w_max": 512, "strict": True} | arguments
        return MemorySession.open(self.path(name), storage=self.storage, **arguments)


def filled(session, count=40, word="cat"):
    """Append messages that are told apart by their numbers, ten per commit."""
    texts = [
        f"Message {number}: the {word} of Anna{number} sleeps near the harbour. " * 3
        for number in range(count)
    ]
    for at in range(0, count, 10):
        session.append([{"role": "user", "content": text} for text in texts[at : at + 10]])


def chain_of(session):
    """Return what tells one history from another."""
    journal = session._parts.journal
    return journal.seq, journal.chain, journal.n_tokens, journal.n_messages


def never_meet(store):
    """Hostile names and mixed calls of two tenants: whatever is asked, only own rows come back."""
    chance = random.Random(17)
    owners = {"acme": {}, "Acme": {}}
    names = ["alice", "Alice", "ALICE", "bob", "con", *("../alice", "alice/", "", "*")]
    for step in range(1_000):
        tenant = chance.choice(list(owners))
        memories, own = owners[tenant], store(tenant)
        name, call = chance.choice(names), chance.choice(("say", "look", "list", "delete"))
        try:
            if call == "say" and step % 8 == 0:
                with own.session(name) as session:
                    session.append(f"{tenant} {name} {step}")
                memories.setdefault(name, []).append(f"{tenant} {name} {step}")
            elif call == "look" and step % 4 == 0:
                with own.session(name, read_only=True) as session:
                    found = [message.text for message in session.messages()]
                    hits = [hit.text for hit in session.search("alice bob acme Acme", 100)]
                assert memories[name] == found
                assert set(hits) <= set(found)
            elif call == "list":
                assert tuple(sorted(memories)) == own.list()
            elif call == "delete" and step % 5 == 0:
                own.delete(name)
                memories.pop(name)
        except errors.ConfigError:
            assert name not in memories
        except errors.SessionNotFoundError:
            assert name not in memories
    assert any(owners.values())


@pytest.fixture
def tenants():
    return never_meet


@pytest.fixture
def store(disk, model):
    """Return a store of a namespace below one folder."""

    def make(namespace="acme", **defaults):
        arguments = {"model": model, "storage": disk.storage, "w_max": 512} | defaults
        return MemoryStore(disk.folder, namespace=namespace, **arguments)

    return make


@pytest.fixture
def model():
    return MODEL


@pytest.fixture
def fill():
    return filled


@pytest.fixture
def chain():
    return chain_of


@pytest.fixture(params=STORAGES)
def place(request, tmp_path):
    return Place(request.param, tmp_path)


@pytest.fixture(params=DURABLE)
def disk(request, tmp_path):
    return Place(request.param, tmp_path)
