"""Disks that fail or are full: typed errors, acknowledged data intact, and work goes on.

A flush that failed is never tried again. What is full is full for writing only.
"""

from __future__ import annotations

import errno
import shutil
from random import Random
from typing import TYPE_CHECKING

import pytest

from megacontext_sdk.testing.crash_base import CrashBase, told
from megacontext_sdk.testing.faults import FaultDisk
from megacontext_sdk.testing.preload import build_preload
from megacontext_sdk.testing.scenarios import endure
from megacontext_sdk.testing.story import Story, Truth
from megacontext_sdk.testing.victims import Victims

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DiskCases"]

_FAULTS = ("once", "for ever", "full once", "full for ever", "short")
_MAX_CALLS = 200
_MAX_ENGINE_CALLS = 40
_OFFSETS = 25
_FULL_MOUNT = 'mount -t tmpfs -o size=3m,mode=0700 tmpfs "$0" && exec "$@"'

_LARGER = Story(body_bytes=20_000)


def _numbers(said: list[str]) -> list[int]:
    return [int(text) for text in said if text.isdecimal()]


class DiskCases(CrashBase):
    """Calls that fail, files that may not grow, a small file system."""

    @pytest.mark.parametrize("fault", _FAULTS)
    def test_a_failing_call_is_typed_and_loses_nothing_acknowledged(
        self, copies: Path, fault: str
    ) -> None:
        """Each call in turn fails, from creating on; the story is told through it."""
        if not self.takes_disk:
            pytest.skip("takes no disk=: see the test with the preloaded library")
        truth, healthy = Truth(), FaultDisk()
        self._endure(copies / "healthy.mc", healthy)
        for nth in range(1, min(healthy.n_calls, _MAX_CALLS) + 1):
            path = copies / f"{nth}.mc"
            disk = FaultDisk(
                nth,
                errno.ENOSPC if "full" in fault or fault == "short" else errno.EIO,
                is_short=fault == "short",
                is_for_ever="ever" in fault,
            )
            said = self._endure(path, disk)
            assert disk.n_failed, "the call was never made"
            assert disk.retried == [], f"call {nth}: a failed flush was tried again"
            self._check_after(path, truth, said, f"call {nth}, {fault}")

    def _endure(self, path: Path, disk: FaultDisk) -> list[str]:
        said: list[str] = []
        endure(lambda: self.open(path, disk=disk), lambda text: said.append(str(text)))
        return said

    def _check_after(self, path: Path, truth: Truth, said: list[str], what: str) -> None:
        last = max(_numbers(said), default=0)
        try:
            self.check(path, truth, at_least=last)
        except Exception as error:
            error.add_note(f"after {what}: {said}")
            raise
        shutil.rmtree(path)

    @pytest.mark.parametrize("fault", ["once", "for ever", "full once", "short"])
    def test_a_failing_call_of_the_engine_is_typed_and_loses_nothing_acknowledged(
        self, copies: Path, tmp_path: Path, fault: str
    ) -> None:
        """The same inside a native engine, through a library loaded in front of it."""
        if self.takes_disk:
            pytest.skip("takes disk=: its calls fail without a compiler")
        library = build_preload(tmp_path)
        if library is None:
            pytest.skip("there is no C compiler to make the failing library with")
        truth = Truth()
        code = {"short": 0, "full once": errno.ENOSPC}.get(fault, errno.EIO)
        with Victims(self.storage, environment={"LD_PRELOAD": str(library)}) as victims:
            for nth in range(1, _MAX_ENGINE_CALLS + 1, 1 if fault == "once" else 3):
                path = copies / f"{nth}.mc"
                said = victims.run(
                    "endure_calls", path, nth=nth, code=code, is_for_ever="ever" in fault
                )
                assert said[-1].endswith("retried 0"), f"call {nth}: a failed flush was tried again"
                self._check_after(path, truth, said, f"call {nth}, {fault}")

    # --- full disks --------------------------------------------------------------------------

    def test_a_full_disk_keeps_what_was_acknowledged_and_work_resumes(
        self, victims: Victims, copies: Path
    ) -> None:
        """No file may grow past one of 25 sizes; then the limit is lifted."""
        rng, truth = Random(10), Truth()
        for number in range(_OFFSETS * self.effort):
            path = copies / f"{number}.mc"
            memory = self.open(path)
            told(memory, 4)
            memory.close()
            said = victims.run("fill", path, limit=rng.randrange(1, 12_000), body_bytes=24)
            assert "full" in said
            self._check_after(path, truth, said, "a limit of the file size")

    def test_a_full_file_system_keeps_what_was_acknowledged_and_work_resumes(
        self, copies: Path, tmp_path: Path
    ) -> None:
        """Three megabytes, all of them used; then a file is removed."""
        mounted = tmp_path / "mounted"
        mounted.mkdir()
        unshare = shutil.which("unshare")
        if unshare is None:
            pytest.skip("there is no `unshare` to mount a small file system with")
        prefix = [unshare, "-rm", "sh", "-c", _FULL_MOUNT, str(mounted)]
        victims = Victims(self.storage, prefix=prefix)
        if not victims.is_alive():
            pytest.skip("this machine allows no mounts in a namespace of our own")
        with victims:
            path, copy = mounted / "alice.mc", copies / "alice.mc"
            room = str(mounted / "ballast")
            said = victims.run(
                "fill",
                path,
                body_bytes=_LARGER.body_bytes,
                ballast=room,
                copy=str(copy),
            )
        assert "full" in said
        self._check_after(copy, Truth(_LARGER), said, "a full file system")
