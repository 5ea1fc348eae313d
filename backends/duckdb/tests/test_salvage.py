"""Salvage: what a store still shows of a damaged database, without touching it."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from megacontext_duckdb import salvage
from megacontext_duckdb.store import DuckDBStorage
from megacontext_sdk.contracts.storage import COMMIT, GistBatch, Header
from megacontext_sdk.errors import CorruptError, MegaContextError, ReadOnlyError, StorageFullError
from megacontext_sdk.testing.storage import Oracle

HEADER = Header(block_bytes=64)
FIRST_CHECKPOINT, FOLDED, LOGGED, TOKENS = 2, 6, 10, 200


def gist_batch(first, n):
    nodes = np.arange(first, first + n, dtype=np.uint64)
    rows = np.repeat(nodes.astype(np.uint8)[:, None], 16, axis=1)
    return GistBatch(version=0, lod=1, nodes=nodes, trust=np.full(n, 3, np.uint8), rows=rows)


@pytest.fixture
def made(tmp_path):
    """A store with commits in its file and in its log, closed; and what was written."""
    store, oracle = DuckDBStorage(tmp_path / "data-000001"), Oracle()
    store.open("create", HEADER)
    for number in range(FOLDED):
        if number == FIRST_CHECKPOINT:
            store.put_gists(gist_batch(0, 15))
            store.flush()
        store.commit(oracle.batch(TOKENS))
    store.put_gists(gist_batch(15, 15))
    store.flush()
    for _ in range(LOGGED):
        store.commit(oracle.batch(TOKENS))
    store.close()
    return store, oracle


def database(store):
    return store.path / "memory.duckdb"


def log(store):
    return store.path / "memory.duckdb.wal"


def break_log(store):
    """Damage the log in the middle so that it is refused: not every byte of it is checked."""
    size = log(store).stat().st_size
    for at in range(size // 2, size):
        flip(log(store), at)
        try:
            store.open("read", HEADER)
        except CorruptError:
            return
        store.close()
        flip(log(store), at)


def flip(file, at, bit=2):
    content = bytearray(file.read_bytes())
    content[at] ^= 1 << bit
    file.write_bytes(content)


def content_of(folder):
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def salvaged(store, oracle):
    """Open for salvage; everything shown must be what was written. Returns the last commit."""
    before = content_of(store.path)
    store.open("salvage", HEADER)
    state = store.state()
    assert state.seq <= len(oracle.commits)
    commits = store.read_commits(1, state.seq + 1)
    assert np.array(oracle.commits[: state.seq], COMMIT).tobytes() == commits.tobytes()
    if state.seq:
        assert commits["chain"][-1].tobytes() == state.chain
    assert state.n_tokens // 32 == state.n_blocks
    assert state.n_tokens % 32 == len(state.tail) // 2
    blocks = store.read_blocks(np.arange(state.n_blocks))
    assert b"".join(oracle.blocks[: state.n_blocks]) == blocks.tobytes()
    bodies = store.read_bodies(np.arange(state.n_messages))
    assert oracle.bodies[: state.n_messages] == bodies
    assert len(store.read_messages(0, state.n_messages)) == state.n_messages
    store.close()
    assert before == content_of(store.path)
    return state.seq


def refused(store):
    with pytest.raises(CorruptError):
        store.open("read", HEADER)
    store.close()


def test_an_intact_store_is_shown_whole(made):
    assert FOLDED + LOGGED == salvaged(*made)


def test_a_missing_log_leaves_what_was_folded_in(made):
    log(made[0]).unlink()
    assert FOLDED == salvaged(*made)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 0.5, 0.77, 0.999])
def test_a_cut_log_is_shown_up_to_the_cut(made, share):
    size = log(made[0]).stat().st_size
    os.truncate(log(made[0]), int(share * size))
    assert FOLDED + int(share * LOGGED) - 1 <= salvaged(*made) <= FOLDED + LOGGED


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75, 0.9])
def test_a_flipped_log_is_shown_up_to_the_flip(made, share):
    store = made[0]
    flip(log(store), int(share * log(store).stat().st_size))
    expected = FOLDED + share * LOGGED
    assert expected - 2 <= salvaged(*made) <= expected + 1


@pytest.mark.parametrize("at", [0, 8, 16, 24, 48, 56])
def test_a_log_whose_first_bytes_are_damaged_leaves_what_was_folded_in(made, at):
    flip(log(made[0]), at)  # the engine does not look at every bit of them
    assert salvaged(*made) in {FOLDED, FOLDED + LOGGED}


@pytest.mark.parametrize("at", [0, 8, 12, 60, 1000, 4094, 4096, 4110, 8092, 8192, 8210, 12_286])
def test_a_header_with_one_damaged_byte_is_put_right(made, at):
    store = made[0]
    flip(database(store), at)
    refused(store)
    assert FOLDED + LOGGED == salvaged(*made)


def test_a_header_is_mended_only_if_it_is_clear_which_byte_is_wrong(made):
    whole = database(made[0]).read_bytes()[:4096]
    rng = np.random.default_rng(3)
    n_mended = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[int(rng.integers(4096))] ^= 1 << int(rng.integers(8))
        result = salvage.mended(bytes(damaged))
        assert result in {whole, bytes(damaged)}
        n_mended += result == whole
    assert n_mended > 200
    torn = whole[:2048] + bytes(2048)
    assert whole == salvage.mended(whole)
    assert salvage.mended(torn) in {torn, whole}
    assert b"short" == salvage.mended(b"short")


def test_a_first_header_that_is_gone_is_taken_from_an_empty_database(made):
    store = made[0]
    whole = database(store).read_bytes()
    database(store).write_bytes(bytes(4096) + whole[4096:])
    refused(store)
    assert FOLDED <= salvaged(*made)


@pytest.mark.parametrize("at", [4096, 8192])
def test_a_header_of_a_checkpoint_that_is_gone_is_replaced_by_its_twin(made, at):
    store = made[0]
    whole = database(store).read_bytes()
    database(store).write_bytes(whole[:at] + bytes(4096) + whole[at + 4096 :])
    refused(store)
    assert salvaged(*made) in {FIRST_CHECKPOINT, FOLDED, FOLDED + LOGGED}


def test_a_truncated_database_shows_what_is_left_or_says_that_nothing_is(made):
    store = made[0]
    whole = database(store).read_bytes()
    for size in range(0, len(whole), 8192):
        database(store).write_bytes(whole[:size])
        before = content_of(store.path)
        try:
            salvaged(*made)
        except CorruptError:
            store.close()
        assert before == content_of(store.path)


def test_a_flip_anywhere_in_the_database_never_shows_wrong_bytes(made):
    store = made[0]
    size = database(store).stat().st_size
    shown = []
    for at in np.random.default_rng(5).integers(12_288, size, 40).tolist():
        flip(database(store), at)
        before = content_of(store.path)
        try:
            shown.append(salvaged(*made))
        except CorruptError:
            store.close()
        assert before == content_of(store.path)
        flip(database(store), at)
    assert shown


def test_a_database_that_is_gone_or_foreign_is_refused(made):
    store = made[0]
    database(store).write_bytes(b"not a database" * 5000)
    with pytest.raises(CorruptError):
        store.open("salvage", HEADER)
    database(store).unlink()
    with pytest.raises(CorruptError, match="missing"):
        store.open("salvage", HEADER)
    database(store).symlink_to("/etc/hostname")
    with pytest.raises(MegaContextError, match="regular file"):
        store.open("salvage", HEADER)


def test_commits_behind_a_damaged_one_are_left_out(tmp_path):
    store, oracle = DuckDBStorage(tmp_path / "data-000001"), Oracle()
    store.open("create", HEADER)
    for _ in range(5):
        store.commit(oracle.batch(2_000, n_commits=2_000))
    store.flush()
    file = database(store)
    blocks = store._engine.connection.execute(
        "SELECT block_id FROM pragma_storage_info('m.mc_commit') WHERE column_name = 'chain' "
        "AND segment_type <> 'VALIDITY' AND row_group_id = 3 LIMIT 1"
    ).fetchall()
    store.close()
    flip(file, 3 * 4096 + 16_384 * blocks[0][0] + 5000)
    store.open("salvage", HEADER)
    state = store.state()
    assert 2_000 <= state.seq <= 6_144
    commits = store.read_commits(1, state.seq + 1)
    assert np.array(oracle.commits[: state.seq], COMMIT).tobytes() == commits.tobytes()
    assert b"".join(oracle.blocks[: state.n_blocks]) == (
        store.read_blocks(np.arange(state.n_blocks)).tobytes()
    )
    store.close()


def test_gists_come_along_and_writing_is_refused(made):
    store, oracle = made
    break_log(store)
    store.open("salvage", HEADER)
    assert ((0, 1, 30),) == store.state().gist_rows
    assert store.read_gists(0, 1, np.arange(30)).present.all()
    for write in (lambda: store.commit(oracle.batch(1)), store.flush):
        with pytest.raises(ReadOnlyError):
            write()
    store.close()


def test_the_copy_lies_outside_the_memory_and_is_removed(made, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    store = made[0]
    break_log(store)
    store.open("salvage", HEADER)
    copies = [path for path in elsewhere.rglob("*") if path.is_file()]
    assert {"memory.duckdb", "memory.duckdb.wal"} == {path.name for path in copies}
    store.close()
    assert [] == list(elsewhere.iterdir())
    assert FOLDED <= salvaged(*made)  # the same object opens again
    store.open("salvage", HEADER)
    store.close()


def test_no_space_for_the_copy_is_said(made, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(salvage.shutil, "copyfile", full)
    store = made[0]
    break_log(store)
    with pytest.raises(StorageFullError, match="TMPDIR") as caught:
        store.open("salvage", HEADER)
    assert not Path(store.path / "memory.duckdb.wal.tmp").exists()
    assert database(store).stat().st_size == caught.value.needed


def test_few_prefixes_of_a_log_are_tried(made, monkeypatch):
    store = made[0]
    tries = []
    original = salvage.SalvagedCopy._refusal
    monkeypatch.setattr(
        salvage.SalvagedCopy, "_refusal", lambda copy: (tries.append(1), original(copy))[1]
    )
    break_log(store)
    salvaged(*made)
    assert len(tries) <= 2 + np.log2(log(store).stat().st_size) + 1
