"""Sealing: crashes and failures between any two calls, tidying up, pages, many segments."""

import errno

import attrs
import numpy as np
import pytest

from megacontext_filesystem import tables
from megacontext_sdk.contracts.disk import Disk
from megacontext_sdk.errors import CorruptError, SessionClosedError, StorageFullError

CALLS = ("open", "close", "write", "truncate", "sync", "link", "unlink", "mkdir", "sync_directory")


class Crash(BaseException):
    """The process is gone: nothing it does reaches the disk any more."""


class DyingDisk(Disk):
    """Passes `alive` calls on, then raises at every one."""

    def __init__(self, alive, error):
        self.alive, self.error, self.calls = alive, error, []

    def __getattribute__(self, name):
        if name not in CALLS:
            return super().__getattribute__(name)
        if name != "close":  # a descriptor is closed by the end of a process, too
            self.calls.append(name)
            if len(self.calls) > self.alive:
                raise self.error
        return super().__getattribute__(name)


class FailingDisk(DyingDisk):
    """Raises at one call only."""

    def __getattribute__(self, name):
        if name not in CALLS or name == "close":
            return object.__getattribute__(self, name)
        self.calls.append(name)
        if len(self.calls) == self.alive + 1:
            raise self.error
        return object.__getattribute__(self, name)


@pytest.fixture
def filled(opened, oracle, eager):
    """Make a store with two seals behind it and some commits and gists in its log."""

    def fill(disk, path=None):
        del oracle.commits[:], oracle.blocks[:], oracle.messages[:], oracle.bodies[:]
        oracle.tail, oracle.n_tokens = b"", 0
        store = opened("create", path)
        first = 0
        for number in range(3):
            store.commit(oracle.batch(70 + number, n_commits=2, n_messages=2))
            last = store.state().n_blocks
            store.put_gists(oracle.gists(first, last))
            first = last
            if number < 2:
                store.flush()
        store.close()
        store = opened("write", path, disk=disk)
        disk.calls.clear()
        return store

    return fill


N_CALLS = 37


@pytest.mark.parametrize("alive", range(N_CALLS))
def test_a_crash_between_any_two_calls_of_a_seal_loses_nothing(
    filled, opened, contents, oracle, folder, alive
):
    disk = DyingDisk(10**6, Crash())
    store = filled(disk)
    held = contents(store)
    disk.alive = alive
    if alive < N_CALLS - 1:
        with pytest.raises(Crash):
            store.flush()
    else:
        store.flush()  # one call more and nothing is left to fail
    assert held == contents(opened("read"))
    again = opened("write")
    assert held == contents(again)
    again.commit(oracle.batch(40))
    again.flush()
    held = contents(again)
    again.close()
    assert held == contents(opened("read"))
    assert 2 == len(list(folder.glob("manifest-*")))
    assert 1 == len(list(folder.glob("log-*")))


def test_the_calls_of_a_seal_are_in_the_right_order(filled):
    disk = DyingDisk(10**6, Crash())
    store = filled(disk)
    store.flush()
    # Segments and the next log under durable names, the manifest in force, and only then the rest.
    assert ["sync_directory", "open", "write", "sync", "link", "unlink", "sync_directory"] == (
        disk.calls[-9:-2]
    )
    assert ["unlink", "unlink"] == disk.calls[-2:]
    assert N_CALLS - 1 == len(disk.calls)


@pytest.mark.parametrize("alive", range(N_CALLS - 1))
def test_a_full_disk_during_a_seal_costs_nothing_and_it_is_tried_again(
    filled, opened, contents, oracle, folder, alive, caplog
):
    disk = FailingDisk(10**6, OSError(errno.ENOSPC, "full"))
    store = filled(disk)
    held = contents(store)
    disk.alive = alive
    is_flush = False
    try:
        store.flush()
    except SessionClosedError:
        is_flush = disk.calls[-1] in {"sync", "sync_directory"}
        assert is_flush  # whatever the reason, a flush that failed is final
    if not is_flush:
        assert held == contents(store)
        store.flush()
        store.commit(oracle.batch(10))
        held = contents(store)
    store.close()
    assert held == contents(opened("write"))


@pytest.mark.parametrize("alive", range(N_CALLS - 1))
def test_an_io_error_during_a_seal_ends_writing_and_loses_nothing(
    filled, opened, contents, oracle, alive
):
    disk = FailingDisk(10**6, OSError(errno.EIO, "I/O error"))
    store = filled(disk)
    held = contents(store)
    disk.alive = alive
    if disk_call_matters(alive):
        with pytest.raises(SessionClosedError) as caught:
            store.flush()
        assert "failed" == caught.value.reason
        n_calls = len(disk.calls)
        for call in (lambda: store.commit(oracle.batch(1)), store.flush, store.state):
            with pytest.raises(SessionClosedError):
                call()
        assert n_calls == len(disk.calls)  # nothing is tried again
    else:
        store.flush()  # what is left over is removed next time
        assert held == contents(store)
    store.close()
    assert held == contents(opened("write"))


def disk_call_matters(alive):
    """Say whether the call after `alive` others is before the manifest is in force."""
    return alive not in {N_CALLS - 5, N_CALLS - 3, N_CALLS - 2}


# --- appends ----------------------------------------------------------------------------------


class HalfDisk(Disk):
    """Writes half of the N-th write, then says that the disk is full."""

    def __init__(self, code=errno.ENOSPC):
        self.armed, self.code, self.syncs = False, code, 0

    def write(self, descriptor, buffers):
        if not self.armed:
            return super().write(descriptor, buffers)
        data = b"".join(bytes(buffer) for buffer in buffers)
        super().write(descriptor, [data[: len(data) // 2]])
        raise OSError(self.code, "no space")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_half_an_append_is_cut_away_and_writing_goes_on(opened, oracle, contents, code, folder):
    disk = HalfDisk(code)
    store = opened("create", disk=disk)
    store.commit(oracle.batch(40))
    held, size = contents(store), (folder / "log-000001.mcl").stat().st_size
    batch = oracle.batch(64, n_messages=2)
    disk.armed = True
    for call in (lambda: store.commit(batch), lambda: store.put_gists(oracle.gists(0, 1))):
        with pytest.raises(StorageFullError) as caught:
            call()
        assert caught.value.needed > 0
        assert caught.value.free > 0
        assert size == (folder / "log-000001.mcl").stat().st_size
        assert held == contents(store)
    disk.armed = False
    store.commit(batch)
    store.put_gists(oracle.gists(0, 1))
    held = contents(store)
    store.close()
    assert held == contents(opened("read"))


def test_a_write_that_fails_otherwise_ends_the_store(opened, oracle, contents, folder):
    disk = HalfDisk(errno.EIO)
    store = opened("create", disk=disk)
    store.commit(oracle.batch(40))
    held = contents(store)
    disk.armed = True
    with pytest.raises(SessionClosedError) as caught:
        store.commit(oracle.batch(10))
    assert "failed" == caught.value.reason
    disk.armed = False
    with pytest.raises(SessionClosedError):
        store.read_blocks(np.array([0]))
    store.close()
    assert held == contents(opened("write"))


def test_a_flush_that_fails_is_never_tried_again(opened, oracle):
    disk = FailingDisk(10**6, OSError(errno.ENOSPC, "even then"))
    store = opened("create", disk=disk)
    disk.calls.clear()
    disk.alive = 1
    with pytest.raises(SessionClosedError):
        store.commit(oracle.batch(10))
    assert ["write", "sync"] == disk.calls
    with pytest.raises(SessionClosedError):
        store.flush()
    assert ["write", "sync"] == disk.calls


def test_without_sync_nothing_is_flushed_until_flush(opened, oracle):
    disk = DyingDisk(10**6, Crash())
    store = opened("create", disk=disk)
    disk.calls.clear()
    for _ in range(3):
        store.commit(oracle.batch(10), sync=False)
        store.put_gists(oracle.gists(store.state().seq - 1, store.state().seq))
    assert ["write"] * 6 == disk.calls
    store.flush()
    assert "sync" == disk.calls[-1]
    store.flush()
    assert 7 == len(disk.calls)


# --- reading sealed rows ----------------------------------------------------------------------


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_bit_flips_in_every_sealed_file_are_detected(filled, opened, contents, folder):
    """Payloads when they are read, everything else no later; nothing wrong is ever shown."""
    filled(DyingDisk(10**6, Crash())).close()
    held = contents(opened("read"))
    old = "manifest-000002.json"  # read by nobody as long as the newer one holds
    for path in sorted(folder.iterdir()):
        if path.suffix == ".mcl" or path.name == old:
            continue
        data = path.read_bytes()
        for at in (*range(0, 64, 4), *range(64, len(data), 13), len(data) - 33, len(data) - 1):
            flip(path, at)
            with pytest.raises(CorruptError) as caught:
                contents(opened("read"))
            assert path.name == caught.value.where, at
            path.write_bytes(data)
    assert held == contents(opened("read"))


def test_damage_in_one_page_is_named_and_spares_the_others(opened, oracle, eager, folder):
    store = opened("create")
    store.commit(oracle.batch(32 * 2_000))
    store.put_gists(oracle.gists(0, 2_000, row_bytes=100))
    store.flush()
    store.close()
    flip(folder / "block-000000000000000.mcs", 64 + 3 * 16_384 + 5)
    flip(folder / "gist-v0-l1-000000000000000.mcs", 64 + 5 * 16_384)
    store = opened("read")
    assert oracle.blocks[0] == store.read_blocks(np.array([0])).tobytes()
    for _ in range(2):
        with pytest.raises(CorruptError) as caught:
            store.read_blocks(np.array([0, 3 * 256 + 9]))
        assert 64 + 3 * 16_384 == caught.value.offset
    with pytest.raises(CorruptError):
        store.read_gists(0, 1, np.array([819]))  # a row over the edge of the damaged page
    assert store.read_gists(0, 1, np.array([818 - 200])).present.all()


@pytest.mark.parametrize("change", ["missing", "shorter", "longer", "empty"])
def test_a_segment_that_is_gone_or_cut_is_noticed_at_open(filled, opened, folder, change):
    filled(DyingDisk(10**6, Crash())).close()
    for path in sorted(folder.glob("*.mcs")):
        data = path.read_bytes()
        if change == "missing":
            path.unlink()
        else:
            path.write_bytes({"shorter": data[:-1], "longer": data + b"x", "empty": b""}[change])
        for mode in ("read", "write"):
            with pytest.raises(CorruptError) as caught:
                opened(mode)
            assert path.name == caught.value.where
        path.write_bytes(data)


@pytest.mark.parametrize("name", ["manifest-000003.json", "log-000003.mcl"])
def test_a_missing_manifest_or_log_is_damage(filled, opened, folder, name, snapshot):
    filled(DyingDisk(10**6, Crash())).close()
    (folder / name).unlink()
    before = snapshot(folder)
    for mode in ("read", "write"):
        with pytest.raises(CorruptError):
            opened(mode)
    assert before == snapshot(folder)


def test_rows_come_from_many_segments_in_the_order_asked(opened, oracle, eager, monkeypatch):
    monkeypatch.setattr(tables.resource, "getrlimit", lambda _which: (32, 32))  # eight maps at once
    store = opened("create")
    for first in range(0, 120, 4):
        store.commit(oracle.batch(32 * 4, n_messages=3))
        store.put_gists(oracle.gists(first, first + 4, row_bytes=70))
        if first < 112:
            store.flush()
    assert 28 == len(store._view.manifest.segments) // 5
    rng = np.random.default_rng(0)
    expected = oracle.gists(0, 120, row_bytes=70)
    for wanted in (rng.integers(0, 120, 200), np.arange(119, -1, -1), np.array([5, 119, 5])):
        blocks = b"".join(oracle.blocks[at] for at in wanted)
        assert blocks == store.read_blocks(wanted).tobytes()
        found = store.read_gists(0, 1, wanted)
        assert expected.rows[wanted].tobytes() == found.rows.tobytes()
        assert expected.trust[wanted].tolist() == found.trust.tolist()
        bodies = wanted % len(oracle.bodies)
        assert [oracle.bodies[at] for at in bodies] == store.read_bodies(bodies)
    found = store.read_gists(0, 1, np.array([3, 500, 118]))
    assert [True, False, True] == found.present.tolist()


def test_rows_wider_than_a_page_are_checked_whole(opened, oracle, eager, folder):
    store = opened("create")
    store.commit(oracle.batch(32 * 40))
    rows = oracle.gists(0, 30, row_bytes=50_000)
    store.put_gists(rows)
    store.flush()
    found = store.read_gists(0, 1, np.array([29, 0, 7]))
    assert rows.rows[[29, 0, 7]].tobytes() == found.rows.tobytes()
    store.close()
    flip(folder / "gist-v0-l1-000000000000000.mcs", 64 + 7 * 50_000 + 25_000)
    with pytest.raises(CorruptError):
        opened("read").read_gists(0, 1, np.array([7]))


def test_gists_beyond_a_frame_are_written_as_several_in_one_go(opened, oracle, contents):
    store = opened("create")
    store.commit(oracle.batch(32 * 300))
    rows = np.repeat((np.arange(300) % 251).astype(np.uint8)[:, None], 60_000, axis=1)
    gists = attrs.evolve(oracle.gists(0, 300), rows=rows)
    disk_calls = store._view.log.n_frames
    store.put_gists(gists)
    assert disk_calls + 1 == store._view.log.n_frames
    held = contents(store)
    store.close()
    assert held == contents(opened("read"))


def test_a_log_that_no_manifest_names_is_damage_if_it_holds_something(filled, opened, folder):
    filled(DyingDisk(10**6, Crash())).close()
    (folder / "log-000009.mcl").write_bytes(b"")
    opened("write").close()
    assert not (folder / "log-000009.mcl").exists()
    (folder / "log-000009.mcl").write_bytes(b"something")
    with pytest.raises(CorruptError, match="no manifest"):
        opened("write")
    assert (folder / "log-000009.mcl").exists()


def test_damaged_trust_is_noticed_however_often_the_rows_were_read(opened, oracle, eager, folder):
    store = opened("create")
    store.commit(oracle.batch(32 * 20_000))
    store.put_gists(oracle.gists(0, 20_000, row_bytes=8))
    store.flush()
    store.close()
    path = folder / "gist-v0-l1-000000000000000.mcs"
    flip(path, 64 + 20_000 * 9 - 1)  # the trust of the last row, on a page of its own
    store = opened("read")
    for _ in range(3):
        assert [0, 1] == store.read_gists(0, 1, np.array([0, 1])).trust.tolist()
        with pytest.raises(CorruptError):
            store.read_gists(0, 1, np.array([0, 19_999]))
