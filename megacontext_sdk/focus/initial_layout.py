"""The initial layout: how a history is first tiled when nobody has scored anything yet.

Phase A: protected ranges at LOD0, the 2,048 tokens before the recent ones at LOD1, older history
in LOD2 nodes (higher ones if that would exceed the target). Phase B spends what is left, newest
first. A pure function of lengths; it also lays out the new part of a bulk append.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from megacontext_sdk.errors import BudgetError
from megacontext_sdk.focus.moves import delta_of_expand
from megacontext_sdk.memory.lod import BLOCK_SIZE, width

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megacontext_sdk.contracts.arrays import Indices, Lods

__all__ = ["lay_out_blocks"]

_NEAR_BLOCKS = 64
"""The 2,048 tokens before the recent ones start at LOD1."""


class _Run(NamedTuple):
    """Neighbouring nodes of one level."""

    lod: int
    first: int
    size: int


def lay_out_blocks(
    start: int, end: int, held: Indices, target: int, gist_slots: int, *, is_strict: bool
) -> tuple[Lods, Indices]:
    """Tile the full blocks of `[start, end)`; return levels and indices, uint8[E] and int64[E].

    Args:
        start: first token, on a block boundary.
        end: end of the last full block.
        held: int64[r, 2], ranges kept at LOD0, sorted and disjoint.
        target: rows these blocks may cost.
        gist_slots: S.
        is_strict: refuse if even the coarsest tiling costs more; else return that tiling.

    Raises:
        BudgetError: `is_strict`, and the held ranges leave no tiling within the target.
    """
    zones = _Zones(start // BLOCK_SIZE, end // BLOCK_SIZE, held // BLOCK_SIZE)
    runs = _coarse(zones, target, gist_slots)
    cost = _cost(runs, gist_slots)
    if is_strict and cost > target:
        raise BudgetError(
            f"the coarsest layout needs {cost} rows, but only {target} are free: "
            "unpin spans or raise w_max",
            needed=cost,
            available=target,
        )
    return _arrays(_spend(runs, max(0, target - cost), gist_slots))


class _Zones:
    """Where raw blocks, near gists and far gists go, in block numbers."""

    def __init__(self, first: int, end: int, held: Indices) -> None:
        self.first = first
        self.end = end
        held = np.clip(held, first, end)
        self.held = [(a, b) for a, b in held.tolist() if a < b]
        recent = self.held[-1][0] if self.held and self.held[-1][1] == end else end
        self.near = max(first, recent - _NEAR_BLOCKS)

    def tile(self, top: int, near: int) -> list[_Run]:
        """Return phase A with gists up to level `top` before block `near`."""
        runs: list[_Run] = []
        at = self.first
        for low, high in [*self.held, (self.end, self.end)]:
            runs += _cover(at, min(low, max(at, near)), top)
            runs += _cover(max(at, min(low, near)), low, 1)
            runs += [_Run(0, low, high - low)] if low < high else []
            at = high
        return runs


def _coarse(zones: _Zones, target: int, gist_slots: int) -> list[_Run]:
    """Return the finest phase A that costs at most `target`, or the coarsest there is."""
    runs: list[_Run] = []
    for near in (zones.near, zones.end):
        for top in range(2, max(3, _levels(zones.end) + 1)):
            runs = zones.tile(top, near)
            if _cost(runs, gist_slots) <= target:
                return runs
    return runs


def _levels(n_blocks: int) -> int:
    """Return the highest level with a complete node."""
    lod = 0
    while width(lod + 1) <= n_blocks * BLOCK_SIZE:
        lod += 1
    return lod


def _cover(first: int, end: int, top: int) -> list[_Run]:
    """Return the fewest gists up to level `top` that tile blocks `[first, end)`."""
    rising: list[_Run] = []
    falling: list[_Run] = []
    lod, size = 1, 1
    while lod < top and first < end:
        bigger = size * BLOCK_SIZE
        low, high = -(-first // bigger) * bigger, end // bigger * bigger
        if low > high:
            break
        rising += _run(lod, first, low, size)
        falling += _run(lod, high, end, size)
        first, end = low, high
        lod, size = lod + 1, bigger
    return [*rising, *_run(lod, first, end, size), *reversed(falling)]


def _run(lod: int, first: int, end: int, size: int) -> list[_Run]:
    return [_Run(lod, first // size, (end - first) // size)] if first < end else []


def _spend(runs: list[_Run], free: int, gist_slots: int) -> list[_Run]:
    """Phase B: spend free rows newest first, LOD1 to LOD0, then higher gists down to LOD0."""
    step = BLOCK_SIZE - gist_slots
    opened: list[_Run] = []
    for run in reversed(runs):
        n = min(run.size, free // step) if run.lod == 1 else 0
        free -= n * step
        split = run.first + run.size - n
        parts = (_Run(0, split, n), _Run(run.lod, run.first, run.size - n))
        opened += [part for part in parts if part.size]
    purse = _Purse(free, gist_slots)
    final = [part for run in opened for part in purse.open_run(run)]
    return final[::-1]


class _Purse:
    """Free rows, spent node by node from the newest on."""

    def __init__(self, free: int, gist_slots: int) -> None:
        self.free = free
        self._slots = gist_slots

    def open_run(self, run: _Run) -> Iterator[_Run]:
        """Yield what a run becomes, newest first."""
        left = run.size if run.lod > 1 else 0
        while left and self.free >= delta_of_expand(run.lod, self._slots):
            left -= 1
            yield from self._open(run.lod, run.first + left)
        if run.lod <= 1:
            yield run
        elif left:
            yield _Run(run.lod, run.first, left)

    def _open(self, lod: int, index: int) -> Iterator[_Run]:
        blocks = width(lod) // BLOCK_SIZE
        raw = width(lod) - self._slots
        if raw <= self.free:
            self.free -= raw
            yield _Run(0, index * blocks, blocks)
        elif lod == 1 or (step := delta_of_expand(lod, self._slots)) > self.free:
            yield _Run(lod, index, 1)
        else:
            self.free -= step
            for child in reversed(range(index * BLOCK_SIZE, (index + 1) * BLOCK_SIZE)):
                yield from self._open(lod - 1, child)


def _cost(runs: list[_Run], gist_slots: int) -> int:
    return sum(run.size * (BLOCK_SIZE if run.lod == 0 else gist_slots) for run in runs)


def _arrays(runs: list[_Run]) -> tuple[Lods, Indices]:
    if not runs:
        return np.zeros(0, dtype=np.uint8), np.zeros(0, dtype=np.int64)
    counts = [run.size for run in runs]
    lods = np.repeat(np.array([run.lod for run in runs], dtype=np.uint8), counts)
    indices = [np.arange(run.first, run.first + run.size, dtype=np.int64) for run in runs]
    return lods, np.concatenate(indices)
