"""Which of some byte strings occur in raw bytes: the proof that what was forgotten is gone.

It reads files as they lie on the disk, knows nothing of their formats, and looks at every byte.
`found_plainly` says the same in one line and is what the tests compare with.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.errors import InvariantError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bools, Indices

__all__ = [
    "MAX_NEEDLE_BYTES",
    "MIN_NEEDLE_BYTES",
    "NeedleFinder",
    "files_below",
    "found_plainly",
    "scan_files",
]

MIN_NEEDLE_BYTES = 15
"""Shorter ones need not hold a whole word of eight bytes wherever they lie."""

MAX_NEEDLE_BYTES = 64

_WORD = 8
_CHUNK_BYTES = 2**18  # stays in the cache: 2 GB/s with 2,000 needles, several times slower beyond
_TABLE_BITS = 18
_MIX, _OTHER_MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_SHIFT = np.uint64(64 - _TABLE_BITS)
_PAIRS = 2**14  # candidates compared at once


def found_plainly(data: bytes, needles: Sequence[bytes]) -> list[bool]:
    """Return which needles occur in some bytes; the reference, slow and obvious."""
    return [needle in data for needle in needles]


class NeedleFinder:
    """Finds many byte strings at once.

    A needle of 15 bytes or more holds a whole word of 8 bytes that lies on a multiple of 8,
    wherever it stands itself. So only words at multiples of 8 are looked up, among the 8 that each
    needle may show there: first in two tables of bits, then by value, at last byte for byte.

    Args:
        needles: byte strings of 15 to 64 bytes.

    Raises:
        InvariantError: a needle of another length.
    """

    def __init__(self, needles: Sequence[bytes]) -> None:
        self.n_needles = len(needles)
        lengths = np.array([len(needle) for needle in needles], np.int64)
        if len(lengths) and not MIN_NEEDLE_BYTES <= lengths.min() <= lengths.max() <= 64:
            raise InvariantError(
                f"needles have {MIN_NEEDLE_BYTES} to {MAX_NEEDLE_BYTES} bytes, got "
                f"{lengths.min()} to {lengths.max()}",
                code="needle-length",
                detail="a shorter one may hide between the words that are looked at",
                epoch=None,
            )
        self._lengths = lengths
        self._bytes = np.zeros((len(needles), max(lengths, default=MIN_NEEDLE_BYTES)), np.uint8)
        for at, needle in enumerate(needles):
            self._bytes[at, : len(needle)] = np.frombuffer(needle, np.uint8)
        self.restrict(np.ones(len(needles), np.bool_))

    def restrict(self, wanted: Bools) -> None:
        """Look only for some needles from now on, bool[n]."""
        numbers = np.flatnonzero(wanted)
        shifts = np.arange(_WORD)
        windows = self._bytes[numbers][:, shifts[:, None] + np.arange(_WORD)]
        words = np.ascontiguousarray(windows).view("<u8").reshape(-1)
        order = np.argsort(words, kind="stable")
        self._words = words[order]
        self._owners = np.repeat(numbers, _WORD)[order]
        self._shifts = np.tile(shifts, len(numbers))[order]
        self._table, self._second = np.zeros((2, 2**_TABLE_BITS), np.bool_)
        self._table[_slots(self._words, _MIX)] = True
        self._second[_slots(self._words, _OTHER_MIX)] = True

    def find(self, data: NDArray[np.uint8]) -> tuple[Indices, Indices]:
        """Return the number of each needle found in uint8[n], and where it begins."""
        words = data[: len(data) // _WORD * _WORD].view("<u8")
        likely = np.flatnonzero(self._table[_slots(words, _MIX)])
        likely = likely[self._second[_slots(words[likely], _OTHER_MIX)]]
        if not len(likely):
            return likely, likely
        low = np.searchsorted(self._words, words[likely], side="left")
        n_pairs = np.searchsorted(self._words, words[likely], side="right") - low
        first = np.cumsum(n_pairs) - n_pairs
        entry = np.arange(int(n_pairs.sum())) - np.repeat(first, n_pairs) + np.repeat(low, n_pairs)
        owners = self._owners[entry]
        begins = np.repeat(likely, n_pairs) * _WORD - self._shifts[entry]
        is_inside = (begins >= 0) & (begins + self._lengths[owners] <= len(data))
        owners, begins = owners[is_inside], begins[is_inside]
        for at in (0, -1):  # the ends first: cheap, and decides nearly always
            places = begins + at % self._lengths[owners]
            same = data[places] == self._bytes[owners, at % self._lengths[owners]]
            owners, begins = owners[same], begins[same]
        same = np.zeros(len(owners), np.bool_)
        for at in range(0, len(owners), _PAIRS):
            part = slice(at, at + _PAIRS)
            same[part] = self._equal(data, owners[part], begins[part])
        # A long needle shows several words; each place counts once.
        keys = np.unique(begins[same] * max(1, self.n_needles) + owners[same])
        return keys % max(1, self.n_needles), keys // max(1, self.n_needles)

    def _equal(self, data: NDArray[np.uint8], owners: Indices, begins: Indices) -> Bools:
        """Compare each needle with the bytes from its place on."""
        offsets = np.arange(self._bytes.shape[1])
        places = np.minimum(begins[:, None] + offsets, len(data) - 1)
        is_beyond = offsets >= self._lengths[owners][:, None]
        equal: Bools = ((data[places] == self._bytes[owners]) | is_beyond).all(axis=1)
        return equal


def _slots(words: NDArray[np.uint64], mix: np.uint64) -> Indices:
    """Return the place of each word in a table of bits."""
    mixed = words * mix
    mixed >>= _SHIFT
    return mixed.view(np.int64)


def files_below(directory: Path) -> Iterator[Path]:
    """Yield the regular files below a directory; links are not followed."""
    for folder, _folders, names in os.walk(directory):
        for name in sorted(names):
            path = Path(folder) / name
            if stat.S_ISREG(path.lstat().st_mode):
                yield path


def scan_files(files: Iterator[Path], needles: Sequence[bytes]) -> tuple[Bools, int]:
    """Read every byte of files and return which needles occur, bool[n], and how many bytes.

    No file may be in use by an engine of this process: closing it here would drop the engine's
    lock.

    Raises:
        OSError: a file cannot be read.
    """
    found = np.zeros(len(needles), np.bool_)
    finder = NeedleFinder(needles)
    buffer = np.empty(_CHUNK_BYTES + MAX_NEEDLE_BYTES, np.uint8)
    view = memoryview(buffer.data)
    n_bytes = 0
    for path in files:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            kept = 0  # bytes at the front that were read before: a needle may lie across
            while n_read := os.readv(handle, [view[kept:]]):
                n_bytes += n_read
                owners, _begins = finder.find(buffer[: kept + n_read])
                if len(owners):
                    found[owners] = True
                    finder.restrict(~found)  # once is enough
                end = kept + n_read
                kept = min(end, MAX_NEEDLE_BYTES)
                buffer[:kept] = buffer[end - kept : end].copy()
        finally:
            os.close(handle)
    return found, n_bytes
