"""`LossyDisk`: what a power cut may leave of a folder, from a record of every change to it.

Changes happen for real, so that reads see them, and are noted until a flush makes them durable. A
cut then builds a legal state in another folder: of unflushed writes any 512-byte sectors, of
unflushed names any that do not depend on one that was lost. Changes made past the disk (locks,
caches) are taken over as they are.
"""

from __future__ import annotations

import os
from threading import RLock
from typing import TYPE_CHECKING

import attrs

from megacontext_sdk.contracts.disk import Disk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from random import Random

__all__ = ["LossyDisk"]

_SECTOR = 512


@attrs.define
class _Inode:
    """A file or directory: what is durable of it, and what is not yet.

    Attributes:
        data: durable bytes of a file; None for a directory.
        writes: unflushed changes of a file in order: (offset, bytes), or (size, None) for a cut.
        names: durable entries of a directory.
        changes: unflushed changes of entries in order, each {name: inode or None}.
    """

    data: bytes | None = None
    writes: list[tuple[int, bytes | None]] = attrs.field(factory=list)
    names: dict[str, int] = attrs.field(factory=dict)
    changes: list[dict[str, int | None]] = attrs.field(factory=list)


class LossyDisk(Disk):
    """Remembers what is not durable below a folder.

    Args:
        folder: an existing folder; everything in it now is durable.
        before: called before each change with its number, from 1.
    """

    def __init__(self, folder: Path, before: Callable[[int], None] = lambda _number: None) -> None:
        self._folder = folder
        self._before = before
        self._inodes: dict[int, _Inode] = {}
        self._lock = RLock()
        self.n_calls = 0
        for place in [folder, *sorted(folder.rglob("*"))]:
            self._adopt(place)

    # --- what changes ------------------------------------------------------------------------

    def _step(self) -> None:
        self.n_calls += 1
        self._before(self.n_calls)

    def _adopt(self, place: Path) -> int:
        """Know a file or directory as durable, in its present state; return its number."""
        number = place.lstat().st_ino
        if number not in self._inodes:
            data = None if place.is_dir() else place.read_bytes()
            self._inodes[number] = _Inode(data)
            if place != self._folder and place.parent.stat().st_ino in self._inodes:
                self._inodes[place.parent.stat().st_ino].names[place.name] = number
        return number

    def _note(self, parent: Path, change: dict[str, int | None]) -> None:
        number = parent.stat().st_ino
        if number in self._inodes:
            self._inodes[number].changes.append(change)

    def _file(self, descriptor: int) -> _Inode | None:
        return self._inodes.get(os.fstat(descriptor).st_ino)

    def open(self, path: Path, flags: int) -> int:
        """Open a file; a new one is known by nobody until its folder is flushed."""
        with self._lock:
            is_new = not path.exists()
            if flags & (os.O_CREAT | os.O_TRUNC):
                self._step()
            descriptor = super().open(path, flags)
            if is_new:
                number = os.fstat(descriptor).st_ino
                self._inodes[number] = _Inode(b"")
                self._note(path.parent, {path.name: number})
            elif flags & os.O_TRUNC and (file := self._file(descriptor)) is not None:
                file.writes.append((0, None))
            return descriptor

    def write(self, descriptor: int, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Append, and remember the bytes."""
        with self._lock:
            self._step()
            size = os.fstat(descriptor).st_size
            before = os.lseek(descriptor, 0, os.SEEK_CUR)
            super().write(descriptor, buffers)
            data = b"".join(bytes(buffer) for buffer in buffers)
            at = os.lseek(descriptor, 0, os.SEEK_CUR) - len(data)
            file = self._file(descriptor)
            assert at in {before, size}, "a write that neither follows the last one nor appends"
            if file is not None:
                file.writes.append((at, data))

    def pwrite(self, descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write at an offset, and remember the bytes."""
        with self._lock:
            self._step()
            super().pwrite(descriptor, data, offset)
            file = self._file(descriptor)
            if file is not None:
                file.writes.append((offset, bytes(data)))

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut a file, which may be lost as a write may."""
        with self._lock:
            self._step()
            super().truncate(descriptor, size)
            file = self._file(descriptor)
            if file is not None:
                file.writes.append((size, None))

    def sync(self, descriptor: int) -> None:
        """Make the bytes of a file durable; its name is another matter."""
        with self._lock:
            self._step()
            super().sync(descriptor)
            file = self._file(descriptor)
            if file is not None and file.data is not None:
                for write in file.writes:
                    file.data = _written(file.data, *write)
                file.writes = []

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable."""
        with self._lock:
            self._step()
            super().sync_directory(path)
            folder = self._inodes.get(path.stat().st_ino)
            if folder is not None:
                for change in folder.changes:
                    _apply(folder.names, change)
                folder.changes = []

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name."""
        with self._lock:
            self._step()
            super().link(source, target)
            self._note(target.parent, {target.name: target.lstat().st_ino})

    def rename(self, source: Path, target: Path) -> None:
        """Replace a name; both halves happen, or neither, within one directory."""
        with self._lock:
            self._step()
            number = source.lstat().st_ino
            super().rename(source, target)
            if source.parent == target.parent:
                self._note(target.parent, {source.name: None, target.name: number})
            else:
                self._note(target.parent, {target.name: number})
                self._note(source.parent, {source.name: None})

    def unlink(self, path: Path) -> None:
        """Remove a name, which may come back."""
        with self._lock:
            self._step()
            super().unlink(path)
            self._note(path.parent, {path.name: None})

    def mkdir(self, path: Path) -> None:
        """Make a directory; known by nobody until its parent is flushed."""
        with self._lock:
            self._step()
            super().mkdir(path)
            number = path.stat().st_ino
            self._inodes[number] = _Inode()
            self._note(path.parent, {path.name: number})

    # --- the cut -----------------------------------------------------------------------------

    def power_cut(self, rng: Random, target: Path) -> None:
        """Build what may be left in `target`, a new folder."""
        with self._lock:
            how = rng.choice(["nothing", "everything", "some", "some", "some"])
            share = {"nothing": 0.0, "everything": 1.0, "some": rng.random()}[how]
            self._build(self._folder.stat().st_ino, self._folder, target, (rng, share))

    def _build(
        self, number: int, source: Path | None, target: Path, luck: tuple[Random, float]
    ) -> None:
        """Build a directory; `source` is where it is now, if it still is."""
        target.mkdir(mode=0o700)
        folder = self._inodes[number]
        names = _surviving(folder, *luck)
        known = {*folder.names, *(name for change in folder.changes for name in change)}
        for name, entry in names.items():
            inode = self._inodes[entry]
            if inode.data is None:
                self._build(entry, source and source / name, target / name, luck)
            else:
                (target / name).write_bytes(_torn(inode, *luck))
                (target / name).chmod(0o600)
        if source is not None and source.is_dir():
            self._take_over(source, target, known)

    def _take_over(self, source: Path, target: Path, known: set[str]) -> None:
        """Copy what was made past the disk."""
        for place in source.iterdir():
            if place.name not in known and place.is_file():
                (target / place.name).write_bytes(place.read_bytes())
                (target / place.name).chmod(0o600)


def _apply(names: dict[str, int], change: dict[str, int | None]) -> None:
    for name, number in change.items():
        if number is None:
            names.pop(name, None)
        else:
            names[name] = number


def _surviving(folder: _Inode, rng: Random, share: float) -> dict[str, int]:
    """Return the entries after a cut: a change is lost, or kept if nothing before it was lost."""
    names = dict(folder.names)
    lost: set[str] = set()
    for change in folder.changes:
        if rng.random() < share and lost.isdisjoint(change):
            _apply(names, change)
        else:
            lost.update(change)
    return names


def _torn(file: _Inode, rng: Random, share: float) -> bytes:
    """Return the bytes after a cut: of each unflushed write all, none, or some sectors."""
    data = file.data or b""
    for offset, new in file.writes:
        if rng.random() < share:
            data = _written(data, offset, new)
        elif new is not None and rng.random() < 0.5:
            data = _sectors(data, offset, new, rng)
    return data


def _sectors(data: bytes, offset: int, new: bytes, rng: Random) -> bytes:
    """Write some of the sectors that a write touches; the file is as long as the last of them."""
    stop = offset + len(new)
    for sector in range(offset // _SECTOR, (stop - 1) // _SECTOR + 1):
        start, end = max(offset, sector * _SECTOR), min(stop, (sector + 1) * _SECTOR)
        if rng.random() < 0.5:
            data = _written(data, start, new[start - offset : end - offset])
    return data


def _written(data: bytes, offset: int, new: bytes | None) -> bytes:
    """Return a file's bytes after a write, or after a cut to `offset` bytes."""
    if new is None:
        return data[:offset].ljust(offset, b"\0")
    if offset == len(data):
        return data + new
    return data[:offset].ljust(offset, b"\0") + new + data[offset + len(new) :]
