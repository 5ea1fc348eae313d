"""The `mean` gists under a learned encoder, in numpy: the built-in encoder's, bit for bit.

`nets.mean` is the same in torch, for training. Here it gathers rows of the table as it is lent,
without copying a table that may be a gigabyte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Floats, Ids
    from megacontext_sdk.contracts.gist import Gists

__all__ = ["MeanRows", "check_children", "check_ids"]

_BLOCK = 32
_QUARTER = _BLOCK // 4
_TABLE_ROWS = 4096
_TINY = np.float32(1e-30)


class MeanRows:
    """Means over one embedding table.

    Args:
        table: float32[V, d], read only.
        slots: S.

    Attributes:
        rho: mean RMS of the table's rows.
    """

    def __init__(self, table: Floats, slots: int) -> None:
        self.table = table
        self._slots = slots
        parts = (table[at : at + _TABLE_ROWS] for at in range(0, len(table), _TABLE_ROWS))
        total = sum(float(_rms(part).sum(dtype=np.float64)) for part in parts)
        self.rho = np.float32(total / len(table))

    def of_blocks(self, token_ids: Ids) -> tuple[Floats, Floats]:
        """Return gists float32[n, S, d] and sizes [n, 1] of int32[n, 32] tokens."""
        rows = np.take(self.table, token_ids.reshape(-1), axis=0)
        return self._finish(rows)

    def of_parents(self, children: Gists) -> tuple[Floats, Floats]:
        """Return the same of sibling groups: n * 32 children with their sizes as `aux`."""
        return self._finish(children.rows[:, 0] * (children.aux / self.rho))

    def _finish(self, rows: Floats) -> tuple[Floats, Floats]:
        """Average float32[n * 32, d] rows as a whole and in parts, and scale them."""
        width = rows.shape[1]
        sums = np.add.reduce(rows.reshape(-1, 4, _QUARTER, width), axis=2)
        second = sums[:, 2] + sums[:, 3]
        means = np.empty((len(sums), self._slots, width), np.float32)
        means[:, 0] = ((sums[:, 0] + sums[:, 1]) + second) / np.float32(_BLOCK)
        if self._slots > 1:
            means[:, 1] = second / np.float32(2 * _QUARTER)
        if self._slots > 2:
            means[:, 2] = sums[:, 1] / np.float32(_QUARTER)
            means[:, 3] = sums[:, 3] / np.float32(_QUARTER)
        size = _rms(means)
        means *= (self.rho / np.maximum(size, _TINY))[..., None]
        return means, size[:, :1].copy()


def check_ids(name: str, token_ids: Ids, n_vocab: int) -> None:
    """Refuse tokens that have no embedding.

    Raises:
        ConfigError: a forgotten token (-1) or an id outside the vocabulary.
    """
    if not token_ids.size or (token_ids.min() >= 0 and token_ids.max() < n_vocab):
        return
    index = int(np.flatnonzero((token_ids < 0) | (token_ids >= n_vocab))[0])
    value = int(token_ids.reshape(-1)[index])
    raise ConfigError(
        f"{name} holds the token {value} at index {index}, outside the vocabulary [0, {n_vocab}); "
        "give a filler for forgotten tokens",
        field=name,
        value=value,
    )


def check_children(lod: int, children: Gists) -> None:
    """Refuse children that give no parents.

    Raises:
        ConfigError: a level below 2, no whole sibling groups, or numbers that are not finite.
    """
    n = len(children.rows)
    if lod < 2 or n % _BLOCK or len(children.aux) != n:
        raise ConfigError(
            f"LOD{lod} gists need a level of at least 2 and whole groups of {_BLOCK} children, got "
            f"{n} with {len(children.aux)} sizes",
            field="children",
            value=n,
        )
    finite = np.isfinite(children.rows[:, 0]).all(axis=-1) & np.isfinite(children.aux).all(axis=-1)
    if not finite.all():
        index = int(np.flatnonzero(~finite)[0])
        raise ConfigError(
            f"child {index} of the LOD{lod} gists is not finite; rebuild it first",
            field="children",
            value="not finite",
        )


def _rms(vectors: Floats) -> Floats:
    """Return the root mean square over the last axis."""
    size: Floats = np.sqrt(np.square(vectors).mean(axis=-1, dtype=np.float32))
    return size
