"""Text of files and stdin in pieces that make good messages. Knows no session."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["count_bytes", "read_pieces"]

PIECE_CHARACTERS = 16_384
"""A piece ends with the first line that reaches this length."""

_STDIN = Path("-")


def count_bytes(inputs: Sequence[Path]) -> int | None:
    """Return the bytes of all inputs, None if one is stdin.

    Raises:
        FileNotFoundError: a file does not exist.
        ConfigError: one is a directory.
    """
    folders = [path for path in inputs if path.is_dir()]
    if folders:
        message = f"{folders[0]} is a directory; name the text files in it"
        raise ConfigError(message, field="files", value=str(folders[0]))
    return None if _STDIN in inputs else sum(path.stat().st_size for path in inputs)


def read_pieces(inputs: Sequence[Path], stdin: TextIO) -> Iterator[tuple[str, str, int]]:
    """Yield name, text and bytes of each piece; pieces without a word are left out.

    Raises:
        OSError: a file cannot be read.
        ConfigError: an input is not UTF-8 text.
    """
    for path in inputs:
        if path == _STDIN:
            yield from _as_text(path, _pieces("stdin", stdin))
        else:
            with path.open(encoding="utf-8") as lines:
                yield from _as_text(path, _pieces(path.name, lines))


def _as_text(path: Path, pieces: Iterator[tuple[str, str, int]]) -> Iterator[tuple[str, str, int]]:
    """Pass pieces on; say which input it is that cannot be read as text."""
    try:
        yield from pieces
    except UnicodeDecodeError as error:
        name = "stdin" if path == _STDIN else str(path)
        message = (
            f"{name} is not UTF-8 text (byte {error.object[error.start]:#04x}); convert it to "
            "UTF-8, or leave it out"
        )
        raise ConfigError(message, field="files", value=name) from error


def _pieces(name: str, lines: TextIO) -> Iterator[tuple[str, str, int]]:
    piece, length = [], 0
    # A line without an end is cut too: `readline` with a limit never holds more than a piece.
    while line := lines.readline(PIECE_CHARACTERS):
        piece.append(line)
        length += len(line)
        if length >= PIECE_CHARACTERS:
            yield from _piece(name, piece)
            piece, length = [], 0
    yield from _piece(name, piece)


def _piece(name: str, lines: list[str]) -> Iterator[tuple[str, str, int]]:
    text = "".join(lines)
    if text.strip():
        yield name, text, len(text.encode())
