"""The names inside a memory's directory: data folders by generation, and what may be removed.

It looks at names only; whether a generation is sound is found out in `memory.vault`.
"""

from __future__ import annotations

import logging
import re
import shutil
from typing import TYPE_CHECKING

from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_content", "data_folder", "remove_leftovers", "remove_new"]

logger = logging.getLogger(__name__)

_DATA = re.compile(r"data-\d{6}")
_UNFINISHED = re.compile(r"HEAD|LOCK|READERS|MEMORY\.part|data-000001")


def data_folder(directory: Path, generation: int) -> Path:
    """Return where a generation keeps its data."""
    return directory / f"data-{generation:06d}"


def check_content(directory: Path) -> bool:
    """Tell whether an existing directory holds a memory; False if one could be made in it.

    Raises:
        ConfigError: it holds something else.
    """
    names = {entry.name for entry in directory.iterdir()}
    if "MEMORY" in names:
        return True
    foreign = [name for name in names if not _UNFINISHED.fullmatch(name)]
    if foreign:
        raise ConfigError(
            f"{directory} is not a memory: it holds {len(foreign)} other entries and no MEMORY "
            "file; give a new or empty directory",
            field="path",
            value=str(directory),
        )
    return False


def remove_leftovers(directory: Path, generation: int) -> None:
    """Delete what a generation switch left behind, whether it was cut short before or after."""
    current = data_folder(directory, generation).name
    for entry in directory.iterdir():
        if _DATA.fullmatch(entry.name) and entry.name != current and not entry.is_symlink():
            logger.warning("removing %s, left over by an unfinished switch", entry)
            shutil.rmtree(entry)
    (directory / "MEMORY.part").unlink(missing_ok=True)


def remove_new(directory: Path, before: set[str], *, is_new: bool) -> None:
    """Remove what a failed create made; the names in `before` were there already."""
    for entry in directory.iterdir():
        if entry.name not in before and entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name not in before:
            entry.unlink(missing_ok=True)
    if is_new:
        directory.rmdir()
