"""How a gist becomes a stored row and back, and the bounded cache of decoded rows in memory.

A row is S*d little-endian numbers of the gist type, for "i1" a float32 scale that they all share,
then A float32 numbers of `aux`. Backends see bytes only, so content is equal on all of them.
Nothing here knows what a gist means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.contracts.gist import Gists
from megacontext_sdk.errors import ConfigError, CorruptError

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Bools, Bytes2D, Floats, Indices

__all__ = ["GIST_DTYPES", "GistCache", "RowCodec"]

GIST_DTYPES = ("i1", "f2", "f4")
_MAX_ROW_BYTES = 64 * 2**10
_SCALED = "i1"
_SCALE_BYTES = 4
_LARGEST = 127  # -128 stays unused, so that a row and its negative lose the same


@attrs.frozen
class RowCodec:
    """Fixed layout of the gist rows of one encoder version.

    Attributes:
        slots: S.
        width: d.
        aux: A.
        dtype: "i1", "f2" or "f4".

    Raises:
        ConfigError: an unknown type, or a row above 64 KiB.
    """

    slots: int
    width: int
    aux: int
    dtype: str = attrs.field(default="f2")

    def __attrs_post_init__(self) -> None:
        if self.dtype not in GIST_DTYPES:
            message = f"gist_dtype {self.dtype!r:.40} is unknown; use one of {GIST_DTYPES}"
            raise ConfigError(message, field="gist_dtype", value=self.dtype)
        if self.row_bytes > _MAX_ROW_BYTES:
            message = (
                f"a gist row of {self.row_bytes:,} bytes is above the limit of "
                f"{_MAX_ROW_BYTES:,}; use fewer gist_slots or gist_dtype='i1'"
            )
            raise ConfigError(message, field="gist_slots", value=self.slots)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self._vector_bytes + 4 * self.aux

    @property
    def _vector_bytes(self) -> int:
        """Bytes of the numbers, with their scale."""
        numbers = self.slots * self.width * np.dtype(self.dtype).itemsize
        return numbers + (_SCALE_BYTES if self.dtype == _SCALED else 0)

    def encode(self, gists: Gists) -> Bytes2D:
        """Return uint8[n, row_bytes].

        A number too large for the type becomes infinite. With "i1" each number is off by at most
        half the row's scale, which is its largest number over 127; a row that is not finite has no
        scale, and none of its numbers comes back finite.
        """
        n, cut = len(gists.rows), self._vector_bytes
        raw = np.empty((n, self.row_bytes), np.uint8)
        numbers = gists.rows.reshape(n, self.slots * self.width)
        if self.dtype == _SCALED:
            raw[:, :cut] = _scaled(numbers)
        else:
            with np.errstate(over="ignore"):
                raw[:, :cut] = numbers.astype(f"<{self.dtype}").view(np.uint8)
        if self.aux:
            raw[:, cut:] = np.ascontiguousarray(gists.aux, "<f4").view(np.uint8)
        return raw

    def decode(self, raw: Bytes2D) -> Gists:
        """Return the gists of uint8[n, row_bytes].

        Raises:
            CorruptError: rows of another size.
        """
        if raw.shape[1:] != (self.row_bytes,):
            message = f"a gist row has {raw.shape[1:]} bytes instead of {self.row_bytes}"
            raise CorruptError(message, where="gist rows", offset=None, have_seq=None)
        cut = self._vector_bytes
        stored = np.ascontiguousarray(raw[:, :cut])
        if self.dtype == _SCALED:
            vectors = _unscaled(stored)
        else:
            vectors = stored.view(f"<{self.dtype}").astype(np.float32)
        aux = np.ascontiguousarray(raw[:, cut:]).view("<f4").astype(np.float32)
        shape = (len(raw), self.slots, self.width)
        return Gists(rows=vectors.reshape(shape), aux=aux.reshape(len(raw), self.aux))

    @staticmethod
    def is_finite(gists: Gists) -> bool:
        """Tell whether every number of the gists is finite."""
        return bool(np.isfinite(gists.rows).all() and np.isfinite(gists.aux).all())


def _scaled(numbers: Floats) -> Bytes2D:
    """Return float32[n, m] as rows of m int8 numbers and their float32 scale."""
    n, m = numbers.shape
    raw = np.empty((n, m + _SCALE_BYTES), np.uint8)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        scale = (np.abs(numbers).max(axis=1, initial=0.0) / np.float32(_LARGEST)).astype("<f4")
        steps = np.rint(numbers / np.where(scale > 0, scale, np.float32(1))[:, None])
    # A row that is not finite keeps that in its scale; a step has to be some number.
    steps = np.clip(np.nan_to_num(steps, nan=0.0), -_LARGEST, _LARGEST)
    raw[:, :m] = steps.astype(np.int8).view(np.uint8)
    raw[:, m:] = scale[:, None].view(np.uint8)
    return raw


def _unscaled(raw: Bytes2D) -> Floats:
    """Return float32[n, m] of rows that `_scaled` made."""
    steps = raw[:, :-_SCALE_BYTES].view(np.int8).astype(np.float32)
    scale = np.ascontiguousarray(raw[:, -_SCALE_BYTES:]).view("<f4").astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        numbers: Floats = steps * np.where(np.isfinite(scale), scale, np.float32(np.nan))
    return numbers


class GistCache:
    """Decoded gist rows of the nodes read last; its size is fixed, so memory stays flat.

    Args:
        capacity: rows to hold, at least 1.
        slots, width: S and d.
    """

    def __init__(self, capacity: int, slots: int, width: int) -> None:
        self._capacity = max(1, capacity)
        self._pool = np.empty((min(self._capacity, 64), slots, width), np.float32)
        self._slots: dict[tuple[int, int], int] = {}  # oldest use first
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._slots)

    def clear(self) -> None:
        """Forget everything."""
        self._slots.clear()

    def holds(self, lod: int, indices: Indices) -> Bools:
        """Tell which rows are here, bool[n]; that is no use of them."""
        known = self._slots
        if not known:
            return np.zeros(len(indices), np.bool_)
        return np.array([(lod, index) in known for index in indices.tolist()], np.bool_)

    def read(self, lod: int, indices: Indices) -> tuple[Floats, Indices]:
        """Return rows float32[n, S, d] and the places int64[m] whose rows are not here."""
        slots = np.empty(len(indices), np.int64)
        for place, index in enumerate(indices.tolist()):
            slot = self._slots.pop((lod, index), -1)
            if slot >= 0:
                self._slots[lod, index] = slot  # now the newest
            slots[place] = slot
        missing = np.flatnonzero(slots < 0)
        self.hits += len(indices) - len(missing)
        self.misses += len(missing)
        return self._pool[slots], missing

    def write(self, lod: int, indices: Indices, rows: Floats) -> None:
        """Keep rows float32[n, S, d], dropping those used longest ago."""
        for index, row in zip(
            indices[-self._capacity :].tolist(), rows[-self._capacity :], strict=True
        ):
            slot = self._claim((lod, index))  # may replace the pool
            self._pool[slot] = row

    def _claim(self, key: tuple[int, int]) -> int:
        slot = self._slots.pop(key, -1)
        if slot < 0:
            slot = len(self._slots)
            if slot >= self._capacity:
                slot = self._slots.pop(next(iter(self._slots)))
            elif slot >= len(self._pool):
                self._grow()
        self._slots[key] = slot
        return slot

    def _grow(self) -> None:
        """Double the pool, so that a small memory does not pay for a large cache."""
        larger = min(self._capacity, 2 * len(self._pool))
        pool = np.empty((larger, *self._pool.shape[1:]), np.float32)
        pool[: len(self._pool)] = self._pool
        self._pool = pool
