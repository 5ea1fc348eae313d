"""The engine's settings, one test each, and what its files may look like."""

import os
import pickle
import re
import shutil

import duckdb
import numpy as np
import pytest

from megacontext_duckdb.engine import Engine, engine_options
from megacontext_duckdb.store import DuckDBStorage
from megacontext_sdk.contracts.storage import GistBatch, Header
from megacontext_sdk.errors import (
    ConfigError,
    CorruptError,
    FormatVersionError,
    SessionClosedError,
    SessionLockedError,
)
from megacontext_sdk.testing.storage import Oracle

HEADER = Header(block_bytes=64)


@pytest.fixture
def store(tmp_path):
    store = DuckDBStorage(tmp_path / "data-000001")
    store.open("create", HEADER)
    yield store
    store.close()


@pytest.fixture
def connection(store):
    return store._engine.connection


def setting(connection, name):
    return connection.execute("SELECT current_setting(?)", [name]).fetchone()[0]


# --- row 28: nothing gets in or out -----------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "ATTACH '{folder}/other.duckdb' AS other",
        "COPY m.mc_block TO '{folder}/stolen.csv'",
        "COPY m.mc_block FROM '{folder}/planted.csv'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "EXPORT DATABASE '{folder}/export'",
        "SELECT * FROM read_text('{folder}/secret.txt')",
        "SELECT * FROM '{folder}/planted.csv'",
        "SELECT * FROM glob('{folder}/*')",
        "SET threads = 8",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "SET autoload_known_extensions = true",
        "CREATE PERSISTENT SECRET s (TYPE http, BEARER_TOKEN 'x')",
    ],
)
def test_row28_engine_refuses_files_extensions_and_configuration(connection, tmp_path, statement):
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "planted.csv").write_text("1,x\n")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(duckdb.Error):
        connection.execute(statement.format(folder=tmp_path))
    assert before == sorted(path.name for path in tmp_path.rglob("*"))


def test_row28_local_variables_are_not_tables(connection):
    planted = {"x": np.arange(3)}
    with pytest.raises(duckdb.CatalogException):
        connection.execute("SELECT * FROM planted")
    assert planted


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", 2),
        ("async_threads", 0),
        ("autoinstall_known_extensions", False),
        ("autoload_known_extensions", False),
        ("allow_community_extensions", False),
        ("allow_persistent_secrets", False),
        ("enable_external_access", False),
        ("lock_configuration", True),
    ],
)
def test_row28_settings_are_in_force(connection, name, value):
    assert value == setting(connection, name)


def test_memory_is_bounded_and_nothing_spills(connection):
    assert "244.1 MiB" == setting(connection, "memory_limit")
    assert "0 bytes" == setting(connection, "max_temp_directory_size")
    assert re.match(r"1\.0 GB|953\.\d MiB", setting(connection, "checkpoint_threshold"))


@pytest.mark.parametrize(
    "options",
    [{"memory_limit_mb": "64"}, {"memory_limit_mb": "x"}, {"threads": "0"}, {"password": "1"}],
)
def test_bad_options_are_refused(options):
    with pytest.raises(ConfigError) as caught:
        engine_options(options)
    assert "options" == caught.value.field


def test_options_are_passed_on(tmp_path):
    store = DuckDBStorage(tmp_path / "data-000001", {"memory_limit_mb": "512", "threads": "1"})
    store.open("create", HEADER)
    assert 1 == setting(store._engine.connection, "threads")
    store.close()


# --- layout on disk ---------------------------------------------------------------------------


def test_block_and_row_group_sizes_hold_at_every_attach(store, tmp_path):
    oracle = Oracle()
    store.commit(oracle.batch(32 * 5_000))
    store.flush()
    store.close()
    store.open("write", HEADER)
    store.commit(oracle.batch(32 * 5_000))
    store.flush()
    size = store._engine.connection.execute(
        "SELECT block_size FROM pragma_database_size() WHERE database_name = 'm'"
    ).fetchone()[0]
    groups = store._engine.connection.execute(
        "SELECT row_group_id, max(start + count) - min(start) "
        "FROM pragma_storage_info('m.mc_block') GROUP BY row_group_id"
    ).fetchall()
    assert 16_384 == size
    assert max(rows for _, rows in groups) <= 2_048
    assert b"".join(oracle.blocks) == store.read_blocks(np.arange(10_000)).tobytes()


def test_an_empty_memory_is_small(store):
    store.flush()
    assert store._engine.file.stat().st_size <= 64 * 1024


def test_ids_texts_and_gists_lie_in_the_file_as_they_are(store):
    oracle = Oracle()
    batch = oracle.batch(32 * 3_000, n_messages=1)
    text = b"a sentence somebody said once " * 20
    store.commit(
        type(batch)(
            commits=batch.commits,
            blocks=batch.blocks,
            tail=batch.tail,
            messages=batch.messages,
            bodies=(text,),
        )
    )
    store.put_gists(oracle.gists(0, 3_000, row_bytes=64))
    store.flush()
    store.close()
    raw = store._engine.file.read_bytes()
    assert text[:30] in raw
    found = sum(block in raw for block in oracle.blocks[::100])
    assert 30 == found
    rows = oracle.gists(0, 3_000, row_bytes=64).rows
    assert all(rows[at].tobytes() in raw for at in range(0, 3_000, 100))


def test_no_index_and_no_constraint_but_not_null(connection):
    assert [] == connection.execute("SELECT * FROM duckdb_indexes()").fetchall()
    kinds = connection.execute(
        "SELECT DISTINCT constraint_type FROM duckdb_constraints() WHERE database_name = 'm'"
    ).fetchall()
    assert [("NOT NULL",)] == kinds


def test_files_are_private_under_any_umask(tmp_path):
    before = os.umask(0)
    try:
        store = DuckDBStorage(tmp_path / "data-000001")
        store.open("create", HEADER)
        oracle = Oracle()
        store.commit(oracle.batch(10))
        modes = {path.name: path.stat().st_mode & 0o777 for path in store.path.iterdir()}
        assert {"memory.duckdb": 0o600, "memory.duckdb.wal": 0o600} == modes
        store.flush()
        store.commit(oracle.batch(10))  # the log is a new file now
        assert 0o600 == store._engine.log.stat().st_mode & 0o777
        assert 0o700 == store.path.stat().st_mode & 0o777
    finally:
        os.umask(before)
        store.close()


# --- checkpoints ------------------------------------------------------------------------------


def test_closing_never_checkpoints_flushing_does(store):
    oracle = Oracle()
    store.commit(oracle.batch(100))
    store.close()
    assert store._engine.log.stat().st_size > 0
    store.open("write", HEADER)
    store.flush()
    assert not store._engine.log.exists()
    assert 100 == store.state().n_tokens


def test_checkpoint_waits_while_space_is_short(store, monkeypatch):
    oracle = Oracle()
    store.commit(oracle.batch(100))
    usage = shutil.disk_usage(store.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=2**20))
    store.flush()
    assert store._engine.log.exists()
    monkeypatch.undo()
    store.flush()
    assert not store._engine.log.exists()


def test_failed_checkpoint_ends_the_handle_and_keeps_the_rows(run_victim, opened, tmp_path):
    out = run_victim(
        """
import resource
memory = opened()
append(memory, 1).wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, resource.RLIM_INFINITY))
try:
    memory.journal.flush()
except Exception as error:
    print(type(error).__name__, error.reason)
try:
    append(memory, 2)
except Exception as error:
    print(type(error).__name__, error.reason)
os._exit(0)
""",
        tmp_path / "alice.mc",
    )
    assert [b"SessionClosedError failed"] * 2 == out.splitlines()
    assert 1 == opened().journal.seq


def test_full_disk_keeps_nothing_of_the_append_and_writing_resumes(run_victim, opened, tmp_path):
    out = run_victim(
        """
import resource
from megacontext_sdk.errors import StorageFullError
memory = opened()
append(memory, 1).wait()
log = memory.journal._storage._engine.log
size = log.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
ids = np.arange(5_000, dtype=np.int32)
message = MessageRecord(role=0, trust=3, flags=0, ts_us=1, n_tokens=5_000, body=b"")
try:
    memory.journal.append(ids, [message]).wait()
except StorageFullError as error:
    print("full", memory.journal.seq, memory.journal.n_tokens == len(content(1)))
print("reads", np.array_equal(memory.journal.tail, content(1)[-(len(content(1)) % 32):]))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print("resumed", append(memory, 2).wait().seq)
os._exit(0)
""",
        tmp_path / "alice.mc",
    )
    assert [b"full 1 True", b"reads True", b"resumed 2"] == out.splitlines()
    assert 2 == opened().journal.seq


# --- files that are not as they should be -----------------------------------------------------


def test_missing_file_is_corrupt_and_not_made(tmp_path):
    (tmp_path / "data-000001").mkdir()
    for mode in ("read", "write"):
        with pytest.raises(CorruptError, match="missing"):
            DuckDBStorage(tmp_path / "data-000001").open(mode, HEADER)
    assert [] == list((tmp_path / "data-000001").iterdir())


@pytest.mark.parametrize("content", [b"", b"not a database", b"\0" * 20_000])
def test_foreign_file_is_corrupt(tmp_path, content):
    (tmp_path / "data-000001").mkdir()
    (tmp_path / "data-000001" / "memory.duckdb").write_bytes(content)
    with pytest.raises(CorruptError):
        DuckDBStorage(tmp_path / "data-000001").open("read", HEADER)
    assert content == (tmp_path / "data-000001" / "memory.duckdb").read_bytes()


def test_database_with_other_tables_is_corrupt(tmp_path):
    (tmp_path / "data-000001").mkdir()
    other = duckdb.connect(tmp_path / "data-000001" / "memory.duckdb")
    other.execute("CREATE TABLE mc_commit (seq INTEGER)")
    other.close()
    with pytest.raises(CorruptError):
        DuckDBStorage(tmp_path / "data-000001").open("read", HEADER)


def test_tables_of_the_time_before_the_first_release_are_named(tmp_path):
    (tmp_path / "data-000001").mkdir()
    older = Engine(tmp_path / "data-000001" / "memory.duckdb", {})
    older.connect(read_only=False)
    older.connection.execute("CREATE TABLE mc_block (block UBIGINT NOT NULL, data BLOB NOT NULL)")
    older.close()
    with pytest.raises(FormatVersionError, match="before the first release"):
        DuckDBStorage(tmp_path / "data-000001").open("read", HEADER)


def test_rising_numbers_take_no_space_to_speak_of(store):
    store.commit(Oracle().batch(32 * 20_000))
    store.flush()
    columns = store._engine.connection.execute(
        "SELECT DISTINCT column_name, compression FROM pragma_storage_info('m.mc_block') "
        "WHERE segment_type <> 'VALIDITY' AND column_name <> 'data'"
    ).fetchall()
    assert {"page", "slot"} == {name for name, _ in columns}
    assert "Uncompressed" not in {compression for _, compression in columns}
    assert store._engine.file.stat().st_size < 1.22 * 20_000 * 64


def test_other_block_width_is_corrupt(store):
    store.commit(Oracle().batch(64))
    store.close()
    with pytest.raises(CorruptError, match="64 bytes"):
        store.open("read", Header(block_bytes=128))


@pytest.mark.parametrize("kind", ["symlink", "hard link", "fifo"])
def test_row9_links_and_devices_are_refused(store, tmp_path, kind):
    store.flush()
    store.close()
    file = store._engine.file
    if kind == "hard link":
        os.link(file, tmp_path / "second name")
    else:
        file.rename(tmp_path / "elsewhere")
        if kind == "symlink":
            file.symlink_to(tmp_path / "elsewhere")
        else:
            os.mkfifo(file)
    for mode in ("read", "write"):
        with pytest.raises(ConfigError) as caught:
            store.open(mode, HEADER)
        assert "path" == caught.value.field


def test_second_instance_in_the_same_process_is_refused(store):
    with pytest.raises(SessionLockedError):
        DuckDBStorage(store.path).open("write", HEADER)


def test_damaged_block_is_noticed_when_read(store):
    oracle = Oracle()
    store.commit(oracle.batch(32 * 4_000))
    store.flush()
    store.close()
    raw = bytearray(store._engine.file.read_bytes())
    at = raw.index(oracle.blocks[1_000])
    raw[at] ^= 1
    store._engine.file.write_bytes(raw)

    def read_everything():
        store.open("read", HEADER)
        store.read_blocks(np.arange(4_000))

    with pytest.raises(CorruptError):
        read_everything()


# --- paths ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["it's", 'say "hi"', "a;b", "two\nlines", "naïve – 記憶", "' AS m; DROP TABLE x; --", "%20"],
)
def test_row7_odd_names_work(tmp_path, opened, append, name):
    memory = opened(tmp_path / name)
    append(memory, [1, 2, 3])
    memory.close()
    assert [1, 2, 3] == opened(tmp_path / name).journal.tail.tolist()
    assert [name] == [entry.name for entry in tmp_path.iterdir()]


def test_row7_name_that_is_no_utf8_is_a_typed_refusal(tmp_path, opened):
    path = tmp_path / os.fsdecode(b"bad\xffname")
    with pytest.raises(ConfigError, match="UTF-8"):
        opened(path)
    assert [] == list(tmp_path.iterdir())


# --- handles ----------------------------------------------------------------------------------


def test_row23_store_refuses_pickling_and_use_after_close(store):
    with pytest.raises(TypeError, match="data-000001"):
        pickle.dumps(store)
    assert "data-000001" in repr(store)
    store.close()
    with pytest.raises(SessionClosedError):
        store.read_commits(1, 1)


def test_random_and_dense_reads_agree_with_the_rows(store):
    oracle = Oracle()
    store.commit(oracle.batch(32 * 3_000))
    batch = oracle.gists(0, 3_000)
    store.put_gists(batch)
    store.flush()
    rng = np.random.default_rng(0)
    for numbers in (rng.choice(3_000, 200), np.arange(2_999, 0, -7), np.arange(100, 300)):
        expected = b"".join(oracle.blocks[number] for number in numbers)
        assert expected == store.read_blocks(numbers).tobytes()
        found = store.read_gists(0, 1, numbers)
        assert found.present.all()
        assert batch.rows[numbers].tobytes() == found.rows.tobytes()


def test_gists_larger_than_the_stash_are_written_by_themselves(store):
    oracle = Oracle()
    store.commit(oracle.batch(32 * 3_000))
    rows = np.zeros((1_000, 12_000), np.uint8)
    for first in (0, 1_000):
        nodes = np.arange(first, first + 1_000, dtype=np.uint64)
        rows[:] = first // 1_000 + 1
        store.put_gists(
            GistBatch(
                version=0,
                lod=1,
                nodes=nodes,
                trust=np.zeros(1_000, np.uint8),
                rows=rows.copy(),
            )
        )
    assert ((0, 1, 2_000),) == store.state().gist_rows
    found = store.read_gists(0, 1, np.array([999, 1_000]))
    assert [1, 2] == found.rows[:, 0].tolist()
    count = "SELECT count(*) FROM m.mc_gist"
    assert 1_000 == store._engine.connection.execute(count).fetchone()[0]


def test_ctrl_c_in_a_read_is_a_keyboard_interrupt_and_the_store_goes_on(run_victim, tmp_path):
    # The engine looks for signals now and then only, so one attempt may run to its end.
    out = run_victim(
        """
from megacontext_sdk.contracts.storage import Header
signal.signal(signal.SIGALRM, signal.default_int_handler)  # what Ctrl-C does, without a terminal
store = DuckDBStorage(Path(sys.argv[1]))
store.open("create", Header(block_bytes=64))
for attempt in range(20):
    try:
        with store._engine.reading() as cursor:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            cursor.execute("SELECT sum(hash(a.i + b.i)) FROM range(10000) a(i), range(20000) b(i)")
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt as interrupt:
        if interrupt.__cause__ is None:
            continue  # between two calls, where Python itself raised it
        print("interrupted", store.state().seq, len(store.read_commits(1, 1)))
        break
store.close()
""",
        tmp_path / "data-000001",
    )
    assert b"interrupted 0 0\n" == out
