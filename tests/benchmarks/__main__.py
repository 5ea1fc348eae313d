"""`make bench`: measure every figure, print a table, draw a picture, write `build/bench.json`.

`python -m tests.benchmarks --only NAME ...` measures some, `--quick` measures smaller.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from transformers.utils import logging as transformers_logging

from tests.benchmarks import models
from tests.benchmarks.figures import UNITS
from tests.benchmarks.plot import draw
from tests.benchmarks.scale import FULL, QUICK
from tests.benchmarks.suite import chosen
from tests.benchmarks.workshop import Workshop, machine_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.benchmarks.figures import Figure
    from tests.benchmarks.suite import Benchmark

__all__ = ["main"]

_BUILD = Path("build")
_WIDTH = 150


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the table says which limits were met."""
    options = _options(arguments)
    transformers_logging.set_verbosity_error()
    console = Console()
    if not console.is_terminal:  # a log has no width of its own
        console = Console(width=_WIDTH)
    benchmarks = chosen(options.only)
    _, threads = models.choose_threads()
    console.print(f"{machine_name()}; {threads}", soft_wrap=True)
    workshop = Workshop(QUICK if options.quick else FULL, options.folder / "bench-memories")
    try:
        figures = run(benchmarks, workshop, console)
    finally:
        workshop.close()
    _report(figures, workshop, options, console)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", choices=list(UNITS))
    parser.add_argument("--quick", action="store_true", help="smaller sizes, for a look only")
    parser.add_argument("--folder", type=Path, default=_BUILD, help="where results go")
    return parser.parse_args(arguments)


def run(benchmarks: Sequence[Benchmark], workshop: Workshop, console: Console) -> list[Figure]:
    """Measure, with a progress bar."""
    figures: list[Figure] = []
    columns = (TextColumn("{task.description:28}"), BarColumn(), TimeElapsedColumn())
    # A bar that repaints itself while a benchmark runs would take time from it.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=len(benchmarks))
        for benchmark in benchmarks:
            progress.update(task, description=benchmark.names[0], refresh=True)
            if not console.is_terminal:
                console.print(f"measuring {', '.join(benchmark.names)}")
            figures += benchmark.measure(workshop)
            progress.advance(task)
        progress.update(task, description="done", refresh=True)
    return figures


def _report(
    figures: Sequence[Figure],
    workshop: Workshop,
    options: argparse.Namespace,
    console: Console,
) -> None:
    now = datetime.now(UTC)
    machine, date = machine_name(), now.isoformat(timespec="seconds")
    scale = "" if workshop.scale is FULL else f" (scale {workshop.scale.name}: not for the record)"
    console.print(table(figures))
    for note in workshop.notes:
        console.print(note, soft_wrap=True, highlight=False, markup=False)
    results = {figure.name: figure.to_json(machine + scale, date) for figure in figures}
    options.folder.mkdir(parents=True, exist_ok=True)
    target = options.folder / "bench.json"
    if options.only and target.is_file():  # what was not measured now stays
        results = json.loads(target.read_text(encoding="utf-8")) | results
    target.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    notes = options.folder / "bench-notes.txt"
    notes.write_text("".join(f"{note}\n" for note in workshop.notes), encoding="utf-8")
    picture = options.folder / "bench.png"
    draw(figures, workshop.curves, picture, f"{machine}{scale}, {now:%Y-%m-%d}")
    console.print(f"written: {target}, {picture}")


def table(figures: Sequence[Figure]) -> Table:
    """Return the table of all figures."""
    shown = Table()
    for heading in ("figure", "value", "unit", "required", "met"):
        shown.add_column(heading, no_wrap=True)
    shown.add_column("against")
    for figure in figures:
        value = "-" if figure.value is None else f"{figure.value:,.4g}"
        limit = "" if figure.limit is None else str(figure.limit)
        colour = {"yes": "green", "NO": "red"}.get(figure.verdict, "yellow")
        shown.add_row(
            figure.name,
            value,
            figure.unit,
            limit,
            f"[{colour}]{figure.verdict}[/]",
            figure.reason or figure.baseline,
        )
    return shown


if __name__ == "__main__":
    sys.exit(main())
