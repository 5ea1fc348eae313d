"""Results as text in a terminal. It computes nothing: what it prints stands in the result."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from megacontext_sdk._cli.picture import ASCII, UNICODE, draw_focus
from megacontext_sdk.catalogue import KINDS
from megacontext_sdk.demo import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from rich.console import Console
    from rich.progress import ProgressColumn

    from megacontext_sdk._cli.doctor import Check
    from megacontext_sdk.catalogue import Catalogue
    from megacontext_sdk.receipts import Receipt, Recovery, ScrubReport, Snapshot
    from megacontext_sdk.results import FocusReport, Hit, Reply, Stats

__all__ = [
    "after_demo",
    "byte_bar",
    "checks",
    "demo",
    "focus",
    "hits",
    "opened",
    "plugins",
    "receipt",
    "recovery",
    "reply",
    "scrubbed",
    "snapshots",
    "stats",
    "work_bar",
]


_QUESTION_COLUMNS = 40  # so that answers stand in a column


def focus(console: Console, report: FocusReport) -> None:
    """Show the map of a focus report."""
    glyphs = UNICODE if console.encoding.lower().startswith("utf") else ASCII
    console.print(draw_focus(report, width=console.width, glyphs=glyphs))


def reply(console: Console, answer: Reply) -> None:
    """Show a reply, what it saw, and the spans revealed for it."""
    console.print(answer.text, markup=False, highlight=False)
    usage = answer.usage
    console.print(
        f"{usage.prompt_tokens} tokens in, {usage.generated_tokens} out "
        f"({answer.finish_reason}), {usage.window_rows:,} rows, {answer.seconds:.2f} s",
        style="dim",
    )
    for citation in answer.citations:
        console.print(
            f"  saw {citation.span.start:,}..{citation.span.end:,} "
            f"({citation.reason}, {citation.score:.2f})",
            style="dim",
        )


def hits(console: Console, found: Sequence[Hit]) -> None:
    """Show search results, best first."""
    for hit in found:
        head = f"{hit.score:7.2f}  {hit.span.start:,}..{hit.span.end:,}  message {hit.message_id}"
        console.print(head, style="cyan")
        console.print(_shortened(hit.text, 240), markup=False, highlight=False)
    if not found:
        console.print("nothing found", style="yellow")


def opened(console: Console, found: Stats) -> None:
    """Show which memory a chat goes on with."""
    where = found.path or "a memory that is kept nowhere"
    line = f"{where}: {found.n_tokens:,} tokens, model {found.model}"
    console.print(line, style="dim", markup=False, highlight=False)


def stats(console: Console, found: Stats) -> None:
    """Show all statistics as a table."""
    table = Table(show_header=False, box=None)
    for name, value in found.to_dict().items():
        table.add_row(Text(name, style="cyan"), Text(_figure(value), overflow="fold"))
    console.print(table)


def plugins(console: Console, catalogue: Catalogue) -> None:
    """Show every provider with its owner, then what failed."""
    table = Table("kind", "name", "summary", "plugin", box=None)
    for kind in KINDS:
        for provider in catalogue.of_kind(kind):
            spec = provider.spec
            cells = (kind, spec.full_name, spec.summary, provider.owner)
            table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
    for failure in catalogue.failures:
        console.print(f"failed: {failure}", style="red", markup=False)


def checks(console: Console, found: Iterable[Check]) -> None:
    """Show what the doctor found."""
    table = Table(show_header=False, box=None)
    for check in found:
        mark = Text("ok", style="green") if check.is_fine else Text("mend", style="bold red")
        table.add_row(mark, Text(check.name), Text(check.detail, overflow="fold"))
    console.print(table)


def snapshots(console: Console, found: Iterable[Snapshot]) -> None:
    """Show the snapshots of a memory."""
    table = Table("name", "tokens", "commit", "taken", box=None)
    for one in found:
        taken = datetime.fromtimestamp(one.ts_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        counts = (f"{one.n_tokens:,}", f"{one.seq:,}", taken)
        table.add_row(*(Text(cell) for cell in (one.name, *counts)))
    console.print(table if table.row_count else Text("no snapshots", style="yellow"))


def receipt(console: Console, found: Receipt) -> None:
    """Show what a forget did, or would do."""
    head = "would be forgotten" if found.dry_run else "forgotten"
    rows = [
        (head, f"{found.tokens:,} tokens in {len(found.messages):,} messages"),
        ("spans", _listed(f"{one.start:,}..{one.end:,}" for one in found.spans)),
        ("gists", f"{found.gists_dropped:,} above them"),
        ("forks", _listed(found.forks)),
        ("exports out of reach", _listed(found.exports)),
    ]
    if not found.dry_run:
        rows += [
            ("gists made again", f"{found.gists_rebuilt:,}"),
            ("files removed", f"{found.files_removed:,}"),
            ("bytes searched", f"{found.bytes_scanned:,} for {found.needles:,} pieces"),
            ("pieces found", f"{found.hits:,}"),
            ("still quoted in messages", _listed(f"{one:,}" for one in found.echoes)),
            ("proven", "yes" if found.verified else "NO"),
        ]
    _facts(console, rows)


def recovery(console: Console, found: Recovery) -> None:
    """Show what of a memory survives."""
    state = "sound" if not found.is_damaged else "damaged" if found.dry_run else "recovered"
    rows = [("state", state), ("what is wrong", found.reason or "nothing")]
    rows.append(("survives", f"commit {found.have_seq:,}, {found.n_tokens:,} tokens"))
    lost = "unknown" if found.lost_commits is None else f"{found.lost_commits:,} commits"
    if found.is_damaged:
        rows += [("lost", lost), ("damaged files", found.rescue or "where they were")]
    _facts(console, rows)


def scrubbed(console: Console, found: ScrubReport) -> None:
    """Show what reading everything found."""
    _facts(
        console,
        [
            ("commits", f"{found.commits:,}"),
            ("blocks", f"{found.blocks:,}"),
            ("messages", f"{found.messages:,}"),
            ("gists", f"{found.gists:,}"),
            ("bytes read", f"{found.bytes_read:,} in {found.seconds:.1f} s"),
            ("problems", f"{len(found.problems):,}" if found.problems else "none"),
        ],
    )
    for problem in found.problems:
        console.print(f"  {problem}", style="red", markup=False, highlight=False)


def _facts(console: Console, rows: Iterable[tuple[str, str]]) -> None:
    table = Table(show_header=False, box=None)
    for name, value in rows:
        table.add_row(Text(name, style="cyan", no_wrap=True), Text(value, overflow="fold"))
    console.print(table)


def _listed(items: Iterable[str], most: int = 8) -> str:
    names = list(items)
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest or "none"


def _bar(console: Console, *columns: ProgressColumn) -> Progress:
    """Return a progress bar that goes when it is done, and is not there outside of terminals."""
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def byte_bar(console: Console, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show progress in bytes; yields what to call with the bytes done since."""
    columns = (TextColumn("taking in"), BarColumn(), DownloadColumn())
    with _bar(console, *columns) as bar:
        task = bar.add_task("", total=total)

        def advance(n_bytes: int) -> None:
            bar.advance(task, n_bytes)

        yield advance


@contextmanager
def work_bar(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress; yields what to call with what is done and what there is in all."""
    columns = (
        TextColumn(what),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
    )
    with _bar(console, *columns) as bar:
        task = bar.add_task("", total=1)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=max(total, 1))

        yield update


def demo(console: Console, happenings: Iterable[object]) -> None:
    """Show the demo while it runs."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f}"))
    number = 0
    with _bar(console, *columns) as bar:
        task = bar.add_task("opening the memory", total=None)
        for item in happenings:
            if isinstance(item, run.Began):
                console.print(f"History: {item.origin}", markup=False, soft_wrap=True)
                console.print(f"Memory:  {item.path}", markup=False, soft_wrap=True)
            elif isinstance(item, run.Progress):
                done = min(item.n_tokens, item.total)
                bar.update(task, description="taking in tokens", completed=done, total=item.total)
            elif isinstance(item, run.Answer):
                number += 1
                bar.update(task, visible=False)
                console.print(_answer_line(number, item))
            elif isinstance(item, run.Summary):
                console.print()
                console.print(_summary(item))


def after_demo(console: Console, path: Path | None) -> None:
    """Say what to do next with the demo's memory, or how to keep one."""
    console.print()
    if path is None:
        console.print(
            "The memory was in a temporary folder and is gone. To keep one and talk to it:"
        )
        console.print("  megacontext demo --path demo.mc", style="cyan", markup=False)
        path_text = "demo.mc"
    else:
        console.print("Talk to this memory:")
        path_text = str(path)
    console.print(f"  megacontext chat {path_text}", style="cyan", markup=False)


def _answer_line(number: int, answer: run.Answer) -> Text:
    line = Text(f"{number:3}. {answer.fact.question:<{_QUESTION_COLUMNS}}  ")
    line.append(_shortened(answer.text, 40) or "(no answer)", style="bold")
    line.append("  right" if answer.is_right else "  wrong", "green" if answer.is_right else "red")
    if not answer.is_right:
        line.append(f" (it is {answer.fact.answers[0]})")
    line.append(f"\n     told at token {answer.told_at.start:,}; ", style="dim")
    source = answer.source
    seen = f"read {source.start:,}..{source.end:,} in full" if source else "nothing revealed"
    line.append(seen if answer.saw_fact else f"not shown, {seen}", style="dim")
    line.append(f"; {answer.seconds * 1e3:,.0f} ms", style="dim")
    return line


def _summary(summary: run.Summary) -> Table:
    table = Table(show_header=False, box=None)
    table.add_row(
        "right answers", f"{summary.n_right} of {summary.n_asked} ({summary.accuracy:.0%})"
    )
    table.add_row("tokens in history", f"{summary.n_tokens:,}")
    table.add_row("rows in the window", f"{summary.max_rows:,} (budget {summary.w_max:,})")
    if summary.append_tokens_per_second is not None:
        table.add_row("taking in", f"{summary.append_tokens_per_second:,.0f} tokens/s, durable")
    table.add_row("ms per question", f"{summary.ms_per_question:,.0f}")
    table.add_row("ms per token", f"{summary.ms_per_token:,.1f}")
    table.add_row("bytes per token", f"{summary.bytes_per_token:,.1f}")
    return table


def _figure(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_figure(item)}" for key, item in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _shortened(text: str, length: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= length else f"{flat[: length - 1]}…"
