"""Where memories live that are killed and damaged by the thousand: in RAM, if there is room."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["scratch_folder"]

_MEMORY_DISK = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
_ENOUGH_BYTES = 2**30  # containers often get 64 MiB, less than one huge append


def scratch_folder() -> Path:
    """Make a folder, in RAM if that may be written to and holds a GiB; the caller removes it."""
    is_usable = os.access(_MEMORY_DISK, os.W_OK)
    if is_usable and shutil.disk_usage(_MEMORY_DISK).free >= _ENOUGH_BYTES:
        return Path(tempfile.mkdtemp(dir=_MEMORY_DISK))
    return Path(tempfile.mkdtemp())
