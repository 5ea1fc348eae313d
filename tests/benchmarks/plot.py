"""One picture of a run: how far each figure is from its limit, and ms per token against N."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.benchmarks.figures import Figure

__all__ = ["draw"]

_GOOD, _BAD, _LINE = "#2a7f62", "#c0392b", "#34495e"
_CURVE = "ms per token against history"
_WIDEST = 50.0


def draw(
    figures: Sequence[Figure],
    curves: Mapping[str, Mapping[float, float]],
    path: Path,
    caption: str,
) -> None:
    """Write the picture as PNG."""
    limited = [f for f in figures if f.value is not None and f.limit is not None][::-1]
    curve = curves.get(_CURVE, {})
    height = 1.8 + 0.45 * max(len(limited), 5)
    picture, (left, right) = plt.subplots(
        1, 2, figsize=(12, height), width_ratios=(2.2, 1), layout="constrained"
    )
    _bars(left, limited)
    _history(right, curve)
    picture.suptitle(caption, fontsize=9, color="#555555")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=130)
    plt.close(picture)


def _bars(axes: plt.Axes, figures: Sequence[Figure]) -> None:
    margins = [min(f.limit.margin(f.value), _WIDEST) for f in figures]
    colours = [_GOOD if margin >= 1 else _BAD for margin in margins]
    axes.barh([f.name for f in figures], margins, color=colours, height=0.6)
    axes.axvline(1, color=_LINE, linewidth=1.5)
    axes.set_xscale("log")
    axes.set_xlim(0.5, _WIDEST * 3)
    axes.set_xticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
    axes.minorticks_off()
    for row, (figure, margin) in enumerate(zip(figures, margins, strict=True)):
        value = f"{figure.value:,.0f}" if figure.value >= 1000 else f"{figure.value:.3g}"
        label = f"{value} {figure.unit} (required {figure.limit})"
        axes.text(max(margin, 1) * 1.06, row, label, va="center", fontsize=8)
    axes.set_xlabel("times better than required (1: just enough)")
    axes.spines[["top", "right"]].set_visible(False)


def _history(axes: plt.Axes, curve: Mapping[float, float]) -> None:
    if not curve:
        axes.set_axis_off()
        return
    axes.plot(list(curve), list(curve.values()), "o-", color=_LINE)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.6 * max(curve.values()))
    axes.set_xlabel("tokens of history")
    axes.set_ylabel("ms per generated token, refocus included")
    for n_tokens, value in curve.items():
        axes.annotate(
            f"{value:.2f}", (n_tokens, value), (0, 8), textcoords="offset points", ha="center"
        )
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
