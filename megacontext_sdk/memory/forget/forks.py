"""Memories made from this one that hold what is to be forgotten: who they are, and telling them.

A memory knows its forks from its settings. Copies it does not know of (backups, bundles, copied
folders) are out of reach, and so is the memory it was itself forked from.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from megacontext_sdk.errors import ForgetBlockedError, MegaContextError
from megacontext_sdk.memory.directory.manifest import read_meta

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from megacontext_sdk.memory.directory.opened import OpenedMemory
    from megacontext_sdk.memory.directory.replay import Redaction
    from megacontext_sdk.memory.reading import JournalReader

    OpenFork = Callable[[Path], OpenedMemory]
    """Opens the memory of a path for writing."""

__all__ = ["Fork", "blocked", "check_forks", "exports_with", "first_token", "forks_with"]


@attrs.frozen
class Fork:
    """A fork as its origin remembers it: identity, place, and where it was cut off."""

    uuid: str
    path: Path
    seq: int
    n_tokens: int


def first_token(journal: JournalReader, redaction: Redaction) -> int:
    """Return the first token that a redaction concerns; the end of the history if none."""
    first = journal.n_tokens
    if redaction.spans:
        first = redaction.spans[0].start
    if len(redaction.messages):
        number = int(redaction.messages[0])
        first = min(first, int(journal.messages(number, number + 1)["start"][0]))
    return first


def _entries(journal: JournalReader, name: str) -> list[dict[str, object]]:
    stored = journal.settings.get(name, [])
    rows = stored if isinstance(stored, list | tuple) else []
    return [row for row in rows if isinstance(row, dict)]


def forks_with(journal: JournalReader, redaction: Redaction) -> list[Fork]:
    """Return the forks that were cut behind the first token concerned and are still there."""
    first = first_token(journal, redaction)
    forks = [
        Fork(str(row["uuid"]), Path(str(row["path"])), int(row["seq"]), int(row["n_tokens"]))  # type: ignore[call-overload]
        for row in _entries(journal, "forks")
        if row.get("path")
    ]
    return [fork for fork in forks if fork.n_tokens > first and _is_there(fork)]


def _is_there(fork: Fork) -> bool:
    """Tell whether a fork is still where it was made; in doubt it is."""
    try:
        meta = read_meta(fork.path)
    except NotADirectoryError:
        return False
    except (OSError, MegaContextError):
        return True
    return meta is not None and meta.uuid == fork.uuid


def exports_with(journal: JournalReader, redaction: Redaction) -> tuple[str, ...]:
    """Return the places of exports that were made behind the first token concerned."""
    first = first_token(journal, redaction)
    return tuple(
        str(row.get("path"))
        for row in _entries(journal, "exports")
        if isinstance(row.get("n_tokens"), int) and row["n_tokens"] > first  # type: ignore[operator]
    )


def blocked(forks: Sequence[Fork], path: Path | None, why: str) -> ForgetBlockedError:
    """Return the error that forks stand in the way."""
    names = ", ".join(f"fork {fork.path}" for fork in forks)
    return ForgetBlockedError(
        f"{names}: {why}. Nothing was changed in {path or 'this memory'}",
        path=None if path is None else str(path),
        holders=tuple(str(fork.path) for fork in forks),
    )


def check_forks(forks: Sequence[Fork], open_fork: OpenFork, path: Path | None) -> None:
    """Check that each fork can be opened, before any of them is changed.

    Raises:
        ForgetBlockedError: one cannot.
    """
    for fork in forks:
        try:
            open_fork(fork.path).close()
        except (OSError, MegaContextError) as error:
            why = (
                f"holds what is to be forgotten and cannot be opened ({type(error).__name__}); "
                "close it elsewhere, or delete it"
            )
            raise blocked([fork], path, why) from error
