"""The switch of generations: cut short anywhere it is old or new, never in between."""

import errno
import gc
import os
from pathlib import Path

import numpy as np
import pytest

from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.contracts.storage import Capabilities, GistBatch
from megacontext_sdk.errors import (
    CorruptError,
    ReadOnlyError,
    SessionClosedError,
    SessionLockedError,
    StorageError,
    StorageFullError,
)
from megacontext_sdk.memory.chain import FLAG_FORGOTTEN
from megacontext_sdk.memory.directory.manifest import read_meta
from megacontext_sdk.memory.directory.replay import (
    Redaction,
    append_settings,
    copy_commits,
    copy_gists,
)
from megacontext_sdk.memory.directory.vault import OpenedMemory
from megacontext_sdk.memory.lod import Span


def ids_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, 50_000, n).astype(np.int32)


OLD = np.concatenate([ids_of(40, 0), ids_of(40, 1), ids_of(40, 2)])
NEW = OLD.copy()
NEW[50:70] = -1
FORGET = Redaction((Span(50, 70),), np.array([1]))


def forgetting(memory):
    """Return a build that leaves out tokens and notes it in the settings."""

    def build(source, target):
        token_bytes = memory.meta.token_bytes
        position = copy_commits(
            source, target, root=memory.meta.root, token_bytes=token_bytes, redaction=FORGET
        )
        copy_gists(source, target, n_tokens=position.n_tokens, redaction=FORGET)
        append_settings(target, position, {"done": 1}, token_bytes=token_bytes, ts_us=7)

    return build


@pytest.fixture
def alice(opened, append):
    """Open a memory of 3 commits and 120 tokens; more arguments go to the open."""

    def make(**options):
        memory = opened(**options)
        for seed in range(3):
            append(memory, ids_of(40, seed))
        return memory

    return make


def ids_in(memory):
    return memory.journal.token_ids(Span(0, memory.journal.n_tokens))


def names(directory):
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


KEPT = {"MEMORY", "HEAD", "LOCK", "READERS", "cache"}


def check_no_leftovers(directory, *, keep_old):
    generation = read_meta(directory).generation
    expected = KEPT | {f"data-{generation:06d}", f"data-{generation:06d}/log"}
    if generation == 2 and keep_old:
        old = "rescue/data-000001"
        expected |= {"rescue", old, *(f"{old}/{name}" for name in ("MEMORY", "HEAD"))}
        expected |= {f"{old}/data-000001", f"{old}/data-000001/log"}
    found = names(directory) - {"rescue"} | ({"rescue"} & expected)  # an empty one may stay
    assert expected == found


def test_switch_puts_what_was_built_in_force_and_the_old_handle_aside(alice, opened, append):
    old = alice()
    new = old.switch(forgetting(old), keep_old=False)
    assert np.array_equal(NEW, ids_in(new))
    assert (4, 2) == (new.journal.seq, new.meta.generation)
    assert {"done": 1} == new.journal.settings
    assert FLAG_FORGOTTEN == new.journal.messages(1, 2)["flags"][0]
    assert [b"text", b"", b"text"] == new.journal.bodies(np.arange(3))
    check_no_leftovers(new.path, keep_old=False)
    with pytest.raises(SessionClosedError):
        append(old, [1])
    old.close()  # lets go of nothing
    with pytest.raises(SessionLockedError):
        opened()
    append(new, [1, 2])
    new.close()
    again = opened()
    assert (2, 5, 122) == (again.meta.generation, again.journal.seq, again.journal.n_tokens)


def test_the_generation_before_is_kept_as_a_memory_of_its_own(alice, opened):
    old = alice()
    new = old.switch(forgetting(old), keep_old=True)
    check_no_leftovers(new.path, keep_old=True)
    assert 1 == new.meta.rescue
    new.close()
    kept = opened(new.path / "rescue" / "data-000001")
    assert np.array_equal(OLD, ids_in(kept))
    assert old.journal.chain == kept.journal.chain


def test_several_switches_follow_each_other(alice, opened):
    memory = alice()
    for _ in range(3):
        memory = memory.switch(forgetting(memory), keep_old=False)
    assert (4, 6) == (memory.meta.generation, memory.journal.seq)
    memory.close()
    assert 6 == opened().journal.seq


def test_cache_of_the_generation_before_goes(alice):
    old = alice()
    (old.cache_dir / "index").write_text("terms of what is to be forgotten")
    new = old.switch(forgetting(old), keep_old=False)
    assert [] == list(new.cache_dir.iterdir())


def copied(memory):
    def build(source, target):
        copy_commits(source, target, root=memory.meta.root, token_bytes=memory.meta.token_bytes)

    return build


def test_chain_is_the_same_where_nothing_changes(alice):
    old = alice()
    chain = old.journal.chain
    assert chain == old.switch(copied(old), keep_old=False).journal.chain


def test_keys_are_known_after_a_switch(opened, append):
    memory = opened()
    key = b"k" * 16
    first = memory.journal.append(np.zeros(0, np.int32), [], key=key).wait()
    memory = memory.switch(copied(memory), keep_old=False)
    again = memory.journal.append(np.zeros(0, np.int32), [], key=key).wait()
    assert (first.seq, True) == (again.seq, again.duplicate)


# --- cut short --------------------------------------------------------------------------------


def die_in(memory):
    """Let go of what a killed process would have let go of."""
    memory.journal.abandon()
    memory.lock.close_descriptors()


@pytest.mark.parametrize("keep_old", [False, True])
def test_killed_at_any_call_it_is_old_or_new_and_nothing_is_left(
    tmp_path, alice, opened, append, failing_disk, died, keep_old
):
    outcomes = []
    at = 0
    while True:
        at += 1
        path = tmp_path / f"{at}.mc"
        memory = alice(path=path)
        disk = memory.disk = failing_disk(at)
        try:
            new = memory.switch(forgetting(memory), keep_old=keep_old)
            disk.at = None
            new.close()
            break
        except died:
            die_in(memory)
        again = opened(path)
        is_new = again.meta.generation == 2
        assert np.array_equal(NEW if is_new else OLD, ids_in(again)), disk.calls
        assert (4 if is_new else 3) == again.journal.seq
        check_no_leftovers(path, keep_old=keep_old)
        append(again, [5])
        again.close()
        outcomes.append(is_new)
    assert outcomes == sorted(outcomes)
    assert {False, True} == set(outcomes)
    assert len(outcomes) > (20 if keep_old else 8)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("keep_old", [False, True])
def test_a_call_that_fails_leaves_a_usable_handle_or_the_new_generation(
    tmp_path, alice, opened, append, failing_disk, code, keep_old
):
    for at in range(1, 100):
        path = tmp_path / f"{at}.mc"
        memory = alice(path=path)
        disk = memory.disk = failing_disk(at, OSError(code, os.strerror(code)))
        expected = StorageFullError if code == errno.ENOSPC else StorageError
        try:
            new = memory.switch(forgetting(memory), keep_old=keep_old)
        except expected:
            pass
        else:
            disk.at = None
            new.close()
            break
        if read_meta(path).generation == 1:
            append(memory, [7])
            memory.close()
            assert np.array_equal([*OLD, 7], ids_in(opened(path)))
        else:
            with pytest.raises(SessionClosedError) as caught:
                append(memory, [7])
            assert "failed" == caught.value.reason
            memory.close()
            assert np.array_equal(NEW, ids_in(opened(path)))
        check_no_leftovers(path, keep_old=keep_old)
    assert at > 8


def test_an_error_of_the_build_changes_nothing(alice, opened, append, snapshot):
    memory = alice()
    memory.journal.flush()
    before = snapshot(memory.path)

    def build(_source, target):
        append_settings(
            target,
            copy_commits(memory.storage, target, root=bytes(16), token_bytes=2),
            {},
            token_bytes=2,
            ts_us=1,
        )
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        memory.switch(build, keep_old=True)
    assert before == snapshot(memory.path)
    append(memory, [1])
    memory.close()
    assert 4 == opened().journal.seq


def test_what_does_not_come_back_as_built_is_refused(alice, log_storage, append):
    class Forgetful(log_storage):
        def flush(self):
            if self.path.name == "data-000002":
                os.truncate(self.log, 0)

    memory = alice(factory=Forgetful)
    with pytest.raises(CorruptError, match="does not come back"):
        memory.switch(copied(memory), keep_old=False)
    append(memory, [1])
    assert not (memory.path / "data-000002").exists()


def test_a_built_chain_that_does_not_hold_is_refused(alice, append):
    memory = alice()

    def build(source, target):
        copy_commits(source, target, root=bytes(16), token_bytes=2)

    with pytest.raises(CorruptError, match="chain"):
        memory.switch(build, keep_old=False)
    append(memory, [1])


# --- who is in the way ------------------------------------------------------------------------


def test_reader_cannot_switch(alice, opened):
    alice().close()
    reader = opened(read_only=True)
    with pytest.raises(ReadOnlyError):
        reader.switch(copied(reader), keep_old=False)


def test_readers_beside_the_writer_are_excluded_for_the_moment(alice, opened, append, log_storage):
    class Shared(log_storage):
        capabilities = Capabilities(durability=frozenset({"sync"}), concurrent_readers=True)

    memory = alice(factory=Shared)
    reader = opened(factory=Shared, read_only=True)
    with pytest.raises(SessionLockedError) as caught:
        memory.switch(copied(memory), keep_old=False, readers_timeout=0.05)
    assert "readers" == caught.value.holder
    assert not (memory.path / "data-000002").exists()
    append(memory, [1])
    reader.close()
    memory = memory.switch(copied(memory), keep_old=False)
    assert 121 == opened(factory=Shared, read_only=True).journal.n_tokens
    append(memory, [2])


def test_reader_that_comes_during_the_build_is_noticed(alice, opened, append, log_storage):
    class Shared(log_storage):
        capabilities = Capabilities(durability=frozenset({"sync"}), concurrent_readers=True)

    memory = alice(factory=Shared)
    readers = []

    def build(source, target):
        copied(memory)(source, target)
        readers.append(opened(factory=Shared, read_only=True))

    with pytest.raises(SessionLockedError):
        memory.switch(build, keep_old=False)
    assert not (memory.path / "data-000002").exists()
    assert np.array_equal(OLD, ids_in(readers[0]))
    append(memory, [1])


def test_appends_of_other_threads_wait_and_are_refused(alice, append):
    from concurrent.futures import ThreadPoolExecutor

    memory = alice()
    with ThreadPoolExecutor(1) as pool:
        late = []

        def build(source, target):
            late.append(pool.submit(append, memory, [1]))
            copied(memory)(source, target)

        new = memory.switch(build, keep_old=False)
        with pytest.raises(SessionClosedError):
            late[0].result(10)
    assert np.array_equal(OLD, ids_in(new))


# --- without a directory, and across a fork of the process ------------------------------------


def test_in_memory_stores_are_swapped(tmp_path, opened, append):
    memory = opened(tmp_path / "unused", backend="memory", factory=InMemoryStorage)
    for seed in range(3):
        append(memory, ids_of(40, seed))
    rows = np.zeros((3, 8), np.uint8)
    trust = np.full(3, 3, np.uint8)
    memory.journal.put_gists(
        GistBatch(version=1, lod=1, nodes=np.arange(3, dtype=np.uint64), trust=trust, rows=rows)
    )
    new = memory.switch(forgetting(memory), keep_old=True)
    assert isinstance(new, OpenedMemory)
    assert np.array_equal(NEW, ids_in(new))
    assert (1, 2) == (new.journal.gist_count(1, 1), new.meta.generation)
    append(new, [1])
    with pytest.raises(SessionClosedError):
        append(memory, [1])
    with pytest.raises(ZeroDivisionError):
        new.switch(lambda _source, _target: 1 / 0, keep_old=False)
    append(new, [2])
    assert [] == list(Path(tmp_path).iterdir())


FORK = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from megacontext_sdk.builtin.memory_storage import InMemoryStorage
import numpy as np
from megacontext_sdk.errors import SessionClosedError
from megacontext_sdk.memory.journal import MessageRecord
from megacontext_sdk.memory.directory.replay import copy_commits
from megacontext_sdk.memory.directory.vault import Fingerprints, open_memory
old = open_memory(None, backend="memory", factory=InMemoryStorage,
                  fingerprints=Fingerprints("a", "b"), vocab_size=100)
one = MessageRecord(0, 3, 0, 1, 3, b"")
old.journal.append(np.arange(3, dtype=np.int32), [one]).wait()
new = old.switch(lambda s, t: copy_commits(s, t, root=old.meta.root, token_bytes=2), keep_old=False)
child = os.fork()
if child == 0:
    try:
        new.journal.append(np.arange(3, dtype=np.int32), [one])
    except SessionClosedError as error:
        os._exit(7 if error.reason == "forked" else 1)
    os._exit(2)
assert 7 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
new.journal.append(np.arange(3, dtype=np.int32), [one]).wait()
print(new.journal.n_tokens)
"""


def test_row23_the_new_handle_knows_of_forks(in_child, tmp_path):
    gc.collect()
    code = "import warnings; warnings.simplefilter('ignore')\n" + FORK
    assert "6" == in_child(code, tmp_path, tmp_path)
