"""`FilesystemStorage`: the storage contract over a log and sealed segments in plain files.

One thread writes, any thread reads, and so may other processes. Each write makes a new view and
puts it in the place of the old one. Locks between writers, HEAD and the chain are core's.
"""

from __future__ import annotations

import logging
from threading import Lock
from typing import TYPE_CHECKING, ClassVar

import attrs
import numpy as np

from megacontext_filesystem import frames
from megacontext_filesystem.careful import CarefulDisk
from megacontext_filesystem.checks import check_frame, check_gists, parts_of
from megacontext_filesystem.cloning import clone_view
from megacontext_filesystem.faults import FULL, closed, full, read_only
from megacontext_filesystem.opening import (
    create,
    first_manifest,
    newest_number,
    open_view,
    refreshed,
    remove_sealed,
    tidy,
)
from megacontext_filesystem.salvage import salvaged_view
from megacontext_filesystem.scan import after_batch
from megacontext_filesystem.sealing import seal
from megacontext_filesystem.tables import MapPool
from megacontext_sdk.contracts.checks import check_batch
from megacontext_sdk.contracts.disk import Disk
from megacontext_sdk.contracts.storage import NO_OPTIONS, Capabilities, Storage
from megacontext_sdk.errors import ConfigError, SessionClosedError, StorageError, StorageFullError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from megacontext_filesystem.view import View
    from megacontext_sdk.contracts.arrays import Bytes2D, Indices
    from megacontext_sdk.contracts.storage import (
        Batch,
        GistBatch,
        GistRows,
        Header,
        OpenMode,
        StoreState,
    )

__all__ = ["FilesystemStorage"]

logger = logging.getLogger(__name__)

_SEAL_BYTES = 64 * 2**20
_SEAL_FRAMES = 8_192  # so that reopening a log of tiny commits stays quick
_FLUSH_SEAL_BYTES = 4 * 2**20
_SEALED_PER_LOG = 4  # a flush of a large memory seals later: fewer and larger segments


class FilesystemStorage(Storage):
    """Keeps one generation of a memory in plain files.

    Example:
        >>> import tempfile, pathlib
        >>> from megacontext_sdk.contracts.storage import Header
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = FilesystemStorage(pathlib.Path(folder) / "data-000001")
        ...     store.open("create", Header(block_bytes=64))
        ...     print(store.state().seq)
        ...     store.close()
        0
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        durability=frozenset({"sync", "os"}), concurrent_readers=True, cheap_fork=True
    )

    def __init__(
        self, path: Path, options: Mapping[str, str] = NO_OPTIONS, *, disk: Disk | None = None
    ) -> None:
        super().__init__(path, options)
        self._real_disk = disk or Disk()
        self._disk = CarefulDisk(self._real_disk, path)
        self._pool = MapPool()
        self._mode: str | None = None
        self._view: View | None = None
        self._refreshing = Lock()
        self._seal_at = _SEAL_BYTES

    def __repr__(self) -> str:
        """Say where, never what."""
        return f"FilesystemStorage({str(self.path)!r})"

    def __reduce__(self) -> tuple[object, ...]:
        """Refuse pickling: open files cannot travel."""
        raise TypeError(
            f"a FilesystemStorage cannot be pickled; send the path {str(self.path)!r} and open it "
            "there"
        )

    # --- opening -----------------------------------------------------------------------------

    def open(self, mode: OpenMode, header: Header) -> None:
        """Open the files.

        Raises:
            ConfigError: an unknown option; a link, a device, somebody else's file.
            CorruptError: something is missing or damaged.
            FormatVersionError: made by a newer version.
            ReadOnlyError: no permission.
            StorageFullError: no space for a new store.
        """
        for name, value in self.options.items():
            raise ConfigError(
                f"storage filesystem has no option {name}={value!r}; it takes none",
                field="options",
                value=f"{name}={value}",
            )
        self._disk = CarefulDisk(self._real_disk, self.path)
        self._seal_at = _SEAL_BYTES
        width = header.block_bytes
        if mode == "salvage":
            self._view = salvaged_view(self.path, self._pool, width)
        elif mode == "read":
            self._view = open_view(self.path, self._pool, block_bytes=width, disk=None)
        else:
            self._open_to_write(width, is_new=mode == "create")
        self._mode = mode

    def _open_to_write(self, width: int, *, is_new: bool) -> None:
        try:
            if is_new:
                self._disk.mkdir(self.path)
                create(self._disk, self.path, first_manifest(width))
            view = open_view(self.path, self._pool, block_bytes=width, disk=self._disk)
            try:
                tidy(self._disk, self.path, view)
            except BaseException:
                view.log.close()
                raise
        except OSError as error:
            if error.errno in FULL and not isinstance(error, StorageError):
                raise full(self.path, 0) from error
            raise  # permissions and the like: the caller knows what they mean for a directory
        self._view = view

    def _opened(self) -> View:
        """Return the present view.

        Raises:
            SessionClosedError: closed, or a flush failed.
        """
        self._disk.check()
        view = self._view
        if view is None:
            raise closed(self.path)
        return view

    def _writable(self) -> View:
        view = self._opened()
        if self._mode in {"read", "salvage"}:
            raise read_only(self.path)
        return view

    def close(self) -> None:
        """Let go of all files; idempotent."""
        view, self._view, self._mode = self._view, None, None
        if view is not None:
            view.log.close()
        self._pool.clear()

    # --- writing -----------------------------------------------------------------------------

    def commit(self, batch: Batch, *, sync: bool = True) -> None:
        """Write a batch as one frame; with `sync` it is flushed when this returns.

        Raises:
            InvariantError: a gap in `seq`, or wrong shapes.
            ReadOnlyError: opened for reading.
            SessionClosedError: closed, or the disk failed.
            StorageFullError: no space; nothing of the batch is kept.
        """
        view = self._writable()
        log, before = view.log, view.state
        check_batch(batch, view.state, view.manifest.block_bytes)
        buffers, body = frames.batch_frame(
            batch,
            follows=(before.seq, before.chain),
            flushed=log.flushed,
            salt=bytes.fromhex(view.manifest.salt),
        )
        check_frame(body.end)
        at = log.append(self._disk, buffers)
        if sync:
            log.sync(self._disk)
        lengths = np.array([len(one) for one in batch.bodies], np.uint32)
        view.pending.add_batch(at, len(batch.commits), body, lengths)
        state = after_batch(
            before, batch.commits[-1], body.n_blocks, body.n_messages, bytes(batch.tail)
        )
        self._view = attrs.evolve(view, state=state)
        self._seal_if_due()

    def put_gists(self, batch: GistBatch) -> None:
        """Write gist rows to the log, without a flush of their own.

        Raises:
            InvariantError: nodes out of order, or wrong shapes.
            ReadOnlyError: opened for reading.
            SessionClosedError: closed, or the disk failed.
            StorageFullError: no space; nothing of the rows is kept.
        """
        view = self._writable()
        if not len(batch.nodes):
            return
        check_gists(batch, view)
        self._put_rows(batch, view)
        self._seal_if_due()

    def _put_rows(self, batch: GistBatch, view: View) -> None:
        """Write rows as frames of bounded size, all of them in one call or none."""
        buffers: list[bytes | memoryview] = []
        bodies = []
        for part in parts_of(batch):
            frame, body = frames.gists_frame(
                part,
                follows=(view.state.seq, view.state.chain),
                flushed=view.log.flushed,
                salt=bytes.fromhex(view.manifest.salt),
            )
            buffers += frame
            bodies.append(body)
        at = view.log.append(self._disk, buffers)
        for body in bodies:
            view.pending.add_gists(at, body)
            at += frames.HEADER_BYTES + body.end

    def flush(self) -> None:
        """Make everything written durable, and seal what is worth it.

        Raises:
            ReadOnlyError: opened for reading.
            SessionClosedError: closed, or the disk failed.
        """
        view = self._writable()
        if view.log.flushed < view.log.size:
            view.log.sync(self._disk)
        sealed = sum(info.payload for info in view.manifest.segments)
        due = max(_FLUSH_SEAL_BYTES, min(self._seal_at, sealed // _SEALED_PER_LOG))
        if view.log.size >= due:
            self._seal(view)
            self._disk.check()

    def _seal_if_due(self) -> None:
        view = self._view
        if view is not None and (
            view.log.size >= self._seal_at or view.log.n_frames >= _SEAL_FRAMES
        ):
            self._seal(view)

    def _seal(self, view: View) -> None:
        """Seal, if there is space; whatever was asked for is durable already."""
        try:
            self._view = seal(self._disk, self.path, view, self._pool)
        except StorageFullError:
            self._seal_at = view.log.size + _FLUSH_SEAL_BYTES
            logger.warning("%s has no space to seal its log; it goes on in the log", self.path)
            return
        except SessionClosedError:
            return  # the next call says so: what this one wrote is safe in the log
        self._seal_at = _SEAL_BYTES
        view.log.retire()
        remove_sealed(self._disk, self.path, view.manifest)

    # --- reading -----------------------------------------------------------------------------

    def state(self) -> StoreState:
        """Return what is committed; in read mode this picks up newer commits.

        Raises:
            CorruptError: what came since is damaged.
            SessionClosedError: closed, or the disk failed.
        """
        view = self._opened()
        if self._mode == "read":
            with self._refreshing:
                view = self._refresh(self._opened())
        return view.full_state()

    def _refresh(self, view: View) -> View:
        if newest_number(self.path) > view.manifest.number:
            fresh = open_view(
                self.path,
                self._pool,
                block_bytes=view.manifest.block_bytes,
                disk=None,
                known=view.tables,
            )
            self._view = fresh
            view.log.retire()
        elif view.log.size_on_disk() > view.log.size:
            self._view = fresh = refreshed(view)
        else:
            fresh = view
        return fresh

    def read_commits(self, start: int, stop: int) -> NDArray[np.void]:
        """Return COMMIT[n] with `start <= seq < stop`."""
        return self._opened().commits(start, stop)

    def read_blocks(self, blocks: Indices) -> Bytes2D:
        """Return uint8[n, block_bytes] in the order and with the repeats asked."""
        return self._opened().blocks(blocks)

    def read_messages(self, start: int, stop: int) -> NDArray[np.void]:
        """Return MESSAGE[n] of message numbers `[start, stop)`."""
        return self._opened().messages(start, stop)

    def read_bodies(self, messages: Indices) -> list[bytes]:
        """Return the bodies of the messages asked, in order."""
        return self._opened().bodies(messages)

    def read_gists(self, version: int, lod: int, nodes: Indices) -> GistRows:
        """Return the gist rows that exist; the others are zero and not `present`."""
        return self._opened().gists(version, lod, nodes)

    # --- copies ------------------------------------------------------------------------------

    def clone(self, target: Path, upto_seq: int) -> None:
        """Make a store at `target` that ends at a commit, out of hard links where it can.

        Raises:
            CorruptError: what has to be rewritten is damaged.
            LookupError: there is no such commit.
            SessionClosedError: this store is closed, or the disk failed.
            StorageFullError: no space; nothing is left at `target`.
        """
        clone_view(self._opened(), CarefulDisk(self._real_disk, target), target, upto_seq)
