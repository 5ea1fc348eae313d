"""The commands. Each parses, calls one public function and hands the result to `show`.

No command holds logic of its own: what only a command could do, a program could not.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from megacontext_sdk._cli import keep, show
from megacontext_sdk._cli.arguments import (
    AsJson,
    Memory,
    Model,
    Rows,
    Storage,
    open_session,
    print_json,
)
from megacontext_sdk._cli.doctor import examine
from megacontext_sdk._cli.offered import add_offered
from megacontext_sdk._cli.pieces import count_bytes, read_pieces
from megacontext_sdk._cli.plainly import plainly
from megacontext_sdk._cli.png import focus_png
from megacontext_sdk._cli.talk import talk
from megacontext_sdk.demo.run import DemoSettings, run_demo
from megacontext_sdk.errors import ConfigError
from megacontext_sdk.plugins import default_plugins

if TYPE_CHECKING:
    from megacontext_sdk.plugins import Plugins

__all__ = ["build_app"]

Png = Annotated[
    Path | None,
    typer.Option(help="Also draw what the model sees to this file.", show_default=False),
]


def build_app(plugins: Plugins | None = None) -> typer.Typer:
    """Return the application: our commands, then those of plugins.

    Args:
        plugins: whose commands to add; by default the installed ones.
    """
    app = typer.Typer(
        name="megacontext",
        help="A memory of any length under a frozen language model.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for command in (
        *(demo, chat, append, generate, search, focus, stats),
        *keep.COMMANDS,
        *(plugins_command, doctor),
    ):
        name = command.__name__.removesuffix("_command")
        app.command(name)(plainly(command))
    add_offered(app, (plugins if plugins is not None else default_plugins()).catalogue)
    return app


def demo(
    *,
    path: Annotated[Path | None, typer.Option(help="Keep the memory here.")] = None,
    model: Annotated[str, typer.Option(help="Model to ask.")] = "reference",
    storage: Annotated[str, typer.Option(help="Storage backend.")] = "duckdb",
    tokens: Annotated[int, typer.Option(help="Length of the history.", min=1)] = 200_000,
    facts: Annotated[int, typer.Option(help="Facts told in between.", min=1)] = 50,
    questions: Annotated[int, typer.Option(help="Questions asked.", min=1)] = 20,
    w_max: Annotated[int, typer.Option(help="Rows of the window.")] = 896,
    seed: Annotated[int, typer.Option(help="Another seed, another history.")] = 0,
    data: Annotated[Path | None, typer.Option(help="Folder with the texts.")] = None,
) -> None:
    """Take in a long history, ask about things said long ago, and measure."""
    settings = DemoSettings(
        path=path,
        model=model,
        storage=storage,
        n_tokens=tokens,
        n_facts=facts,
        n_questions=questions,
        w_max=w_max,
        seed=seed,
        data_dir=data,
    )
    console = Console()
    console.print(
        f"{tokens:,} tokens of text with {facts} facts told in between, then {questions} questions "
        f"to a model that sees {w_max:,} rows.\n",
        highlight=False,
    )
    show.demo(console, run_demo(settings))
    show.after_demo(console, path)


def chat(
    path: Memory,
    *,
    model: Model = None,
    storage: Storage = None,
    w_max: Rows = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply.", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0)] = 0.0,
) -> None:
    """Talk; the memory grows. `/focus` shows what the model sees, `/quit` leaves."""
    with open_session(path, model, storage, w_max=w_max) as session:
        console = Console()
        show.opened(console, session.stats())
        talk(session, console, max_new_tokens=max_new_tokens, temperature=temperature)


def append(
    path: Memory,
    files: Annotated[
        list[Path] | None, typer.Argument(help="Text files; none or - reads stdin.")
    ] = None,
    *,
    role: Annotated[str, typer.Option(help="user, assistant, system or tool.")] = "user",
    source: Annotated[str | None, typer.Option(help="Where it came from.")] = None,
    model: Model = None,
    storage: Storage = None,
    w_max: Rows = None,
) -> None:
    """Take text into the memory; durable when this ends. The model does not run."""
    inputs = files or [Path("-")]
    with open_session(path, model, storage, w_max=w_max) as session:
        before = session.stats().n_tokens
        with show.byte_bar(Console(stderr=True), count_bytes(inputs)) as advance:
            for name, piece, n_bytes in read_pieces(inputs, sys.stdin):
                session.append(piece, role=role, source=source or name)
                advance(n_bytes)
        after = session.stats().n_tokens
        is_kept = session.stats().path is not None
    where = "" if is_kept else f"; storage {storage} keeps nothing when this ends"
    Console().print(f"{after - before:,} tokens taken in, {after:,} in all{where}")


def generate(
    path: Memory,
    prompt: Annotated[str, typer.Argument(help="What to say to the model.")],
    *,
    model: Model = None,
    storage: Storage = None,
    w_max: Rows = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply.", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0)] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Seed for sampling.")] = None,
    remember: Annotated[bool, typer.Option(help="Keep prompt and reply.")] = True,
    png: Png = None,
    as_json: AsJson = False,
) -> None:
    """Answer one prompt from the memory, and say which spans the answer saw."""
    _check_picture(png)
    with open_session(path, model, storage, w_max=w_max) as session:
        reply = session.generate(
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            remember=remember,
        )
    if png is not None:
        png.write_bytes(focus_png(reply.focus))
    if as_json:
        print_json(reply.to_dict())
    else:
        show.reply(Console(), reply)


def search(
    path: Memory,
    query: Annotated[str, typer.Argument(help="Words to look for.")],
    *,
    k: Annotated[int, typer.Option("-k", help="How many hits.", min=1)] = 8,
    model: Model = None,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Find messages by their rare words."""
    with open_session(path, model, storage, read_only=True) as session:
        hits = session.search(query, k)
    if as_json:
        print_json([hit.to_dict() for hit in hits])
    else:
        show.hits(Console(), hits)


def focus(
    path: Memory,
    query: Annotated[str | None, typer.Argument(help="Score the entries for this text.")] = None,
    *,
    png: Png = None,
    model: Model = None,
    storage: Storage = None,
    w_max: Rows = None,
    as_json: AsJson = False,
) -> None:
    """Show what the model sees: one glyph per entry, coloured by level of detail."""
    _check_picture(png)
    with open_session(path, model, storage, read_only=True, w_max=w_max) as session:
        report = session.focus.report(query)
    if png is not None:
        png.write_bytes(focus_png(report))
    if as_json:
        print_json(report.to_dict())
    else:
        show.focus(Console(), report)


def stats(
    path: Memory, *, model: Model = None, storage: Storage = None, as_json: AsJson = False
) -> None:
    """Show counts and sizes."""
    with open_session(path, model, storage, read_only=True) as session:
        found = session.stats()
    if as_json:
        print_json(found.to_dict())
    else:
        show.stats(Console(), found)


def plugins_command() -> None:
    """List every provider, who offers it, and what failed to load."""
    show.plugins(Console(), default_plugins().catalogue)


def doctor(
    path: Annotated[
        Path | None, typer.Argument(help="A memory to look at.", show_default=False)
    ] = None,
    *,
    scrub: Annotated[bool, typer.Option("--scrub", help="Read and check all of it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check this installation, or with PATH what of a memory survives; status 1 if not all is fine.

    Needs no model and changes nothing.
    """
    if path is None and (scrub or as_json):
        message = "--scrub and --json look at a memory; name its directory"
        raise ConfigError(message, field="path", value=None)
    is_fine = _examine() if path is None else keep.look_at(path, scrub=scrub, as_json=as_json)
    if not is_fine:
        raise typer.Exit(1)


def _examine() -> bool:
    checks = examine(default_plugins())
    show.checks(Console(), checks)
    return all(check.is_fine for check in checks)


def _check_picture(png: Path | None) -> None:
    """Refuse a place for a picture before there is anything to lose."""
    if png is not None and (png.is_dir() or not png.parent.is_dir()):
        message = f"--png {png} cannot be written; give a file in a folder that exists"
        raise ConfigError(message, field="png", value=str(png))
