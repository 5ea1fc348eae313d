"""Exact things in a block: counted by runs, from a table over the vocabulary."""

from __future__ import annotations

import numpy as np
import pytest

from megacontext_sdk.contracts.model import Tokenizer
from megacontext_sdk.memory.precision import PrecisionTable

LETTERS = str.maketrans("0123456789", "abcdefghij")


class Words(Tokenizer):
    """One id per distinct piece of a list."""

    def __init__(self, pieces):
        self.pieces = sorted(set(pieces))
        self.decoded = 0

    def encode(self, text, *, special=False):
        return np.array([self.pieces.index(piece) for piece in text.split("|")], np.int32)

    def decode(self, token_ids, *, special=True):
        self.decoded += len(token_ids)
        return "".join(self.pieces[i] for i in token_ids.tolist())

    def detokenizer(self):
        raise AssertionError("not asked for here")

    def apply_chat_template(self, messages, *, add_generation_prompt):
        return None


def count(pieces):
    padded = pieces + ["plain"] * (32 - len(pieces))
    words = Words(padded)
    table = PrecisionTable(words, len(words.pieces))
    ids = np.array([[words.pieces.index(piece) for piece in padded]], np.int32)
    return table.count(ids)[0]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([], 0),
        (["The", " cat", " sat", "."], 0),
        (["4", "2"], 1),
        (["1", "2", "/", "0", "5", "/", "2", "4"], 1),  # a date is one thing
        (["3", ".", "1", "4"], 1),
        (["4", " and", " ", "5"], 2),
        (["4", ".", " ", "5"], 2),
        ([" not", " never"], 1),
        ([" not", " a", " never"], 2),
        (["is", "n't"], 1),
        (["don", "\u2019t"], 1),
        (["nothing", "knot"], 1),
        (["https", "://", "www"], 1),
        (["a", "@", "b"], 1),
        (["snake_case"], 1),
        (["camelCase", " x"], 1),
        (["std", "::", "vector"], 1),
        (["-", "-", "..."], 0),
        (["9", " not", "://", "a_b"], 4),
    ],
)
def test_runs_of_exact_things_are_counted(pieces, expected):
    assert expected == count(pieces)


def test_blocks_are_counted_apart_and_forgotten_tokens_are_nothing():
    words = Words(["a", "7"])
    ids = np.zeros((3, 32), np.int32) + words.pieces.index("a")
    ids[0, 31] = ids[1, 0] = words.pieces.index("7")
    ids[2] = -1
    assert [1, 1, 0] == PrecisionTable(words, 2).count(ids).tolist()


def test_each_token_is_asked_for_once():
    words = Words([str(i) for i in range(50)])
    table = PrecisionTable(words, 50)
    assert 0 == words.decoded
    ids = np.random.default_rng(0).integers(0, 50, (20, 32)).astype(np.int32)
    first = table.count(ids)
    assert 50 == words.decoded
    np.testing.assert_array_equal(first, table.count(ids))
    assert 50 == words.decoded
    assert np.float32 == first.dtype


def test_a_tree_counts_through_its_table(memory, build):
    words = Words([f"{i:03}" if i % 2 else f"{i:03}".translate(LETTERS) for i in range(300)])
    tree = memory.open(precision=PrecisionTable(words, 300))
    ids = np.repeat([words.pieces.index("001"), words.pieces.index("aac")], 32)
    build.append(tree, ids.astype(np.int32))
    assert [1, 0] == tree.precision(np.array([0, 1])).tolist()
    assert [0] == memory.open().precision(np.array([0])).tolist()
