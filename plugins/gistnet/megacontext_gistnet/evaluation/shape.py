"""What gists look like, whatever they do: apart from their neighbours, sized like tokens, distinct.

Gists that collapse into one direction, or are far larger than token rows, can look well in averages
for a while; these figures show it early.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_gistnet.evaluation.deployed import encode_windows
from megacontext_gistnet.evaluation.windows import Windows
from megacontext_gistnet.nets.mean import BLOCK

if TYPE_CHECKING:
    from megacontext_gistnet.evaluation.lab import Arm, Readings
    from megacontext_sdk.contracts.arrays import Floats, Indices

__all__ = ["GistShape", "gist_shapes"]

_MOST_WINDOWS = 64
_BLOCK = 3  # which block of a window is changed for the duplicates


@attrs.frozen(kw_only=True)
class GistShape:
    """Figures of one encoder's LOD1 gists, slot 0 unless said otherwise.

    Attributes:
        encoder, slots: whose.
        diversity: 1 - mean cosine of neighbouring gists; above 0.5 is healthy, below 0.3 collapse.
        own_diversity: the same of what is left of gists without their common mean: low diversity
            beside high own diversity is a large shared vector, not gists that say the same.
        norm_ratio: mean RMS of a gist row over that of a token row, all slots.
        norm_low, norm_high: percentiles 1 and 99 of that ratio.
        twin_distance: median distance of the gists of two blocks that differ in one token, over
            the length of one of them, as stored.
        distinct: share of such pairs whose stored gists differ at all.
    """

    encoder: str
    slots: int
    diversity: float
    own_diversity: float
    norm_ratio: float
    norm_low: float
    norm_high: float
    twin_distance: float
    distinct: float


def gist_shapes(readings: Readings) -> tuple[GistShape, ...]:
    """Measure every encoder, with the fewest slots it has."""
    windows = readings.windows.first(_MOST_WINDOWS)
    changed = _one_token_changed(windows)
    table = readings.lab.adapter.embedding_table()
    rho = float(np.sqrt(np.square(table).mean(axis=1)).mean())
    return tuple(_shape(readings, arm, windows, changed, rho) for arm in readings.lab.smallest())


def _shape(
    readings: Readings, arm: Arm, windows: Windows, changed: Windows, rho: float
) -> GistShape:
    lab, rows = readings.lab, readings.gists(arm)[1]
    with lab.progress.stage(f"near-duplicates, {arm.label}", 2 * len(windows)) as advance:
        mine, twins = (
            encode_windows(arm.encoder, lab.adapter, one, dtype=lab.dtype, advance=advance)[1][
                :, _BLOCK
            ]
            for one in (windows, changed)
        )
    apart = np.sqrt(np.square(mine - twins).sum(axis=(1, 2)))
    length = np.sqrt(np.square(mine).sum(axis=(1, 2)))
    ratios = _rms(rows) / rho
    return GistShape(
        encoder=arm.name,
        slots=arm.slots,
        diversity=diversity(rows),
        own_diversity=diversity(rows - rows.mean(axis=(0, 1), keepdims=True)),
        norm_ratio=float(ratios.mean()),
        norm_low=float(np.percentile(ratios, 1)),
        norm_high=float(np.percentile(ratios, 99)),
        twin_distance=float(np.median(apart / np.maximum(length, 1e-12))),
        distinct=float((apart > 0).mean()),
    )


def diversity(rows: Floats) -> float:
    """Return 1 - mean cosine of neighbouring gists, slot 0 of float32[n, nodes, S, d]."""
    first = rows[:, :, 0].astype(np.float64)
    unit = first / np.maximum(np.linalg.norm(first, axis=-1, keepdims=True), 1e-12)
    return float(1 - (unit[:, 1:] * unit[:, :-1]).sum(axis=-1).mean())


def _one_token_changed(windows: Windows) -> Windows:
    """Return the windows with one token of one block replaced by another of the same kind."""
    rng = np.random.default_rng(len(windows))
    ids: Indices = windows.token_ids.copy()
    domains = np.array(windows.domains)
    for row, domain in enumerate(windows.domains):
        at = _BLOCK * BLOCK + int(rng.integers(BLOCK))
        pool = ids[domains == domain].reshape(-1)
        others = pool[pool != ids[row, at]]
        if len(others):
            ids[row, at] = rng.choice(others)
    return Windows(ids, windows.domains, windows.documents, windows.seeds)


def _rms(rows: Floats) -> Floats:
    size: Floats = np.sqrt(np.square(rows).mean(axis=-1))
    return size
