"""The position scheme contract: which position id each row of a layout gets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Indices, Lods
    from megacontext_sdk.contracts.model import ModelInfo

__all__ = ["Layout", "PositionScheme"]


@attrs.frozen(eq=False, kw_only=True)
class Layout:
    """The entries of a working context as the pager and position schemes see them.

    Attributes:
        lod: uint8[E]; the tail is lod 0.
        index: int64[E].
        start: int64[E], first token index.
        n_tokens: int64[E].
        cost: int64[E], rows.
        gist_slots: S.
        epoch: the working context's epoch.
    """

    lod: Lods
    index: Indices
    start: Indices
    n_tokens: Indices
    cost: Indices
    gist_slots: int
    epoch: int

    @property
    def n_rows(self) -> int:
        """Rows of all entries."""
        return int(self.cost.sum())

    @property
    def end(self) -> int:
        """First token index behind the last entry."""
        return int(self.start[-1] + self.n_tokens[-1]) if len(self.start) else 0


class PositionScheme(ABC):
    """Assigns position ids: strictly increasing in entry order (I11)."""

    name: str

    @abstractmethod
    def assign(self, layout: Layout, info: ModelInfo) -> Indices:
        """Return int64[R] position ids for the rows of the layout, in entry order.

        Raises:
            ConfigError: the scheme cannot place this layout inside the trained window.
        """

    @abstractmethod
    def next_position(self, layout: Layout, info: ModelInfo) -> int:
        """Return the position of the first token generated after this layout."""
