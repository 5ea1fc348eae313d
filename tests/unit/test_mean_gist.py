"""The mean encoder against its closed form, written out plainly."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.contracts.gist import Blocks, Gists
from megacontext_sdk.errors import ConfigError
from megacontext_sdk.memory.gist_rows import RowCodec
from megacontext_sdk.testing.gist import GistEncoderConformance, TableServices


class TestMeanS1(GistEncoderConformance):
    make = staticmethod(MeanGistEncoder)


class TestMeanS2(GistEncoderConformance):
    make = staticmethod(partial(MeanGistEncoder, 2))


class TestMeanS4(GistEncoderConformance):
    make = staticmethod(partial(MeanGistEncoder, 4))


def run(ids):
    """Blocks at the beginning of a history."""
    return Blocks(ids.reshape(-1, 32), 0, np.empty(0, np.int32))


def closed_form(token_ids, table, slots):
    """float64: g = rho * m / rms(m) over the span, its second half, its quarters 2 and 4."""
    table = table.astype(np.float64)
    rho = np.sqrt((table**2).mean(axis=1)).mean()
    n = len(token_ids)
    parts = [
        token_ids,
        token_ids[n // 2 :],
        token_ids[n // 4 : n // 2],
        token_ids[3 * n // 4 :],
    ][:slots]
    means = np.stack([table[part].mean(axis=0) for part in parts])
    return rho * means / np.sqrt((means**2).mean(axis=1, keepdims=True))


def climb(encoder, codec, ids, services):
    """Gists of every level, each built from the level below as stored."""
    level = codec.decode(codec.encode(encoder.encode_blocks(run(ids), services)))
    levels, lod = [level], 1
    while len(level.rows) >= 32:
        lod += 1
        level = codec.decode(codec.encode(encoder.encode_gists(lod, level, services)))
        levels.append(level)
    return levels


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [("f2", 2e-3), ("f4", 2e-5)])
def test_row19_mean_gists_equal_the_closed_form_at_all_lods(slots, dtype, tolerance):
    services = TableServices(vocab_size=200, width=8)
    encoder = MeanGistEncoder(slots)
    ids = np.random.default_rng(1).integers(0, 200, 32**3).astype(np.int32)
    # A drifting vocabulary, so that levels do not all average to the same vector.
    ids = (ids // 4 + np.arange(32**3) * 150 // 32**3).astype(np.int32)
    codec = RowCodec(slots, 8, 1, dtype)
    scale = np.abs(services.table).mean()
    for lod, level in enumerate(climb(encoder, codec, ids, services), start=1):
        width = 32**lod
        for index in (0, len(level.rows) // 2, len(level.rows) - 1):
            span = ids[index * width : (index + 1) * width]
            expected = closed_form(span, services.table, slots)
            np.testing.assert_allclose(level.rows[index], expected, rtol=0, atol=tolerance * scale)


def test_row19_mean_gists_are_bitwise_reproducible():
    services = TableServices(vocab_size=200, width=24)
    ids = np.random.default_rng(2).integers(0, 200, 32**2 * 3).astype(np.int32)
    codec = RowCodec(4, 24, 1)
    first = climb(MeanGistEncoder(4), codec, ids, services)
    second = climb(MeanGistEncoder(4), codec, ids, TableServices(vocab_size=200, width=24))
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.rows, two.rows)
        np.testing.assert_array_equal(one.aux, two.aux)


def test_fewer_slots_are_the_first_of_more():
    services = TableServices()
    ids = np.random.default_rng(3).integers(0, 512, (40, 32)).astype(np.int32)
    four = MeanGistEncoder(4).encode_blocks(run(ids), services).rows
    for slots in (1, 2):
        rows = MeanGistEncoder(slots).encode_blocks(run(ids), services).rows
        np.testing.assert_array_equal(four[:, :slots], rows)


def test_a_block_that_averages_to_nothing_has_a_zero_gist_not_nan():
    services = TableServices(vocab_size=4, width=8)
    services.table[1] = -services.table[0]
    block = np.tile(np.array([0, 1], np.int32), 16)[None]
    gists = MeanGistEncoder(1).encode_blocks(run(block), services)
    assert 0.0 == np.abs(gists.rows).max()


def test_row14_the_fingerprint_tells_bases_tokenizers_and_slots_apart():
    bases = [TableServices(seed=0), TableServices(seed=1), TableServices(vocab_size=100)]
    digests = {MeanGistEncoder(s).fingerprint(base.info) for base in bases for s in (1, 2)}
    assert 6 == len(digests)


@pytest.mark.parametrize("slots", [0, 3, 8, True, "2", None])
def test_other_numbers_of_slots_are_refused(slots):
    with pytest.raises(ConfigError, match="1, 2 or 4") as caught:
        MeanGistEncoder(slots)
    assert "gist_slots" == caught.value.field


def test_a_wrong_id_is_named_by_its_index():
    ids = np.zeros((2, 32), np.int32)
    ids[1, 3] = 512
    with pytest.raises(ConfigError, match="512 at index 35") as caught:
        MeanGistEncoder().encode_blocks(run(ids), TableServices())
    assert 35 == caught.value.index


def test_half_a_sibling_group_is_refused():
    gists = Gists(np.ones((31, 1, 32), np.float32), np.ones((31, 1), np.float32))
    with pytest.raises(ConfigError, match="whole groups of 32"):
        MeanGistEncoder().encode_gists(2, gists, TableServices())
