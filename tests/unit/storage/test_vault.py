"""The vault: creating, opening in order, refusing without changing a byte."""

import logging
import os
import pickle
import shutil

import msgspec
import numpy as np
import pytest

from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.errors import (
    CommittedDataLostError,
    ConfigError,
    CorruptError,
    FormatVersionError,
    ModelMismatchError,
    ReadOnlyError,
    SessionClosedError,
    SessionLockedError,
    SessionNotFoundError,
    StorageFullError,
)
from megacontext_sdk.memory.directory.head import Head, pack_slot
from megacontext_sdk.memory.directory.manifest import encode_meta, read_meta
from megacontext_sdk.memory.directory.vault import Fingerprints
from megacontext_sdk.memory.lod import Span


def ids_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, 50_000, n).astype(np.int32)


@pytest.fixture
def alice(tmp_path, opened, append):
    """A closed memory of 3 commits and 100 tokens."""
    memory = opened()
    for seed, n in enumerate((40, 40, 20)):
        append(memory, ids_of(n, seed))
    memory.close()
    return tmp_path / "alice.mc"


# --- creating ---------------------------------------------------------------------------------


def test_created_memory_has_the_documented_layout(tmp_path, opened):
    memory = opened()
    assert memory.created
    assert tmp_path / "alice.mc" == memory.path
    names = {entry.name for entry in memory.path.iterdir()}
    assert {"MEMORY", "HEAD", "LOCK", "READERS", "data-000001", "cache"} == names
    assert memory.path / "cache" == memory.cache_dir
    assert (2, 32, 1) == (
        memory.meta.token_bytes,
        memory.meta.block_size,
        memory.meta.generation,
    )


def test_row10_everything_is_private_whatever_the_umask(tmp_path, opened):
    before = os.umask(0)
    try:
        opened().close()
    finally:
        os.umask(before)
    alice = tmp_path / "alice.mc"
    assert 0o700 == alice.stat().st_mode & 0o777
    for path in alice.rglob("*"):
        assert (0o700 if path.is_dir() else 0o600) == path.stat().st_mode & 0o777, path


def test_large_vocabularies_take_four_bytes(opened, tmp_path):
    assert 2 == opened(tmp_path / "a", vocab_size=65_535).meta.token_bytes
    assert 4 == opened(tmp_path / "b", vocab_size=65_536).meta.token_bytes


def test_an_empty_directory_becomes_a_memory(tmp_path, opened):
    (tmp_path / "alice.mc").mkdir()
    assert opened().created


def test_reopened_memory_goes_on_where_it_was(alice, opened, append):
    memory = opened()
    assert not memory.created
    assert (3, 100) == (memory.journal.seq, memory.journal.n_tokens)
    expected = np.concatenate([ids_of(40), ids_of(40, 1), ids_of(20, 2)])
    assert np.array_equal(expected, memory.journal.token_ids(Span(0, 100)))
    append(memory, ids_of(7, 3))
    memory.close()
    assert 107 == opened(read_only=True).journal.n_tokens


@pytest.mark.parametrize("state", ["nothing but locks", "empty data", "no HEAD yet", "all but it"])
def test_create_cut_short_at_any_step_is_started_over(tmp_path, opened, state):
    memory = opened()
    memory.close()
    alice = tmp_path / "alice.mc"
    shutil.rmtree(alice / "cache")
    (alice / "MEMORY").rename(alice / "MEMORY.part")
    if state in {"nothing but locks", "empty data", "no HEAD yet"}:
        (alice / "MEMORY.part").unlink()
        (alice / "HEAD").unlink()
    if state in {"nothing but locks", "empty data"}:
        shutil.rmtree(alice / "data-000001")
    if state == "empty data":
        (alice / "data-000001").mkdir()
    again = opened()
    assert again.created
    assert memory.meta.uuid != again.meta.uuid


def test_memory_file_deleted_from_a_full_memory_is_corrupt_not_a_new_memory(
    alice, opened, snapshot
):
    (alice / "MEMORY").unlink()
    shutil.rmtree(alice / "cache")
    before = snapshot(alice)
    with pytest.raises(CorruptError, match="MEMORY"):
        opened()
    assert before == snapshot(alice)


# --- refusals ---------------------------------------------------------------------------------


def test_missing_memory_is_not_found(tmp_path, opened):
    for options in ({"create": False}, {"read_only": True}):
        with pytest.raises(SessionNotFoundError):
            opened(**options)
    (tmp_path / "alice.mc").mkdir()
    with pytest.raises(SessionNotFoundError):
        opened(create=False)
    assert [] == list((tmp_path / "alice.mc").iterdir())


@pytest.mark.parametrize("kind", ["file", "symlink", "other files"])
def test_row9_what_is_not_a_memory_is_refused_and_untouched(tmp_path, opened, snapshot, kind):
    path = tmp_path / "alice.mc"
    if kind == "file":
        path.write_text("dear diary")
    elif kind == "symlink":
        (tmp_path / "real").mkdir()
        path.symlink_to(tmp_path / "real")
    else:
        path.mkdir()
        (path / "thesis.txt").write_text("chapter 1")
    before = snapshot(tmp_path)
    with pytest.raises(ConfigError) as caught:
        opened()
    assert "path" == caught.value.field
    assert before == snapshot(tmp_path)


def test_row10_planted_links_at_our_names_are_refused(alice, tmp_path, opened):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("LOCK", "READERS", "HEAD", "MEMORY"):
        kept = (alice / name).read_bytes()
        (alice / name).unlink()
        (alice / name).symlink_to(victim)
        with pytest.raises(ConfigError, match="symbolic link"):
            opened()
        (alice / name).unlink()
        (alice / name).write_bytes(kept)
    assert "precious" == victim.read_text()
    assert 100 == opened().journal.n_tokens


def test_other_backend_is_refused(alice, opened, snapshot):
    before = snapshot(alice)
    with pytest.raises(ConfigError, match="storage='log'") as caught:
        opened(backend="duckdb")
    assert "storage" == caught.value.field
    assert before == snapshot(alice)


@pytest.mark.parametrize("kind", ["base", "tokenizer"])
def test_row14_other_model_is_a_typed_refusal(alice, opened, snapshot, fingerprints, kind):
    before = snapshot(alice)
    given = {"base": fingerprints.base, "tokenizer": fingerprints.tokenizer, kind: "c" * 64}
    with pytest.raises(ModelMismatchError) as caught:
        opened(fingerprints=Fingerprints(**given))
    assert (kind, getattr(fingerprints, kind), "c" * 64) == (
        caught.value.kind,
        caught.value.stored,
        caught.value.given,
    )
    assert before == snapshot(alice)


def test_unknown_durability_is_refused_listing_what_there_is(tmp_path, opened):
    with pytest.raises(ConfigError, match="it offers sync"):
        opened(durability="os")
    assert [] == list(tmp_path.iterdir())


def test_newer_format_is_refused(alice, opened, snapshot):
    meta = msgspec.structs.replace(read_meta(alice), format=(2, 0))
    (alice / "MEMORY").write_bytes(encode_meta(meta))
    before = snapshot(alice)
    with pytest.raises(FormatVersionError):
        opened()
    assert before == snapshot(alice)


def test_a_failed_create_leaves_nothing_behind(tmp_path, opened, log_storage, snapshot):
    class Failing(log_storage):
        def flush(self):
            raise StorageFullError("the disk is full", needed=1, free=0)

    with pytest.raises(StorageFullError):
        opened(factory=Failing)
    assert [] == list(tmp_path.iterdir())
    (tmp_path / "alice.mc").mkdir()
    with pytest.raises(StorageFullError):
        opened(factory=Failing)
    assert [] == list((tmp_path / "alice.mc").iterdir())
    assert opened().created


def test_missing_parent_and_urls_are_refused(tmp_path, opened):
    for path in (tmp_path / "no" / "alice.mc", "s3://bucket/alice.mc", ""):
        with pytest.raises(ConfigError):
            opened(path)


# --- HEAD and the chain decide ----------------------------------------------------------------


def set_head(alice, seq, chain):
    (alice / "HEAD").write_bytes(pack_slot(Head(1, seq, chain)) * 2)


def test_commits_lost_from_the_end_are_noticed(alice, opened, snapshot):
    log = alice / "data-000001" / "log"
    whole = log.read_bytes()
    for cut in (1, len(whole) // 2, len(whole)):
        log.write_bytes(whole[: len(whole) - cut])
        before = snapshot(alice)
        with pytest.raises(CommittedDataLostError) as caught:
            opened()
        assert 3 == caught.value.want_seq
        assert caught.value.have_seq < 3
        assert before == snapshot(alice)
    log.write_bytes(whole)
    assert 3 == opened().journal.seq


def test_a_commit_beyond_head_is_kept(alice, opened):
    first = opened(read_only=True)
    chain = first.journal._storage.read_commits(2, 3)["chain"].tobytes()
    first.close()
    set_head(alice, 2, chain)
    assert 3 == opened().journal.seq


def test_another_chain_at_head_is_corrupt(alice, opened, snapshot):
    set_head(alice, 2, bytes(16))
    before = snapshot(alice)
    with pytest.raises(CorruptError, match="acknowledged") as caught:
        opened()
    assert "HEAD" == caught.value.where
    assert before == snapshot(alice)


@pytest.mark.parametrize("damage", ["absent", "zeros"])
def test_head_that_says_nothing_is_corrupt(alice, opened, snapshot, damage):
    if damage == "absent":
        (alice / "HEAD").unlink()
    else:
        (alice / "HEAD").write_bytes(bytes(1024))
    before = snapshot(alice)
    with pytest.raises(CorruptError):
        opened()
    assert before == snapshot(alice)


@pytest.mark.parametrize("what", ["ids", "body", "chain", "row"])
def test_changed_content_breaks_the_chain(alice, opened, log_storage, what):
    log = alice / "data-000001" / "log"
    data = bytearray(log.read_bytes())
    where = {
        "ids": data.index(ids_of(40, 1)[10:12].astype("<u2").tobytes()),
        "body": data.index(b"text"),
        "chain": 85,
        "row": 30,
    }[what]
    data[where] ^= 1
    log.write_bytes(data)
    with pytest.raises(CorruptError):
        opened()


def test_only_the_newest_commits_are_checked_at_open(tmp_path, opened, append, log_storage):
    reads = []

    class Counting(log_storage):
        def read_commits(self, start, stop):
            reads.append(stop - start)
            return super().read_commits(start, stop)

    memory = opened(factory=Counting)
    for seed in range(200):
        append(memory, ids_of(3, seed))
    memory.close()
    reads.clear()
    assert 200 == opened(factory=Counting).journal.seq
    assert max(reads) <= 65


def test_leftovers_of_a_switch_go_but_only_after_the_check(alice, opened, caplog):
    caplog.set_level(logging.WARNING)
    (alice / "data-000002").mkdir()
    (alice / "data-000002" / "half").touch()
    (alice / "MEMORY.part").touch()
    chain_file = (alice / "HEAD").read_bytes()
    (alice / "HEAD").unlink()
    with pytest.raises(CorruptError):
        opened()
    assert (alice / "data-000002" / "half").exists()
    (alice / "HEAD").write_bytes(chain_file)
    opened(read_only=True).close()
    assert (alice / "data-000002" / "half").exists()
    opened().close()
    assert not (alice / "data-000002").exists()
    assert not (alice / "MEMORY.part").exists()
    assert "data-000002" in caplog.text


# --- locks, reading, closing ------------------------------------------------------------------


def test_row16_second_writer_is_refused_and_changes_nothing(alice, opened, snapshot):
    first = opened()
    before = snapshot(alice)
    with pytest.raises(SessionLockedError) as caught:
        opened()
    assert os.getpid() == caught.value.owner_pid
    assert before == snapshot(alice)
    first.close()
    assert 3 == opened().journal.seq


def test_refused_creator_does_not_disturb_the_one_at_work(tmp_path, opened, append):
    first = opened()
    append(first, ids_of(10))
    with pytest.raises(SessionLockedError):
        opened()
    append(first, ids_of(10))
    first.close()
    assert 20 == opened().journal.n_tokens


def test_read_only_changes_no_byte_and_refuses_writes(alice, opened, append, snapshot):
    before = snapshot(alice)
    reader = opened(read_only=True)
    assert reader.cache_dir is None
    assert 100 == reader.journal.n_tokens
    with pytest.raises(ReadOnlyError):
        append(reader, ids_of(1))
    second = opened(read_only=True)
    with pytest.raises(SessionLockedError) as caught:
        opened()
    assert "readers" == caught.value.holder
    reader.close()
    second.close()
    assert before == snapshot(alice)


def test_row25_lock_deleted_while_held_stops_writing_at_once(alice, opened, append):
    memory = opened()
    (alice / "LOCK").unlink()
    for _ in range(2):
        with pytest.raises(SessionClosedError) as caught:
            append(memory, ids_of(3))
        assert "failed" == caught.value.reason
    memory.close()
    assert 100 == opened().journal.n_tokens


def test_row23_closed_memory_refuses_and_close_is_idempotent(opened, append):
    memory = opened()
    append(memory, ids_of(3))
    memory.close()
    memory.close()
    for call in (lambda: append(memory, ids_of(1)), lambda: memory.journal.token_ids(Span(0, 1))):
        with pytest.raises(SessionClosedError) as caught:
            call()
        assert "closed" == caught.value.reason


def test_row23_pickling_names_the_path(opened, tmp_path):
    with pytest.raises(TypeError, match=r"alice\.mc"):
        pickle.dumps(opened())


FORK = """
import os, sys
from pathlib import Path
import numpy as np
from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.errors import SessionClosedError
from megacontext_sdk.memory.journal import MessageRecord
from megacontext_sdk.memory.directory.vault import Fingerprints, open_memory
memory = open_memory(None, backend="memory", factory=InMemoryStorage,
                     fingerprints=Fingerprints("a", "b"), vocab_size=100)
one = MessageRecord(0, 3, 0, 1, 3, b"")
memory.journal.append(np.arange(3, dtype=np.int32), [one]).wait()
child = os.fork()
if child == 0:
    try:
        memory.journal.append(np.arange(3, dtype=np.int32), [one])
    except SessionClosedError as error:
        memory.close()
        os._exit(7 if error.reason == "forked" else 1)
    os._exit(2)
assert 7 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
memory.journal.append(np.arange(3, dtype=np.int32), [one]).wait()
print(memory.journal.n_tokens)
"""


def test_row23_forked_child_refuses_and_the_parent_goes_on(in_child):
    assert "6" == in_child("import warnings; warnings.simplefilter('ignore')\n" + FORK)


def test_in_memory_store_gets_no_directory(tmp_path, opened, append):
    memory = opened(tmp_path / "unused", backend="memory", factory=InMemoryStorage)
    append(memory, ids_of(50))
    assert (None, None, True) == (memory.path, memory.cache_dir, memory.created)
    assert [] == list(tmp_path.iterdir())


def test_chain_is_reproducible_with_a_fixed_root_and_clock(tmp_path, opened, append):
    chains = set()
    for name in ("a", "b"):
        memory = opened(tmp_path / name, root=bytes(range(16)), clock=lambda: 5)
        append(memory, ids_of(50))
        chains.add(memory.journal.chain)
    assert 1 == len(chains)
    other = opened(tmp_path / "c", clock=lambda: 5)
    append(other, ids_of(50))
    assert other.journal.chain not in chains
