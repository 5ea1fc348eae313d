"""Rows of JSON-lines files, plain or xz-compressed: each one read, checked and named on failure.

It knows that rows are objects with certain fields, not what they mean.
"""

from __future__ import annotations

import json
import lzma
from typing import TYPE_CHECKING, Any, TypeAlias

from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Row", "bad_row", "read_rows", "read_text"]

Row: TypeAlias = "dict[str, Any]"
"""One row: a JSON object."""


def read_rows(path: Path, needed: dict[str, type]) -> Iterator[tuple[int, Row]]:
    """Yield `(line number from 1, row)`; empty lines are passed over.

    Args:
        path: a `.jsonl` or `.jsonl.xz` file.
        needed: fields every row must have, with the type of each.

    Raises:
        ConfigError: the file cannot be read, or a row is no object with these fields.
    """
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise bad_row(path, number, "is no JSON", "write one JSON object per line") from error
        if not isinstance(row, dict):
            raise bad_row(path, number, "is no JSON object", "write one JSON object per line")
        for name, kind in needed.items():
            if not isinstance(row.get(name), kind):
                what = "has no field" if name not in row else "has another type in its field"
                fix = f"give every row {name!r} as {kind.__name__}"
                raise bad_row(path, number, f"{what} {name!r}", fix)
        yield number, row


def read_text(path: Path) -> str:
    """Return the text of a plain file.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    return "".join(line for _, line in _lines(path))


def bad_row(path: Path, line: int, what: str, fix: str) -> ConfigError:
    """Return the error for a row; it never quotes the row."""
    return ConfigError(
        f"line {line} of {path} {what}; {fix}", field="data", value=str(path), line=line
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield `(number, line)`, with an error of ours for whatever stops it."""
    number = 0
    try:
        # Only "\n" ends a row: JSON may hold every other kind of line end inside a string.
        opened = lzma.open if path.suffix == ".xz" else open
        with opened(path, "rt", encoding="utf-8", newline="\n") as file:
            for line in file:
                number += 1
                yield number, line
    except UnicodeDecodeError as error:
        raise bad_row(path, number + 1, "is not UTF-8", "save the file as UTF-8") from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        what = f"cannot be read ({type(error).__name__})"
        raise bad_row(path, number + 1, what, "check the file; copy it again") from error
