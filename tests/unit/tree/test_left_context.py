"""An encoder that looks left of its blocks: what it is handed, and what its gists depend on."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from megacontext_sdk.contracts.gist import Blocks
from megacontext_sdk.errors import ConfigError
from megacontext_sdk.memory.block_runs import BlockRuns, halves
from megacontext_sdk.testing.encoders import TrailingMean
from megacontext_sdk.testing.gist import GistEncoderConformance, blocks_of

HISTORY = np.arange(40 * 32, dtype=np.int32).reshape(40, 32)


class TestTrailing(GistEncoderConformance):
    make = staticmethod(TrailingMean)


class Looking(TrailingMean):
    """Looks as far left as a test says."""

    def __init__(self, left_tokens):
        super().__init__()
        self.left_tokens = left_tokens


def runs(left_tokens, nodes, read=lambda numbers: HISTORY[numbers]):
    return list(BlockRuns(read, Looking(left_tokens), 7).of(np.array(nodes)))


@pytest.mark.parametrize("left_tokens", [0, 1, 31, 32, 33, 80, 1248])
@pytest.mark.parametrize(
    "nodes", [[0], [5], [0, 1, 2], [3, 4, 9], [0, 39], list(range(40)), [1, 3, 5, 7]]
)
def test_neighbours_are_one_run_with_exactly_the_tokens_left_of_it(left_tokens, nodes):
    found = runs(left_tokens, nodes)
    assert nodes == [one.first + at for one in found for at in range(len(one))]
    assert len(found) == 1 + sum(b - a != 1 for a, b in pairwise(nodes))
    for one in found:
        due = blocks_of(HISTORY, one.first, one.first + len(one), left_tokens)
        np.testing.assert_array_equal(due.token_ids, one.token_ids)
        np.testing.assert_array_equal(due.left, one.left)


def test_all_runs_are_read_at_once_and_nothing_twice():
    asked = []

    def read(numbers):
        asked.append(numbers.tolist())
        return HISTORY[numbers]

    runs(40, [2, 3, 5, 20], read)
    assert [[0, 1, 2, 3, 4, 5, 18, 19, 20]] == asked
    assert [] == runs(40, [], read)


@pytest.mark.parametrize("left_tokens", [0, 20, 200])
def test_blocks_at_hand_are_not_read(left_tokens):
    def read(numbers):
        assert (numbers < 6).all()
        return HISTORY[numbers]

    found = BlockRuns(read, Looking(left_tokens), 7).run(6, HISTORY[6:9])
    due = blocks_of(HISTORY, 6, 9, left_tokens)
    np.testing.assert_array_equal(due.left, found.left)
    np.testing.assert_array_equal(due.token_ids, found.token_ids)


@pytest.mark.parametrize("left_tokens", [0, 20, 200])
def test_two_halves_of_a_run_are_runs(left_tokens):
    for one, first, stop in zip(
        halves(blocks_of(HISTORY, 3, 8, left_tokens), left_tokens), (3, 5), (5, 8), strict=True
    ):
        due = blocks_of(HISTORY, first, stop, left_tokens)
        assert (first, stop - first) == (one.first, len(one))
        np.testing.assert_array_equal(due.left, one.left)


def test_a_forgotten_token_is_a_filler_in_the_blocks_and_left_of_them():
    spoiled = HISTORY.copy()
    spoiled[4, 30:] = spoiled[5, :2] = -1
    (one,) = runs(40, [5], lambda numbers: spoiled[numbers])
    assert [7, 7] == one.left[-2:].tolist()
    assert [7, 7] == one.token_ids[0, :2].tolist()
    assert one.left.min() >= 0


@pytest.mark.parametrize("wrong", [-1, None, 1.5, True, "all"])
def test_an_encoder_that_does_not_say_how_far_it_looks_is_refused(wrong):
    with pytest.raises(ConfigError, match="left_tokens"):
        BlockRuns(lambda numbers: HISTORY[numbers], Looking(wrong), 0)


def test_blocks_have_a_length():
    assert 3 == len(Blocks(HISTORY[:3], 0, HISTORY[0, :0]))


@pytest.mark.parametrize("step", [None, 7, 33, 500])
def test_gists_do_not_depend_on_how_appends_were_cut(memory, build, step):
    ids = build.ids(32 * 70)
    build.append(memory.open(encoder=TrailingMean()), ids, step)
    found = memory.tree.gists(1, np.arange(70))
    whole = TrailingMean().encode_blocks(blocks_of(ids.reshape(70, 32), 0, 70, 80), memory.services)
    np.testing.assert_allclose(whole.rows, found, atol=1e-3)
    assert 0 == memory.tree.stats().n_missing_gists


def test_a_crash_loses_gists_that_come_out_the_same(memory, build):
    build.append(memory.open(encoder=TrailingMean()), build.ids(32 * 70))
    before = memory.tree.gists(1, np.arange(70))
    memory.crash({1: 33, 2: 1})
    memory.open(encoder=TrailingMean())
    np.testing.assert_array_equal(before, memory.tree.gists(1, np.arange(70)))


def test_reading_what_is_missing_here_and_there_gives_the_same(memory, build):
    build.append(memory.open(encoder=TrailingMean()), build.ids(32 * 70))
    before = memory.tree.gists(1, np.arange(70))
    memory.crash({1: 10})
    tree = memory.open(encoder=TrailingMean(), read_only=True)
    nodes = np.array([9, 10, 11, 40, 69])
    np.testing.assert_array_equal(before[nodes], tree.gists(1, nodes))
