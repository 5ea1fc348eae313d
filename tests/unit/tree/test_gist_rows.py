"""Gist rows as bytes: what comes back, how far it is off, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.contracts.gist import Gists
from megacontext_sdk.errors import ConfigError, CorruptError
from megacontext_sdk.memory.gist_rows import GIST_DTYPES, RowCodec

LARGEST = float(np.finfo(np.float32).max) / 2


def gists(numbers, slots=1, aux=0):
    rows = np.asarray(numbers, np.float32).reshape(-1, slots, np.shape(numbers)[-1])
    return Gists(rows=rows, aux=np.full((len(rows), aux), 0.5, np.float32))


def returned(codec, given):
    return codec.decode(codec.encode(given))


@pytest.mark.parametrize(
    ("dtype", "slots", "aux", "expected"),
    [("i1", 1, 1, 264), ("i1", 4, 0, 1028), ("f2", 1, 1, 516), ("f4", 2, 3, 2060)],
)
def test_a_row_is_its_numbers_its_scale_and_its_aux(dtype, slots, aux, expected):
    codec = RowCodec(slots, 256, aux, dtype)
    assert expected == codec.row_bytes
    raw = codec.encode(gists(np.ones((3 * slots, 256)), slots, aux))
    assert (3, expected) == raw.shape
    assert np.uint8 == raw.dtype


@settings(max_examples=200, deadline=None)
@given(
    numbers=arrays(
        np.float32, (3, 2, 8), elements=st.floats(-LARGEST, LARGEST, width=32, allow_nan=False)
    )
)
def test_an_int8_row_is_off_by_at_most_half_its_scale(numbers):
    codec = RowCodec(2, 8, 1, "i1")
    back = returned(codec, Gists(rows=numbers, aux=np.zeros((3, 1), np.float32)))
    scale = np.abs(numbers.astype(np.float64)).max(axis=(1, 2), keepdims=True) / 127
    # What float32 rounds away in the scale and in the product, and what is too small for it.
    bound = scale * (0.5 + 127 * 2**-22) + 2**-142
    assert (np.abs(back.rows.astype(np.float64) - numbers) <= bound).all()


@pytest.mark.parametrize("dtype", GIST_DTYPES)
def test_zero_and_aux_come_back_exactly(dtype):
    codec = RowCodec(1, 4, 2, dtype)
    numbers = np.zeros((2, 1, 4), np.float32)
    aux = np.array([[1e-30, 3e38], [np.pi, -7]], np.float32)
    back = returned(codec, Gists(rows=numbers, aux=aux))
    np.testing.assert_array_equal(numbers, back.rows)
    np.testing.assert_array_equal(aux, back.aux)
    assert np.float32 == back.rows.dtype
    assert codec.is_finite(back)


def test_the_largest_number_of_an_int8_row_comes_back_and_signs_are_treated_alike():
    codec = RowCodec(1, 5, 0, "i1")
    numbers = np.array([[0.3, -12.7, 0.05, 12.65, 12.7]])
    back = returned(codec, gists(numbers)).rows[0, 0]
    np.testing.assert_allclose([0.3, -12.7, 0.0, 12.6, 12.7], back, atol=0.0501)
    np.testing.assert_array_equal(-back, returned(codec, gists(-numbers)).rows[0, 0])


def test_rows_do_not_share_their_scale():
    codec = RowCodec(1, 2, 0, "i1")
    back = returned(codec, gists([[1e-3, 5e-4], [1e6, 5e5]])).rows[:, 0]
    np.testing.assert_allclose([[1e-3, 5e-4], [1e6, 5e5]], back, rtol=0.01)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", GIST_DTYPES)
def test_row15_a_number_that_is_not_finite_does_not_come_back_finite(dtype, bad):
    codec = RowCodec(1, 3, 0, dtype)
    back = returned(codec, gists([[1.0, bad, 2.0], [1.0, 2.0, 3.0]]))
    assert not codec.is_finite(back)
    assert np.isfinite(back.rows[1]).all()


def test_row15_a_number_too_large_for_f2_becomes_infinite_and_fits_into_the_others():
    large = gists([[1e5, 1.0]])
    assert not RowCodec.is_finite(returned(RowCodec(1, 2, 0, "f2"), large))
    for dtype in ("i1", "f4"):
        assert RowCodec.is_finite(returned(RowCodec(1, 2, 0, dtype), large))


@pytest.mark.parametrize("dtype", GIST_DTYPES)
def test_the_same_numbers_give_the_same_bytes_in_any_batching(dtype):
    codec = RowCodec(1, 16, 1, dtype)
    numbers = np.random.default_rng(0).normal(size=(50, 16))
    whole = codec.encode(gists(numbers, aux=1))
    parts = [codec.encode(gists(numbers[at : at + 7], aux=1)) for at in range(0, 50, 7)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert (0, codec.row_bytes) == codec.encode(gists(np.empty((0, 16)), aux=1)).shape


@pytest.mark.parametrize("dtype", GIST_DTYPES)
def test_bytes_of_another_length_are_damage(dtype):
    codec = RowCodec(1, 4, 1, dtype)
    with pytest.raises(CorruptError):
        codec.decode(np.zeros((2, codec.row_bytes + 1), np.uint8))


@pytest.mark.parametrize(("width", "dtype"), [(8, "i8"), (70_000, "i1")])
def test_an_unknown_type_and_a_row_above_the_limit_are_refused(width, dtype):
    with pytest.raises(ConfigError):
        RowCodec(1, width, 0, dtype)


def test_rows_of_another_type_are_another_version_and_are_read_as_what_they_are(memory, build):
    build.append(memory.open(gist_dtype="f4"), build.ids(2100))
    wide = memory.tree.gists(1, np.arange(65))
    memory.open(gist_dtype="i1")
    assert {0: 65, 1: 65} == memory.tree.stats().versions
    assert 8 + 4 + 4 == memory.tree.stats().gist_row_bytes
    narrow = memory.tree.gists(1, np.arange(65))
    scale = np.abs(wide).max(axis=-1, keepdims=True) / 127
    assert (np.abs(narrow - wide) <= 0.51 * scale).all()
    memory.open(gist_dtype="f4")
    np.testing.assert_array_equal(wide, memory.tree.gists(1, np.arange(65)))
    assert {} == memory.tree.stats().encode_calls


def test_int8_gists_of_parents_stay_near_those_of_full_precision(memory, build):
    build.append(memory.open(gist_dtype="f4"), build.ids(32 * 32 * 33))
    wide = memory.tree.gists(2, np.arange(33))
    memory.open(gist_dtype="i1")
    narrow = memory.tree.gists(2, np.arange(33))
    off = np.linalg.norm(narrow - wide, axis=-1) / np.linalg.norm(wide, axis=-1)
    assert off.max() < 0.01


def test_row15_an_encoder_that_makes_no_numbers_is_refused_with_int8_rows_too(memory, build):
    class Broken(MeanGistEncoder):
        def encode_blocks(self, blocks, services):
            made = super().encode_blocks(blocks, services)
            made.rows[1] = np.nan
            return made

    tree = memory.open(encoder=Broken(), gist_dtype="i1")
    build.append(tree, build.ids(96))
    assert 3 == tree.stats().n_missing_gists
