"""Gists of encoders before the active one: they serve nodes it has not made yet.

Only rows that could stand in the same places can: as many slots, the same number format, the same
base. Others count as missing. Nothing here writes or encodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.errors import ConfigError, CorruptError
from megacontext_sdk.memory.gist_rows import RowCodec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bools, Floats, Indices
    from megacontext_sdk.memory.encoder_table import EncoderTable
    from megacontext_sdk.memory.journal import Journal

__all__ = ["NO_VERSION", "OlderGists"]

NO_VERSION = -1
"""Version of a gist that is stored nowhere."""


@attrs.frozen(eq=False)
class _Older:
    """One encoder that wrote rows here: its version and their layout."""

    version: int
    codec: RowCodec


class OlderGists:
    """Which encoder before serves which node. Looks the encoders up once.

    Args:
        journal: the memory.
        table: its encoders.
        codec: layout of the active encoder's rows.
        active: the active version, None if it has none.
        base: fingerprint of the base the session runs.
    """

    def __init__(
        self,
        journal: Journal,
        table: EncoderTable,
        codec: RowCodec,
        *,
        active: int | None,
        base: str,
    ) -> None:
        self._journal = journal
        self._like = codec
        entries = enumerate(table.entries)
        known = [_usable(version, entry, codec, base) for version, entry in entries]
        found = [one for one in known if one is not None and one.version != active]
        self._newest_first = tuple(reversed(found))

    def which(self, lod: int, nodes: Indices) -> NDArray[np.int16]:
        """Return the newest version that has each node, int16[n]; `NO_VERSION` if none has."""
        versions = np.full(len(nodes), NO_VERSION, np.int16)
        for older in reversed(self._newest_first):
            versions[nodes < self._journal.gist_count(older.version, lod)] = older.version
        return versions

    def counts(self, lod: int) -> list[tuple[int, int]]:
        """Return how many nodes of a level each version has, newest version first."""
        return [
            (older.version, self._journal.gist_count(older.version, lod))
            for older in self._newest_first
        ]

    def read(self, lod: int, nodes: Indices) -> tuple[Floats, Bools]:
        """Return rows float32[n, S, d] of ascending nodes, and which there are, bool[n]."""
        rows = np.zeros((len(nodes), self._like.slots, self._like.width), np.float32)
        found = np.zeros(len(nodes), np.bool_)
        for older in self._newest_first:
            count = self._journal.gist_count(older.version, lod)
            wanted = np.flatnonzero(~found & (nodes < count))
            if len(wanted):
                whole, gists = self._read(older, lod, nodes[wanted])
                rows[wanted[whole]], found[wanted[whole]] = gists, True
        return rows, found

    def _read(self, older: _Older, lod: int, nodes: Indices) -> tuple[Bools, Floats]:
        """Return which nodes have a finite row of this encoder, and those rows."""
        stored = self._journal.gists(older.version, lod, nodes)
        nothing = np.zeros(len(nodes), np.bool_), np.empty((0, *self._shape), np.float32)
        if not stored.present.any():
            return nothing
        try:
            gists = older.codec.decode(stored.rows[stored.present]).rows
        except CorruptError:  # rows of another width: a cache that fits no more
            return nothing
        finite = np.isfinite(gists).all(axis=(1, 2))
        whole = stored.present.copy()
        whole[whole] = finite
        return whole, gists[finite]

    @property
    def _shape(self) -> tuple[int, int]:
        return self._like.slots, self._like.width


def _usable(version: int, entry: dict[str, object], like: RowCodec, base: str) -> _Older | None:
    """Return an encoder whose rows can stand where the active one's would."""
    aux = entry.get("aux")
    same = (entry.get("slots"), entry.get("dtype"), entry.get("base"))
    if same != (like.slots, like.dtype, base) or not isinstance(aux, int):
        return None
    try:
        return _Older(version, RowCodec(like.slots, like.width, aux, like.dtype))
    except ConfigError:
        return None
