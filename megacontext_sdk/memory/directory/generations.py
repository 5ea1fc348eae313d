"""The names inside a memory's directory: data folders by generation, and what may be removed.

It looks at names only; whether a generation is sound is found out in `memory.directory.vault`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from megacontext_sdk.errors import ConfigError
from megacontext_sdk.memory.directory.durable import remove_file, remove_tree, write_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from megacontext_sdk.contracts.disk import Disk
    from megacontext_sdk.memory.directory.manifest import MemoryMeta

__all__ = [
    "MARKER",
    "check_content",
    "check_unfinished",
    "data_folder",
    "keep_names",
    "remove_leftovers",
    "remove_new",
    "rescue_folder",
]

MARKER = "PART"
"""File that tells a memory which is being made, or was when its maker died, from a whole one."""

_DATA = re.compile(r"data-(\d{6})")
_UNFINISHED = re.compile(r"HEAD|LOCK|READERS|(HEAD|MEMORY)\.part|PART|data-000001")


def data_folder(directory: Path, generation: int) -> Path:
    """Return where a generation keeps its data."""
    return directory / f"data-{generation:06d}"


def rescue_folder(directory: Path, generation: int) -> Path:
    """Return where a replaced generation is kept: a memory of its own, with MEMORY and HEAD."""
    return data_folder(directory / "rescue", generation)


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


def check_unfinished(directory: Path) -> None:
    """Check that a directory holds nothing but what a making that was cut short leaves.

    Raises:
        ConfigError: it is a whole memory, or holds something else.
    """
    names = {entry.name for entry in directory.iterdir()}
    if MARKER in names:
        names.discard("MEMORY")
    if any(not _UNFINISHED.fullmatch(name) for name in names):
        raise ConfigError(
            f"{directory} is in the way: it is no memory that was left unfinished; move it away "
            "or choose another path",
            field="path",
            value=str(directory),
        )


def _generations(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield the data folders in a folder with their numbers; links are none."""
    if not folder.is_dir() or folder.is_symlink():
        return
    for entry in sorted(folder.iterdir()):
        number = _DATA.fullmatch(entry.name)
        if number is not None and not entry.is_symlink():
            yield int(number[1]), entry


def keep_names(directory: Path, generation: int, disk: Disk) -> None:
    """Copy MEMORY and HEAD to where a generation will be kept; its data follow after the switch.

    Raises:
        OSError: that failed; an open removes the copies again.
    """
    folder = rescue_folder(directory, generation)
    if not folder.parent.exists():
        disk.mkdir(folder.parent)
    remove_tree(disk, folder)
    disk.mkdir(folder)
    for name in ("MEMORY", "HEAD"):
        if (directory / name).is_file():
            write_file(disk, folder / name, (directory / name).read_bytes())
    for made in (folder, folder.parent, directory):
        disk.sync_directory(made)


def remove_leftovers(directory: Path, meta: MemoryMeta, disk: Disk) -> list[str]:
    """Finish what a generation switch began, or remove it if MEMORY was never replaced.

    The generation before goes, or is moved to rescue/ if MEMORY says so; and before it everything
    in cache/, which was made from it.

    Returns:
        The names of the data folders that went.

    Raises:
        OSError: something could not be removed or moved; the next call goes on.
    """
    gone = [found for found in _generations(directory) if found[0] != meta.generation]
    if any(number < meta.generation for number, _folder in gone):
        remove_tree(disk, directory / "cache")
    for number, folder in gone:
        if number == meta.rescue:
            _move(directory, folder, number, disk)
        else:
            remove_tree(disk, folder)
    for number, folder in _generations(directory / "rescue"):
        # Of a switch that never happened: copies of two small files, and no data.
        if number >= meta.generation and not data_folder(folder, number).exists():
            remove_tree(disk, folder)
    for name in ("MEMORY.part", "HEAD.part", MARKER):
        remove_file(disk, directory / name)
    if gone:
        disk.sync_directory(directory)
    return [folder.name for _number, folder in gone]


def _move(directory: Path, folder: Path, generation: int, disk: Disk) -> None:
    """Move the data of a generation to rescue/."""
    kept = rescue_folder(directory, generation)
    for needed in (kept.parent, kept):
        if not needed.exists():
            disk.mkdir(needed)
    disk.rename(folder, kept / folder.name)
    for changed in (kept, kept.parent, directory):
        disk.sync_directory(changed)


def remove_new(directory: Path, before: set[str], disk: Disk, *, is_new: bool) -> None:
    """Remove what a failed create made; the names in `before` were there already.

    Raises:
        OSError: something cannot be removed.
    """
    for entry in directory.iterdir():
        if entry.name not in before:
            remove_tree(disk, entry)
    if is_new:
        disk.rmdir(directory)
