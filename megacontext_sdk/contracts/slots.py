"""Which slots of a window are live, and at which positions: the bookkeeping every window needs.

It checks what the contract of `Window` forbids, and holds no keys or values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.errors import ModelError

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Indices
    from megacontext_sdk.contracts.model import RowBatch

__all__ = ["SlotTable"]


class SlotTable:
    """Positions of slots, -1 where free.

    Attributes:
        positions: int64[capacity], where each row is now.
        base_positions: int64[capacity], where its base keys were written.
        n_live: number of live slots.
        end: one more than the largest live slot; equals `n_live` while slots are packed.
        top: largest position of a live slot, -1 if there is none.
    """

    def __init__(self, capacity: int, trained_window: int) -> None:
        self.positions = np.full(capacity, -1, np.int64)
        self.base_positions = np.full(capacity, -1, np.int64)
        self.n_live = 0
        self.end = 0
        self.top = -1
        self._trained_window = trained_window

    def live_slots(self) -> Indices:
        """Return the live slots in ascending order, int64[n_live]."""
        return np.flatnonzero(self.positions >= 0)

    def append(self, slot: int, position: int) -> bool:
        """Note one row behind all others; False, and nothing noted, if it is not that.

        True means slots are packed, this slot comes next and its position is the largest, so the
        row sees every live slot and attention needs no mask.
        """
        fits = slot == self.n_live == self.end < len(self.positions)
        if not (fits and self.top < position < self._trained_window):
            return False
        self.positions[slot] = self.base_positions[slot] = position
        self.n_live = self.end = slot + 1
        self.top = position
        return True

    def write(self, slots: Indices, positions: Indices) -> None:
        """Note rows written at these positions."""
        self.positions[slots] = positions
        self.base_positions[slots] = positions
        self._count()

    def release(self, slots: Indices) -> None:
        """Free slots; freeing a free one changes nothing."""
        self._check_slots(slots)
        self.positions[slots] = -1
        self._count()

    def relocate(self, source: Indices, target: Indices) -> None:
        """Note rows moved from live to free slots.

        Raises:
            ModelError: a source that is free, or a target that is live.
        """
        self.check_live(source)
        self._check_slots(target)
        if len(source) != len(target) or (self.positions[target] >= 0).any():
            raise ModelError("rows can only be relocated to as many free slots; release them first")
        for column in (self.positions, self.base_positions):
            column[target] = column[source]
        self.positions[source] = -1
        self._count()

    def move(self, slots: Indices, positions: Indices) -> None:
        """Note new positions of live rows.

        Raises:
            ModelError: a free slot, or a position outside the trained window.
        """
        self.check_live(slots)
        self.check_places(slots, positions)
        self.positions[slots] = positions
        self._count()

    def check(self, rows: RowBatch, positions: Indices, slots: Indices) -> None:
        """Check a write.

        Raises:
            ModelError: counts that differ, repeated slots or positions, or ones out of range.
        """
        if rows.n_rows != len(slots):
            raise ModelError(
                f"{rows.n_rows} rows were given {len(slots)} slots; give each row one",
                n_rows=rows.n_rows,
                n_slots=len(slots),
            )
        self.check_places(slots, positions)

    def check_places(self, slots: Indices, positions: Indices) -> None:
        """Check slots and the positions for them.

        Raises:
            ModelError: counts that differ, repeated ones, or ones out of range.
        """
        if len(slots) != len(positions):
            raise ModelError(f"{len(slots)} slots were given {len(positions)} positions")
        self._check_slots(slots)
        if len(positions) and not 0 <= min(positions) <= max(positions) < self._trained_window:
            raise ModelError(
                f"positions {min(positions)} to {max(positions)} leave the trained window of "
                f"{self._trained_window}; lower w_max or choose compact positions",
                trained_window=self._trained_window,
            )
        if len(np.unique(positions)) != len(positions):
            raise ModelError("two rows were given the same position; positions must differ")

    def check_live(self, slots: Indices) -> None:
        """Check that slots are live.

        Raises:
            ModelError: one of them is free.
        """
        self._check_slots(slots)
        if (self.positions[slots] < 0).any():
            raise ModelError("a free slot was named where a live one is needed")

    def _check_slots(self, slots: Indices) -> None:
        capacity = len(self.positions)
        if len(slots) and not 0 <= min(slots) <= max(slots) < capacity:
            raise ModelError(
                f"slots {min(slots)} to {max(slots)} leave the window's capacity of {capacity}; "
                "open a larger window",
                capacity=capacity,
            )
        if len(np.unique(slots)) != len(slots):
            raise ModelError("a slot was named twice in one call; name each once")

    def _count(self) -> None:
        live = self.live_slots()
        self.n_live = len(live)
        self.end = int(live[-1]) + 1 if self.n_live else 0
        self.top = int(self.positions.max(initial=-1))
