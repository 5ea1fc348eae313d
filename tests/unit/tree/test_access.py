"""Access counts: equal to a replay of the trace, kept over restarts, honest about damage."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_sdk.memory.access import MAGIC, AccessCounts
from megacontext_sdk.memory.lod import NodeId


def opened(path, **settings):
    counts = AccessCounts(path, **settings)
    counts.open()
    return counts


EVENTS = st.lists(
    st.tuples(st.booleans(), st.lists(st.tuples(st.integers(0, 10), st.integers(0, 5)))),
    max_size=30,
)


@settings(max_examples=50, deadline=None)
@given(EVENTS, st.sets(st.integers(0, 30)))
def test_row12_counts_equal_a_replay_of_the_trace_over_restarts(tmp_path_factory, events, flushes):
    path = tmp_path_factory.mktemp("counts") / "access.bin"
    counts, replay = opened(path), {}
    for step, (is_mutation, nodes) in enumerate(events):
        lods = np.array([lod for lod, _ in nodes], np.uint8)
        indices = np.array([index for _, index in nodes], np.int64)
        (counts.note_mutation if is_mutation else counts.note_access)(lods, indices)
        for node in nodes:
            replay.setdefault(node, [0, 0])[is_mutation] += 1
        if step in flushes:
            counts.flush()
            counts = opened(path)
    counts.flush()
    for reader in (counts, opened(path)):
        for node, expected in replay.items():
            assert tuple(expected) == reader.counts(NodeId(*node))
        assert (0, 0) == reader.counts(NodeId(3, 99))


def test_row12_counts_of_a_tree_persist(memory, build):
    tree = memory.open()
    build.append(tree, build.ids(100))
    tree.note_access(np.array([0, 1, 1]), np.array([2, 2, 2]))
    tree.note_mutation(np.array([1]), np.array([2]))
    assert (2, 1) == tree.access_counts(NodeId(1, 2))
    tree.flush()
    tree.note_access(np.array([1]), np.array([2]))
    tree = memory.open()
    assert (3, 1) == tree.access_counts(NodeId(1, 2))
    assert (1, 0) == tree.access_counts(NodeId(0, 2))
    assert "" == tree.stats().access_reset


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-1],
        lambda raw: raw[: len(MAGIC) + 3],
        lambda raw: raw[:20] + bytes([raw[20] ^ 1]) + raw[21:],
        lambda raw: b"MCACCES9" + raw[8:],
        lambda raw: raw + b"\xff" * 8,
        lambda raw: b"",
    ],
    ids=["torn", "torn-head", "flipped", "other-format", "trailing", "empty"],
)
def test_a_damaged_file_starts_again_from_zero_and_says_so(tmp_path, caplog, damage):
    path = tmp_path / "access.bin"
    counts = opened(path)
    counts.note_access(np.array([1]), np.array([7]))
    counts.flush()
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        again = opened(path)
    assert (0, 0) == again.counts(NodeId(1, 7))
    assert again.reset_reason
    assert "again from zero" in caplog.text
    again.note_access(np.array([1]), np.array([8]))
    again.flush()
    third = opened(path)
    assert ("", (1, 0)) == (third.reset_reason, third.counts(NodeId(1, 8)))


def test_reading_only_leaves_a_damaged_file_alone(tmp_path):
    path = tmp_path / "access.bin"
    path.write_bytes(b"damaged!")
    counts = opened(path, read_only=True)
    counts.note_access(np.array([1]), np.array([7]))
    counts.flush()
    assert b"damaged!" == path.read_bytes()
    assert (1, 0) == counts.counts(NodeId(1, 7))


def test_the_file_is_private_and_written_anew_when_it_is_mostly_old_deltas(tmp_path, monkeypatch):
    monkeypatch.setattr("megacontext_sdk.memory.access._COMPACT_RECORDS", 100)
    path = tmp_path / "access.bin"
    counts = opened(path)
    for _ in range(200):
        counts.note_access(np.ones(10, int), np.arange(10))
        counts.flush()
    assert 0o600 == path.stat().st_mode & 0o777
    assert path.stat().st_size < 24 * 200
    assert (200, 0) == opened(path).counts(NodeId(1, 9))
    assert ["access.bin"] == [file.name for file in tmp_path.iterdir()]


def test_a_place_that_cannot_be_written_loses_counts_and_nothing_else(tmp_path, caplog):
    counts = opened(tmp_path / "missing" / "access.bin")
    counts.note_access(np.array([1]), np.array([7]))
    with caplog.at_level(logging.WARNING):
        counts.flush()
    assert (1, 0) == counts.counts(NodeId(1, 7))
    assert "not written" in caplog.text


def test_many_notes_are_folded_before_they_pile_up(tmp_path):
    counts = opened(None)
    for _ in range(300):
        counts.note_access(np.ones(1000, int), np.arange(1000))
    assert len(counts._pending) < 100
    assert (300, 0) == counts.counts(NodeId(1, 0))
