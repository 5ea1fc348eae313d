"""Layouts of training windows: which blocks stay raw, which gists stand for the others.

A layout is drawn with numpy and turned into the rows of a working context: one gather index for
the whole batch. All windows of a batch have equally many raw rows and gist rows, so nothing is
ever padded and compact positions 0, 1, 2, ... are right for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np
import torch

from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray
    from torch import Tensor

    from megacontext_gistnet.training.recipe import Layouts

__all__ = ["Layout", "Rows", "draw_lods", "newest_raw", "rows_of"]

_K = 32


@attrs.frozen(eq=False)
class Layout:
    """What one step puts into its working contexts.

    Attributes:
        lods: int8[B, n_blocks], level that stands for each block: 0 raw, 1 its gist, 2 the parent
            of it and its 31 siblings.
        slots: rows of each gist.
        has_bos_row: a BOS row stands in front.
    """

    lods: NDArray[np.int8]
    slots: int
    has_bos_row: bool = False


@attrs.frozen(eq=False)
class Rows:
    """The rows of B working contexts, as places in a table of rows.

    The table of a window holds its T token rows, a BOS row, then S rows of each LOD1 gist, then
    S rows of each LOD2 gist.

    Attributes:
        index: int64[B, R], places in the table.
        raw_at: int64[B, n_raw], which of the R rows are tokens.
        token_at: int64[B, n_raw], which token of the window each of them is.
    """

    index: Tensor
    raw_at: Tensor
    token_at: Tensor

    def to(self, device: torch.device) -> Rows:
        """Return the same rows on a device."""
        moved = (one.to(device) for one in (self.index, self.raw_at, self.token_at))
        return Rows(*moved)


def draw_lods(
    rng: Generator, n_windows: int, n_blocks: int, rules: Layouts, *, lod: int = 1
) -> NDArray[np.int8]:
    """Draw which blocks are replaced, int8[n_windows, n_blocks].

    Args:
        lod: with 2, the first 32 blocks are replaced by their parent, the others are drawn.
    """
    if lod > 1:
        rest = draw_lods(rng, n_windows, n_blocks - _K, rules)
        return np.concatenate([np.full((n_windows, _K), lod, np.int8), rest], axis=1)
    lods = np.ones((n_windows, n_blocks), np.int8)
    if rng.random() < rules.tail:
        lods[:, -rules.tail_blocks :] = 0
    else:
        replaced = rng.uniform(rules.least, rules.most)
        n_raw = int(np.clip(round(n_blocks * (1 - replaced)), 1, max(1, n_blocks - 1)))
        order = rng.permuted(np.tile(np.arange(n_blocks), (n_windows, 1)), axis=1)
        np.put_along_axis(lods, order[:, :n_raw], 0, axis=1)
    if rng.random() < rules.first_raw:
        _keep_first(rng, lods)
    return lods


def _keep_first(rng: Generator, lods: NDArray[np.int8]) -> None:
    """Keep the first block raw, and give up another raw one where that makes one too many."""
    n_raw = (lods == 0).sum(axis=1)
    lods[:, 0] = 0
    fewest = max(2, int(n_raw.min())) if lods.shape[1] > 2 else 1
    for row in lods:  # a few windows; which block goes differs from row to row
        raw = np.flatnonzero(row[1:] == 0) + 1
        excess = len(raw) + 1 - fewest
        if excess > 0:
            row[rng.permutation(raw)[:excess]] = 1
        elif excess < 0:
            gone = np.flatnonzero(row[1:] == 1) + 1
            row[rng.permutation(gone)[:-excess]] = 0


def newest_raw(n_windows: int, n_blocks: int, max_rows: int, slots: int) -> NDArray[np.int8]:
    """Return the layout with as many of the newest blocks raw as fit, int8[n_windows, n_blocks].

    Older ones are LOD1 gists of `slots` rows. It is the teacher's where a window is longer than
    what the base was trained on.

    Raises:
        ConfigError: not even three raw blocks fit.
    """
    n_raw = min(n_blocks, (max_rows - n_blocks * slots) // (_K - slots))
    if _K * n_blocks <= max_rows:
        n_raw = n_blocks
    if n_raw < min(3, n_blocks):
        raise ConfigError(
            f"a window of {n_blocks} blocks does not fit {max_rows} rows even as gists; train on "
            "shorter windows",
            field="window_blocks",
            value=n_blocks,
        )
    lods = np.ones((n_windows, n_blocks), np.int8)
    lods[:, n_blocks - n_raw :] = 0
    return lods


def rows_of(lods: NDArray[np.int8], slots: int, *, has_bos_row: bool = False) -> Rows:
    """Return the rows of a layout; with 0 slots only raw rows, which is the drop pass.

    Args:
        lods: int8[B, n_blocks]; a LOD2 unit is 32 whole blocks that begin at a multiple of 32.

    Raises:
        ConfigError: windows with different numbers of rows, or a part of a LOD2 unit.
    """
    n_windows, n_blocks = lods.shape
    columns, masks = _candidates(lods, slots)
    counts = masks.reshape(n_windows, -1).sum(axis=1)
    n_raw = (lods == 0).sum(axis=1)
    if len(set(counts.tolist())) > 1 or len(set(n_raw.tolist())) > 1:
        raise ConfigError(
            f"windows of one batch have between {counts.min()} and {counts.max()} rows; draw "
            "layouts with equally many raw blocks",
            field="lods",
            value=counts.tolist(),
        )
    index = np.broadcast_to(columns, masks.shape)[masks].reshape(n_windows, -1)
    if has_bos_row:
        index = np.concatenate([np.full((n_windows, 1), _K * n_blocks, np.int64), index], axis=1)
    is_raw = index < _K * n_blocks
    arrays = (index, np.nonzero(is_raw)[1], index[is_raw])
    found = (torch.from_numpy(one.reshape(n_windows, -1).astype(np.int64)) for one in arrays)
    return Rows(*found)


def _candidates(lods: NDArray[np.int8], slots: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return for each block the places that may stand for it, and which of them do.

    Returns:
        int64[n_blocks, C] and bool[B, n_blocks, C].
    """
    n_blocks = lods.shape[1]
    block = np.arange(n_blocks)
    columns = [_K * block[:, None] + np.arange(_K)]
    masks = [np.repeat(lods[:, :, None] == 0, _K, axis=2)]
    n_places = _K * n_blocks + 1  # the BOS row
    for lod in (1, 2):
        width = _K ** (lod - 1)  # in blocks
        columns.append(n_places + (block // width)[:, None] * slots + np.arange(slots))
        stands = (lods == lod) & (block % width == 0)
        _check_whole(lods, lod, width, stands)
        masks.append(np.repeat(stands[:, :, None], slots, axis=2))
        n_places += (n_blocks // width) * slots
    return np.concatenate(columns, axis=1), np.concatenate(masks, axis=2)


def _check_whole(lods: NDArray[np.int8], lod: int, width: int, stands: NDArray[np.bool_]) -> None:
    if ((lods == lod).sum(axis=1) != width * stands.sum(axis=1)).any():
        raise ConfigError(
            f"a layout covers only a part of a LOD{lod} unit; cover all {width} blocks of it",
            field="lods",
            value=lod,
        )
