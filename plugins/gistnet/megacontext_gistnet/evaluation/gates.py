"""What the figures are required to be, and whether they are: the gates of spec 4.6 and rows 27-30.

A gate reads finished tables; one whose table is missing is left out. Targets on a mean delta NLL,
which dropping the history can meet, too, never stand without those on R. Where dropping costs
almost nothing there is nothing to recover, R is noise, and the gate is open: neither met nor
missed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import attrs

from megacontext_gistnet.evaluation.floors import FLOORS, LAST_TOKEN
from megacontext_gistnet.evaluation.lab import BASELINE
from megacontext_gistnet.evaluation.substitution import MEAN_OF_GISTS
from megacontext_gistnet.evaluation.tables import ALL, difference_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from megacontext_gistnet.evaluation.adjacent import Boundary
    from megacontext_gistnet.evaluation.recovery import Recovery
    from megacontext_gistnet.evaluation.shape import GistShape
    from megacontext_gistnet.evaluation.tables import Section

__all__ = ["Gate", "gates"]

_LEAST: Mapping[tuple[str, int], float] = {
    ("near", 1): 0.50,
    ("far", 1): 0.30,
    ("recall", 1): 0.25,
    ("near", 4): 0.60,
    ("far", 4): 0.45,
    ("recall", 4): 0.40,
}
_MOST: Mapping[str, float] = {"system-8192": 0.1, "adjacent": 0.8, "lod2": 2.0}
_ABOVE_MEAN = 0.15
_SHARE = 0.95
_DIVERSITY = 0.5
_EDGE_RATIO = 2.0
_MEASURABLE_NATS = 0.02  # per token, lost by dropping; below it R is a ratio of two noises
_PLAIN = (BASELINE, *FLOORS)

Tables: TypeAlias = "Mapping[str, Section]"


@attrs.frozen
class Gate:
    """One requirement on one encoder.

    Attributes:
        encoder: which, with its S.
        what: the figure.
        value: as measured.
        wanted: in words, such as "≥ 0.50".
        passed: whether it is met; None where it cannot be told.
    """

    encoder: str
    what: str
    value: float
    wanted: str
    passed: bool | None


def gates(
    sections: Sequence[Section], shapes: Sequence[GistShape], edges: Sequence[Boundary]
) -> tuple[Gate, ...]:
    """Return every gate of every encoder but `mean` and the other floors."""
    tables = {one.key: one for one in sections}
    found: list[Gate] = []
    for name, slots in _encoders(tables):
        label = f"{name} S={slots}"
        found += list(_recovered(tables, name, slots, label))
    found += _looks(shapes, edges)
    return tuple(found)


def _encoders(tables: Tables) -> list[tuple[str, int]]:
    """Return name and slots of every learned encoder in the main table."""
    if "lod1" not in tables:
        return []
    seen = [one.condition for one in tables["lod1"].lines if one.domain == ALL]
    plain = {"full", "drop", "zero row", *_PLAIN}
    return [(one.name, one.slots) for one in seen if one.name not in plain]


def _recovered(tables: Tables, name: str, slots: int, label: str) -> Iterator[Gate]:
    main = tables["lod1"]
    mine, mean = _of(main, name, slots), _of(main, BASELINE, slots)
    zero = _of(main, "zero row", 1)
    if mine is None:
        return
    yield _least(label, "R over recall tokens", mine.recall.value, _LEAST.get(("recall", slots)))
    for key in ("near", "far"):
        there = _of(tables[key], name, slots) if key in tables else None
        if there is None:
            continue
        lost = _of(tables[key], "drop", 0)
        gate = _least(label, f"R {key}", there.all.value, _LEAST.get((key, slots)))
        if lost is None or lost.delta_nll.value >= _MEASURABLE_NATS:
            yield gate
        else:
            why = f"{gate.wanted}, but dropping costs {lost.delta_nll.value:.3f} nats"
            yield attrs.evolve(gate, wanted=why, passed=None)
    yield _least(label, "share of windows with R > 0", mine.share_positive, _SHARE)
    if mean is not None:
        gap = mine.recall.value - mean.recall.value
        yield _least(label, "R over recall tokens above mean", gap, _ABOVE_MEAN)
        is_apart = mine.all.is_above(mean.all) and mine.recall.is_above(mean.recall)
        yield Gate(label, "above mean, intervals apart", gap, "apart, all and recall", is_apart)
    yield from _above_last_token(main, name, slots, label)
    if zero is not None:
        best = max(0.0, zero.recall.high)
        yield Gate(
            label,
            "recall tokens: above zero row and drop",
            mine.recall.low,
            f"low end > {best:.2f}",
            mine.recall.low > best,
        )
    yield from _second_level(tables, name, slots, label)
    yield from _targets(tables, name, slots, label)


def _above_last_token(main: Section, name: str, slots: int, label: str) -> Iterator[Gate]:
    """Yield whether gists say more than the one token a base can read anyway."""
    for apart in main.differences:
        if apart.what == difference_name(name, LAST_TOKEN, slots):
            low = min(apart.all.low, apart.recall.low)
            what = "above the last token, all and recall"
            yield Gate(label, what, low, "low ends > 0", low > 0)


def _targets(tables: Tables, name: str, slots: int, label: str) -> Iterator[Gate]:
    """Yield the upper bounds on delta NLL: of sessions, one block, one LOD2 gist."""
    for key, most in _MOST.items():
        there = _of(tables[key], name, slots) if key in tables else None
        if there is not None:
            value = there.delta_nll.value
            yield Gate(label, f"ΔNLL, {key}", value, f"≤ {most:.2f}", value <= most)


def _second_level(tables: Tables, name: str, slots: int, label: str) -> Iterator[Gate]:
    if "lod2" not in tables:
        return
    mine = _of(tables["lod2"], name, slots)
    mean = _of(tables["lod2"], f"{name}: {MEAN_OF_GISTS}", slots)
    if mine is None or mean is None:
        return
    yield _least(label, "R of LOD2, drop being 0", mine.all.value, 0.0)
    gap = mine.all.value - mean.all.value
    yield _least(label, "R of LOD2 above the mean of its gists", gap, 0.0)


def _looks(shapes: Sequence[GistShape], edges: Sequence[Boundary]) -> Iterator[Gate]:
    for one in shapes:
        if one.encoder in _PLAIN:
            continue
        label = f"{one.encoder} S={one.slots}"
        yield _least(label, "diversity of neighbours", one.diversity, _DIVERSITY)
        yield _least(label, "norm ratio", one.norm_ratio, None)  # bounded before training only
        yield _least(label, "near-duplicates with gists of their own", one.distinct, 1.0)
    for edge in edges:
        if edge.encoder not in _PLAIN:
            value = edge.ratio.value
            label = f"{edge.encoder} S={edge.slots}"
            yield Gate(label, "ΔNLL at edges / inside", value, "≤ 2", value <= _EDGE_RATIO)


def _least(label: str, what: str, value: float, least: float | None) -> Gate:
    """Return a gate with a lower bound; without a bound it only reports."""
    if least is None:
        return Gate(label, what, value, "-", passed=None)
    return Gate(label, what, value, f"≥ {least:.2f}", value >= least)


def _of(section: Section, name: str, slots: int) -> Recovery | None:
    line = section.line(name, slots)
    return None if line is None else line.recovery
