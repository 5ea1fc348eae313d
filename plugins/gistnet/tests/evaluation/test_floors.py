"""Rows that need no training, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from megacontext_gistnet.evaluation.floors import FLOORS, CentredMean, LastToken, floors
from megacontext_sdk.contracts.gist import Blocks


@pytest.fixture
def block(tiny):
    ids = np.random.default_rng(3).integers(0, tiny.info.vocab_size, (2, 32)).astype(np.int32)
    return Blocks(ids, 0, ids[0, :0])


def rms(x):
    return np.sqrt(np.square(x).mean(axis=-1))


def test_the_last_token_is_the_embedding_of_the_last_token_of_each_part(tiny, block):
    rows = LastToken(4).encode_blocks(block, tiny).rows
    for slot, at in enumerate((31, 15, 7, 23)):
        wanted = tiny.embedding_table()[block.token_ids[:, at]]
        np.testing.assert_array_equal(wanted, rows[:, slot])


def test_the_centred_mean_lacks_what_all_tokens_share(tiny, block):
    table = tiny.embedding_table()
    rows = CentredMean(4).encode_blocks(block, tiny).rows
    for slot, part in enumerate((slice(0, 32), slice(16, 32), slice(8, 16), slice(24, 32))):
        mean = table[block.token_ids[:, part]].mean(axis=1) - table.mean(axis=0)
        wanted = mean * (rms(table).mean() / rms(mean))[:, None]
        np.testing.assert_allclose(rows[:, slot], wanted, atol=1e-5)


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_slots_are_nested_and_parents_are_made_of_first_slots(tiny, block, slots):
    for few, all_ in zip(floors(slots), floors(4), strict=True):
        rows = few.encode_blocks(block, tiny).rows
        np.testing.assert_array_equal(rows, all_.encode_blocks(block, tiny).rows[:, :slots])
        many = Blocks(np.repeat(block.token_ids, 16, axis=0), 0, block.left)
        children = few.encode_blocks(many, tiny)
        parent = few.encode_gists(2, children, tiny).rows
        assert (1, slots, tiny.info.hidden_size) == parent.shape
        if few.name == "last token":
            np.testing.assert_array_equal(children.rows[-1, 0], parent[0, 0])
        else:
            np.testing.assert_allclose(rms(parent), rms(tiny.embedding_table()).mean(), rtol=1e-4)


def test_fingerprints_tell_floors_and_slots_apart(tiny):
    prints = {one.fingerprint(tiny.info) for s in (1, 2, 4) for one in floors(s)}
    assert len(prints) == 3 * len(FLOORS)
