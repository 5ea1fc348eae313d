"""Whole new memories: made beside their target, forked, or adopted by another base."""

import errno
import os

import msgspec
import numpy as np
import pytest

from megacontext_sdk.contracts.storage import Capabilities, GistBatch, Header
from megacontext_sdk.errors import (
    ConfigError,
    CorruptError,
    ModelMismatchError,
    SessionLockedError,
    StorageFullError,
)
from megacontext_sdk.memory.directory.forking import fork_memory
from megacontext_sdk.memory.directory.locks import DirectoryLock
from megacontext_sdk.memory.directory.manifest import read_meta
from megacontext_sdk.memory.directory.replay import copy_commits
from megacontext_sdk.memory.directory.vault import Fingerprints, make_memory
from megacontext_sdk.memory.lod import Span


def ids_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, 50_000, n).astype(np.int32)


@pytest.fixture
def alice(opened, append):
    memory = opened()
    for seed in range(4):
        append(memory, ids_of(40, seed), b"text %d" % seed)
    n = memory.journal.n_blocks
    nodes, trust = np.arange(n, dtype=np.uint64), np.full(n, 3, np.uint8)
    batch = GistBatch(version=1, lod=1, nodes=nodes, trust=trust, rows=np.ones((n, 8), np.uint8))
    memory.journal.put_gists(batch)
    memory.journal.flush()
    return memory


@pytest.fixture
def make(tmp_path, alice, log_storage):
    """Make a copy of alice at a path."""

    def run(name="bob.mc", **options):
        def fill(target):
            copy_commits(
                alice.storage, target, root=alice.meta.root, token_bytes=alice.meta.token_bytes
            )

        settings = {"backend": "log", "factory": log_storage, "meta": alice.meta, "fill": fill}
        return make_memory(tmp_path / name, **{**settings, **options})

    return run


def names(tmp_path):
    return {entry.name for entry in tmp_path.iterdir()}


def test_what_was_made_opens_as_any_memory(tmp_path, alice, make, opened, append):
    meta = make()
    assert meta == read_meta(tmp_path / "bob.mc")
    bob = opened(tmp_path / "bob.mc")
    assert not bob.created
    assert alice.journal.chain == bob.journal.chain
    append(bob, [1])
    assert {"alice.mc", "bob.mc"} == names(tmp_path)
    for path in bob.path.rglob("*"):
        assert 0 == path.stat().st_mode & 0o077, path


def test_an_existing_target_is_refused(tmp_path, make, snapshot):
    (tmp_path / "bob.mc").mkdir()
    before = snapshot(tmp_path / "bob.mc")
    for name in ("bob.mc", "alice.mc"):
        with pytest.raises(ConfigError, match="exists already"):
            make(name)
    assert before == snapshot(tmp_path / "bob.mc")
    with pytest.raises(ConfigError, match="create it first"):
        make("no/where.mc")
    assert {"alice.mc", "bob.mc"} == names(tmp_path)


def test_foreign_things_where_it_is_built_are_refused(tmp_path, make):
    (tmp_path / "bob.mc.part").mkdir()
    (tmp_path / "bob.mc.part" / "thesis.txt").write_text("chapter 1")
    (tmp_path / "eve.mc.part").symlink_to(tmp_path / "bob.mc.part")
    (tmp_path / "carol.mc.part").mkdir()
    (tmp_path / "carol.mc.part" / "MEMORY").touch()
    for name in ("bob.mc", "eve.mc", "carol.mc"):
        with pytest.raises(ConfigError):
            make(name)
    assert "chapter 1" == (tmp_path / "bob.mc.part" / "thesis.txt").read_text()


def test_a_failure_leaves_nothing(tmp_path, alice, make):
    def failing(_target):
        raise StorageFullError("the disk is full", needed=1, free=0)

    with pytest.raises(StorageFullError):
        make(fill=failing)
    with pytest.raises(CorruptError):
        make(fill=lambda target: copy_commits(alice.storage, target, root=bytes(16), token_bytes=2))
    assert {"alice.mc"} == names(tmp_path)


def test_killed_at_any_call_it_is_there_or_not_and_can_be_made(
    tmp_path, make, opened, failing_disk, died
):
    for at in range(1, 100):
        name = f"{at}.mc"
        try:
            make(name, disk=failing_disk(at))
        except died:
            if not (tmp_path / name).exists():
                make(name)
            memory = opened(tmp_path / name)
            assert 160 == memory.journal.n_tokens
            memory.close()
            assert f"{name}.part" not in names(tmp_path)
            continue
        break
    assert at > 10


def test_a_call_that_fails_leaves_nothing_or_all_of_it(tmp_path, make, failing_disk):
    for at in range(1, 100):
        name = f"{at}.mc"
        try:
            make(name, disk=failing_disk(at, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        except StorageFullError:
            assert f"{name}.part" not in names(tmp_path)
            continue
        break
    assert at > 10


def test_two_makers_exclude_each_other(tmp_path, make):
    (tmp_path / "bob.mc.part").mkdir()
    lock = DirectoryLock(tmp_path / "bob.mc.part")
    lock.acquire_write(concurrent_readers=True)
    with pytest.raises(SessionLockedError):
        make()
    lock.release()
    make()


# --- forks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seq", [None, 0, 1, 3, 4])
def test_a_fork_holds_its_parent_up_to_the_cut(tmp_path, alice, opened, seq):
    meta = fork_memory(alice, tmp_path / "fork.mc", at_seq=seq, name="plan b")
    at = 4 if seq is None else seq
    fork = opened(tmp_path / "fork.mc")
    assert meta == fork.meta
    chain = alice.storage.read_commits(at, at + 1)["chain"].tobytes() if at else alice.meta.root
    assert chain == fork.journal.chain
    assert {"uuid": alice.meta.uuid, "seq": at, "chain": chain.hex()} == meta.parent
    assert alice.meta.uuid != meta.uuid
    assert ("plan b", 1) == (meta.name, meta.generation)
    span = Span(0, 40 * at)
    assert np.array_equal(alice.journal.token_ids(span), fork.journal.token_ids(span))


def test_appends_to_parent_and_fork_never_interact(tmp_path, alice, opened, append):
    fork_memory(alice, tmp_path / "fork.mc", at_seq=3)
    fork = opened(tmp_path / "fork.mc")
    for seed in range(5):
        append(alice, ids_of(20, 100 + seed))
        append(fork, ids_of(30, 200 + seed))
    expected = np.concatenate([ids_of(40, seed) for seed in range(3)])
    more = np.concatenate([ids_of(30, 200 + seed) for seed in range(5)])
    assert np.array_equal([*expected, *more], fork.journal.token_ids(Span(0, 270)))
    mine = np.concatenate([ids_of(20, 100 + seed) for seed in range(5)])
    assert np.array_equal(mine, alice.journal.token_ids(Span(160, 260)))
    fork.close()
    alice.close()
    assert (9, 8) == (opened().journal.seq, opened(tmp_path / "fork.mc").journal.seq)


def test_a_backend_that_can_shares_its_bytes(tmp_path, opened, append, log_storage):
    cloned = []

    class Sharing(log_storage):
        capabilities = Capabilities(durability=frozenset({"sync"}), cheap_fork=True)

        def clone(self, target, upto_seq):
            cloned.append(upto_seq)
            copy = log_storage(target)
            copy.open("create", Header(block_bytes=64))
            copy_commits(self, copy, root=bytes(16), token_bytes=2, upto_seq=upto_seq)
            copy.close()

    memory = opened(factory=Sharing, root=bytes(16))
    for seed in range(4):
        append(memory, ids_of(40, seed))
    fork_memory(memory, tmp_path / "fork.mc", at_seq=2)
    assert [2] == cloned
    assert 80 == opened(tmp_path / "fork.mc", factory=Sharing).journal.n_tokens
    fork_memory(memory, tmp_path / "empty.mc", at_seq=0)
    assert [2] == cloned


def test_a_fork_of_nowhere_is_refused(tmp_path, alice):
    for seq in (-1, 5):
        with pytest.raises(ConfigError, match="from 1 to 4"):
            fork_memory(alice, tmp_path / "fork.mc", at_seq=seq)
    with pytest.raises(ConfigError, match="exists"):
        fork_memory(alice, alice.path)
    assert {"alice.mc"} == names(tmp_path)


# --- names, and another base ------------------------------------------------------------------


def test_a_name_is_kept_and_old_files_have_none(tmp_path, opened):
    opened(tmp_path / "bob.mc", name="Bob").close()
    assert "Bob" == opened(tmp_path / "bob.mc").meta.name
    opened(tmp_path / "carol.mc")
    assert b"name" not in (tmp_path / "carol.mc" / "MEMORY").read_bytes()


def test_another_base_is_adopted_only_if_asked(alice, opened, fingerprints, snapshot):
    alice.close()
    other = Fingerprints("c" * 64, fingerprints.tokenizer)
    before = snapshot(alice.path)
    with pytest.raises(ModelMismatchError, match="adopt_model=True"):
        opened(fingerprints=other)
    with pytest.raises(ModelMismatchError):
        opened(fingerprints=other, adopt_base=True, read_only=True)
    with pytest.raises(ModelMismatchError, match="retokenize=True") as caught:
        opened(fingerprints=Fingerprints("c" * 64, "d" * 64), adopt_base=True)
    assert "tokenizer" == caught.value.kind
    assert before == snapshot(alice.path)
    adopted = opened(fingerprints=other, adopt_base=True)
    assert ("c" * 64, 160) == (adopted.meta.base_fp, adopted.journal.n_tokens)
    assert adopted.meta == read_meta(alice.path)
    assert msgspec.structs.replace(alice.meta, base_fp="c" * 64) == adopted.meta
    adopted.close()
    with pytest.raises(ModelMismatchError):
        opened()
    opened(fingerprints=other)
