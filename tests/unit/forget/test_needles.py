"""Pieces are taken evenly from all that goes, and only what was kept explains them afterwards."""

from __future__ import annotations

import numpy as np
import pytest

from megacontext_sdk.memory.chain import encode_ids
from megacontext_sdk.memory.directory.replay import Redaction
from megacontext_sdk.memory.forget import needles as needles_module
from megacontext_sdk.memory.forget.needles import Needles, Survivors, take_needles
from megacontext_sdk.memory.forget.scan import files_below, scan_files
from megacontext_sdk.memory.lod import Span
from megacontext_sdk.plugins import default_plugins

DURABLE = [name for name in ("duckdb", "filesystem") if name in default_plugins().names("storage")]


def taken(memory, redaction):
    memory.tree.flush()
    meta = memory.opened.meta
    return take_needles(memory.journal, memory.opened.storage, redaction, meta.token_bytes)


def text_of(number):
    return f"Text {number * 7919:09d}, which is long enough to cut several pieces from {number}."


def test_pieces_of_every_message_block_and_node_are_taken_if_there_is_room(make_memory):
    memory = make_memory()
    for number in range(20):
        memory.append(text_of(number), n_tokens=64)
    found = taken(memory, memory.plan(message_ids=range(3, 11)))
    raw = memory.journal.bodies(np.arange(memory.journal.n_messages))
    for number, body in enumerate(raw):
        held = [piece in body for piece in found.texts]
        assert any(held) == (3 <= number < 11)
    ids = memory.ids()
    whole = encode_ids(ids, 2)
    places = sorted({whole.index(run) // 64 for run in found.runs})
    first = memory.journal.messages(3, 4)["start"][0] // 32
    assert list(range(first, first + 16)) == places
    assert {24} == {len(piece) for piece in found.texts}
    assert {16} == {len(piece) for piece in found.runs}
    assert {32} == {len(piece) for piece in found.rows}
    assert 16 + 1 == len(found.rows)


def test_of_much_content_pieces_are_evenly_spread_and_few(make_memory, monkeypatch):
    for name in ("MAX_TEXTS", "MAX_RUNS", "MAX_ROWS"):
        monkeypatch.setattr(needles_module, name, 10)
    memory = make_memory()
    for start in range(0, 200, 20):
        memory.append(*(text_of(number) for number in range(start, start + 20)), n_tokens=64)
    found = taken(memory, memory.plan(everything=True))
    assert 10 == len(found.texts)
    assert 10 == len(found.rows)
    assert len(found.runs) <= 20
    bodies = memory.journal.bodies(np.arange(1, 201))
    places = [next(at for at, body in enumerate(bodies) if piece in body) for piece in found.texts]
    gaps = np.diff(sorted(places))
    assert (gaps.min() >= 20, gaps.max() <= 24, places[0], places[-1]) == (True, True, 0, 199)


def test_a_run_of_ids_is_never_taken_across_an_edge(make_memory):
    memory = make_memory()
    memory.append("All of it.", n_tokens=200)
    ids = memory.ids()
    for start, end in [(0, 8), (25, 39), (28, 36), (60, 75), (190, 200), (192, 200)]:
        plan = Redaction((Span(start, end),), np.array([1]))
        for run in taken(memory, plan).runs:
            at = next(at for at in range(193) if encode_ids(ids[at : at + 8], 2) == run)
            assert start <= at
            assert at + 8 <= end
            assert at // 32 == (at + 7) // 32


def test_pieces_that_say_nothing_are_left_out(make_memory):
    memory = make_memory()
    number = memory.append("ababab" * 40, "Something with many letters, see.", n_tokens=2)
    found = taken(memory, memory.plan(message_ids=[number, number + 1]))
    assert not any(b"abab" in piece for piece in found.texts)
    assert any(b"many" in piece for piece in found.texts)


def test_long_bodies_are_read_a_few_at_a_time(make_memory, monkeypatch):
    monkeypatch.setattr(needles_module, "_PAGE_BYTES", 5_000)
    monkeypatch.setattr(needles_module, "_FIRST_BODIES", 2)
    memory = make_memory()
    asked = []
    for number in range(8):
        memory.append(text_of(number) * 30, n_tokens=10)
    plan = memory.plan(everything=True)
    bodies = memory.journal.bodies
    monkeypatch.setattr(
        memory.journal, "bodies", lambda numbers: asked.append(len(numbers)) or bodies(numbers)
    )
    found = taken(memory, plan)
    assert (8, 0) == (sum(asked), found.unscannable)
    assert max(asked) <= 3


def test_each_kind_is_explained_by_its_own_kind_of_row(memory):
    for number in range(6):
        memory.append(text_of(number), n_tokens=64)
    found = taken(memory, memory.plan(message_ids=[2, 3]))
    survivors = Survivors(memory.journal, memory.opened.storage, 2)
    assert survivors.explain(found).all()
    assert {2, 3} == survivors.echoes
    swapped = Needles(found.runs, found.texts[: len(found.runs)], (), 0)
    assert not Survivors(memory.journal, memory.opened.storage, 2).explain(swapped).any()
    strange = Needles((b"y" * 24,), (b"z" * 16,), (b"x" * 32,), 0)
    assert not Survivors(memory.journal, memory.opened.storage, 2).explain(strange).any()


def test_a_piece_is_not_explained_by_the_end_of_one_body_and_the_start_of_the_next(memory):
    first = memory.append("ends with: Berlin and Par", "is and Rome, that is the list.")
    bodies = memory.journal.bodies(np.array([first, first + 1]))
    across = (bodies[0] + bodies[1])[len(bodies[0]) - 12 :][:24]
    survivors = Survivors(memory.journal, memory.opened.storage, 2)
    assert not survivors.explain(Needles((across,), (), (), 0)).any()


def test_a_run_across_two_kept_blocks_is_explained_in_whatever_order_they_lie(memory):
    memory.append(text_of(1), n_tokens=96)
    raw = encode_ids(memory.ids(), 2)
    blocks = [raw[64 * number : 64 * number + 64] for number in range(3)]
    survivors = Survivors(memory.journal, memory.opened.storage, 2)
    across = (blocks[2][-6:] + blocks[0][:10], blocks[0][-14:] + blocks[1][:2])
    assert survivors.explain(Needles((), across, (), 0)).all()
    inside = (blocks[2][10:16] + blocks[0][:10], blocks[2][-6:] + blocks[0][10:20])
    assert not survivors.explain(Needles((), inside, (), 0)).any()


def test_a_common_phrase_is_noted_a_few_times_and_not_everywhere(make_memory, monkeypatch):
    monkeypatch.setattr(needles_module, "_PAGE_BYTES", 500)
    monkeypatch.setattr(needles_module, "_FIRST_BODIES", 4)
    memory = make_memory()
    for _ in range(10):
        memory.append(*["The same phrase in every single message."] * 20, n_tokens=2)
    survivors = Survivors(memory.journal, memory.opened.storage, 2)
    assert survivors.explain(Needles((b"same phrase in every sin",), (), (), 0)).all()
    assert 16 <= len(survivors.echoes) < 40


def test_needles_can_be_picked(make_memory):
    needles = Needles((b"a" * 24, b"b" * 24), (b"c" * 16,), (b"d" * 32,), 5)
    picked = needles.only(np.array([False, True, False, True]))
    assert ((b"b" * 24,), (), (b"d" * 32,)) == (picked.texts, picked.runs, picked.rows)
    assert (b"b" * 24, b"d" * 32) == picked.all


@pytest.mark.parametrize("lod", [1, 2])
def test_rows_of_every_encoder_are_looked_for(make_memory, lod):
    memory = make_memory()
    memory.append("All of it.", n_tokens=32 * 33)
    rows = memory.gists()[lod]
    found = taken(memory, memory.plan(everything=True)).rows
    assert any(piece in rows.tobytes() for piece in found)


def test_the_scan_finds_nearly_every_needle_while_the_content_is_there(durable):
    """Otherwise finding none afterwards would prove nothing: long bodies, logs, seals included."""
    for start in range(0, 300, 20):
        durable.append(*(text_of(number) for number in range(start, start + 20)), n_tokens=64)
    for number in range(5):
        durable.append(text_of(number) * 300, n_tokens=4_000)
    durable.append(None, n_tokens=5_000)
    found = taken(durable, durable.plan(everything=True))
    assert len(found.all) > 1_500
    durable.close()
    seen, _n_bytes = scan_files(files_below(durable.path), found.all)
    kinds = np.repeat([0, 1, 2], [len(found.texts), len(found.runs), len(found.rows)])
    for kind in range(3):
        assert seen[kinds == kind].mean() >= 0.99
    durable.reopen()
    receipt = durable.forget(everything=True)
    assert (True, 0, ()) == (receipt.verified, receipt.hits, receipt.echoes)
    assert receipt.needles == len(found.all)


@pytest.mark.parametrize("storage", DURABLE)
def test_ids_of_four_bytes_are_searched_for_as_they_are_stored(make_memory, storage):
    memory = make_memory(storage, vocab_size=100_000)
    numbers = [memory.append(text_of(number), n_tokens=100) for number in range(20)]
    plan = memory.plan(message_ids=numbers[5:9])
    found = taken(memory, plan)
    assert {32} == {len(run) for run in found.runs}
    memory.close()
    seen, _n_bytes = scan_files(files_below(memory.path), found.all)
    assert seen.all()
    memory.opened = memory.open_handle(memory.path, vocab_size=100_000)
    memory.tree = memory.tree_over(memory.opened)
    receipt = memory.forget(message_ids=numbers[5:9])
    assert (True, 0) == (receipt.verified, receipt.hits)
    assert [(500, 900)] == [(span.start, span.end) for span in receipt.spans]
    assert (memory.ids()[500:900] == -1).all()
