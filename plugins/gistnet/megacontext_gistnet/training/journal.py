"""What a run writes down as it goes: one line of metrics at a time, and curves as a picture.

`metrics.jsonl` is the record; `curve.json` and `curve.png` are drawn from it. A resumed run first
forgets what lies behind its checkpoint, so no step stands there twice.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["METRICS", "Journal"]

METRICS: Final[Mapping[str, str]] = {
    "step": "steps done",
    "seconds": "of training so far, resumed runs together",
    "stage": "name of the stage",
    "train/loss": "what is descended, mean since the last line",
    "train/loss_at_h": "nats per raw token with gists in place of the text before",
    "train/delta_nll": "the same minus that of the full context",
    "train/kl": "importance-weighted KL(P_full || P_gist), nats",
    "train/recovery": "R over the tokens of these steps",
    "train/reconstruction": "nats per token of rebuilt blocks; only with that loss",
    "train/contrast": "InfoNCE, nats; only with that loss",
    "train/diversity": "diversity penalty; only with that loss",
    "train/grad_norm": "norm of the gradient before clipping",
    "train/lr": "highest learning rate",
    "train/tokens_per_s": "tokens of windows per second",
    "quality/gist_norm_ratio": "RMS of gists against that of token rows",
    "quality/gist_diversity": "1 - mean cosine of neighbouring gists",
    "validation/score": "mean of the R below; the best weights are chosen by it",
    "validation/loss_at_h": "nats per held-out token, fewest slots",
    "validation/recovery_all_s<S>": "R over all tokens with S slots",
    "validation/recovery_recall_s<S>": "R over recall tokens with S slots",
    "validation/recovery_<domain>": "R over all tokens of a domain, fewest slots",
    "validation/lod2_<figure>": "the same, with LOD2 gists in stages that train them",
}
"""Every name in `metrics.jsonl`, and what it is."""

_INCHES: Final = (10.0, 9.0)


class Journal:
    """The record of a run in its folder.

    Args:
        folder: of the run.
        last_step: lines behind this step are dropped; 0 begins a new record.
    """

    def __init__(self, folder: Path, last_step: int = 0) -> None:
        self._path = folder / "metrics.jsonl"
        self._folder = folder
        old = _read(self._path) if last_step else []
        self.rows = [row for row in old if row["step"] <= last_step]
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        _replace(self._path, text.encode())

    def add(self, row: Mapping[str, Any]) -> None:
        """Append one line."""
        self.rows.append(dict(row))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(row)) + "\n")

    def draw(self) -> None:
        """Write the curves as JSON and as a picture."""
        curves = self.curves()
        _replace(self._folder / "curve.json", json.dumps(curves, indent=1).encode())
        _picture(curves, self._folder / "curve.png")

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Return each figure as points (step, value)."""
        found: dict[str, list[tuple[float, float]]] = {}
        for row in self.rows:
            for name, value in row.items():
                if "/" in name and isinstance(value, (int, float)):
                    found.setdefault(name, []).append((row["step"], value))
        return found


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # the last line of a killed process
            break
    return rows


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(path.name + ".new")
    beside.write_bytes(content)
    os.replace(beside, path)  # noqa: PTH105 - the atomic one


def _picture(curves: Mapping[str, list[tuple[float, float]]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    panels: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("loss, nats", ("train/loss", "train/kl", "train/delta_nll")),
        ("R on held-out windows", _recoveries(curves)),
        ("learning rate", ("train/lr",)),
    )
    for axes, (title, names) in zip(figure.subplots(len(panels), 1), panels, strict=True):
        for name in names:
            points = curves.get(name, [])
            steps, values = [one[0] for one in points], [one[1] for one in points]
            axes.plot(steps, values, label=name, marker="." if len(points) < 40 else None)
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        if any(curves.get(name) for name in names):
            axes.legend(fontsize=8)
    axes.set_xlabel("step")
    beside = path.with_name(path.name + ".new")
    figure.savefig(beside, format="png", dpi=110)
    os.replace(beside, path)  # noqa: PTH105 - the atomic one


def _recoveries(curves: Mapping[str, object]) -> tuple[str, ...]:
    wanted = ("recovery_all_s", "recovery_recall_s")
    found = [name for name in curves if any(one in name for one in wanted)]
    return (*sorted(found), "train/recovery")
