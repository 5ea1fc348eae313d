"""The scan finds every needle wherever it lies, as the plain reference does."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_sdk.errors import InvariantError
from megacontext_sdk.memory.forget.scan import NeedleFinder, files_below, found_plainly, scan_files

CHUNK = 2**18
RANDOM = np.random.default_rng(5)


def found(data, needles):
    owners, _begins = NeedleFinder(needles).find(np.frombuffer(data, np.uint8))
    return [number in owners.tolist() for number in range(len(needles))]


@given(
    data=st.binary(max_size=400),
    cuts=st.lists(st.tuples(st.integers(0, 400), st.integers(15, 64)), max_size=6),
    others=st.lists(st.binary(min_size=15, max_size=64), max_size=4),
)
@settings(max_examples=300, deadline=None)
def test_needles_are_found_as_by_a_plain_search(data, cuts, others):
    needles = [data[at : at + n] for at, n in cuts if len(data[at : at + n]) >= 15] + others
    assert found_plainly(data, needles) == found(data, needles)


@given(letters=st.text("ab", min_size=64, max_size=300), at=st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_needles_of_few_letters_are_found_as_by_a_plain_search(letters, at):
    data = letters.encode()
    needles = [data[at : at + 16], data[at : at + 24], b"ab" * 12, b"a" * 15]
    assert found_plainly(data, needles) == found(data, needles)


def test_the_places_of_a_needle_are_all_named():
    needle = RANDOM.bytes(24)
    data = np.frombuffer(b"x" * 3 + needle + b"y" * 50 + needle, np.uint8)
    owners, begins = NeedleFinder([RANDOM.bytes(20), needle]).find(data)
    assert ([1, 1], [3, 77]) == (owners.tolist(), begins.tolist())


@pytest.mark.parametrize("length", [0, 14, 65])
def test_a_needle_of_another_length_is_our_bug(length):
    with pytest.raises(InvariantError, match="15 to 64"):
        NeedleFinder([b"x" * 20, b"x" * length])


@pytest.mark.parametrize("at", [0, CHUNK - 40, CHUNK - 1, CHUNK, CHUNK + 63, 2 * CHUNK + 7, -24])
def test_a_needle_across_the_pieces_of_a_file_is_found(tmp_path, at):
    needle = RANDOM.bytes(24)
    data = bytearray(RANDOM.bytes(3 * CHUNK))
    at %= len(data)
    data[at : at + 24] = needle
    (tmp_path / "a").write_bytes(data)
    seen, n_bytes = scan_files(files_below(tmp_path), [RANDOM.bytes(24), needle])
    assert ([False, True], 3 * CHUNK) == (seen.tolist(), n_bytes)


def test_a_needle_is_not_put_together_from_two_files(tmp_path):
    needle = RANDOM.bytes(24)
    (tmp_path / "a").write_bytes(b"x" * 1000 + needle[:12])
    (tmp_path / "b").write_bytes(needle[12:] + b"x" * 1000)
    seen, _n_bytes = scan_files(files_below(tmp_path), [needle])
    assert not seen.any()


def test_every_regular_file_below_is_read_and_nothing_else(tmp_path):
    inside = tmp_path / "memory"
    (inside / "deep" / "er").mkdir(parents=True)
    (inside / "deep" / "er" / "a").write_bytes(b"abc")
    (inside / "empty").touch()
    (inside / ".hidden").write_bytes(b"abcd")
    (tmp_path / "outside").write_bytes(b"x")
    (inside / "link").symlink_to(tmp_path / "outside")
    os.mkfifo(inside / "pipe")
    names = sorted(path.name for path in files_below(inside))
    assert [".hidden", "a", "empty"] == names
    assert 7 == scan_files(files_below(inside), [])[1]


def test_a_file_that_repeats_a_needle_without_end_is_still_read_to_the_end(tmp_path):
    needles = [bytes([n]) * 16 for n in range(3)]
    (tmp_path / "a").write_bytes(bytes(2 * CHUNK) + bytes([2]) * 40)
    seen, n_bytes = scan_files(files_below(tmp_path), needles)
    assert ([True, False, True], 2 * CHUNK + 40) == (seen.tolist(), n_bytes)
