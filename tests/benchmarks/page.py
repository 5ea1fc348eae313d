"""Puts the figures of the last `make bench` into the documentation, with machine and date.

Run as `python -m tests.benchmarks.page`. A run at another scale is refused: figures in the
documentation are full ones.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["figures_block", "main", "replaced"]

BEGIN, END = "<!-- begin figures -->", "<!-- end figures -->"
_ROOT = Path(__file__).resolve().parents[2]
_PAGE = _ROOT / "docs" / "explanation" / "performance.md"
_IMAGE = _ROOT / "docs" / "images" / "bench.png"


def figures_block(results: Mapping[str, Mapping[str, object]], notes: Sequence[str]) -> str:
    """Return table, machine and notes as Markdown.

    Raises:
        ValueError: the figures are of a smaller scale, or of different machines.
    """
    machines = sorted({str(entry["machine"]) for entry in results.values()})
    if len(machines) != 1 or "(scale" in machines[0]:
        raise ValueError(f"run the whole of `make bench` first; found {' and '.join(machines)}")
    dates = sorted(str(entry["date"])[:10] for entry in results.values())
    rows = [
        f"| `{name}` | {_value(entry['value'])} | {entry['unit']} | {_against(entry)} |"
        for name, entry in results.items()
    ]
    lines = [
        f"Machine: {machines[0]}. Date: {dates[-1]}. Command: `make bench`.",
        "",
        "| Figure | Value | Unit | Against |",
        "|---|---|---|---|",
        *rows,
        "",
        "What else the run printed:",
        "",
        *(f"- {note}" for note in notes if not note.startswith(" ")),
    ]
    return "\n".join(lines)


def _value(value: object) -> str:
    if not isinstance(value, int | float):
        return "not measured"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _against(entry: Mapping[str, object]) -> str:
    return str(entry.get("reason") or entry["baseline"]).replace("|", "/")


def replaced(page: str, block: str) -> str:
    """Return a page with the text between the marks replaced.

    Raises:
        ValueError: the page has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


def main(folder: Path = _ROOT / "build") -> int:
    """Rewrite the page and its picture."""
    results = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    notes = (folder / "bench-notes.txt").read_text(encoding="utf-8").splitlines()
    block = figures_block(results, notes)
    _PAGE.write_text(replaced(_PAGE.read_text(encoding="utf-8"), block), encoding="utf-8")
    shutil.copyfile(folder / "bench.png", _IMAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
