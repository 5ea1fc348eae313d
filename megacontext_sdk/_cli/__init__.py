"""The command line, `megacontext`: parse, call the public function, print.

It needs the extra `cli` (typer and rich), which nothing else imports.
"""

from __future__ import annotations

__all__ = ["main"]

_NEEDED = ("typer", "rich")


def main() -> None:
    """Run the command line.

    Raises:
        SystemExit: always; with one line that says what to install if typer or rich is missing.
    """
    try:
        from megacontext_sdk._cli.app import build_app
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _NEEDED:
            raise
        message = (
            f"the megacontext command needs {missing}; run `pip install 'megacontext-sdk[cli]'`"
        )
        raise SystemExit(message) from error
    build_app()()
