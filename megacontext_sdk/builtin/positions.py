"""Position schemes: which position id each row of a layout gets.

`compact` counts rows, so any history fits the trained window; `absolute` keeps every token at its
index, so swaps move nothing, but the history must fit the trained window. Neither knows how a model
uses positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.contracts.positions import PositionScheme
from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Indices
    from megacontext_sdk.contracts.model import ModelInfo
    from megacontext_sdk.contracts.positions import Layout

__all__ = ["AbsolutePositions", "CompactPositions"]


class CompactPositions(PositionScheme):
    """Running row number: the default for frozen bases."""

    name = "compact"

    def assign(self, layout: Layout, info: ModelInfo) -> Indices:
        """Return 0 .. rows - 1, int64[R].

        Raises:
            ConfigError: more rows than the trained window.
        """
        rows = layout.n_rows
        if rows > info.trained_window:
            raise ConfigError(
                f"the layout has {rows} rows, but the trained window of {info.name} ends at "
                f"{info.trained_window}: lower w_max",
                field="w_max",
                value=rows,
            )
        return np.arange(rows, dtype=np.int64)

    def next_position(self, layout: Layout, info: ModelInfo) -> int:
        """Return the number of rows."""
        del info
        return layout.n_rows


class AbsolutePositions(PositionScheme):
    """A token at its index, a gist at the central index of its span: swaps move nothing."""

    name = "absolute"

    def assign(self, layout: Layout, info: ModelInfo) -> Indices:
        """Return token indices, and `start + span // 2 + slot` for gists, int64[R].

        Raises:
            ConfigError: a position outside the trained window.
        """
        first = layout.start + np.where(layout.lod == 0, 0, layout.n_tokens // 2)
        before = np.cumsum(layout.cost) - layout.cost
        within = np.arange(layout.n_rows, dtype=np.int64) - np.repeat(before, layout.cost)
        positions: Indices = np.repeat(first, layout.cost) + within
        if len(positions) and positions[-1] >= info.trained_window:
            raise ConfigError(
                f"token index {int(positions[-1])} lies outside the trained window of "
                f"{info.name}, {info.trained_window}: use positions='compact'",
                field="positions",
                value=self.name,
            )
        return positions

    def next_position(self, layout: Layout, info: ModelInfo) -> int:
        """Return N."""
        del info
        return layout.end
