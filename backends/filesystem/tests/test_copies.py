"""Clones share what is sealed and nothing else; salvage shows what damage has left."""

import errno
import os

import attrs
import numpy as np
import pytest

from megacontext_sdk.contracts.disk import Disk
from megacontext_sdk.errors import CorruptError, StorageFullError


@pytest.fixture
def filled(opened, oracle, eager):
    """Return an open store: two seals, then some commits in its log; tails in between."""
    store = opened("create")
    first = 0
    for number in range(9):
        store.commit(oracle.batch(45 + number, n_commits=2, n_messages=2))
        last = store.state().n_blocks
        store.put_gists(oracle.gists(first, last))
        first = last
        if number in {2, 5}:
            store.flush()
    return store


@pytest.fixture
def prefix(filled, oracle):
    """Return what a store cut at a commit holds."""

    def of(seq):
        rows = oracle.commits[:seq]
        n_tokens = int(rows[-1]["start"] + rows[-1]["n_tokens"]) if rows else 0
        n_messages = int(rows[-1]["first_message"] + rows[-1]["n_messages"]) if rows else 0
        ids = b"".join(oracle.blocks) + oracle.tail
        n_blocks = n_tokens // 32
        return {
            "seq": seq,
            "commits": b"".join(row.tobytes() for row in rows),
            "ids": ids[: 2 * n_tokens],
            "messages": b"".join(row.tobytes() for row in oracle.messages[:n_messages]),
            "bodies": oracle.bodies[:n_messages],
            "gists": oracle.gists(0, n_blocks).rows.tobytes() if n_blocks else b"",
        }

    return of


def shown(store):
    state = store.state()
    counts = {lod: count for _version, lod, count in state.gist_rows}
    return {
        "seq": state.seq,
        "commits": store.read_commits(1, state.seq + 1).tobytes(),
        "ids": store.read_blocks(np.arange(state.n_blocks)).tobytes() + state.tail,
        "messages": store.read_messages(0, state.n_messages).tobytes(),
        "bodies": store.read_bodies(np.arange(state.n_messages)),
        "gists": store.read_gists(0, 1, np.arange(counts.get(1, 0))).rows.tobytes(),
    }


# --- clones -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seq", range(19))
def test_a_clone_holds_what_lies_below_its_cut(filled, prefix, opened, tmp_path, seq, oracle):
    filled.clone(tmp_path / "clone", seq)
    clone = opened("write", tmp_path / "clone")
    assert prefix(seq) == shown(clone)
    before = shown(filled)
    if seq == 18:
        clone.commit(oracle.batch(500))
        clone.flush()
    assert before == shown(filled)


def test_a_clone_shares_sealed_files_only(filled, tmp_path):
    filled.clone(tmp_path / "clone", 18)
    shared = {path.name for path in filled.path.iterdir() if path.stat().st_nlink > 1}
    assert {info.name for info in filled._view.manifest.segments} == shared
    for name in shared:
        assert (tmp_path / "clone" / name).stat().st_ino == (filled.path / name).stat().st_ino
    logs = [path for path in (tmp_path / "clone").iterdir() if path.suffix != ".mcs"]
    assert {1} == {path.stat().st_nlink for path in logs}


def test_a_clone_outlives_its_parent_and_a_damaged_parent(filled, prefix, opened, tmp_path):
    filled.clone(tmp_path / "clone", 12)
    filled.close()
    for path in filled.path.iterdir():
        path.unlink()
    assert prefix(12) == shown(opened("read", tmp_path / "clone"))


def test_a_clone_of_a_clone_and_of_another_device_are_whole(
    filled, prefix, opened, tmp_path, monkeypatch
):
    filled.clone(tmp_path / "first", 16)
    first = opened("write", tmp_path / "first")
    first.clone(tmp_path / "second", 14)
    assert prefix(14) == shown(opened("read", tmp_path / "second"))

    def refuse(_self, _source, target):
        if target.suffix == ".mcs":
            raise OSError(errno.EXDEV, "another device")
        os.link(_source, target)

    monkeypatch.setattr(Disk, "link", refuse)
    filled.clone(tmp_path / "copied", 18)
    assert prefix(18) == shown(opened("read", tmp_path / "copied"))
    assert {1} == {path.stat().st_nlink for path in (tmp_path / "copied").iterdir()}


@pytest.mark.parametrize("seq", [-1, 19])
def test_a_cut_that_does_not_exist_is_refused_and_leaves_nothing(filled, tmp_path, seq):
    with pytest.raises(LookupError):
        filled.clone(tmp_path / "clone", seq)
    assert not (tmp_path / "clone").exists()


@pytest.mark.parametrize("nth", range(0, 16, 2))
def test_a_clone_without_space_leaves_nothing(filled, tmp_path, nth, monkeypatch):
    calls = iter(range(1_000))
    original = Disk.write

    def write(self, descriptor, buffers):
        if next(calls) == nth:
            raise OSError(errno.ENOSPC, "full")
        original(self, descriptor, buffers)

    monkeypatch.setattr(Disk, "write", write)
    before = shown(filled)
    with pytest.raises(StorageFullError):
        filled.clone(tmp_path / "clone", 11)
    assert not (tmp_path / "clone").exists()
    assert before == shown(filled)


def test_damage_that_would_be_copied_is_noticed(filled, tmp_path, opened):
    name = next(info.name for info in filled._view.manifest.segments if info.kind == "body")
    flip(filled.path / name, -60)
    filled.close()
    store = opened("write")
    with pytest.raises(CorruptError):
        store.clone(tmp_path / "clone", 3)
    assert not (tmp_path / "clone").exists()


# --- salvage ----------------------------------------------------------------------------------


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def salvaged(opened, prefix):
    """Open what is left, check that it is a prefix, and return its newest commit."""
    store = opened("salvage")
    seq = store.state().seq
    found, expected = shown(store), prefix(seq)
    gists = found.pop("gists")
    assert expected.pop("gists").startswith(gists)
    assert expected == found
    return seq


def test_salvage_of_a_sound_store_is_the_whole(filled, opened, prefix, snapshot):
    filled.close()
    before = snapshot(filled.path)
    assert 18 == salvaged(opened, prefix)
    assert before == snapshot(filled.path)
    assert prefix(18)["gists"] == shown(opened("salvage"))["gists"]


@pytest.mark.parametrize("frame", range(6))
def test_salvage_shows_the_log_up_to_the_damage(filled, opened, prefix, frame):
    log = filled._view.log
    ends, at = [0], 0
    data = log.path.read_bytes()
    while at < len(data):
        at += 40 + int.from_bytes(data[at + 20 : at + 24], "little")
        ends.append(at)
    filled.close()
    flip(log.path, ends[frame] + 60)
    # Frames alternate: two commits, their gists; what follows lost gists is not lost.
    assert {0: 12, 1: 18, 2: 14, 3: 18, 4: 16, 5: 18}[frame] == salvaged(opened, prefix)


def test_salvage_goes_on_behind_a_damaged_newest_manifest(filled, opened, prefix):
    filled.close()
    flip(filled.path / "manifest-000003.json", 50)
    with pytest.raises(CorruptError):
        opened("read")
    assert 18 == salvaged(opened, prefix)  # its segments name themselves, its log has our salt
    (filled.path / "manifest-000003.json").unlink()
    assert 18 == salvaged(opened, prefix)
    (filled.path / "log-000003.mcl").unlink()
    assert salvaged(opened, prefix) in {11, 12}  # the newest whose tail a block still holds


@pytest.mark.parametrize("kind", ["block", "commit", "message", "body", "gist"])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("how", ["payload", "header", "missing", "cut"])
def test_salvage_shows_the_prefix_before_a_bad_segment(filled, opened, prefix, kind, which, how):
    infos = [info for info in filled._view.manifest.segments if info.kind == kind]
    path = filled.path / infos[which].name
    filled.close()
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        flip(path, {"payload": 64, "header": 10}[how])
    seq = salvaged(opened, prefix)
    assert seq == (18 if kind == "gist" else seq)
    assert seq <= {0: 0, 1: 6}[which] or kind == "gist"
    assert seq >= {0: 0, 1: 5}[which]


def test_salvage_keeps_the_rows_before_a_bad_page(opened, oracle, eager, folder):
    store = opened("create")
    store.commit(oracle.batch(32 * 100, n_commits=20))
    store.flush()
    store.close()
    flip(folder / "block-000000000000000.mcs", 64 + 3 * 16_384 + 1)  # block 768
    store = opened("salvage")
    assert (7, 700) == (store.state().seq, store.state().n_blocks)
    assert b"".join(oracle.blocks[:700]) == store.read_blocks(np.arange(700)).tobytes()
    with pytest.raises(LookupError):
        store.read_blocks(np.array([700]))


def test_salvage_finds_nothing_where_no_manifest_holds(filled, opened):
    filled.close()
    for path in filled.path.glob("manifest-*"):
        flip(path, 30)
    with pytest.raises(CorruptError):
        opened("salvage")
    for path in filled.path.iterdir():
        path.unlink()
    with pytest.raises(CorruptError):
        opened("salvage")


def test_salvage_keeps_large_bodies_before_a_bad_page(opened, oracle, eager, folder):
    store = opened("create")
    for _ in range(6):
        store.commit(attrs.evolve(oracle.batch(32), bodies=(b"x" * 20_000,)))
    store.flush()
    store.close()
    flip(folder / "body-000000000000000.mcs", 64 + 70_000)  # a page of body 3
    assert 3 == opened("salvage").state().seq
