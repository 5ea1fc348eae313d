"""Readers in other processes and threads beside a writer: prefixes only, no false alarms."""

import os
import signal
import threading

import numpy as np
import pytest

from megacontext_filesystem import opening
from megacontext_filesystem import store as store_module
from megacontext_sdk.errors import CorruptError

WRITING = """
import pathlib, sys
from megacontext_filesystem import store as module
from megacontext_filesystem.store import FilesystemStorage
from megacontext_sdk.contracts.storage import Header
from megacontext_sdk.testing.storage import Oracle
module._SEAL_BYTES = 200_000
store, oracle = FilesystemStorage(pathlib.Path(sys.argv[1])), Oracle()
store.open(sys.argv[2], Header(block_bytes=64))
print("open", flush=True)
first = 0
for number in range(int(sys.argv[3])):
    store.commit(oracle.batch(5 + 37 * (number % 20), n_messages=2), sync=number % 16 == 0)
    store.put_gists(oracle.gists(first, store.state().n_blocks))
    first = store.state().n_blocks
store.flush()
print("done", flush=True)
sys.stdin.read()
"""


def check_prefix(store, oracle):
    """Compare everything a reader shows with what the writer writes."""
    state = store.state()
    while len(oracle.commits) < state.seq:
        number = len(oracle.commits)
        oracle.batch(5 + 37 * (number % 20), n_messages=2)
    assert oracle.commits[state.seq - 1]["chain"].tobytes() == state.chain
    assert b"".join(oracle.blocks[: state.n_blocks]) == (
        store.read_blocks(np.arange(state.n_blocks)).tobytes()
    )
    assert oracle.bodies[: state.n_messages] == store.read_bodies(np.arange(state.n_messages))
    for version, lod, count in state.gist_rows:
        found = store.read_gists(version, lod, np.arange(count))
        assert oracle.gists(0, count).rows.tobytes() == found.rows.tobytes()
    return state.seq


def test_a_reader_in_another_process_sees_prefixes_through_many_seals(
    victim, folder, opened, oracle
):
    writer = victim(WRITING, folder, "create", 2_000)
    assert b"open\n" == writer.stdout.readline()
    reader = opened("read")
    seen, refreshed = [], 0
    while not seen or seen[-1] < 2_000:
        if refreshed % 5 == 4:  # some come late, most stay
            reader.close()
            reader = opened("read")
        refreshed += 1
        if reader.state().seq > (seen[-1] if seen else 0):
            seen.append(check_prefix(reader, oracle))
    assert sorted(seen) == seen
    assert len(set(seen)) > 3
    writer.stdin.close()
    assert b"done\n" == writer.stdout.readline()
    assert 0 == writer.wait(timeout=30), writer.stderr.read()


def test_a_writer_killed_at_any_moment_leaves_a_prefix(victim, folder, opened, oracle):
    for number in range(4):
        path = folder.with_name(f"data-{number:06d}")
        writer = victim(WRITING, path, "create", 100_000)
        assert b"open\n" == writer.stdout.readline()
        reader = opened("read", path)
        while reader.state().seq < 150 + 200 * number:
            os.sched_yield()
        writer.send_signal(signal.SIGKILL)
        writer.wait(timeout=30)
        least = reader.state().seq
        store = opened("write", path)
        assert check_prefix(store, oracle) >= least
        store.close()


def test_an_unfinished_frame_is_no_damage_and_shows_when_it_is_whole(
    opened, oracle, folder, contents
):
    store = opened("create")
    store.commit(oracle.batch(10))
    reader = opened("read")
    held = contents(reader)
    start = store._view.log.size
    store.commit(oracle.batch(50))
    log = folder / "log-000001.mcl"
    data = log.read_bytes()
    log.write_bytes(data[: start + 90])
    assert held == contents(reader)
    with log.open("ab") as file:
        file.write(data[start + 90 :])
    assert 2 == reader.state().seq
    assert contents(store) == contents(reader)


def test_a_log_that_vanished_was_sealed(opened, oracle, monkeypatch, contents, eager):
    """The writer seals between the reader's look at the manifest and its look at the log."""
    store = opened("create")
    store.commit(oracle.batch(40))
    original = opening.manifests.read_manifest
    times = iter(range(3))

    def sealing_meanwhile(folder, number):
        found = original(folder, number)
        if next(times, None) is not None:
            store.commit(oracle.batch(40))
            store.flush()
        return found

    monkeypatch.setattr(opening.manifests, "read_manifest", sealing_meanwhile)
    reader = opened("read")
    assert 4 == reader.state().seq
    assert contents(store) == contents(reader)
    times = iter(range(4))
    with pytest.raises(CorruptError):  # more often than any writer could
        opened("read")


def test_what_a_reader_held_stays_readable_after_seals(opened, oracle, contents, eager):
    store = opened("create")
    store.commit(oracle.batch(100, n_messages=3))
    store.put_gists(oracle.gists(0, 3))
    reader = opened("read")
    blocks = reader.read_blocks(np.arange(3))
    before = blocks.tobytes()
    for _ in range(3):
        store.commit(oracle.batch(100))
        store.flush()
    assert before == blocks.tobytes()
    assert before == reader.read_blocks(np.arange(3)).tobytes()
    assert oracle.bodies[:3] == reader.read_bodies(np.arange(3))
    assert 4 == reader.state().seq
    assert contents(store) == contents(reader)


def test_threads_read_while_the_writer_seals(opened, oracle, monkeypatch):
    monkeypatch.setattr(store_module, "_SEAL_BYTES", 8_000)
    store = opened("create")
    store.commit(oracle.batch(320))
    errors, stop = [], threading.Event()

    def read(seed):
        rng = np.random.default_rng(seed)
        try:
            while not stop.is_set():
                state = store.state()
                wanted = rng.integers(0, state.n_blocks, 50)
                rows = store.read_blocks(wanted).tobytes()
                assert b"".join(oracle.blocks[at] for at in wanted) == rows
                for _version, _lod, count in state.gist_rows:
                    nodes = rng.integers(0, count, 30)
                    found = store.read_gists(0, 1, nodes)
                    assert found.present.all()
                    assert (nodes % 5).tolist() == found.trust.tolist()
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    first = 0
    for _ in range(150):
        store.commit(oracle.batch(64), sync=False)
        store.put_gists(oracle.gists(first, store.state().n_blocks))
        first = store.state().n_blocks
    stop.set()
    for thread in threads:
        thread.join()
    assert [] == errors
    assert store._view.manifest.number > 3


def test_a_child_that_ends_leaves_the_parents_files_alone(opened, oracle, contents):
    store = opened("create")
    store.commit(oracle.batch(100))
    held = contents(store)
    child = os.fork()
    if not child:
        store.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert held == contents(store)
    store.commit(oracle.batch(10))
    held = contents(store)
    store.close()
    assert held == contents(opened("read"))
