"""The proof of a forget is tested: each way to forget badly must not pass for a good one."""

from __future__ import annotations

import shutil

import attrs
import numpy as np
import pytest

from megacontext_sdk import MemorySession
from megacontext_sdk.builtin.echo import EchoModel
from megacontext_sdk.contracts.storage import GistBatch
from megacontext_sdk.memory.chain import MessageRecord
from megacontext_sdk.memory.directory import generations, replay
from megacontext_sdk.memory.forget import forgetting
from megacontext_sdk.memory.forget.gist_remake import GistRemake
from megacontext_sdk.memory.lexical import LexicalIndex
from megacontext_sdk.plugins import default_plugins

STORAGES = [
    name
    for name in ("memory", "duckdb", "filesystem")
    if name in default_plugins().names("storage")
]
WORDS = [f"zq{number:02d}heliotrope{number * 7919:08d}" for number in range(8)]


def fill(memory):
    """Append long messages among others, so that gists stand above them; return their numbers."""
    planted = []
    for word in WORDS:
        memory.append("Ordinary talk about the weather.", n_tokens=1_000)
        planted.append(memory.append(f"The password of the vault is {word}.", n_tokens=100))
    memory.append("Ordinary talk about the sea.", n_tokens=1_000)
    return planted


def test_nothing_is_planted_and_nothing_is_caught(memory):
    receipt = memory.forget(message_ids=fill(memory))
    assert (True, 0) == (receipt.verified, receipt.hits)


# --- forget by DELETE only ---------------------------------------------------------------------


@pytest.mark.parametrize("kept", [("ids",), ("bodies",), ("ids", "bodies")], ids="-".join)
def test_rows_that_are_only_marked_as_forgotten_are_caught(memory, monkeypatch, kept):
    redacted = replay._redacted

    def marked(stretch, *given):
        return attrs.evolve(
            redacted(stretch, *given), **{part: getattr(stretch, part) for part in kept}
        )

    planted = fill(memory)
    monkeypatch.setattr(replay, "_redacted", marked)
    assert not memory.forget(message_ids=planted).verified


def test_rows_deleted_from_a_file_that_is_never_rewritten_are_caught(durable, monkeypatch):
    """No read shows them, but their pages are free and lie there as they were."""
    copy_commits = forgetting.copy_commits

    def deleted(source, target, **options):
        shutil.copytree(source.path, target.path / "free")
        return copy_commits(source, target, **options)

    planted = fill(durable)
    monkeypatch.setattr(forgetting, "copy_commits", deleted)
    receipt = durable.forget(message_ids=planted)
    assert (False, True) == (receipt.verified, receipt.hits > 0)


def test_an_old_generation_that_is_kept_is_caught(durable, monkeypatch):
    planted = fill(durable)
    monkeypatch.setattr(generations, "remove_tree", lambda _disk, _folder: [])
    receipt = durable.forget(message_ids=planted)
    assert (False, True) == (receipt.verified, receipt.hits > 0)


# --- forget keeps ancestor gists ---------------------------------------------------------------


class KeepsGists(GistRemake):
    """Copies every row of the levels that a test says, touched or not."""

    levels: tuple[int, ...] = (1, 2, 3)

    def _fill_level(self, source, target, lod, count):
        if lod not in self.levels:
            super()._fill_level(source, target, lod, count)
            return
        found = source.read_gists(self.gists.version, lod, np.arange(count))
        put(target, self.gists.version, lod, found)


def put(store, version, lod, found):
    nodes = np.arange(len(found.rows)).astype(np.uint64)
    store.put_gists(
        GistBatch(version=version, lod=lod, nodes=nodes, trust=found.trust, rows=found.rows)
    )


@pytest.mark.parametrize("levels", [(1,), (2,), (1, 2, 3)], ids=str)
def test_gists_that_are_kept_are_caught(memory, monkeypatch, levels):
    planted = fill(memory)
    monkeypatch.setattr(KeepsGists, "levels", levels)
    monkeypatch.setattr(forgetting, "GistRemake", KeepsGists)
    receipt = memory.forget(message_ids=planted)
    assert (False, True) == (receipt.verified, receipt.hits > 0)


def test_gists_of_an_encoder_before_that_are_kept_are_caught(memory, monkeypatch):
    class KeepsVersions(GistRemake):
        """Copies what other encoders made."""

        def fill(self, source, target):
            super().fill(source, target)
            for version, lod, count in source.state().gist_rows:
                if version != self.gists.version:
                    put(target, version, lod, source.read_gists(version, lod, np.arange(count)))

    planted = fill(memory)
    memory.journal.flush()
    store = memory.opened.storage
    active = memory.tree.gist_store.version
    found = store.read_gists(active, 1, np.arange(memory.tree.n_blocks))
    put(store, active + 1, 1, attrs.evolve(found, rows=found.rows ^ np.uint8(255)))
    monkeypatch.setattr(forgetting, "GistRemake", KeepsVersions)
    receipt = memory.forget(message_ids=planted)
    assert (False, True) == (receipt.verified, receipt.hits > 0)


def test_a_gist_that_is_the_same_without_what_was_forgotten_is_no_alarm(memory):
    """The filler took the place of a filler, so the row made anew is the row there was."""
    ids = np.random.default_rng(1).integers(0, 4_000, 2_000).astype(np.int32)
    ids[100] = memory.tree.filler_id
    memory.tree.append(ids, [MessageRecord(0, 3, 0, 1, len(ids), b"")]).wait()
    before = memory.gists()
    receipt = memory.forget(span=(100, 101))
    assert (before[1] == memory.gists()[1]).all()
    assert (True, 0, 2) == (receipt.verified, receipt.hits, receipt.gists_rebuilt)


# --- forget keeps the lexical index ------------------------------------------------------------


@pytest.fixture(params=STORAGES)
def told(request, tmp_path):
    """A session that was told of the words."""
    path = None if request.param == "memory" else tmp_path / "a.mc"
    with MemorySession.open(path, storage=request.param, model=EchoModel(), w_max=512) as session:
        for word in WORDS:
            session.append(f"The password of the vault is {word}.", source="vault")
            session.append("Ordinary talk about the weather, which changes every day.")
        yield session


def test_an_index_file_that_is_kept_is_caught(told, monkeypatch, terms_left):
    if told.path is None:
        pytest.skip("there is no file")
    remove = generations.remove_tree

    def careless(disk, folder):
        return [] if folder.name == "cache" else remove(disk, folder)

    monkeypatch.setattr(generations, "remove_tree", careless)
    receipt = told.forget(where={"source": "vault"})
    assert not receipt.verified
    assert set(WORDS) == set(terms_left(told, WORDS))


def test_an_index_that_is_held_open_is_caught(told, monkeypatch, terms_left):
    """Its file is deleted, and its rows are served on."""
    monkeypatch.setattr(LexicalIndex, "close", lambda _self: None)
    monkeypatch.setattr("megacontext_sdk.assembly.LexicalIndex", lambda *_a, **_k: index)
    index = told._parts.lexical
    told.forget(where={"source": "vault"})
    assert [] != terms_left(told, WORDS)
