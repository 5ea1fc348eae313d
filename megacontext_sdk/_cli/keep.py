"""The commands for the life of a memory: snapshots, forks, forgetting, moving, mending.

Each calls one public function. What removes something asks first, and shows what it would do.
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from megacontext_sdk._cli import show
from megacontext_sdk._cli.arguments import (
    AsJson,
    Memory,
    Model,
    Storage,
    open_session,
    print_json,
)
from megacontext_sdk.errors import ConfigError
from megacontext_sdk.session import MemorySession

__all__ = ["COMMANDS", "look_at"]

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

_AGE = re.compile(r"(\d{1,9})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def snapshot(
    path: Memory,
    name: Annotated[
        str | None, typer.Argument(help="Its name; without one, list all.", show_default=False)
    ] = None,
    *,
    model: Model = None,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Give the present end of the history a name to come back to, or list the names."""
    with open_session(path, model, storage, read_only=name is None) as session:
        if name is not None:
            session.snapshot(name)
        found = session.snapshots()
    if as_json:
        print_json([one.to_dict() for one in found])
    else:
        show.snapshots(Console(), found)


def restore(
    path: Memory,
    name: Annotated[str, typer.Argument(help="A snapshot.")],
    *,
    model: Model = None,
    storage: Storage = None,
    yes: Yes = False,
) -> None:
    """Cut the history back to a snapshot; what came after is kept aside in `rescue/`."""
    with open_session(path, model, storage) as session:
        before = session.stats().n_tokens
        if not yes:
            typer.confirm(f"Cut {path}, {before:,} tokens long, back to {name}?", abort=True)
        found = session.restore(name)
    Console().print(f"{found.n_tokens:,} tokens; {before - found.n_tokens:,} are in rescue/")


def fork(
    path: Memory,
    target: Annotated[Path, typer.Argument(help="Directory of the copy; does not exist yet.")],
    *,
    at: Annotated[str | None, typer.Option(help="A snapshot or the number of a commit.")] = None,
    model: Model = None,
    storage: Storage = None,
) -> None:
    """Make an independent copy of a memory, or of its beginning; shares bytes where it can."""
    with open_session(path, model, storage) as session:
        is_name = at is None or at in {one.name for one in session.snapshots()}
        place = int(at) if not is_name and at is not None and at.isdecimal() else at
        with session.fork(target, at=place) as copy:
            n_tokens = copy.stats().n_tokens
    Console().print(f"{n_tokens:,} tokens in {target}", markup=False, highlight=False)


def forget(
    path: Memory,
    *,
    message: Annotated[
        list[int] | None, typer.Option(help="Number of a message; may be repeated.")
    ] = None,
    span: Annotated[
        tuple[int, int] | None, typer.Option(help="First token, and the one after the last.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="FIELD=VALUE: role, source, actor, trust, origin or metadata.KEY; may be repeated."
        ),
    ] = None,
    before: Annotated[
        str | None, typer.Option(help="Older than a time (2026-03-01T12:00Z) or an age (30d).")
    ] = None,
    everything: Annotated[bool, typer.Option("--everything", help="All that was said.")] = False,
    forks: Annotated[
        bool, typer.Option("--forks", help="Forget in the forks of this memory, too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
    model: Model = None,
    storage: Storage = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Remove content for good, and prove by reading every byte that it is gone. Asks first."""
    scope: dict[str, Any] = {
        "message_ids": message or None,
        "span": span,
        "where": _fields(where) if where else None,
        "before": None if before is None else _time_or_age(before),
        "everything": everything,
        "cascade": "forks" if forks else None,
    }
    console = Console()
    with open_session(path, model, storage, read_only=dry_run) as session:
        if dry_run or not yes:
            planned = session.forget(**scope, dry_run=True)
            _show_receipt(console, planned, as_json=as_json and dry_run)
            if dry_run or not (planned.spans or planned.messages):
                return
            typer.confirm(f"Forget this in {path} for good?", abort=True)
        receipt = session.forget(**scope)
    _show_receipt(console, receipt, as_json=as_json)
    if not receipt.verified:
        raise typer.Exit(1)


def export(
    path: Memory,
    target: Annotated[Path, typer.Argument(help="The new file.")],
    *,
    format: Annotated[  # noqa: A002 - the name of the option
        str | None,
        typer.Option(help="bundle (everything) or jsonl (chat messages); by the name if absent."),
    ] = None,
    model: Model = None,
    storage: Storage = None,
) -> None:
    """Write a memory into one file, to be loaded elsewhere or read by other tools."""
    with (
        open_session(path, model, storage) as session,
        show.work_bar(Console(stderr=True), "writing") as progress,
    ):
        found = session.export(target, format=format, progress=progress)
    Console().print(
        f"{found.n_messages:,} messages, {found.n_tokens:,} tokens, {found.n_bytes:,} bytes in "
        f"{found.path}",
        markup=False,
        highlight=False,
    )


def load(
    source: Annotated[Path, typer.Argument(help="A bundle, a .jsonl file, or a memory.")],
    into: Annotated[Path, typer.Argument(help="Directory of the new memory.")],
    *,
    model: Model = None,
    storage: Storage = None,
    keep_trust: Annotated[
        bool, typer.Option("--keep-trust", help="Believe who said what; else all is external.")
    ] = False,
    retokenize: Annotated[
        bool, typer.Option("--retokenize", help="Make ids anew from text, for another tokenizer.")
    ] = False,
) -> None:
    """Make a new memory of something exported, or of another memory."""
    with show.work_bar(Console(stderr=True), "loading") as progress:
        session = MemorySession.load(
            source,
            into=into,
            model=model,
            storage=storage,
            trust="keep" if keep_trust else None,
            retokenize=retokenize,
            progress=progress,
        )
    with session:
        found = session.stats()
    Console().print(
        f"{found.n_messages:,} messages, {found.n_tokens:,} tokens in {into}",
        markup=False,
        highlight=False,
    )


def rebuild(
    path: Memory,
    *,
    gist: Annotated[str | None, typer.Option(help="Another gist encoder.")] = None,
    model: Model = None,
    storage: Storage = None,
) -> None:
    """Make the gists an encoder lacks; goes on where it was interrupted."""
    with (
        open_session(path, model, storage) as session,
        show.work_bar(Console(stderr=True), "encoding") as progress,
    ):
        found = session.rebuild(gist=gist, progress=progress)
    Console().print(
        f"{found.encoded:,} gists made, {found.reused:,} were there, {found.kept_old:,} kept; "
        f"encoder {found.gist}, {found.seconds:.1f} s",
        highlight=False,
    )


def recover(path: Memory, *, yes: Yes = False, as_json: AsJson = False) -> None:
    """Cut a damaged memory back to what survives. Looks first, asks, keeps what it replaces."""
    console = Console()
    with show.work_bar(Console(stderr=True), "reading") as progress:
        found = MemorySession.recover(path, dry_run=True, progress=progress)
    if not as_json:
        show.recovery(console, found)
    if found.is_damaged:
        if not yes:
            typer.confirm(f"Cut {path} back to commit {found.have_seq}?", abort=True)
        with show.work_bar(Console(stderr=True), "recovering") as progress:
            found = MemorySession.recover(path, progress=progress)
        if not as_json:
            show.recovery(console, found)
    if as_json:
        print_json(found.to_dict())


COMMANDS = (snapshot, restore, fork, forget, export, load, rebuild, recover)
"""All of them, in the order in which help shows them."""


def look_at(path: Path, *, scrub: bool, as_json: bool) -> bool:
    """Look at a memory for `doctor`; returns whether all is fine."""
    console = Console()
    with show.work_bar(Console(stderr=True), "reading") as progress:
        if scrub:
            report = MemorySession.scrub(path, progress=progress)
        else:
            found = MemorySession.recover(path, dry_run=True, progress=progress)
    if as_json:
        print_json(report.to_dict() if scrub else found.to_dict())
    elif scrub:
        show.scrubbed(console, report)
    else:
        show.recovery(console, found)
    return report.is_sound if scrub else not found.is_damaged


def _show_receipt(console: Console, receipt: Any, *, as_json: bool) -> None:  # noqa: ANN401
    if as_json:
        print_json(receipt.to_dict())
    else:
        show.receipt(console, receipt)


def _fields(pairs: list[str]) -> dict[str, object]:
    """Return FIELD=VALUE pairs as `where` takes them; metadata are JSON where they can be."""
    where: dict[str, object] = {}
    metadata: dict[str, object] = {}
    for pair in pairs:
        field, equals, value = pair.partition("=")
        if not equals:
            message = f"--where {pair!r:.80} must be FIELD=VALUE, such as source=mail"
            raise ConfigError(message, field="where", value=pair[:80])
        head, dot, key = field.partition(".")
        if head == "metadata" and dot:
            metadata[key] = _json_or_text(value)
        else:
            where[field] = value
    return {**where, "metadata": metadata} if metadata else where


def _json_or_text(text: str) -> object:
    try:
        value: object = json.loads(text)
    except ValueError:
        return text
    return value


def _time_or_age(text: str) -> datetime | timedelta:
    """Return a time with a zone, or an age such as 30d, 12h or 2w."""
    age = _AGE.fullmatch(text)
    try:
        if age is not None:
            return timedelta(**{_UNITS[age[2]]: int(age[1])})
        return datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        message = (
            f"--before {text!r:.80} is neither a time such as 2026-03-01T12:00+00:00 nor an age "
            "such as 30d, 12h or 2w"
        )
        raise ConfigError(message, field="before", value=text[:80]) from error
