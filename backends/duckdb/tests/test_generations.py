"""Generations on DuckDB: switched, forked, recovered from damage, scrubbed."""

import os
import random
import shutil

import numpy as np
import pytest

from megacontext_duckdb.store import DuckDBStorage
from megacontext_sdk.contracts.storage import GistBatch
from megacontext_sdk.errors import SessionClosedError
from megacontext_sdk.memory.chain import FLAG_FORGOTTEN
from megacontext_sdk.memory.directory.forking import fork_memory
from megacontext_sdk.memory.directory.recovery import recover_memory
from megacontext_sdk.memory.directory.replay import (
    Redaction,
    append_settings,
    copy_commits,
    copy_gists,
)
from megacontext_sdk.memory.directory.scrub import scrub_memory
from megacontext_sdk.memory.journal import MessageRecord
from megacontext_sdk.memory.lod import Span
from megacontext_sdk.messages.body import MessageBody, encode_body

N_COMMITS = 30


def ids_of(seq):
    return np.random.default_rng(seq).integers(0, 50_000, 40 + seq).astype(np.int32)


def body_of(seq):
    return encode_body(MessageBody(text=f"marker {seq:04d}"))


def append(memory, seq):
    ids = ids_of(seq)
    message = MessageRecord(0, 3, 0, seq, len(ids), body_of(seq))
    return memory.journal.append(ids, [message], key=bytes([seq] * 16)).wait()


@pytest.fixture
def alice(opened):
    """30 commits, half of them in the file and half in its log, with all their gists."""
    memory = opened()
    for seq in range(1, N_COMMITS + 1):
        append(memory, seq)
        if seq == N_COMMITS // 2:
            memory.journal.flush()
    n = memory.journal.n_blocks
    nodes, rows = np.arange(n, dtype=np.uint64), np.ones((n, 16), np.uint8)
    trust = np.full(n, 3, np.uint8)
    memory.journal.put_gists(GistBatch(version=1, lod=1, nodes=nodes, trust=trust, rows=rows))
    return memory


def check_prefix(memory, n_commits):
    expected = np.concatenate([np.empty(0, np.int32), *map(ids_of, range(1, n_commits + 1))])
    assert n_commits == memory.journal.seq
    assert np.array_equal(expected, memory.journal.token_ids(Span(0, len(expected))))
    bodies = [body_of(seq) for seq in range(1, n_commits + 1)]
    assert bodies == memory.journal.bodies(np.arange(n_commits))


def bytes_below(folder):
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def recovered(path, **options):
    return recover_memory(path, factory_of={"duckdb": DuckDBStorage}.__getitem__, **options)


def test_a_switch_rewrites_the_file_without_what_is_left_out(alice, opened):
    redaction = Redaction((Span(100, 200),), np.array([2, 3, 4]))

    def build(source, target):
        meta = alice.meta
        position = copy_commits(
            source, target, root=meta.root, token_bytes=meta.token_bytes, redaction=redaction
        )
        n_rows = copy_gists(source, target, n_tokens=position.n_tokens, redaction=redaction)
        assert 3 == n_rows
        append_settings(target, position, {"done": 1}, token_bytes=meta.token_bytes, ts_us=1)

    alice.journal.flush()
    assert b"marker 0003" in bytes_below(alice.path)
    memory = alice.switch(build, keep_old=False)
    assert b"marker 0003" not in bytes_below(memory.path)
    assert b"marker 0002" in bytes_below(memory.path)
    assert np.all(memory.journal.token_ids(Span(100, 200)) == -1)
    assert [FLAG_FORGOTTEN] * 3 == memory.journal.messages(2, 5)["flags"].tolist()
    with pytest.raises(SessionClosedError):
        append(alice, 99)
    append(memory, 31)
    report = scrub_memory(memory)
    assert report.is_sound, report.problems
    memory.close()
    again = opened()
    assert (2, N_COMMITS + 2) == (again.meta.generation, again.journal.seq)
    assert 3 == again.journal.gist_count(1, 1)
    names = {entry.name for entry in again.path.iterdir()}
    assert {"MEMORY", "HEAD", "LOCK", "READERS", "data-000002", "cache"} == names


def test_the_kept_generation_opens_as_a_memory(alice, opened):
    def build(source, target):
        copy_commits(source, target, root=alice.meta.root, token_bytes=2, upto_seq=10)

    memory = alice.switch(build, keep_old=True)
    check_prefix(memory, 10)
    check_prefix(opened(memory.path / "rescue" / "data-000001"), N_COMMITS)


def test_chain_is_the_same_after_a_replay(alice):
    chain = alice.journal.chain

    def build(source, target):
        copy_commits(source, target, root=alice.meta.root, token_bytes=2)

    assert chain == alice.switch(build, keep_old=False).journal.chain


@pytest.mark.parametrize("seq", [0, 7, N_COMMITS])
def test_forks_and_views_show_a_prefix(alice, opened, tmp_path, seq):
    fork_memory(alice, tmp_path / "fork.mc", at_seq=seq)
    append(alice, N_COMMITS + 1)
    fork = opened(tmp_path / "fork.mc")
    check_prefix(fork, seq)
    n_gists = min(fork.journal.n_tokens // 32, alice.journal.gist_count(1, 1))
    assert n_gists == fork.journal.gist_count(1, 1)
    append(fork, seq + 1)
    check_prefix(fork, seq + 1)
    alice.close()
    view = opened(read_only=True, at_seq=seq)
    check_prefix(view, seq)
    assert n_gists == view.journal.gist_count(1, 1)


def test_a_sound_memory_has_nothing_to_recover(alice):
    alice.close()
    before = bytes_below(alice.path)
    assert not recovered(alice.path).is_damaged
    assert before == bytes_below(alice.path)


@pytest.fixture
def killed(run_victim, tmp_path):
    """A memory whose 20 commits were acknowledged and are in the log only."""
    run_victim(
        """
memory = opened()
memory.journal.flush()
for seq in range(1, 21):
    append(memory, seq).wait()
os._exit(0)
""",
        tmp_path / "alice.mc",
    )
    return tmp_path / "alice.mc"


def test_a_cut_log_is_recovered_to_what_it_holds(killed, tmp_path, opened, content):
    size = (killed / "data-000001" / "memory.duckdb.wal").stat().st_size
    rng = random.Random(3)
    for at, cut in enumerate([0, size - 1, *(rng.randrange(size) for _ in range(6))]):
        copy = tmp_path / f"{at}.mc"
        shutil.copytree(killed, copy)
        os.truncate(copy / "data-000001" / "memory.duckdb.wal", cut)
        before = bytes_below(copy)
        dry = recovered(copy, dry_run=True)
        assert before == bytes_below(copy)
        assert (True, 20, 20 - dry.have_seq) == (dry.is_damaged, dry.want_seq, dry.lost_commits)
        result = recovered(copy)
        assert dry.have_seq == result.have_seq
        memory = opened(copy)
        ids = [content(seq) for seq in range(1, result.have_seq + 1)]
        ids = np.concatenate([np.empty(0, np.int32), *ids])
        assert result.have_seq == memory.journal.seq
        assert np.array_equal(ids, memory.journal.token_ids(Span(0, len(ids))))
        # What the victim stored as bodies is no body of ours.
        problems = scrub_memory(memory).problems
        assert not [what for what in problems if "has a body that cannot be decoded" not in what]
        memory.close()
        assert (copy / "rescue/data-000001/data-000001/memory.duckdb").exists()


def test_a_garbled_file_never_gives_wrong_content(alice, tmp_path, opened):
    alice.close()
    file = "data-000001/memory.duckdb"
    size = (alice.path / file).stat().st_size
    rng = random.Random(4)
    survived = []
    for at in range(10):
        copy = tmp_path / f"{at}.mc"
        shutil.copytree(alice.path, copy)
        with (copy / file).open("r+b") as garbled:
            garbled.seek(rng.randrange(size))
            garbled.write(rng.randbytes(64))
        result = recovered(copy)
        memory = opened(copy)
        check_prefix(memory, result.have_seq)
        survived.append(result.have_seq)
        memory.close()
    assert 10 == len(survived)
