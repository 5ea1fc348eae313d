"""A whole memory on DuckDB: crashes, damage, second writers, forks, equal chains."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from megacontext_duckdb import megacontext_storages
from megacontext_duckdb.store import DuckDBStorage
from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.contracts.storage import GistBatch
from megacontext_sdk.errors import (
    ConfigError,
    SessionClosedError,
    SessionLockedError,
)
from megacontext_sdk.memory.journal import MessageRecord
from megacontext_sdk.memory.lod import Span


def acknowledged(data):
    """Return the highest number in a stream of eight-byte acknowledgements."""
    return max(
        (int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data) // 8 * 8, 8)),
        default=0,
    )


def content_hash(folder):
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def check_content(journal, content):
    """Compare everything stored with what the victim appends, and the gists with their blocks."""
    expected = [content(seq) for seq in range(1, journal.seq + 1)]
    ids = np.concatenate([np.empty(0, np.int32), *expected])
    assert np.array_equal(ids, journal.token_ids(Span(0, journal.n_tokens)))
    bodies = [b"body %d" % seq for seq in range(1, journal.seq + 1)]
    assert bodies == journal.bodies(np.arange(journal.n_messages))
    count = journal.gist_count(0, 1)
    assert count <= journal.n_blocks
    found = journal.gists(0, 1, np.arange(count))
    assert found.present.all()
    assert (np.arange(count) % 251).tolist() == found.rows[:, 0].tolist() if count else True


DYING = """
point = sys.argv[2]

class Dying(DuckDBStorage):
    def commit(self, batch, *, sync=True):
        armed = int(batch.commits["seq"][-1]) == 3
        if armed and point == "before the commit":
            die()
        super().commit(batch, sync=sync)
        if armed and point == "after the commit, before HEAD":
            die()
    def flush(self):
        armed = self.state().seq == 3
        if armed and point == "before the checkpoint":
            die()
        super().flush()
        if armed and point == "after the checkpoint":
            die()
    def put_gists(self, batch):
        super().put_gists(batch)
        if point == "between gists and their transaction" and self.state().seq == 3:
            die()

memory = opened(Dying)
for seq in (1, 2, 3):
    append(memory, seq).wait()
    acknowledge(seq)
    gists(memory)
memory.journal.flush()
die()
"""


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ("before the commit", {2}),
        ("after the commit, before HEAD", {3}),
        ("before the checkpoint", {3}),
        ("after the checkpoint", {3}),
        ("between gists and their transaction", {3}),
    ],
)
def test_row09_kill_between_writes_keeps_what_was_acknowledged(
    tmp_path, victim, opened, content, point, expected
):
    process = victim(DYING, tmp_path / "alice.mc", point)
    data, errors = process.communicate(timeout=60)
    assert (-signal.SIGKILL, b"") == (process.returncode, errors)
    memory = opened()
    assert memory.journal.seq >= acknowledged(data)
    assert memory.journal.seq in expected
    check_content(memory.journal, content)


CREATING = """
import megacontext_sdk.memory.directory.making as making
from megacontext_sdk.memory.directory.head import HeadFile
point = sys.argv[2]

class Dying(DuckDBStorage):
    def open(self, mode, header):
        super().open(mode, header)
        if mode == "create" and point == "data made":
            die()
    def flush(self):
        super().flush()
        if point == "data flushed":
            die()

def dying(real, name):
    def call(*arguments):
        if point == "before " + name:
            die()
        real(*arguments)
        if point == "after " + name:
            die()
    return call

HeadFile.create = staticmethod(dying(HeadFile.create, "HEAD"))
making.replace_meta = dying(making.replace_meta, "MEMORY")
opened(Dying)
"""


@pytest.mark.parametrize("point", ["data made", "data flushed", "before MEMORY", "after MEMORY"])
def test_row09_kill_while_creating_leaves_a_path_that_opens(
    tmp_path, victim, opened, append, point
):
    process = victim(CREATING, tmp_path / "alice.mc", point)
    process.communicate(timeout=60)
    assert -signal.SIGKILL == process.returncode
    memory = opened()
    append(memory, [1, 2, 3])
    assert 3 == memory.journal.n_tokens


# --- one writer -------------------------------------------------------------------------------


def test_row16_second_writer_in_another_process_is_refused_with_the_owner_named(
    tmp_path, opened, append, run_victim
):
    memory = opened()
    append(memory, [1, 2, 3])
    code = """
for options in ({}, {"read_only": True}):
    try:
        opened(**options)
    except Exception as error:
        print(type(error).__name__, error.owner_pid, error.owner_host, bool(error.since))
"""
    out = run_victim(code, tmp_path / "alice.mc").decode().splitlines()
    assert [f"SessionLockedError {os.getpid()} {os.uname().nodename} True"] * 2 == out
    append(memory, [4])
    assert 4 == memory.journal.n_tokens


def test_row16_owner_that_died_leaves_the_memory_open_to_others(tmp_path, opened, run_victim):
    run_victim("append(opened(), 1).wait(); os._exit(0)", tmp_path / "alice.mc")
    assert 1 == opened().journal.seq


def test_exit_without_close_is_a_crash_that_loses_nothing(tmp_path, victim, opened):
    process = victim("memory = opened(); append(memory, 1).wait()", tmp_path / "alice.mc")
    _, errors = process.communicate(timeout=60)
    assert (0, b"") == (process.returncode, errors)
    assert 1 == opened().journal.seq


def test_readers_share_a_memory_without_a_writer(tmp_path, opened, append):
    memory = opened()
    append(memory, range(100))
    memory.close()
    before = content_hash(tmp_path / "alice.mc")
    readers = [opened(read_only=True) for _ in range(3)]
    assert [list(range(100))] * 3 == [
        reader.journal.token_ids(Span(0, 100)).tolist() for reader in readers
    ]
    with pytest.raises(SessionLockedError) as caught:
        opened()
    assert "readers" == caught.value.holder
    for reader in readers:
        reader.close()
    assert before == content_hash(tmp_path / "alice.mc")


def test_reader_sees_what_only_the_log_holds(tmp_path, opened, run_victim):
    run_victim("append(opened(), 1).wait(); os._exit(0)", tmp_path / "alice.mc")
    before = content_hash(tmp_path / "alice.mc")
    reader = opened(read_only=True)
    assert 1 == reader.journal.seq
    reader.close()
    assert before == content_hash(tmp_path / "alice.mc")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody without permissions")
def test_read_only_directory_reads_and_refuses_to_write(opened, append, run_victim, request):
    # Not below pytest's folder, which nobody else may enter.
    folder = Path(tempfile.mkdtemp())
    request.addfinalizer(lambda: shutil.rmtree(folder))
    folder.chmod(0o755)
    memory = opened(folder / "alice.mc")
    append(memory, [1, 2, 3])
    memory.close()
    alice = folder / "alice.mc"
    for path in (alice, *alice.rglob("*")):
        os.chown(path, 65_534, 65_534)
        path.chmod(0o500 if path.is_dir() else 0o400)
    before = content_hash(alice)
    code = """
from megacontext_sdk.errors import ReadOnlyError
for path in (Path(sys.argv[1]), Path(sys.argv[1]).parent / "new.mc"):
    sys.argv[1] = str(path)
    try:
        opened()
    except ReadOnlyError as error:
        print("refused", error.path == str(path))
sys.argv[1] = sys.argv[2]
print(opened(read_only=True).journal.n_tokens)
"""
    out = (
        run_victim("os.setgid(65_534); os.setuid(65_534)\n" + code, alice, alice)
        .decode()
        .splitlines()
    )
    assert ["refused True", "refused True", "3"] == out
    assert before == content_hash(alice)


# --- forks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["sys.exit(0)", "memory.close(); sys.exit(0)", "os._exit(0)"])
def test_row23_child_that_ends_leaves_the_parents_memory_alone(
    tmp_path, run_victim, opened, content, ending
):
    out = run_victim(
        f"""
import gc, warnings
warnings.simplefilter("ignore")
memory = opened()
for seq in range(1, 11):
    append(memory, seq).wait()
memory.journal.blocks(np.arange(2))  # a cursor is open, too
child = os.fork()
if child == 0:
    try:
        append(memory, 99)
    except Exception as error:
        os.write(1, (error.reason + "\\n").encode())
    gc.collect()
    {ending}
os.waitpid(child, 0)
for seq in range(11, 21):
    append(memory, seq).wait()
os.write(1, b"parent went on")
die()
""",
        tmp_path / "alice.mc",
    )
    assert [b"forked", b"parent went on"] == out.splitlines()
    memory = opened()
    assert 20 == memory.journal.seq
    check_content(memory.journal, content)


def test_row23_closed_memory_refuses(opened, append):
    memory = opened()
    append(memory, [1])
    memory.close()
    with pytest.raises(SessionClosedError):
        append(memory, [2])


# --- the same everywhere ----------------------------------------------------------------------


def play(memory):
    """Make the same calls on any memory and return what came of them."""
    rng = np.random.default_rng(17)
    journal = memory.journal
    for n in (1, 31, 32, 33, 128, 5_000, 0):
        ids = rng.integers(0, 50_000, n).astype(np.int32)
        cut = int(rng.integers(0, n + 1))
        journal.append(
            ids,
            [
                MessageRecord(0, 3, 0, 7, cut, b"first"),
                MessageRecord(1, 2, 0, 8, n - cut, rng.bytes(int(rng.integers(0, 300)))),
            ],
            key=rng.bytes(16),
        )
        journal.update_settings({"n": n})
        first, stop = journal.gist_count(0, 1), journal.n_blocks
        if stop > first:
            rows = rng.integers(0, 255, (stop - first, 40), dtype=np.uint8)
            nodes = np.arange(first, stop, dtype=np.uint64)
            trust = np.full(len(nodes), 2, np.uint8)
            journal.put_gists(GistBatch(version=0, lod=1, nodes=nodes, trust=trust, rows=rows))
    journal.flush()
    digest = hashlib.sha256(journal.chain)
    digest.update(journal.token_ids(Span(0, journal.n_tokens)).tobytes())
    digest.update(journal.blocks(np.arange(journal.n_blocks)).tobytes())
    digest.update(journal.messages(0, journal.n_messages).tobytes())
    digest.update(b"".join(journal.bodies(np.arange(journal.n_messages))))
    digest.update(journal.gists(0, 1, np.arange(journal.n_blocks)).rows.tobytes())
    return journal.chain, digest.hexdigest()


def test_row17_memory_and_duckdb_give_equal_chains_and_content(tmp_path, opened):
    fixed = {"root": bytes(range(16)), "clock": lambda: 1_700_000_000_000_000}
    first = play(opened(tmp_path / "a.mc", **fixed))
    second = play(opened(None, backend="memory", factory=InMemoryStorage, **fixed))
    assert first == second
    reopened = opened(tmp_path / "b.mc", **fixed)
    assert first == play(reopened)
    reopened.close()
    assert first[0] == opened(tmp_path / "b.mc").journal.chain


def test_entry_point_module_yields_the_record_and_stays_light(run_victim):
    (spec,) = megacontext_storages()
    assert ("duckdb", "megacontext_duckdb.store:DuckDBStorage", "megacontext-duckdb") == (
        spec.name,
        spec.factory,
        spec.requires,
    )
    code = "import megacontext_duckdb, sys; print('duckdb' in sys.modules, 'numpy' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert "False False" == done.stdout.strip()


def test_durability_it_does_not_offer_is_refused(opened):
    with pytest.raises(ConfigError, match="durability"):
        opened(durability="os")
    assert frozenset({"sync"}) == DuckDBStorage.capabilities.durability
