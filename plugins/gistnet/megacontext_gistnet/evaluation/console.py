"""Tables in a terminal, and bars while it works. It computes nothing.

Every table has full context and dropping in it, so that no figure stands without its floor and its
comparator.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from megacontext_gistnet.evaluation.adjacent import Boundary
from megacontext_gistnet.evaluation.run import Skipped
from megacontext_gistnet.evaluation.shape import GistShape
from megacontext_gistnet.evaluation.tables import ALL, Section

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console

    from megacontext_gistnet.evaluation.gates import Gate
    from megacontext_gistnet.evaluation.job import Job
    from megacontext_gistnet.evaluation.run import Item
    from megacontext_gistnet.evaluation.statistics import Estimate
    from megacontext_gistnet.evaluation.tables import Line

__all__ = ["Bars", "opening", "show", "show_gates"]

_FIXED = {"full", "drop"}
_MARKS = {True: Text("met", style="green"), False: Text("missed", style="red"), None: Text("")}


class Bars:
    """Progress bars on a console; one line per stage, gone when it is done."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a bar for a stage."""
        columns = (
            TextColumn("{task.description:<42}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        is_seen = self._console.is_terminal
        bars = Progress(*columns, console=self._console, transient=True, disable=not is_seen)
        with bars:
            task = bars.add_task(name, total=total)
            yield lambda steps: bars.advance(task, steps)


def opening(console: Console, job: Job) -> None:
    """Say what is about to be measured, and what it cannot cover."""
    console.print(
        f"base {job.model}, encoders {', '.join(['mean', *job.gists])}; R is 0 for a history "
        "dropped and 1 for one kept raw; intervals are 95 %, over documents",
        highlight=False,
        markup=False,
    )
    if not job.data and not job.whole:
        console.print(
            "no --data given: reading two packaged books and made-up facts, which says nothing "
            "about dialogue and code",
            style="yellow",
        )


def show(console: Console, item: Item) -> None:
    """Show one result."""
    if isinstance(item, Section):
        _section(console, item)
    elif isinstance(item, Skipped):
        console.print(f"\nleft out, {item.key}: {item.why}", style="yellow", markup=False)
    elif item and isinstance(item[0], GistShape):
        _shapes(console, [one for one in item if isinstance(one, GistShape)])
    else:
        _boundaries(console, [one for one in item if isinstance(one, Boundary)])


def show_gates(console: Console, found: Sequence[Gate]) -> None:
    """Show the requirements; nothing if there is no learned encoder."""
    if not found:
        return
    console.print("\nGates", style="bold")
    table = Table("encoder", "figure", "value", "wanted", "", box=None)
    for gate in found:
        mark = _MARKS[gate.passed]
        table.add_row(gate.encoder, gate.what, _number(gate.value), gate.wanted, mark)
    console.print(table)


def _section(console: Console, section: Section) -> None:
    console.print(f"\n{section.title}", style="bold", highlight=False)
    for sentence in section.about:
        console.print(sentence, style="dim", markup=False, highlight=False)
    _main_table(console, section)
    _by_domain(console, section)
    whole = section.lines[0].recovery
    console.print(
        f"{whole.n_windows} windows of {whole.n_documents} documents, {whole.n_tokens:,} tokens "
        f"counted, {whole.n_recall_tokens:,} of them recall tokens; {whole.n_skipped} windows had "
        "nothing to recover",
        style="dim",
        highlight=False,
    )
    for apart in section.differences:
        console.print(
            f"  {apart.what}: {_interval(apart.all)} all, {_interval(apart.recall)} recall",
            style="dim",
            markup=False,
            highlight=False,
        )


def _main_table(console: Console, section: Section) -> None:
    table = Table(box=None, header_style="cyan")
    table.add_column("in place of the old part")
    for name in ("S", "rows", "NLL", "ΔNLL"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("R, all tokens", "R, recall tokens"):
        table.add_column(name, no_wrap=True)
    table.add_column("R>0", justify="right", no_wrap=True)
    for line in section.lines:
        if line.domain == ALL:
            table.add_row(*_cells(line))
    console.print(table)


def _by_domain(console: Console, section: Section) -> None:
    """Show R over all and over recall tokens by kind of text; of full and drop the loss."""
    domains = list(dict.fromkeys(one.domain for one in section.lines if one.domain != ALL))
    if len(domains) < 2:
        return
    table = Table(box=None, header_style="cyan")
    table.add_column("R all / recall tokens")
    table.add_column("S", justify="right")
    for name in domains:
        table.add_column(name, no_wrap=True)
    for line in section.lines:
        if line.domain == ALL:
            slots = str(line.condition.slots or "")
            cells = (_domain(section, line, one) for one in domains)
            table.add_row(Text(line.condition.name), slots, *cells)
    console.print(table)


def _cells(line: Line) -> tuple[Text, ...]:
    found, condition = line.recovery, line.condition
    style = "dim" if condition.name in _FIXED else ""
    slots = str(condition.slots) if condition.slots else ""
    is_fixed = condition.name in _FIXED
    cells = (
        condition.name,
        slots,
        f"{condition.rows:,.0f}",
        _number(found.nll.value),
        f"{found.delta_nll.value:+.3f}",
        _short(found.all) if is_fixed else _interval(found.all),
        _short(found.recall) if is_fixed else _interval(found.recall),
        "-" if math.isnan(found.share_positive) else f"{100 * found.share_positive:.0f} %",
    )
    return tuple(Text(one, style=style) for one in cells)


def _domain(section: Section, line: Line, domain: str) -> Text:
    found = section.line(line.condition.name, line.condition.slots, domain)
    if found is None:
        return Text("-")
    if line.condition.name in _FIXED:
        return Text(f"{found.recovery.nll.value:.2f} nats", style="dim")
    return Text(f"{_short(found.recovery.all)} / {_short(found.recovery.recall)}")


def _shapes(console: Console, shapes: Sequence[GistShape]) -> None:
    console.print("\nWhat the gists look like", style="bold")
    table = Table(
        "encoder",
        "S",
        "diversity",
        "of their own",
        "norm ratio (1 %, 99 %)",
        "twins apart",
        "distinct",
        box=None,
    )
    for one in shapes:
        table.add_row(
            one.encoder,
            str(one.slots),
            _number(one.diversity),
            _number(one.own_diversity),
            f"{one.norm_ratio:.2f} ({one.norm_low:.2f}, {one.norm_high:.2f})",
            _number(one.twin_distance),
            f"{100 * one.distinct:.0f} %",
        )
    console.print(table)
    console.print(
        "diversity: 1 - mean cosine of neighbours, of their own: without the mean of all gists; "
        "twins: blocks that differ in one token",
        style="dim",
        highlight=False,
    )


def _boundaries(console: Console, edges: Sequence[Boundary]) -> None:
    console.print(
        "\nRaw blocks and gists in turn: edges of raw blocks against inside", style="bold"
    )
    table = Table("encoder", "S", "ΔNLL at edges", "ΔNLL inside", "ratio", box=None)
    for one in edges:
        table.add_row(
            one.encoder,
            str(one.slots),
            _interval(one.edge),
            _interval(one.interior),
            _interval(one.ratio),
        )
    console.print(table)


def _interval(one: Estimate) -> str:
    if math.isnan(one.value):
        return "-"
    if math.isnan(one.low):
        return _number(one.value)
    return f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]"


def _short(one: Estimate) -> str:
    return "-" if math.isnan(one.value) else f"{one.value:.2f}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
