"""The focus as a PNG: the history above, the window below, and what became of what in between.

Above, a token has the same width everywhere; below, a row has. A span shown in full so opens like a
fan, and a gist closes to a line. It draws what the report says and computes nothing about it.
"""

from __future__ import annotations

from itertools import count, groupby
from typing import TYPE_CHECKING

import attrs

from megacontext_sdk._cli.canvas import Canvas, text_width

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megacontext_sdk._cli.canvas import Colour
    from megacontext_sdk.results import EntryReport, FocusReport

__all__ = ["FREE", "HISTORY_Y", "LEVELS", "MARGIN", "PINNED", "REVEALED", "WINDOW_Y", "focus_png"]

LEVELS: tuple[Colour, ...] = (
    (17, 63, 140),
    (66, 133, 214),
    (142, 190, 232),
    (186, 176, 214),
    (214, 200, 190),
)
"""Colour by level of detail, the darker the finer; the last one stands for all coarser levels."""

REVEALED: Colour = (236, 112, 20)
PINNED: Colour = (196, 42, 98)
FREE: Colour = (238, 240, 244)
_PAPER: Colour = (255, 255, 255)
_INK: Colour = (52, 58, 70)
_FAINT: Colour = (120, 128, 142)

MARGIN = 36
HISTORY_Y = (78, 114)
WINDOW_Y = (258, 326)
_LEGEND_Y = 400
_LEGEND_STEP = 30
_MAX_TICKS = 8
_FEWEST_PIXELS = 2  # of a span held in full, so that it can be seen in a long history


@attrs.frozen
class _Run:
    """Neighbours of one colour: pixels above (history) and below (window)."""

    kind: str
    colour: Colour
    above: tuple[int, int]
    below: tuple[int, int]


def focus_png(report: FocusReport, *, width: int = 1280) -> bytes:
    """Return a PNG of what the model sees.

    Args:
        report: what the model sees.
        width: pixels.
    """
    legend = _legend(report)
    places = _flow([text for text, _ in legend], width)
    canvas = Canvas(width, places[-1][1] + _LEGEND_STEP, _PAPER)
    canvas.fill(MARGIN, width - MARGIN, *WINDOW_Y, FREE)
    for run in sorted(_runs(report, width - 2 * MARGIN), key=lambda run: _rank(run.kind)):
        _draw_run(canvas, run)
    _draw_scales(canvas, report, width - 2 * MARGIN)
    for (text, colour), (left, top) in zip(legend, places, strict=True):
        canvas.fill(left, left + 18, top, top + 16, colour)
        canvas.write(left + 26, top, text, _INK)
    return canvas.png()


def _kind(entry: EntryReport) -> str:
    if entry.pinned:
        return "pinned"
    if entry.revealed:
        return "revealed"
    return str(min(entry.lod, len(LEVELS) - 1))


def _colour(kind: str) -> Colour:
    return {"pinned": PINNED, "revealed": REVEALED, "free": FREE}.get(kind) or LEVELS[int(kind)]


def _rank(kind: str) -> int:
    """Return what is drawn first: coarse gists, then finer ones, at last what was asked for."""
    return {"revealed": 1, "pinned": 2}.get(kind) or -int(kind)


def _runs(report: FocusReport, pixels: int) -> Iterator[_Run]:
    rows, cost = max(report.w_max, report.cost, 1), 0
    for kind, group in groupby(report.entries, key=_kind):
        entries = list(group)
        start, end = entries[0].span.start, entries[-1].span.end
        left, cost = cost, cost + sum(entry.cost for entry in entries)
        above = (_at(start, report.n_tokens, pixels), _at(end, report.n_tokens, pixels))
        below = (_at(left, rows, pixels), _at(cost, rows, pixels))
        yield _Run(kind, _colour(kind), above, below)


def _at(value: int, total: int, pixels: int) -> int:
    return MARGIN + value * pixels // max(total, 1)


def _draw_run(canvas: Canvas, run: _Run) -> None:
    """Draw one run in the history, in the window, and the fan between."""
    left, right = run.above
    is_marked = run.kind in {"revealed", "pinned"}
    if is_marked or run.kind == "0":
        right = max(right, left + _FEWEST_PIXELS)
    canvas.fill(left, right, *HISTORY_Y, run.colour)
    canvas.fill(*run.below, *WINDOW_Y, run.colour)
    tint = _tinted(run.colour, 0.62 if is_marked else 0.30)
    top, bottom = HISTORY_Y[1] + 4, WINDOW_Y[0] - 4
    for y in range(top, bottom):
        share = (y - top) / (bottom - 1 - top)
        share *= share * (3 - 2 * share)  # leaves and arrives at a right angle
        ends = [round(a + (b - a) * share) for a, b in zip((left, right), run.below, strict=True)]
        canvas.fill(ends[0], ends[1], y, y + 1, tint)
    if is_marked:
        _draw_marker(canvas, (left + right) // 2, run.colour)


def _draw_marker(canvas: Canvas, centre: int, colour: Colour) -> None:
    """Draw a triangle that points at the history."""
    for row in range(8):
        top = HISTORY_Y[0] - 11 + row
        canvas.fill(centre - 7 + row, centre + 8 - row, top, top + 1, colour)


def _tinted(colour: Colour, strength: float) -> Colour:
    red, green, blue = (round(255 - (255 - part) * strength) for part in colour)
    return red, green, blue


def _draw_scales(canvas: Canvas, report: FocusReport, pixels: int) -> None:
    """Write how much there is, and where, above the history and under the window."""
    rows = max(report.w_max, report.cost, 1)
    canvas.write(MARGIN, 12, f"history, {report.n_tokens:,} tokens", _INK)
    _draw_scale(canvas, report.n_tokens, pixels, line=HISTORY_Y[0] - 6, text=44)
    _draw_scale(canvas, rows, pixels, line=WINDOW_Y[1], text=WINDOW_Y[1] + 10)
    label = f"window, {report.cost:,} of {report.w_max:,} rows"
    canvas.write(MARGIN, WINDOW_Y[1] + 36, label, _INK)


def _draw_scale(canvas: Canvas, total: int, pixels: int, *, line: int, text: int) -> None:
    for tick in _ticks(total):
        x, label = _at(tick, total, pixels), f"{tick:,}"
        canvas.fill(x, x + 2, line, line + 6, _FAINT)
        left = min(x - text_width(label) // 2, MARGIN + pixels - text_width(label))
        canvas.write(max(left, MARGIN), text, label, _FAINT)


def _ticks(total: int) -> range:
    """Return 0 and its multiples of a round number up to `total`."""
    steps = (factor * 10**power for power in count() for factor in (1, 2, 5))
    return range(0, total + 1, next(step for step in steps if total // step < _MAX_TICKS))


def _legend(report: FocusReport) -> list[tuple[str, Colour]]:
    """Return what the colours in use mean, with the rows they take."""
    lines = []
    kinds = {_kind(entry) for entry in report.entries}
    for kind in sorted(kinds, key=_rank, reverse=True):
        entries = [entry for entry in report.entries if _kind(entry) == kind]
        rows = sum(entry.cost for entry in entries)
        lines.append((f"{_meaning(kind)}, {rows:,} rows", _colour(kind)))
    return [*lines, (f"free, {max(0, report.w_max - report.cost):,} rows", FREE)]


def _meaning(kind: str) -> str:
    if kind == "revealed":
        return "revealed for the question"
    if kind == "pinned":
        return "pinned"
    if kind == "0":
        return "in full"
    more = " or more" if int(kind) == len(LEVELS) - 1 else ""
    return f"gists of {32 ** int(kind):,}{more} tokens"


def _flow(texts: list[str], width: int) -> list[tuple[int, int]]:
    """Return left and top of each legend item, in as many lines as they need."""
    places, left, top = [], MARGIN, _LEGEND_Y
    for text in texts:
        taken = 26 + text_width(text) + 28
        if left > MARGIN and left + taken > width - MARGIN + 28:
            left, top = MARGIN, top + _LEGEND_STEP
        places.append((left, top))
        left += taken
    return places
