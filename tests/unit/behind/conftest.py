"""Sessions whose encoder runs behind, on every storage that is installed; and what they must show.

What gists must be in the end is what a session makes of the same text that never lags.
"""

from __future__ import annotations

import threading
import time

import attrs
import numpy as np
import pytest

from megacontext_sdk import MemorySession
from megacontext_sdk.builtin.echo import EchoModel
from megacontext_sdk.memory import gist_builder, gist_store
from megacontext_sdk.plugins import default_plugins
from megacontext_sdk.testing.encoders import TrailingMean

STORAGES = [
    name
    for name in ("memory", "duckdb", "filesystem")
    if name in default_plugins().names("storage")
]


class Endless(EchoModel):
    """Never ends a reply by itself."""

    @property
    def info(self):
        return attrs.evolve(super().info, eos_ids=())


MODEL = Endless()


class Place:
    """A storage and a folder; opens sessions in it."""

    def __init__(self, storage, folder):
        self.storage = storage
        self.folder = folder

    @property
    def is_durable(self):
        return self.storage != "memory"

    def path(self, name="a.mc"):
        return self.folder / name if self.is_durable else None

    def open(self, gist=None, name="a.mc", **settings):
        arguments = {"model": MODEL, "w_max": 512, "strict": True, "sinks": ()} | settings
        gist = TrailingMean() if gist is None else gist
        return MemorySession.open(self.path(name), storage=self.storage, gist=gist, **arguments)


def append_days(session, n_messages=60, first=0):
    for number in range(first, first + n_messages):
        session.append(f"Day {number}: rain on the hills, and the sheep stayed in the valley.")


def all_gists(session):
    """Return the gists of every level as they are served, float32[n, S, d] by level."""
    tree = session._parts.tree
    return {
        lod: tree.gists(lod, np.arange(tree.n_nodes(lod))).copy()
        for lod in range(1, tree.top_lod + 1)
    }


def eager_gists(session, encoder=None):
    """Return what a session that never lags makes of the same tokens."""
    tree = session._parts.tree
    ids = session._parts.journal.token_ids(session._parts.check_span((0, tree.n_tokens)))
    with MemorySession.open(
        None,
        model=MODEL,
        storage="memory",
        gist=encoder or TrailingMean(9),
        gist_background="off",
        sinks=(),
    ) as eager:
        eager.append(np.where(ids < 0, tree.filler_id, ids).tolist())
        return all_gists(eager)


def assert_same(expected, found):
    assert expected.keys() == found.keys()
    for lod, rows in expected.items():
        np.testing.assert_array_equal(rows, found[lod], err_msg=f"gists of LOD{lod}")


def builders():
    """Return the threads that make gists, of all sessions."""
    return [one for one in threading.enumerate() if one.name == "megacontext-gists"]


def until(is_reached, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not is_reached():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.001)


@pytest.fixture(params=STORAGES)
def place(request, tmp_path):
    return Place(request.param, tmp_path)


@pytest.fixture
def here(tmp_path):
    return Place("memory", tmp_path)


@pytest.fixture(params=[name for name in STORAGES if name != "memory"])
def disk(request, tmp_path):
    return Place(request.param, tmp_path)


@pytest.fixture
def lag():
    """Functions of this module for tests."""

    class Lag:
        fill = staticmethod(append_days)
        gists = staticmethod(all_gists)
        eager = staticmethod(eager_gists)
        same = staticmethod(assert_same)
        until = staticmethod(until)
        builders = staticmethod(builders)

    return Lag


@pytest.fixture
def impatient(monkeypatch):
    """Nobody waits long for an encoder that hangs."""
    monkeypatch.setattr(gist_builder, "_LEAVE_SECONDS", 0.1)
    monkeypatch.setattr(gist_store, "_URGENT_SECONDS", 0.1)


@pytest.fixture
def hanging(impatient):
    """An encoder that does not return before the test lets it, or ends."""
    encoder = TrailingMean()
    encoder.breaks = "hang"
    yield encoder
    encoder.breaks = ""
    encoder.released.set()


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    until(lambda: not builders())
