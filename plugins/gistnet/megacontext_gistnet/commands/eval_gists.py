"""`megacontext eval gists`: reads options, calls `work`, shows tables, writes the record."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from megacontext_gistnet.evaluation.job import Job
    from megacontext_gistnet.evaluation.report import Report
    from megacontext_gistnet.evaluation.run import Settings

__all__ = ["eval_gists"]

_FILE_COLUMNS = 120  # of tables that go to a file or a pipe

Model = Annotated[str, typer.Option(help="The base: reference, hf:NAME or hf:FOLDER.")]
Data = Annotated[
    list[Path] | None,
    typer.Option(help="Text; only its held-out documents are read. May be repeated."),
]
Whole = Annotated[
    list[Path] | None,
    typer.Option("--held-out-folder", help="Text of which everything is held out."),
]
Apart = Annotated[
    list[Path] | None,
    typer.Option("--apart-from", help="Training text; what stands there too is left out."),
]
Gist = Annotated[
    list[str] | None,
    typer.Option(help="Encoder by name, or a weight file. May be repeated; mean always runs."),
]
Windows = Annotated[int, typer.Option(help="Windows of each kind of text and seed.", min=1)]
Slots = Annotated[str, typer.Option(help="Rows per gist, comma between: 1,2,4.")]
Seeds = Annotated[int, typer.Option(help="How many times windows are drawn.", min=1)]
Sink = Annotated[str, typer.Option(help="none, or bos: a BOS row before every layout.")]
Ceiling = Annotated[int, typer.Option(help="Blocks for the ceiling; 0 leaves it out.", min=0)]
Steps = Annotated[int, typer.Option(help="Steps of descent for the ceiling.", min=1)]
Tables = Annotated[str, typer.Option(help="Only these tables, comma between; all by default.")]
Books = Annotated[int, typer.Option(help="Whole books at most.", min=1)]
Histories = Annotated[int, typer.Option(help="Sessions of each kind of text.", min=1)]
Rows = Annotated[int, typer.Option(help="Rows of the window of those sessions.")]
Out = Annotated[Path, typer.Option(help="Where all figures go, as JSON.")]
Plot = Annotated[Path, typer.Option(help="Where the picture goes.")]


def eval_gists(
    *,
    model: Model = "reference",
    data: Data = None,
    whole: Whole = None,
    apart_from: Apart = None,
    gist: Gist = None,
    windows: Windows = 32,
    slots: Slots = "1,2,4",
    seeds: Seeds = 3,
    sink: Sink = "none",
    ceiling: Ceiling = 100,
    ceiling_steps: Steps = 200,
    tables: Tables = "",
    books: Books = 10,
    histories: Histories = 6,
    w_max: Rows = 512,
    out: Out = Path("build/eval_gists.json"),
    plot: Plot = Path("build/eval_gists.png"),
) -> None:
    """Measure what gists recover of a history, between dropping it and keeping it raw."""
    from rich.console import Console

    from megacontext_gistnet.evaluation.ceiling import CeilingSettings
    from megacontext_gistnet.evaluation.job import Job
    from megacontext_gistnet.evaluation.run import TABLES, Settings

    settings = Settings(
        windows=windows,
        seeds=seeds,
        slots=_numbers(slots),
        ceiling_blocks=ceiling,
        ceiling=CeilingSettings(n_steps=ceiling_steps),
        books=books,
        histories=histories,
        w_max=w_max,
        tables=tuple(one.strip() for one in tables.split(",")) if tables else TABLES,
    )
    job = Job(
        model=model,
        gists=gist or (),
        data=data or (),
        whole=whole or (),
        apart_from=apart_from or (),
        sink=sink,
        settings=settings,
        command=shlex.join(["megacontext", *sys.argv[1:]]),
    )
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_COLUMNS)
    _run(job, settings, console, out, plot)


def _run(job: Job, settings: Settings, console: Console, out: Path, plot: Path) -> None:
    from megacontext_gistnet.evaluation.console import Bars, opening, show, show_gates
    from megacontext_gistnet.evaluation.job import work
    from megacontext_gistnet.evaluation.plot import draw

    report: Report | None = None
    opening(console, job)
    for made, item in work(job, progress=Bars(console)):
        report = made
        show(console, item)
        report.write(out)  # a long run that is stopped keeps what it has
    if report is None:
        message = f"no table of {', '.join(settings.tables)} can be measured; name others"
        raise ConfigError(message, field="tables", value=settings.tables)
    show_gates(console, report.gates())
    draw(report, plot)
    console.print(f"\nfigures in {out}, picture in {plot}", highlight=False, markup=False)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(one) for one in text.split(","))
    except ValueError as error:
        message = f"slots={text!r}; give numbers with commas between, such as 1,2,4"
        raise ConfigError(message, field="slots", value=text) from error
