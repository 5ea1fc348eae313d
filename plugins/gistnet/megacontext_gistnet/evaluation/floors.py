"""Floors: rows that need no training and that a trained gist must beat to be worth anything.

`mean` alone is a weak one on bases whose embedding rows share a large common vector: averaging
keeps that vector whole while what tells tokens apart cancels. So two more stand beside it. They are
measured, never served: no plugin offers them.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from megacontext_gistnet.nets.mean import BLOCK
from megacontext_sdk.contracts.gist import GistEncoder, Gists

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megacontext_sdk.contracts.arrays import Floats
    from megacontext_sdk.contracts.gist import Blocks, GistServices
    from megacontext_sdk.contracts.model import ModelInfo

__all__ = ["FLOORS", "LAST_TOKEN", "CentredMean", "Floor", "LastToken", "floors"]

LAST_TOKEN = "last token"  # noqa: S105 - a name in tables
FLOORS = ("centred mean", LAST_TOKEN)
"""Names of the floors beside `mean`."""

_HALF, _QUARTER = BLOCK // 2, BLOCK // 4
_TINY = np.float32(1e-30)


class Floor(GistEncoder):
    """What both have: slots, a fingerprint of their own, a parent made of its children's rows.

    Args:
        gist_slots: S, one of 1, 2 and 4.
    """

    aux_size = 0

    def __init__(self, gist_slots: int) -> None:
        self.gist_slots = gist_slots

    def fingerprint(self, info: ModelInfo) -> str:
        """Return the digest of name, slots and base."""
        return sha256(f"{self.name} {self.gist_slots} {info.fingerprint}".encode()).hexdigest()

    def _gists(self, slots: Sequence[Floats]) -> Gists:
        rows = np.stack(slots[: self.gist_slots], axis=1).astype(np.float32)
        return Gists(rows, np.empty((len(rows), 0), np.float32))


class CentredMean(Floor):
    """`mean` without what all rows of the embedding table have in common.

    A block's row is the mean of its token rows less the mean of the table, scaled to the RMS of a
    token row; halves and quarters as in `mean`. A parent is the mean of its children's rows.
    """

    name = "centred mean"

    def encode_blocks(self, blocks: Blocks, services: GistServices) -> Gists:
        """Encode n blocks; what stands left of them does not matter."""
        table = services.embedding_table()
        rows = table[blocks.token_ids.reshape(-1)] - table.mean(axis=0, dtype=np.float64)
        return self._averaged(rows.astype(np.float32), table)

    def encode_gists(self, lod: int, children: Gists, services: GistServices) -> Gists:
        """Encode groups of 32 children; slot 0 of each is read."""
        del lod
        return self._averaged(children.rows[:, 0], services.embedding_table())

    def _averaged(self, rows: Floats, table: Floats) -> Gists:
        rho = np.sqrt(np.square(table).mean(axis=1)).mean()
        parts = rows.reshape(-1, BLOCK // _QUARTER, _QUARTER, rows.shape[-1]).mean(axis=2)
        means = [parts.mean(axis=1), parts[:, 2:].mean(axis=1), parts[:, 1], parts[:, 3]]
        sizes = [np.sqrt(np.square(one).mean(axis=-1, keepdims=True)) for one in means]
        return self._gists(
            [one * (rho / np.maximum(size, _TINY)) for one, size in zip(means, sizes, strict=True)]
        )


class LastToken(Floor):
    """The embedding of the last token of a block: a row the base knows how to read, and no more.

    Slots hold the last tokens of the block, its first half, and its first and third quarter. A
    parent's are those of its children in the same places.
    """

    name = LAST_TOKEN

    def encode_blocks(self, blocks: Blocks, services: GistServices) -> Gists:
        """Encode n blocks; what stands left of them does not matter."""
        rows = services.embedding_table()[blocks.token_ids]
        return self._gists(_ends(rows))

    def encode_gists(self, lod: int, children: Gists, services: GistServices) -> Gists:
        """Encode groups of 32 children; slot 0 of each is read."""
        del lod, services
        return self._gists(_ends(children.rows[:, 0].reshape(-1, BLOCK, children.rows.shape[-1])))


def _ends(rows: Floats) -> list[Floats]:
    """Return the rows of float32[n, 32, d] at the ends of the whole, the first half, quarters."""
    return [rows[:, at - 1] for at in (BLOCK, _HALF, _QUARTER, _HALF + _QUARTER)]


def floors(gist_slots: int) -> tuple[Floor, ...]:
    """Return the floors beside `mean` with S slots, in the order of `FLOORS`."""
    return CentredMean(gist_slots), LastToken(gist_slots)
