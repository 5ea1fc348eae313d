"""How commands fail: one line that says what is wrong and what to do, never a traceback."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ParamSpec

import typer

from megacontext_sdk.errors import MegaContextError, SessionNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["plainly"]

_P = ParamSpec("_P")


def plainly(command: Callable[_P, object]) -> Callable[_P, None]:
    """Turn a command's errors into one line on stderr and exit status 1."""

    @functools.wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (MegaContextError, OSError, ValueError) as error:
            typer.secho(f"{type(error).__name__}: {_said(error)}", fg="red", err=True)
            raise typer.Exit(1) from error

    return run


def _said(error: Exception) -> str:
    """Return what an error says to somebody who types: the thing, the value, the fix."""
    if isinstance(error, SessionNotFoundError):
        return (
            f"there is no memory at {error.path}; check the path, or make one with append or chat"
        )
    if isinstance(error, OSError) and not isinstance(error, MegaContextError) and error.filename:
        reason = (error.strerror or "cannot be used").lower()
        return f"{error.filename}: {reason}; check the path and its permissions"
    return str(error)
