"""Where the pager reads what rows hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Bools, Floats, Ids, Indices, Lods

__all__ = ["RowSource"]


class RowSource(Protocol):
    """Content of rows by what stands in them."""

    def token_ids_at(self, indices: Indices) -> Ids:
        """Token ids at absolute token indices, ascending, int32[n]."""

    def gists(self, lod: int, indices: Indices) -> Floats:
        """Gist rows of nodes of one level, float32[n, S, d]."""

    def is_provisional(self, lods: Lods, indices: Indices) -> Bools:
        """Whether `gists` gives something for now in place of a node's own gist, bool[n]."""

    def need(self, lods: Lods, indices: Indices) -> None:
        """Make gists that are about to be fed to the model, as far as that is cheap."""
