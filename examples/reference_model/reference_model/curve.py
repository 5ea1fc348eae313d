"""The learning curve as a picture: training loss and held-out losses over tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["draw_curve"]


def draw_curve(history: list[dict[str, Any]], path: Path, title: str) -> None:
    """Write a PNG of a run's history."""
    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    millions = [row["tokens"] / 1e6 for row in history]
    axes.plot(millions, [row["loss"] for row in history], color="0.7", label="training")
    measured = [row for row in history if row.get("held_out")]
    for name in sorted({name for row in measured for name in row["held_out"]}):
        points = [(row["tokens"] / 1e6, row["held_out"][name]) for row in measured]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=f"held out: {name}")
    axes.set(xlabel="million tokens", ylabel="nats per token", title=title)
    losses = sorted(row["loss"] for row in history)
    if losses:
        axes.set_ylim(0, losses[int(len(losses) * 0.9)] * 1.3)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
