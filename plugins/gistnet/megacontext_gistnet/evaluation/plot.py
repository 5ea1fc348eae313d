"""One picture of an evaluation: how much is recovered against the rows it costs, and by domain.

Left and middle: R over all tokens and over recall tokens, against rows spent on 1,024 tokens of
history. The grey line at 0 is dropping, the one at 1 the full context; triangles are the ceiling
that was measured. Right: the encoders by kind of text.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

from megacontext_gistnet.evaluation.ceiling import ELSEWHERE
from megacontext_gistnet.evaluation.tables import ALL

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from megacontext_gistnet.evaluation.report import Report
    from megacontext_gistnet.evaluation.statistics import Estimate
    from megacontext_gistnet.evaluation.tables import Line, Section

__all__ = ["draw"]

_GREY, _CEILING = "#7f8c8d", "#b08900"
_COLOURS = ("#c0392b", "#1f6fb2", "#2a7f62", "#8e44ad", "#d35400")
_FLOOR = -0.35  # recovery below this is drawn at the lower edge, with its number
_TOKENS = 1024
_PLAIN = {"full", "drop", "zero row"}


def draw(report: Report, path: Path) -> None:
    """Write the picture as PNG; only the main table must be there."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    picture, axes = plt.subplots(
        1, 3, figsize=(16, 6), width_ratios=(1.25, 1.25, 1), layout="constrained"
    )
    main = report.section("lod1")
    for one, which in zip(axes[:2], ("all", "recall"), strict=True):
        _against_rows(one, report, which)
    if main is not None:
        _by_domain(axes[2], main)
    handles, labels = axes[0].get_legend_handles_labels()
    picture.legend(
        handles, labels, loc="outside lower left", ncols=min(6, max(1, len(labels))), fontsize=9
    )
    windows = main.lines[0].recovery.n_windows if main else 0
    sink = ", BOS in front" if report.sink == "bos" else ""
    picture.suptitle(
        f"What gists recover of a history that is not raw any more: base {report.info.name}, "
        f"{windows} held-out windows of 512 tokens, newest 96 raw{sink}; bars are 95 % intervals",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=120)
    plt.close(picture)


def _against_rows(axes: Any, report: Report, which: str) -> None:  # noqa: ANN401 - untyped library
    title = "all tokens" if which == "all" else "recall tokens (dropping costs > 0.5 nats)"
    axes.set_title(f"Recovery R over {title}", fontsize=11)
    axes.axhline(0, color=_GREY, linewidth=1)
    axes.axhline(1, color=_GREY, linewidth=1)
    axes.text(_TOKENS, 1.015, "full context", ha="right", va="bottom", fontsize=9, color=_GREY)
    axes.text(_TOKENS, 0.015, "history dropped", ha="right", va="bottom", fontsize=9, color=_GREY)
    axes.text(2, 1.07, "LOD2 gists", ha="center", fontsize=9)
    axes.text(64, 1.07, "LOD1 gists", ha="center", fontsize=9)
    main, upper = report.section("lod1"), report.section("lod2")
    for number, (name, colour) in enumerate(_encoders(main)):
        _curve(axes, main, name, which, colour, "o-", number)
        _curve(axes, upper, name, which, colour, "s--", number)
    if main is not None:
        zero = [one for one in _lines(main) if one.condition.name == "zero row"]
        _points(axes, zero, 416, which, _GREY, "x", "zero rows (floor)")
    _ceiling(axes, report.section("ceiling"), which)
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.7, 1400)
    ticks = [1, 2, 4, 32, 64, 128, _TOKENS]
    axes.set_xticks(ticks, [f"{one:,}" for one in ticks])
    axes.minorticks_off()
    axes.set_ylim(_FLOOR - 0.05, 1.14)
    axes.set_xlabel(f"rows spent on {_TOKENS:,} tokens of history (S = 1, 2, 4 rows per gist)")
    axes.set_ylabel("R  (0: as good as dropped, 1: as good as raw)")
    axes.grid(visible=True, axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _encoders(main: Section | None) -> list[tuple[str, str]]:
    """Return names of encoders and their colours, `mean` first."""
    if main is None:
        return []
    names = dict.fromkeys(one.condition.name for one in main.lines)
    kept = [one for one in names if one not in _PLAIN]
    return [(one, _COLOURS[i % len(_COLOURS)]) for i, one in enumerate(kept)]


def _lines(section: Section) -> list[Line]:
    return [one for one in section.lines if one.domain == ALL]


def _curve(
    axes: Any,  # noqa: ANN401
    section: Section | None,
    name: str,
    which: str,
    colour: str,
    style: str,
    number: int,
) -> None:
    if section is None:
        return
    old = 416 if section.key == "lod1" else _TOKENS
    label = f"{name}, LOD1" if section.key == "lod1" else f"{name}, LOD2"
    lines = [one for one in _lines(section) if one.condition.name == name]
    _points(axes, lines, old, which, colour, style, label, number)


def _points(
    axes: Any,  # noqa: ANN401
    lines: Sequence[Line],
    n_old: int,
    which: str,
    colour: str,
    style: str,
    label: str,
    number: int = 0,
) -> None:
    """Draw conditions over rows; what is far below the picture stands at its edge, as a number."""
    known = [one for one in lines if math.isfinite(_of(one, which).value)]
    if not known:
        return
    rows = [one.condition.rows / n_old * _TOKENS for one in known]
    found = [_of(one, which) for one in known]
    heights = [max(one.value, _FLOOR) for one in found]
    spread = [
        [max(0.0, h - max(one.low, _FLOOR)) for h, one in zip(heights, found, strict=True)],
        [max(0.0, max(one.high, _FLOOR) - h) for h, one in zip(heights, found, strict=True)],
    ]
    axes.errorbar(
        rows, heights, yerr=spread, fmt=style, color=colour, capsize=3, label=label, markersize=7
    )
    for row, height, one in zip(rows, heights, found, strict=True):
        is_below = one.value < _FLOOR
        axes.annotate(
            f"{one.value:.2f} ↓" if is_below else f"{one.value:.2f}",
            (row, height),
            (7, 10 * number if is_below else 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=colour,
        )


def _ceiling(axes: Any, section: Section | None, which: str) -> None:  # noqa: ANN401
    if section is None:
        return
    lines = [one for one in _lines(section) if one.condition.name == ELSEWHERE]
    _points(axes, lines, 416, which, _CEILING, "^:", "ceiling: optimised vectors, LOD1")


def _by_domain(axes: Any, main: Section) -> None:  # noqa: ANN401
    """Draw S=1 of every encoder by domain: a bar for all tokens, a dot for recall tokens."""
    domains = list(dict.fromkeys(one.domain for one in main.lines if one.domain != ALL))
    encoders = _encoders(main)
    height = 0.8 / max(1, len(encoders))
    for number, (name, colour) in enumerate(encoders):
        slots = min(one.condition.slots for one in main.lines if one.condition.name == name)
        for row, domain in enumerate(domains):
            line = main.line(name, slots, domain)
            if line is None:
                continue
            _bar(axes, row + (number + 0.5) * height - 0.4, height * 0.9, line, colour)
    axes.set_yticks(range(len(domains)), domains)
    axes.invert_yaxis()
    axes.axvline(0, color=_GREY, linewidth=1)
    axes.axvline(1, color=_GREY, linewidth=1)
    axes.set_xlim(_FLOOR - 0.05, 1.12)
    axes.set_xlabel("R: bar over all tokens, dot over recall tokens")
    slots = min((one.condition.slots for one in main.lines if one.condition.slots), default=1)
    axes.set_title(f"By kind of text, LOD1, S={slots}", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)


def _bar(axes: Any, at: float, height: float, line: Line, colour: str) -> None:  # noqa: ANN401
    found, recall = line.recovery.all, line.recovery.recall
    if not math.isfinite(found.value):
        return
    width = max(found.value, _FLOOR)
    axes.barh(at, width, height=height, color=colour, alpha=0.55)
    if found.value >= _FLOOR:
        spread = [[width - max(found.low, _FLOOR)], [max(found.high, width) - width]]
        axes.errorbar(width, at, xerr=spread, fmt="none", ecolor=colour, capsize=2, linewidth=1)
    else:
        axes.text(_FLOOR / 2, at, f"← {found.value:.2f}", va="center", ha="center", fontsize=8)
    if math.isfinite(recall.value):
        axes.plot(max(recall.value, _FLOOR), at, "o", color=colour, markersize=5)


def _of(line: Line, which: str) -> Estimate:
    return line.recovery.all if which == "all" else line.recovery.recall
