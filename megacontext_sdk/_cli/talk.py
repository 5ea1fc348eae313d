"""The chat: lines in, replies streamed out, commands that begin with a slash."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megacontext_sdk._cli import show
from megacontext_sdk.errors import MegaContextError
from megacontext_sdk.results import TextDelta

if TYPE_CHECKING:
    from rich.console import Console

    from megacontext_sdk.session import MemorySession

__all__ = ["talk"]

_HELP = "/focus shows what the model sees, /stats counts, /quit leaves"


def talk(
    session: MemorySession, console: Console, *, max_new_tokens: int, temperature: float
) -> None:
    """Read lines and answer them until `/quit` or the end of the input.

    An error or Ctrl-C ends the reply, never the chat: what was generated is kept.

    Args:
        session: whom to talk to.
        console: reads and writes.
        max_new_tokens, temperature: of each reply.
    """
    console.print(_HELP, style="dim", markup=False)
    while (line := _read(console)) is not None:
        if line.startswith("/"):
            if line == "/quit":
                return
            _command(session, console, line)
        elif line:
            _answer(session, console, line, max_new_tokens, temperature)


def _read(console: Console) -> str | None:
    try:
        return console.input("[bold]> [/bold]").strip()
    except (EOFError, KeyboardInterrupt):
        return None


def _command(session: MemorySession, console: Console, line: str) -> None:
    if line == "/focus":
        show.focus(console, session.focus.report())
    elif line == "/stats":
        show.stats(console, session.stats())
    else:
        console.print(f"{line} is no command; {_HELP}", style="yellow", markup=False)


def _answer(
    session: MemorySession, console: Console, line: str, max_new_tokens: int, temperature: float
) -> None:
    stream = session.stream(line, max_new_tokens=max_new_tokens, temperature=temperature)
    try:
        for item in stream:
            if isinstance(item, TextDelta):
                console.print(item.text, end="", markup=False, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        console.print(" (stopped)", style="dim", end="")
    except MegaContextError as error:
        console.print(f"{type(error).__name__}: {error}", style="red", markup=False, end="")
    finally:
        close = getattr(stream, "close", None)
        if close is not None:
            close()
    console.print()
