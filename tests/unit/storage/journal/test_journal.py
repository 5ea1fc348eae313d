"""The journal over the in-memory store: positions, overlay, gists, keys, settings."""

import threading
from pathlib import Path

import numpy as np
import pytest

from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.contracts.storage import GistBatch
from megacontext_sdk.errors import (
    ConfigError,
    InvariantError,
    QuotaError,
)
from megacontext_sdk.memory import chain as chain_module
from megacontext_sdk.memory.chain import FLAG_CONTINUES, ROLE_SETTING, split
from megacontext_sdk.memory.journal import OP_GENERATE
from megacontext_sdk.memory.keys import KEPT_COMMITS, KeyTable
from megacontext_sdk.memory.lod import Span


@pytest.mark.parametrize("token_bytes", [2, 4])
@pytest.mark.parametrize("sizes", [[1000], [1] * 70, [31, 1, 32, 33, 64, 500], [0, 5, 0, 40]])
def test_tokens_read_back_whatever_the_sizes(make_journal, ids_of, append, sizes, token_bytes):
    journal = make_journal(token_bytes=token_bytes)
    ids = ids_of(sum(sizes))
    at = 0
    for size in sizes:
        append(journal, ids[at : at + size])
        at += size
    for flush in (False, True):
        if flush:
            journal.flush()
        assert np.array_equal(ids, journal.token_ids(Span(0, len(ids))))
        assert np.array_equal(ids[len(ids) // 32 * 32 :], journal.tail)
        assert np.array_equal(
            ids[: len(ids) // 32 * 32].reshape(-1, 32),
            journal.blocks(np.arange(journal.n_blocks)),
        )
        for start, end in ((0, 1), (3, 40), (33, 64), (len(ids) - 5, len(ids)), (7, 7)):
            if 0 <= start <= end <= len(ids):
                assert np.array_equal(ids[start:end], journal.token_ids(Span(start, end)))
    assert (len(sizes), len(ids)) == (journal.seq, journal.n_tokens)
    journal.close()


def test_appends_are_visible_before_they_are_durable(ids_of, append, gated):
    journal, storage = gated
    append(journal, ids_of(50)).wait()
    storage.gate.clear()
    ids = ids_of(100, 1)
    ticket = append(journal, ids)
    assert not ticket.done()
    assert 150 == journal.n_tokens
    assert np.array_equal(ids, journal.token_ids(Span(50, 150)))
    everything = np.concatenate([ids_of(50), ids])
    assert np.array_equal(everything[40:120], journal.token_ids(Span(40, 120)))
    blocks = np.array([3, 0, 1, 2, 3])
    assert np.array_equal(everything[:128].reshape(4, 32)[blocks], journal.blocks(blocks))
    assert [b"text", b"text"] == journal.bodies(np.array([1, 0]))
    assert [0, 50] == journal.messages(0, 2)["start"].tolist()
    assert 1 == journal.message_at(149)
    with pytest.raises(TimeoutError):
        ticket.wait(0)
    storage.gate.set()
    assert Span(50, 150) == ticket.wait().span


def test_what_waits_during_a_flush_goes_out_together(ids_of, append, gated):
    journal, storage = gated
    storage.gate.clear()
    tickets = [append(journal, ids_of(3, seed)) for seed in range(20)]
    storage.gate.set()
    assert [*range(1, 21)] == [ticket.wait().seq for ticket in tickets]
    assert 20 == sum(storage.batches)
    assert len(storage.batches) <= 2


def test_chain_depends_on_content_and_order_and_root_only(make_journal, ids_of, append):
    def chain_of(parts, **options):
        journal = make_journal(**options)
        for part in parts:
            append(journal, part)
        chain = journal.chain
        journal.flush()
        assert chain == journal.chain
        journal.close()
        return chain

    first, second = ids_of(40), ids_of(40, 1)
    assert chain_of([first, second]) == chain_of([first, second])
    assert chain_of([first, second]) == chain_of([first, second], token_bytes=4)
    assert chain_of([first, second]) != chain_of([second, first])
    assert chain_of([first, second]) != chain_of([np.concatenate([first, second])])


def test_chain_equals_the_definition_by_hand(ids_of, message, journal):
    from hashlib import blake2b

    ids = ids_of(5)
    journal.append(ids, [message(2, b"ab"), message(3, b"c")], ts_us=9).wait()
    row = journal._storage.read_commits(1, 2).tobytes()
    rows = journal.messages(0, 2).tobytes()
    by_hand = bytes(range(16)) + row[:72] + ids.astype("<u4").tobytes()
    by_hand += rows[:24] + b"\x02\0\0\0ab" + rows[24:] + b"\x01\0\0\0c"
    assert blake2b(by_hand, digest_size=16).digest() == journal.chain == row[72:]


def test_receipt_and_message_rows_say_where_things_are(ids_of, message, append, journal):
    ids = ids_of(10)
    drafts = [message(4, b"a", role=1, trust=2), message(0, b"b"), message(6, b"c", flags=1)]
    append(journal, ids_of(7))
    receipt = journal.append(ids, drafts, op=OP_GENERATE).wait()
    assert (2, Span(7, 17), 1, 3) == (
        receipt.seq,
        receipt.span,
        receipt.first_message,
        receipt.n_messages,
    )
    rows = journal.messages(1, 4)
    assert [7, 11, 11] == rows["start"].tolist()
    assert [1, 0, 0] == rows["role"].tolist()
    assert [0, 0, 1] == rows["flags"].tolist()
    assert [b"c", b"a"] == journal.bodies(np.array([3, 1]))


def test_message_at_agrees_with_brute_force(make_journal, ids_of, message):
    rng = np.random.default_rng(3)
    journal = make_journal()
    owners = []
    for _ in range(40):
        sizes = rng.integers(0, 60, 25).tolist()
        first = journal.n_messages
        owners += [first + at for at, size in enumerate(sizes) for _ in range(size)]
        journal.append(ids_of(sum(sizes)), [message(size) for size in sizes])
        journal.update_settings({"n": len(owners)})
        owners_now = len(owners)
        assert owners[-1] == journal.message_at(owners_now - 1)
    journal.flush()
    picked = rng.integers(0, len(owners), 500).tolist()
    assert [owners[token] for token in picked] == [journal.message_at(token) for token in picked]
    journal.close()


def test_message_at_reads_few_rows_of_a_long_history(make_journal, ids_of, message):
    reads = []

    class Counting(InMemoryStorage):
        def read_messages(self, start, stop):
            reads.append(stop - start)
            return super().read_messages(start, stop)

    journal = make_journal(Counting(Path("counting")))
    journal.append(ids_of(100_000), [message(5) for _ in range(20_000)]).wait()
    journal.flush()
    assert 12_345 == journal.message_at(5 * 12_345 + 2)
    assert len(reads) <= 3
    assert max(reads) <= 256
    journal.close()


def test_arrays_handed_out_are_read_only(ids_of, append, gist_batch, journal):
    append(journal, ids_of(70))
    journal.put_gists(gist_batch(0, 2))
    found = journal.gists(0, 1, np.arange(2))
    for array in (
        journal.tail,
        journal.token_ids(Span(0, 70)),
        journal.blocks(np.arange(2)),
        journal.messages(0, 1),
        found.rows,
        found.present,
    ):
        with pytest.raises(ValueError, match="read-only"):
            array[:1] = array[:1]


def test_the_callers_array_may_change_after_append(ids_of, append, gated):
    journal, storage = gated
    storage.gate.clear()
    ids = ids_of(40)
    mine = ids.copy()
    append(journal, mine)
    mine[:] = 0
    assert np.array_equal(ids, journal.token_ids(Span(0, 40)))


@pytest.mark.parametrize("span", [Span(-1, 3), Span(5, 4), Span(0, 71), Span(71, 71)])
def test_span_outside_the_history_is_refused_with_the_range(ids_of, append, journal, span):
    append(journal, ids_of(70))
    with pytest.raises(ConfigError, match=r"\[0, 70\)") as caught:
        journal.token_ids(span)
    assert "span" == caught.value.field


def test_unknown_numbers_are_lookup_errors(ids_of, append, journal):
    append(journal, ids_of(70))
    for read in (
        lambda: journal.blocks(np.array([2])),
        lambda: journal.bodies(np.array([1])),
        lambda: journal.messages(0, 2),
        lambda: journal.messages(-1, 1),
    ):
        with pytest.raises(LookupError, match="run from 0 to"):
            read()


@pytest.mark.parametrize(
    "bad", [[-1], [65_535], [1.5], [[1]], [True], [2**40]], ids=lambda bad: str(bad)
)
def test_bad_token_ids_are_refused_and_nothing_is_kept(append, journal, bad):
    with pytest.raises(ConfigError) as caught:
        append(journal, np.array(bad))
    assert "token_ids" == caught.value.field
    assert 0 == journal.seq


def test_messages_must_tile_the_tokens(ids_of, message, journal):
    for messages in ([], [message(3)], [message(5)], [message(6), message(-2)]):
        with pytest.raises(InvariantError):
            journal.append(ids_of(4), messages)
    assert 0 == journal.seq


def test_gists_are_readable_at_once_and_follow_their_tokens(ids_of, append, gist_batch, gated):
    journal, storage = gated
    append(journal, ids_of(64)).wait()
    journal.put_gists(gist_batch(0, 2))
    journal.flush()
    storage.gate.clear()
    append(journal, ids_of(64, 1))
    journal.put_gists(gist_batch(2, 4))
    assert 4 == journal.gist_count(0, 1)
    found = journal.gists(0, 1, np.array([3, 0, 2, 9]))
    assert [3, 0, 2, 0] == found.rows[:, 0].tolist()
    assert [True, True, True, False] == found.present.tolist()
    assert ((0, 1, 2),) == storage.state().gist_rows
    storage.gate.set()
    journal.flush()
    assert ((0, 1, 4),) == storage.state().gist_rows
    assert [3, 0, 2, 0] == journal.gists(0, 1, np.array([3, 0, 2, 9])).rows[:, 0].tolist()


def test_gists_out_of_order_or_misshapen_are_refused(ids_of, append, gist_batch, journal):
    append(journal, ids_of(320))
    journal.put_gists(gist_batch(0, 2))
    good = gist_batch(2, 4)
    for batch in (
        gist_batch(0, 1),
        gist_batch(3, 5),
        gist_batch(2, 2),
        gist_batch(2, 4, lod=0),
        GistBatch(version=0, lod=1, nodes=good.nodes, trust=good.trust[:1], rows=good.rows),
        GistBatch(
            version=0, lod=1, nodes=good.nodes, trust=good.trust, rows=good.rows.astype(np.int8)
        ),
    ):
        with pytest.raises(InvariantError):
            journal.put_gists(batch)
    assert 2 == journal.gist_count(0, 1)


def test_missing_gists_are_absent_not_errors(ids_of, append, journal):
    append(journal, ids_of(64))
    found = journal.gists(5, 1, np.array([0, 1]))
    assert [False, False] == found.present.tolist()


KEY = b"0123456789abcdef"


def test_same_key_and_content_is_stored_once(ids_of, append, journal):
    first = append(journal, ids_of(50), key=KEY).wait()
    append(journal, ids_of(9))
    again = append(journal, ids_of(50), key=KEY).wait()
    assert again.duplicate
    assert not first.duplicate
    assert (first.seq, first.span, first.first_message) == (
        again.seq,
        again.span,
        again.first_message,
    )
    assert 59 == journal.n_tokens


def test_same_key_while_the_first_is_in_flight_waits_for_it(ids_of, append, gated):
    journal, storage = gated
    storage.gate.clear()
    append(journal, ids_of(50), key=KEY)
    again = append(journal, ids_of(50), key=KEY)
    assert not again.done()
    storage.gate.set()
    assert again.wait().duplicate
    assert 50 == journal.n_tokens


def test_same_key_with_other_content_is_refused(ids_of, message, append, journal):
    append(journal, ids_of(50), key=KEY)
    for ids, body in ((ids_of(50, 1), b"text"), (ids_of(49), b"text"), (ids_of(50), b"other")):
        with pytest.raises(ConfigError) as caught:
            journal.append(ids, [message(len(ids), body)], key=KEY)
        assert "idempotency_key" == caught.value.field
    assert 1 == journal.seq


def test_keys_are_found_after_reopening(make_journal, ids_of, append):
    storage = InMemoryStorage(Path("again"))
    journal = make_journal(storage)
    for seed in range(5):
        append(journal, ids_of(3, seed), key=bytes([seed + 1]) * 16)
    journal.close()
    again = make_journal(storage, mode="write")
    assert 3 == again.find_key(bytes([3]) * 16).seq
    assert again.find_key(bytes([9]) * 16) is None
    assert append(again, ids_of(3, 4), key=bytes([5]) * 16).wait().duplicate
    again.close()


@pytest.mark.parametrize("key", [b"short", b"x" * 10_000, "0123456789abcdef", bytes(16)])
def test_key_that_is_none_is_refused(ids_of, append, journal, key):
    with pytest.raises(ConfigError) as caught:
        append(journal, ids_of(3), key=key)
    assert "idempotency_key" == caught.value.field


def test_key_table_keeps_the_newest_commits_only():
    table = KeyTable()
    table.load(lambda _start, _stop: np.zeros(0, chain_module.MESSAGE), 0)
    keys = [number.to_bytes(16, "big") for number in range(1, KEPT_COMMITS + 101)]
    for seq, key in enumerate(keys, 1):
        table.add(key, seq)
    head = len(keys)
    assert KEPT_COMMITS == len(table._seqs)
    assert table.find(keys[99], head) is None
    assert 101 == table.find(keys[100], head)
    assert head == table.find(keys[-1], head)
    table.forget_after(head - 1)
    assert table.find(keys[-1], head) is None


def test_split_cuts_long_messages_and_keeps_every_token(ids_of, message):
    ids = ids_of(1_000)
    parts = split(ids, [message(300, b"a"), message(0, b"b"), message(700, b"c")], limit=1_000)
    assert np.array_equal(ids, np.concatenate([part for part, _, _ in parts]))
    assert all(size <= 1_000 for _, _, size in parts)
    assert all(
        len(part) == sum(row.n_tokens for row in rows)
        and size == 4 * len(part) + sum(24 + len(row.body) for row in rows)
        for part, rows, size in parts
    )
    rows = [row for _, part_rows, _ in parts for row in part_rows]
    starts = [row.body for row in rows if not row.flags & FLAG_CONTINUES]
    assert [b"a", b"b", b"c"] == starts
    assert all(row.body == b"" for row in rows if row.flags & FLAG_CONTINUES)


def test_split_of_nothing_is_one_empty_commit():
    parts = split(np.empty(0, np.int32), [])
    assert 1 == len(parts)
    assert [] == parts[0][1]


def test_large_append_becomes_several_commits_with_one_receipt_and_resumes(
    make_journal, ids_of, message, append, monkeypatch
):
    monkeypatch.setattr(chain_module.split, "__defaults__", (1_000,))
    storage = InMemoryStorage(Path("large"))
    journal = make_journal(storage)
    ids = ids_of(1_000)
    receipt = append(journal, ids, key=KEY).wait()
    n_parts = journal.seq
    assert n_parts > 3
    assert (Span(0, 1_000), 0, n_parts) == (receipt.span, receipt.first_message, receipt.n_messages)
    assert append(journal, ids, key=KEY).wait().duplicate
    assert n_parts == journal.seq
    journal.close()

    # A crash after the second part: the retry appends the rest and nothing twice.
    cut = InMemoryStorage(Path("cut"))
    cut_journal = make_journal(cut)
    for at, (part, rows, _) in enumerate(split(ids, [message(1_000)])[:2]):
        cut_journal.append(part, rows, key=chain_module.part_key(KEY, at)).wait()
    resumed = append(cut_journal, ids, key=KEY).wait()
    assert Span(0, 1_000) == resumed.span
    assert n_parts == cut_journal.seq
    assert np.array_equal(ids, cut_journal.token_ids(Span(0, 1_000)))
    cut_journal.close()


def test_cut_append_followed_by_other_content_is_not_resumed(
    make_journal, ids_of, message, append, monkeypatch
):
    monkeypatch.setattr(chain_module.split, "__defaults__", (1_000,))
    journal = make_journal()
    ids = ids_of(1_000)
    part, rows, _ = split(ids, [message(1_000)])[0]
    journal.append(part, rows, key=chain_module.part_key(KEY, 0))
    append(journal, ids_of(3))
    with pytest.raises(ConfigError, match="new key"):
        append(journal, ids, key=KEY)
    journal.close()


def test_body_above_the_limit_is_a_quota_error(ids_of, message, journal):
    with pytest.raises(QuotaError) as caught:
        journal.append(ids_of(1), [message(1, bytes(16 * 2**20 + 1))])
    assert "body_bytes" == caught.value.quota


def test_append_waits_while_the_queue_is_full(ids_of, append, gated):
    journal, storage = gated
    storage.gate.clear()
    for _ in range(1_024):
        append(journal, ids_of(1))
    late = threading.Thread(target=lambda: append(journal, ids_of(1)))
    late.start()
    late.join(0.05)
    assert late.is_alive()
    storage.gate.set()
    late.join(5)
    assert not late.is_alive()
    assert 1_025 == journal.n_tokens


def test_settings_are_one_map_that_survives_reopening(make_journal, ids_of, append):
    storage = InMemoryStorage(Path("settings"))
    journal = make_journal(storage)
    assert {} == dict(journal.settings)
    journal.update_settings({"encoders": [{"name": "mean", "slots": 1}], "pins": [1, 2]})
    journal.update_settings({"pins": None, "more": {"a": True}}).wait()
    expected = {"encoders": [{"name": "mean", "slots": 1}], "more": {"a": True}}
    assert expected == dict(journal.settings)
    journal.close()
    again = make_journal(storage, mode="write")
    assert expected == dict(again.settings)
    assert [ROLE_SETTING] * 2 == again.messages(0, 2)["role"].tolist()
    append(again, ids_of(3)).wait()
    assert 1 == storage.state().setting
    again.close()


def test_settings_are_read_only_and_bounded(journal):
    with pytest.raises(TypeError):
        journal.settings["a"] = 1
    deep = value = {}
    for _ in range(9):
        value["a"] = {}
        value = value["a"]
    for bad in ({1: 2}, {"a": object()}, {"deep": deep}, {"a": 2**70}):
        with pytest.raises(ConfigError):
            journal.update_settings(bad)
    with pytest.raises(QuotaError):
        journal.update_settings({"a": "x" * 2**20})
    assert 0 == journal.seq
