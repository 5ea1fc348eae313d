"""A careful little log store, and careless ones: each has one bug that the crash kit must catch.

Imported by name, in the test process and by victims.
"""

import errno
import os
from zlib import crc32

import attrs
import msgspec
import numpy as np

from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.contracts.disk import Disk
from megacontext_sdk.contracts.storage import COMMIT, MESSAGE, NO_OPTIONS, Batch, Capabilities
from megacontext_sdk.errors import CorruptError, SessionClosedError, StorageFullError

HEAD_BYTES = 12  # magic, length, CRC of length and payload


def pack(batch):
    return msgspec.msgpack.encode(
        [
            batch.commits.tobytes(),
            batch.blocks.tobytes(),
            batch.tail,
            batch.messages.tobytes(),
            list(batch.bodies),
        ]
    )


def unpack(payload, block_bytes):
    commits, blocks, tail, messages, bodies = msgspec.msgpack.decode(payload)
    return Batch(
        commits=np.frombuffer(commits, COMMIT),
        blocks=np.frombuffer(blocks, np.uint8).reshape(-1, block_bytes),
        tail=tail,
        messages=np.frombuffer(messages, MESSAGE),
        bodies=tuple(bodies),
    )


class CarefulStorage(InMemoryStorage):
    """Frames in one file; rows are kept in memory, gists are not kept at all."""

    capabilities = Capabilities(durability=frozenset({"sync"}))

    def __init__(self, path, options=NO_OPTIONS, *, disk=None):
        super().__init__(path, options)
        self.disk = disk or Disk()
        self.log = path / "log"
        self.descriptor = -1
        self.failure = None

    # --- opening ---

    def open(self, mode, header):
        super().open("create", header)
        if mode == "create":
            self.disk.mkdir(self.path)
            self.descriptor = self.disk.open(self.log, os.O_CREAT | os.O_EXCL | os.O_RDWR)
            self.disk.sync(self.descriptor)
            self.sync_names()
        else:
            self.replay(mode)
        self._mode = mode

    def sync_names(self):
        self.disk.sync_directory(self.path)
        self.disk.sync_directory(self.path.parent)

    def replay(self, mode):
        try:
            data = self.log.read_bytes()
        except FileNotFoundError:
            raise self.corrupt("is missing") from None
        at = 0
        while (payload := self.frame(data, at)) is not None:
            super().commit(unpack(payload, self._block_bytes))
            at += HEAD_BYTES + len(payload)
        if at < len(data) and mode != "salvage" and self.goes_on(data, at):
            raise self.corrupt("is damaged in the middle")
        if mode == "write":
            self.descriptor = self.disk.open(self.log, os.O_RDWR)
            if at < len(data):
                self.disk.truncate(self.descriptor, at)
                self.disk.sync(self.descriptor)
            os.lseek(self.descriptor, at, os.SEEK_SET)

    def frame(self, data, at):
        """Return the payload of a whole frame, None if there is none."""
        head = data[at : at + HEAD_BYTES]
        size = int.from_bytes(head[4:8], "little")
        payload = data[at + HEAD_BYTES : at + HEAD_BYTES + size]
        whole = len(head) == HEAD_BYTES and head[:4] == b"PLNT" and len(payload) == size
        return payload if whole and self.check(head[4:8], payload) == head[8:] else None

    def check(self, size, payload):
        return crc32(size + payload).to_bytes(4, "little")

    def goes_on(self, data, at):
        """Tell whether a whole frame follows somewhere behind a bad one."""
        while (at := data.find(b"PLNT", at + 1)) >= 0:
            if self.frame(data, at) is not None:
                return True
        return False

    def corrupt(self, what):
        return CorruptError(
            f"{self.log} {what}", path=str(self.path), where="log", offset=None, have_seq=None
        )

    # --- writing ---

    def commit(self, batch, *, sync=True):
        if self.failure is not None:
            raise self.failure
        payload = pack(batch)
        size = len(payload).to_bytes(4, "little")
        before = os.lseek(self.descriptor, 0, os.SEEK_CUR)
        self.write([b"PLNT", size, self.check(size, payload), payload], before)
        self.sync()
        super().commit(batch, sync=sync)

    def write(self, buffers, before):
        try:
            self.disk.write(self.descriptor, buffers)
        except OSError as error:
            self.take_back(before)
            if error.errno not in {errno.ENOSPC, errno.EFBIG}:
                raise self.failed(error) from error
            raise StorageFullError("full", path=str(self.path), needed=0, free=0) from error

    def take_back(self, before):
        try:
            self.disk.truncate(self.descriptor, before)
        except OSError as error:
            raise self.failed(error) from error
        os.lseek(self.descriptor, before, os.SEEK_SET)

    def sync(self):
        try:
            self.disk.sync(self.descriptor)
        except OSError as error:
            raise self.failed(error) from error

    def failed(self, error):
        self.failure = SessionClosedError("failed", path=str(self.path), reason="failed")
        return self.failure

    def flush(self):
        if self.failure is not None:
            raise self.failure

    def close(self):
        super().close()
        if self.descriptor >= 0:
            self.disk.close(self.descriptor)
            self.descriptor = -1


class AcknowledgesEarly(CarefulStorage):
    """Writes a commit with the next one."""

    late = None

    def write(self, buffers, before):
        self.late, now = buffers, self.late
        if now is not None:
            super().write(now, before)


class NeverSyncs(CarefulStorage):
    def sync(self):
        pass


class SyncsWithTheNextCommit(CarefulStorage):
    """So HEAD is written before the flush."""

    def write(self, buffers, before):
        super().sync()
        super().write(buffers, before)

    def sync(self):
        pass


class ForgetsTheDirectory(CarefulStorage):
    def sync_names(self):
        pass


class RetriesTheFlush(CarefulStorage):
    def sync(self):
        try:
            self.disk.sync(self.descriptor)
        except OSError:
            super().sync()


class LeavesHalfAFrame(CarefulStorage):
    def take_back(self, before):
        pass


class LengthOutsideTheChecksum(CarefulStorage):
    """A long length reaches over the end: what follows seems to be a torn tail."""

    def check(self, size, payload):
        return crc32(payload).to_bytes(4, "little")

    def goes_on(self, data, at):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        return at + HEAD_BYTES + size <= len(data) and super().goes_on(data, at)


class TakesDamageForATornTail(CarefulStorage):
    def goes_on(self, data, at):
        return False


class ChecksNothing(CarefulStorage):
    def frame(self, data, at):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        payload = data[at + HEAD_BYTES : at + HEAD_BYTES + size]
        return payload if size and len(payload) == size else None

    def replay(self, mode):
        try:
            super().replay(mode)
        except (msgspec.MsgspecError, ValueError, TypeError):
            raise self.corrupt("makes no sense") from None


class CutsWhileReading(CarefulStorage):
    def replay(self, mode):
        super().replay("write")


class FallsBackToACopy(CarefulStorage):
    """Keeps a copy of the log at a flush and serves that if the log is damaged."""

    def flush(self):
        super().flush()
        if self._state.seq and not self.path.joinpath("log.old").exists():
            self.path.joinpath("log.old").write_bytes(self.log.read_bytes())

    def replay(self, mode):
        log = self.log
        try:
            super().replay(mode)
        except CorruptError:
            if not self.path.joinpath("log.old").exists():
                raise
            self._clear(self._block_bytes)
            self.log = self.path / "log.old"
            super().replay(mode)
        self.log = log


class UpdatesTheTailInPlace(CarefulStorage):
    """Tail and frame are two files, flushed one after the other."""

    def commit(self, batch, *, sync=True):
        descriptor = self.disk.open(self.path / "tail", os.O_RDWR | os.O_CREAT)
        size = len(batch.tail).to_bytes(1, "little")
        self.disk.pwrite(descriptor, (size + batch.tail).ljust(64, b"\0"), 0)
        self.disk.sync(descriptor)
        self.disk.close(descriptor)
        self.disk.sync_directory(self.path)
        super().commit(batch, sync=sync)

    def replay(self, mode):
        super().replay(mode)
        tail = self.path / "tail"
        if tail.exists() and self._state.seq:
            data = tail.read_bytes()
            self._state = attrs.evolve(self._state, tail=data[1 : 1 + data[0]])


class ChildRewritesTheLog(CarefulStorage):
    """A forked child closes the engine, which folds the log into a new file."""

    def open(self, mode, header):
        super().open(mode, header)
        if mode == "write":
            os.register_at_fork(after_in_child=self.fold)

    def fold(self):
        folded = self.path / "log.new"
        folded.write_bytes(self.log.read_bytes())
        folded.replace(self.log)
