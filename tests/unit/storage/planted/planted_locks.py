"""A memory that locks as databases do, with POSIX locks: any close of the file lets go."""

import fcntl
import sys

from planted_stores import CarefulStorage

import megacontext_sdk.memory.directory.locks as locks_module


class PosixLocks:
    """Stands in for `fcntl` inside the module of the locks."""

    LOCK_EX, LOCK_SH, LOCK_NB, LOCK_UN = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_NB, fcntl.LOCK_UN

    @staticmethod
    def flock(descriptor, kind):
        try:
            fcntl.lockf(descriptor, kind)
        except PermissionError as error:
            raise BlockingIOError(error.errno, error.strerror) from error


class LocksThePosixWay(CarefulStorage):
    pass


if sys.argv[0].endswith("victims.py"):
    locks_module.fcntl = PosixLocks
