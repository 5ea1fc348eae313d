"""Replay: the same root gives the same chain; what is left out is gone, the rest stays."""

from pathlib import Path

import numpy as np
import pytest

from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.contracts.storage import GistBatch, Header
from megacontext_sdk.memory.chain import FLAG_FORGOTTEN, ROLE_SETTING
from megacontext_sdk.memory.directory.probe import Prober
from megacontext_sdk.memory.directory.replay import (
    NOTHING,
    Redaction,
    append_settings,
    copy_commits,
    copy_gists,
    touched_nodes,
)
from megacontext_sdk.memory.directory.stretch import Place, stretches
from megacontext_sdk.memory.journal import MessageRecord
from megacontext_sdk.memory.lod import Span


def ids_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, 50_000, n).astype(np.int32)


@pytest.fixture(params=[2, 4])
def memory(request, tmp_path, opened):
    """60 commits of 0 to 130 tokens in up to three messages, settings between them."""
    vocab_size = 50_000 if request.param == 2 else 100_000
    memory = opened(
        tmp_path / "x", backend="memory", factory=InMemoryStorage, vocab_size=vocab_size
    )
    rng = np.random.default_rng(5)
    for seed in range(60):
        sizes = rng.integers(0, 50, rng.integers(0, 4)).tolist()
        messages = [MessageRecord(0, 3, 0, seed, n, b"x" * int(rng.integers(90))) for n in sizes]
        memory.journal.append(ids_of(sum(sizes), seed), messages, key=bytes([seed + 1] * 16)).wait()
        if seed % 13 == 0:
            memory.journal.update_settings({"seed": seed}).wait()
    for lod in (1, 2):
        n = memory.journal.n_tokens // 32**lod
        nodes = np.arange(n, dtype=np.uint64)
        rows = np.random.default_rng(lod).integers(0, 255, (n, 24)).astype(np.uint8)
        batch = GistBatch(version=3, lod=lod, nodes=nodes, trust=np.full(n, 3, np.uint8), rows=rows)
        memory.journal.put_gists(batch)
    memory.journal.flush()
    return memory


@pytest.fixture
def target(memory):
    store = InMemoryStorage(Path("target"))
    store.open("create", Header(block_bytes=32 * memory.meta.token_bytes))
    return store


def copied(memory, target, **options):
    meta = memory.meta
    return copy_commits(
        memory.storage, target, root=meta.root, token_bytes=meta.token_bytes, **options
    )


def check(memory, target):
    """Recompute the whole chain of the copy."""
    place = Place(0, memory.meta.root, 0, 0)
    for stretch in stretches(target, target.state(), memory.meta.token_bytes):
        place, what = stretch.check(place)
        assert "" == what
    prober = Prober(
        storage=target, root=memory.meta.root, token_bytes=memory.meta.token_bytes, path="copy"
    )
    assert prober.check().seq == place.seq


def test_a_copy_has_the_same_rows_and_chain(memory, target):
    seen = []
    position = copied(memory, target, progress=lambda *done: seen.append(done))
    journal, whole = memory.journal, memory.storage
    assert (journal.seq, journal.chain, journal.n_tokens, journal.n_messages) == (
        position.seq,
        position.chain,
        position.n_tokens,
        position.n_messages,
    )
    assert journal.settings == position.settings
    assert np.array_equal(journal.tail, position.tail)
    n_messages, seq = journal.n_messages, journal.seq
    assert np.array_equal(whole.read_commits(1, seq + 1), target.read_commits(1, seq + 1))
    assert np.array_equal(whole.read_messages(0, n_messages), target.read_messages(0, n_messages))
    numbers = np.arange(n_messages)
    assert whole.read_bodies(numbers) == target.read_bodies(numbers)
    blocks = np.arange(journal.n_blocks)
    assert np.array_equal(whole.read_blocks(blocks), target.read_blocks(blocks))
    assert (journal.n_tokens, journal.n_tokens) == seen[-1]


@pytest.mark.parametrize("seq", [0, 1, 2, 17, 40, 64])
def test_a_prefix_ends_where_its_commit_ends(memory, target, seq):
    position = copied(memory, target, upto_seq=seq)
    expected = memory.meta.root
    if seq:
        expected = memory.storage.read_commits(seq, seq + 1)["chain"].tobytes()
    assert (seq, expected) == (position.seq, position.chain)
    assert seq == target.state().seq
    ids = memory.journal.token_ids(Span(0, position.n_tokens))
    assert np.array_equal(ids[len(ids) // 32 * 32 :], position.tail)
    if seq:
        check(memory, target)


def test_no_such_commit_is_a_lookup_error(memory, target):
    for seq in (-1, memory.journal.seq + 1):
        with pytest.raises(LookupError):
            copied(memory, target, upto_seq=seq)


def test_what_is_left_out_reads_as_forgotten(memory, target):
    redaction = Redaction((Span(10, 40), Span(1_000, 1_100)), np.array([0, 5, 20]))
    position = copied(memory, target, redaction=redaction)
    check(memory, target)
    assert memory.journal.chain != position.chain
    ids = memory.journal.token_ids(Span(0, position.n_tokens)).copy()
    ids[10:40] = ids[1_000:1_100] = -1
    width = memory.meta.token_bytes
    blocks = target.read_blocks(np.arange(position.n_tokens // 32))
    assert ids[: blocks.size // width].astype(f"<u{width}").tobytes() == blocks.tobytes()
    rows = target.read_messages(0, position.n_messages)
    before = memory.storage.read_messages(0, position.n_messages)
    assert [0, 5, 20] == np.flatnonzero(rows["flags"] & FLAG_FORGOTTEN).tolist()
    for field in ("start", "ts_us", "n_tokens", "role", "trust"):
        assert np.array_equal(before[field], rows[field])
    bodies = memory.storage.read_bodies(np.arange(position.n_messages))
    for number in (0, 5, 20):
        bodies[number] = b""
    assert bodies == target.read_bodies(np.arange(position.n_messages))
    keys = target.read_commits(1, position.seq + 1)["key"]
    assert np.array_equal(memory.storage.read_commits(1, position.seq + 1)["key"], keys)


def test_trust_is_capped_but_not_of_settings(memory, target):
    position = copied(memory, target, trust_cap=1)
    check(memory, target)
    rows = target.read_messages(0, position.n_messages)
    plain = rows["role"] != ROLE_SETTING
    assert ({1}, {4}) == (set(rows["trust"][plain]), set(rows["trust"][~plain]))
    copy_gists(memory.storage, target, n_tokens=position.n_tokens, trust_cap=1)
    assert [1] == target.read_gists(3, 1, np.array([0])).trust.tolist()


def test_gists_are_copied_up_to_the_first_touched_node(memory, target):
    position = copied(memory, target)
    n_tokens = position.n_tokens
    assert n_tokens > 2 * 1_024
    redaction = Redaction((Span(1_500, 1_501),), np.array([], np.int64))
    assert 46 + 1 == copy_gists(memory.storage, target, n_tokens=n_tokens, redaction=redaction)
    assert ((3, 1, 46), (3, 2, 1)) == target.state().gist_rows
    found = target.read_gists(3, 1, np.arange(46))
    assert np.array_equal(memory.storage.read_gists(3, 1, np.arange(46)).rows, found.rows)


def test_gists_of_other_versions_and_of_a_longer_history_stay_behind(memory, target):
    copied(memory, target)
    assert 0 == copy_gists(memory.storage, target, n_tokens=10**6, versions={4})
    assert 3 == copy_gists(memory.storage, target, n_tokens=100, versions={3})


def test_settings_can_follow_a_copy(memory, target):
    position = copied(memory, target)
    after = append_settings(
        target, position, {"a": [1]}, token_bytes=memory.meta.token_bytes, ts_us=9
    )
    check(memory, target)
    assert (position.seq + 1, position.n_messages) == (after.seq, after.setting)
    assert after.setting == target.state().setting
    assert {"a": [1]} == after.settings


def test_touched_nodes_are_the_complete_ones_that_lose_a_token():
    redaction = Redaction((Span(31, 33), Span(70, 70), Span(2_000, 2_049)), np.array([]))
    assert [0, 1, 62, 63] == touched_nodes(redaction, 2_049, 1).tolist()
    assert [0, 1] == touched_nodes(redaction, 2_049, 2).tolist()
    assert [0, 1, 62, 63, 64] == touched_nodes(redaction, 2_080, 0).tolist()
    assert [] == touched_nodes(NOTHING, 2_080, 1).tolist()
    assert not NOTHING
    assert redaction


def test_stretches_stay_small_whatever_a_memory_holds(tmp_path, opened):
    memory = opened(tmp_path / "x", backend="memory", factory=InMemoryStorage)
    for n, body in ((30_000, 10), (0, 3_000_000), (100, 100), (1_500_000, 0)):
        for _ in range(3):
            message = MessageRecord(0, 3, 0, 1, n, b"x" * body)
            memory.journal.append(np.zeros(n, np.int32), [message]).wait()
    for _ in range(3_000):
        memory.journal.append(np.zeros(0, np.int32), [MessageRecord(0, 3, 0, 1, 0, b"y")])
    memory.journal.flush()
    found = list(stretches(memory.storage, memory.storage.state(), 2))
    assert memory.journal.seq == sum(len(stretch.rows) for stretch in found)
    assert max(stretch.n_bytes for stretch in found) < 20 * 2**20
    assert len(found) < 30
