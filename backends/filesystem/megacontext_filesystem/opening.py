"""Opening: from the files of a folder to a view, and what a writer tidies up before it goes on.

Manifest, then segments by name and size, then the log. Reading changes no byte; a reader beside a
writer may find that what a manifest names was sealed away meanwhile, and looks again.
"""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs

from megacontext_filesystem import manifest as manifests
from megacontext_filesystem.faults import corrupt
from megacontext_filesystem.log import Log
from megacontext_filesystem.manifest import Manifest
from megacontext_filesystem.scan import LogScan, Position
from megacontext_filesystem.sealing import new_pending
from megacontext_filesystem.view import View, make_tables, sealed_state
from megacontext_sdk.contracts.storage import NO_SETTING
from megacontext_sdk.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from megacontext_filesystem.careful import CarefulDisk
    from megacontext_filesystem.tables import MapPool, Table

__all__ = ["create", "first_manifest", "open_view", "refreshed", "remove_sealed", "scan_of", "tidy"]

_ATTEMPTS = 4  # the newest manifest is read again at most three times
_SEGMENT = re.compile(r"(block|commit|message|body|gist-v\d+-l\d+)-\d{15}\.mcs")


def first_manifest(block_bytes: int) -> Manifest:
    """Return the manifest of an empty store."""
    return Manifest(
        number=1,
        block_bytes=block_bytes,
        salt=secrets.token_hex(8),
        log=1,
        seq=0,
        chain=bytes(16).hex(),
        n_tokens=0,
        n_blocks=0,
        n_messages=0,
        setting=NO_SETTING,
        tail="",
    )


def create(disk: CarefulDisk, folder: Path, manifest: Manifest) -> None:
    """Begin the log of a manifest and put it in force, durably; the folder exists.

    Raises:
        OSError: as the disk does.
        SessionClosedError: a flush failed.
    """
    Log.create(disk, folder, manifest.log).close()
    disk.sync_directory(folder)
    manifests.publish(disk, folder, manifest)
    disk.sync_directory(folder)


def open_view(
    folder: Path,
    pool: MapPool,
    *,
    block_bytes: int,
    disk: CarefulDisk | None,
    known: Mapping[tuple[str, int, int], Table] | None = None,
) -> View:
    """Return what a folder holds.

    Args:
        folder: of the store.
        pool: maps segments.
        block_bytes: width of a block.
        disk: to go on writing with; None for reading.
        known: tables of an older view.

    Raises:
        ConfigError: a file of ours is a link, a device or somebody else's.
        CorruptError: something is missing or damaged.
        ReadOnlyError: no permission.
    """
    for attempt in range(_ATTEMPTS):
        newest = newest_number(folder)
        try:
            manifest = manifests.read_manifest(folder, newest)
            log = Log.open(disk, folder, manifest.log)
        except FileNotFoundError as error:
            # A writer may have sealed in between; without one this is damage.
            if attempt + 1 < _ATTEMPTS and newest_number(folder) > newest:
                continue
            missing = os.path.basename(str(error.filename))  # noqa: PTH119 - a name, not a path
            raise corrupt(folder / missing, "is missing") from error
        try:
            return _scanned(folder, pool, manifest, log, block_bytes, known or {})
        except BaseException:
            log.close()
            raise
    raise corrupt(folder / manifests.manifest_name(newest), "changes faster than it can be read")


def newest_number(folder: Path) -> int:
    """Return the number of the manifest in force.

    Raises:
        CorruptError: there is none.
    """
    try:
        found, _logs = manifests.numbers(folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise corrupt(folder, "is missing") from error
    if not found:
        raise corrupt(folder / manifests.manifest_name(1), "is missing")
    return found[-1]


def _scanned(
    folder: Path,
    pool: MapPool,
    manifest: Manifest,
    log: Log,
    block_bytes: int,
    known: Mapping[tuple[str, int, int], Table],
) -> View:
    if manifest.block_bytes != block_bytes:
        raise corrupt(
            folder / manifests.manifest_name(manifest.number),
            f"says that blocks have {manifest.block_bytes} bytes, not {block_bytes}",
        )
    state = sealed_state(manifest)
    view = View(
        state=state,
        manifest=manifest,
        tables=make_tables(folder, pool, manifest.segments, known),
        pending=new_pending(state, block_bytes),
        log=log,
    )
    return refreshed(view)


def refreshed(view: View) -> View:
    """Return the view with the frames that its log has got since.

    Raises:
        CorruptError: the log is damaged.
    """
    for attempt in range(_ATTEMPTS):
        scan = scan_of(view)
        try:
            scan.run(view.log.size_on_disk())
            return _moved(view, scan)
        except CorruptError:
            # A writer that cuts a half frame away and writes on can look like damage, for a moment.
            view = _moved(view, scan)
            if attempt + 1 == _ATTEMPTS:
                raise
    return view


def scan_of(view: View, *, is_tolerant: bool = False) -> LogScan:
    """Return the walk over a view's log from where the view has come to."""
    log = view.log
    scan = LogScan(
        log.path,
        log.descriptor,
        salt=bytes.fromhex(view.manifest.salt),
        block_bytes=view.manifest.block_bytes,
        pending=view.pending,
        position=Position(view.state, log.size, log.n_frames),
        tolerant=is_tolerant,
    )
    for (kind, version, lod), table in view.tables.items():
        if kind == "gist":
            stop = view.gist_stop.get((version, lod), table.end)
            scan.sealed_gists[version, lod] = (stop, table.stride)
    return scan


def _moved(view: View, scan: LogScan) -> View:
    view.log.size, view.log.n_frames = scan.position.offset, scan.position.n_frames
    return attrs.evolve(view, state=scan.position.state)


def tidy(disk: CarefulDisk, folder: Path, view: View) -> None:
    """Cut a torn tail off and remove what a writer that died left behind.

    Raises:
        CorruptError: a newer log holds something, so a manifest was lost.
        OSError: as the disk does.
        SessionClosedError: a flush failed.
    """
    manifest = view.manifest
    found, logs = manifests.numbers(folder)
    for number in logs:
        path = folder / manifests.log_name(number)
        if number > manifest.log and path.lstat().st_size:
            raise corrupt(path, "holds commits, but no manifest names it", offset=0)
    view.log.settle(disk, view.log.size)
    keep = {info.name for info in manifest.segments}
    for entry in list(os.scandir(folder)):
        is_stray = _SEGMENT.fullmatch(entry.name) and entry.name not in keep
        if is_stray or entry.name == manifests.TEMPORARY:
            disk.unlink(folder / entry.name)
    for number in logs:
        if number != manifest.log:
            disk.unlink(folder / manifests.log_name(number))
    for number in found[:-2]:
        disk.unlink(folder / manifests.manifest_name(number))


def remove_sealed(disk: CarefulDisk, folder: Path, before: Manifest) -> None:
    """Remove the log of a manifest that is not in force any more, and the manifest before it."""
    for name in (manifests.log_name(before.log), manifests.manifest_name(before.number - 1)):
        with suppress(OSError):  # the next open removes what stays
            disk.unlink(folder / name)
