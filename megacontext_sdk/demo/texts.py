"""Real text that is nobody's fact: pages of books and task dialogues, cut into messages.

It reads the project's data folder where that exists and the packaged books elsewhere. It knows
nothing of facts or tokens.
"""

from __future__ import annotations

import json
import lzma
import random
import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Library", "Turn", "open_library"]

PAGE_CHARACTERS = 900
"""Length from which a page is full; a page ends with a paragraph."""

_DATA_FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data"
_BOOKS = Path("eval-dev/books.jsonl.xz")
_DIALOGUE = Path("eval-dev/dialogue.jsonl.xz")


@attrs.frozen
class Turn:
    """One message of real text: who says it, and the text."""

    role: str
    text: str


@attrs.frozen
class Library:
    """Texts to fill a history with.

    Attributes:
        books: whole books.
        dialogues: whole dialogues, turns as lines "User: ..." and "System: ...".
        origin: one line that says where they come from.
    """

    books: tuple[str, ...]
    dialogues: tuple[str, ...]
    origin: str

    def turns(self, seed: int = 0) -> Iterator[Turn]:
        """Yield all texts once as messages, a few pages and a dialogue in turn."""
        rng = random.Random(seed)
        books = rng.sample(self.books, len(self.books))
        dialogues = iter(rng.sample(self.dialogues, len(self.dialogues)))
        for book in books:
            pages = _pages(book)
            for page in pages:
                yield page
                if rng.random() < 0.25:
                    yield from _conversation(next(dialogues, ""))
        for dialogue in dialogues:
            yield from _conversation(dialogue)


def open_library(folder: Path | None = None) -> Library:
    """Open the data folder, or the packaged books where it is absent.

    Args:
        folder: a folder with `eval-dev/books.jsonl.xz` and `eval-dev/dialogue.jsonl.xz`; by
            default `../shared/data` beside the repository.

    Raises:
        FileNotFoundError: a folder was named and does not hold these files.
    """
    base = _DATA_FOLDER if folder is None else folder
    if folder is None and not (base / _BOOKS).is_file():
        return _packaged()
    return Library(
        books=_texts(base / _BOOKS),
        dialogues=_texts(base / _DIALOGUE),
        origin=f"books and task dialogues from {base}",
    )


def _packaged() -> Library:
    shelf = files(__package__) / "books"
    books = sorted(item.name for item in shelf.iterdir() if item.name.endswith(".txt"))
    return Library(
        books=tuple((shelf / name).read_text(encoding="utf-8") for name in books),
        dialogues=(),
        origin=f"packaged books ({', '.join(books)})",
    )


def _texts(path: Path) -> tuple[str, ...]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return tuple(json.loads(line)["text"] for line in lines)


def _pages(book: str) -> Iterator[Turn]:
    page: list[str] = []
    for paragraph in re.split(r"\n\s*\n", book):
        page.append(paragraph.strip())
        if sum(map(len, page)) >= PAGE_CHARACTERS:
            yield Turn("user", "\n\n".join(page))
            page = []
    if any(page):
        yield Turn("user", "\n\n".join(page))


def _conversation(dialogue: str) -> Iterator[Turn]:
    roles = {"User": "user", "System": "assistant", "Assistant": "assistant"}
    for line in dialogue.splitlines():
        speaker, _, text = line.partition(": ")
        if text.strip():
            yield Turn(roles.get(speaker, "user"), text.strip())
