"""Offline damage to the files of a memory: flips, holes, doubled and dropped ranges, deletions.

Every change is a small value that can be applied to a copy and printed: a failure names exactly
what was done to which file. Nothing here opens a memory.
"""

from __future__ import annotations

import os
import stat
from hashlib import blake2b
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

__all__ = ["HOLES", "Damage", "draw_damage", "draw_flip", "files_of", "fingerprint"]

HOLES = (16, 512, 4_096)
"""Sizes of zeroed ranges, in bytes."""

_KINDS = ("zero", "double", "drop", "foreign", "delete", "swap", "cut", "grow")
_ADVISORY = ("LOCK", "READERS")  # only a hint inside: the kernel holds the locks


def fingerprint(folder: Path) -> dict[str, str]:
    """Return name, kind, mode and digest of everything below a folder, to show what changed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        digest = ""
        if stat.S_ISREG(about.st_mode):
            digest = blake2b(path.read_bytes(), digest_size=16).hexdigest()
        found[str(path.relative_to(folder))] = f"{about.st_mode:o} {digest}"
    return found


def files_of(folder: Path) -> list[Path]:
    """Return the files of a memory that hold bytes, relative to its folder, in order of name."""
    return [
        path.relative_to(folder)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in _ADVISORY and path.stat().st_size
    ]


@attrs.frozen
class Damage:
    """One change to one file.

    Attributes:
        kind: "flip", "zero", "double", "drop", "foreign", "delete", "swap", "cut" or "grow".
        file: relative to the memory.
        offset: first byte changed.
        size: how many; of a flip the number of the bit.
    """

    kind: str
    file: Path
    offset: int = 0
    size: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.file} at {self.offset}, {self.size}"

    def apply(self, folder: Path) -> bool:
        """Change the file; return False if that left it as it was."""
        path = folder / self.file
        if self.kind == "delete":
            path.unlink()
            return True
        before = path.read_bytes()
        after = self._changed(before)
        if after == before:
            return False
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
        try:
            os.write(descriptor, after)
        finally:
            os.close(descriptor)
        return True

    def _changed(self, data: bytes) -> bytes:
        start, stop = self.offset, self.offset + self.size
        middle = data[start:stop]
        if self.kind == "flip":
            changed = bytearray(data)
            changed[start] ^= 1 << self.size
            return bytes(changed)
        pieces = {
            "zero": bytes(len(middle)) + data[stop:],
            "double": middle + middle + data[stop:],
            "drop": data[stop:],
            "swap": data[stop : stop + self.size] + middle + data[stop + self.size :],
            "cut": b"",
            "grow": data[start:] + bytes(self.size),
        }
        if self.kind == "foreign":
            return b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * (len(data) // 256 + 1)
        return data[:start] + pieces[self.kind]


def draw_flip(folder: Path, rng: Random, *, only: Path | None = None) -> Damage:
    """Return a flip of one bit: every file as likely as any other, so small ones count too."""
    file = only or rng.choice(files_of(folder))
    size = (folder / file).stat().st_size
    # Headers are short and matter most: half of the flips go to the first and last 256 bytes.
    edge = min(256, size)
    where = rng.choice(
        [
            rng.randrange(size),
            rng.randrange(size),
            rng.randrange(edge),
            size - 1 - rng.randrange(edge),
        ]
    )
    return Damage("flip", file, where, rng.randrange(8))


def draw_damage(folder: Path, rng: Random) -> Damage:
    """Return any other change."""
    kind = rng.choice(_KINDS)
    file = rng.choice(files_of(folder))
    length = (folder / file).stat().st_size
    size = rng.choice(HOLES) if kind in {"zero", "grow"} else rng.randrange(1, min(length, 600) + 1)
    # Some ranges begin where rows and pages do, others anywhere.
    unit = rng.choice([1, 1, 8, 64, 512])
    offset = rng.randrange(length) // unit * unit
    if kind == "zero" and rng.random() < 0.5:
        offset = offset // size * size
    return Damage(kind, file, offset, size)
