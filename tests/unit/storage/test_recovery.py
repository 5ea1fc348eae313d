"""Recovery: the longest verified prefix survives, the damaged files are kept, no more moves."""

import errno
import os
import shutil

import attrs
import numpy as np
import pytest

from megacontext_sdk.contracts.storage import GistRows
from megacontext_sdk.errors import (
    CommittedDataLostError,
    ConfigError,
    CorruptError,
    MegaContextError,
    SessionLockedError,
    SessionNotFoundError,
)
from megacontext_sdk.memory.directory.head import Head, pack_slot
from megacontext_sdk.memory.directory.manifest import read_meta
from megacontext_sdk.memory.directory.recovery import recover_memory
from megacontext_sdk.memory.lod import Span


def ids_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, 50_000, n).astype(np.int32)


@pytest.fixture
def alice(tmp_path, opened, append):
    """A closed memory of 5 commits of 40 tokens; returns its path and the size after each."""
    memory = opened()
    sizes = []
    for seed in range(5):
        append(memory, ids_of(40, seed), b"text %d" % seed)
        sizes.append((memory.path / "data-000001" / "log").stat().st_size)
    memory.close()
    return tmp_path / "alice.mc", sizes


@pytest.fixture
def recover(log_storage):
    def run(path, **options):
        return recover_memory(path, factory_of={"log": log_storage}.__getitem__, **options)

    return run


def log_of(path):
    return path / "data-000001" / "log"


def check_recovered(path, opened, result, seq):
    memory = opened(path)
    assert (seq, 40 * seq, 2) == (
        memory.journal.seq,
        memory.journal.n_tokens,
        memory.meta.generation,
    )
    expected = [ids_of(40, seed) for seed in range(seq)]
    expected = np.concatenate([np.empty(0, np.int32), *expected])
    assert np.array_equal(expected, memory.journal.token_ids(Span(0, 40 * seq)))
    assert [b"text %d" % at for at in range(seq)] == memory.journal.bodies(np.arange(seq))
    assert str(path / "rescue" / "data-000001") == result.rescue
    memory.close()


def test_a_sound_memory_is_left_alone(alice, recover, snapshot):
    path, _ = alice
    before = snapshot(path)
    for dry_run in (True, False):
        result = recover(path, dry_run=dry_run)
        assert (False, "", 5, 5, 0, None) == (
            result.is_damaged,
            result.reason,
            result.have_seq,
            result.want_seq,
            result.lost_commits,
            result.rescue,
        )
        assert before == snapshot(path)


@pytest.mark.parametrize("kept", range(5))
def test_a_store_that_ends_early_keeps_its_prefix(alice, recover, opened, snapshot, kept):
    path, sizes = alice
    os.truncate(log_of(path), ([0, *sizes])[kept] + 7)
    damaged = log_of(path).read_bytes()
    with pytest.raises(CommittedDataLostError) as caught:
        opened(path)
    assert "megacontext doctor" in str(caught.value)
    assert f'MemorySession.recover("{path}")' in str(caught.value)
    before = snapshot(path)
    dry = recover(path, dry_run=True)
    assert before == snapshot(path)
    assert (True, kept, 5, 5 - kept, 40 * kept) == (
        dry.is_damaged,
        dry.have_seq,
        dry.want_seq,
        dry.lost_commits,
        dry.n_tokens,
    )
    result = recover(path)
    assert not result.dry_run
    assert dry.reason == result.reason
    check_recovered(path, opened, result, kept)
    assert damaged == (path / "rescue/data-000001/data-000001/log").read_bytes()
    assert not recover(path).is_damaged


@pytest.mark.parametrize("commit", range(5))
@pytest.mark.parametrize("what", ["ids", "body"])
def test_a_chain_that_breaks_in_the_middle_keeps_what_precedes(
    alice, recover, opened, commit, what
):
    path, _ = alice
    data = bytearray(log_of(path).read_bytes())
    needle = b"text %d" % commit
    if what == "ids":  # the last two of a full block; those behind it travel in several tails
        last = 40 * (commit + 1) // 32 * 32 - 40 * commit
        needle = ids_of(40, commit)[last - 2 : last].astype("<u2").tobytes()
    at = data.index(needle)
    data[at] ^= 1
    log_of(path).write_bytes(data)
    result = recover(path)
    assert (True, commit, 5 - commit) == (result.is_damaged, result.have_seq, result.lost_commits)
    check_recovered(path, opened, result, commit)


@pytest.mark.parametrize("damage", ["absent", "zeros", "other chain"])
def test_a_head_that_says_nothing_or_another_thing_costs_no_commit(alice, recover, opened, damage):
    path, _ = alice
    if damage == "absent":
        (path / "HEAD").unlink()
    elif damage == "zeros":
        (path / "HEAD").write_bytes(bytes(1024))
    else:
        (path / "HEAD").write_bytes(pack_slot(Head(1, 4, bytes(16))) * 2)
    with pytest.raises(CorruptError):
        opened(path)
    result = recover(path)
    assert result.is_damaged
    assert result.lost_commits is None
    check_recovered(path, opened, result, 5)


def test_a_store_that_refuses_to_be_read_is_salvaged(alice, recover, opened):
    path, sizes = alice
    data = bytearray(log_of(path).read_bytes())
    data[sizes[2] + 4 : sizes[2] + 30] = b"\xff" * 26  # no msgpack any more
    log_of(path).write_bytes(data)
    with pytest.raises(Exception):  # noqa: B017 - whatever the store raises
        opened(path)
    result = recover(path)
    assert "refuses to be read" in result.reason
    check_recovered(path, opened, result, 3)


def test_nothing_at_all_survives_and_the_files_are_kept(alice, recover, opened):
    path, _ = alice
    shutil.rmtree(path / "data-000001")
    (path / "data-000001").mkdir()
    result = recover(path)
    assert (0, 0, 5) == (result.have_seq, result.n_tokens, result.lost_commits)
    check_recovered(path, opened, result, 0)


def test_unreadable_gists_are_left_out(alice, recover, opened, log_storage):
    path, _ = alice

    class Worn(log_storage):
        def state(self):
            return attrs.evolve(super().state(), gist_rows=((1, 1, 6),))

        def read_gists(self, version, lod, nodes):
            if max(nodes) > 2:
                raise CorruptError("a worn page", where="page", offset=1)
            n = len(nodes)
            return GistRows(
                rows=np.ones((n, 8), np.uint8), trust=np.ones(n, np.uint8), present=np.ones(n, bool)
            )

    written = []

    class Fresh(log_storage):
        def put_gists(self, batch):
            written.append(batch.nodes.tolist())

    def factory(folder, options):
        return (Worn if folder.name == "data-000001" else Fresh)(folder, options)

    result = recover_memory(path, factory_of=lambda _name: factory)
    assert "gists of version 1, LOD1 end at node 3" == result.reason
    assert (5, 0) == (result.have_seq, result.lost_commits)
    assert [0, 1, 2] == [node for nodes in written for node in nodes]
    check_recovered(path, opened, result, 5)


# --- refusals ---------------------------------------------------------------------------------


def test_memory_file_that_cannot_be_read_asks_for_a_copy(alice, recover, snapshot):
    path, _ = alice
    whole = (path / "MEMORY").read_bytes()
    (path / "MEMORY").write_bytes(whole[:-9])
    before = snapshot(path)
    for dry_run in (True, False):
        with pytest.raises(CorruptError, match="from a copy"):
            recover(path, dry_run=dry_run)
    assert before == snapshot(path)
    (path / "MEMORY").unlink()
    with pytest.raises(CorruptError, match="from a copy"):
        recover(path)
    assert log_of(path).exists()


def test_memory_file_of_another_generation_never_costs_the_data(alice, recover, snapshot):
    path, _ = alice
    (path / "data-000001").rename(path / "data-000002")
    before = snapshot(path)
    with pytest.raises(CorruptError, match="names generation 1"):
        recover(path)
    assert before == snapshot(path)


def test_what_is_no_memory_is_not_found(tmp_path, recover):
    with pytest.raises(SessionNotFoundError):
        recover(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SessionNotFoundError):
        recover(tmp_path / "empty", dry_run=True)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError):
        recover(tmp_path / "file")


def test_a_memory_in_use_is_refused(alice, recover, opened):
    path, _ = alice
    memory = opened()
    for dry_run in (True, False):
        with pytest.raises(SessionLockedError):
            recover(path, dry_run=dry_run)
    memory.close()
    opened(read_only=True)
    assert not recover(path, dry_run=True).is_damaged
    with pytest.raises(SessionLockedError):
        recover(path)


# --- cut short --------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["good", "bad"])
def test_killed_at_any_call_it_can_be_recovered_again(
    tmp_path, alice, recover, opened, failing_disk, died, head
):
    original, sizes = alice
    os.truncate(log_of(original), sizes[2])
    if head == "bad":
        (original / "HEAD").write_bytes(b"")
    for at in range(1, 100):
        path = tmp_path / f"{at}.mc"
        shutil.copytree(original, path)
        try:
            recover(path, disk=failing_disk(at))
        except died:
            recover(path)
            opened(path).close()
            check_recovered(path, opened, recover_paths(path), 3)
            names = {entry.name for entry in path.iterdir()}
            expected = {"MEMORY", "HEAD", "LOCK", "READERS", "data-000002", "cache", "rescue"}
            assert expected == names
            assert ["data-000001"] == [entry.name for entry in (path / "rescue").iterdir()]
            continue
        break
    assert at > 20


def recover_paths(path):
    class Result:
        rescue = str(path / "rescue" / "data-000001")

    return Result


def test_a_full_disk_changes_nothing(tmp_path, alice, recover, failing_disk, snapshot):
    path, sizes = alice
    os.truncate(log_of(path), sizes[2])
    recover(path, dry_run=True)
    before = snapshot(path)
    for at in range(1, 100):
        disk = failing_disk(at, OSError(errno.ENOSPC, "full"))
        try:
            recover(path, disk=disk)
        except MegaContextError:
            if read_meta(path).generation == 2:
                break
            after = snapshot(path)
            for name in ("HEAD", "rescue"):  # a slot of no generation, an empty folder
                before.pop(name, None)
                after.pop(name, None)
            assert before == after
            continue
        break
    assert at > 10
