"""Simulated power cuts: unflushed writes and names lost, reordered, torn at 512 bytes.

A real one loses what no flush made durable; `LossyDisk` says what that may be. HEAD and MEMORY are
core's, but go through the same disk, so their order against the store's flushes is tested, too.
"""

from __future__ import annotations

import shutil
from random import Random
from typing import TYPE_CHECKING

import pytest

from megacontext_sdk.testing.crash_base import CrashBase
from megacontext_sdk.testing.lossy import LossyDisk
from megacontext_sdk.testing.story import Story, Truth

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["PowerCases"]

_CUTS = 300
_STEPS = 40
_FLUSH_EVERY = 13


class PowerCases(CrashBase):
    """A story is told on a disk that is cut at random calls."""

    sealing: Story = Story(body_bytes=500_000)
    """A story long enough for the store to seal, rotate or checkpoint while it is told."""

    @pytest.mark.parametrize("kind", ["short", "sealing"])
    def test_a_power_cut_loses_nothing_acknowledged(self, copies: Path, kind: str) -> None:
        """At 300 calls in all, from creating on: what was acknowledged opens and is all there."""
        if not self.takes_disk:
            pytest.skip("takes no disk=: nobody can tell what its flushes covered")
        story = Story() if kind == "short" else self.sealing
        n_calls = self._tell(copies / "count", story, {}, [])
        rng = Random(6)
        cuts: dict[int, int] = {}
        for _ in range(self.effort * (_CUTS * 4 if kind == "short" else _CUTS) // 5):
            at = rng.randrange(2, n_calls + 1)
            cuts[at] = cuts.get(at, 0) + 1
        found: list[tuple[Path, int, int]] = []
        self._tell(copies / "cut", story, cuts, found)
        truth = Truth(story)
        for path, at, last in found:
            self._check_cut(path, truth, at, last)

    def _check_cut(self, folder: Path, truth: Truth, at: int, last: int) -> None:
        path = folder / "alice.mc"
        try:
            if last or path.exists():
                self.check(path, truth, at_least=last)
        except Exception as error:
            error.add_note(f"power was cut before call {at}, {last} commits were acknowledged")
            raise
        shutil.rmtree(folder)

    def _tell(
        self,
        folder: Path,
        story: Story,
        cuts: dict[int, int],
        found: list[tuple[Path, int, int]],
    ) -> int:
        """Tell a story on a lossy disk, cutting before the calls asked for; return their number."""
        folder.mkdir()
        acknowledged = [0]

        def before(number: int) -> None:
            for copy in range(cuts.get(number, 0)):
                target = folder.with_name(f"{folder.name}-{number}-{copy}")
                last = acknowledged[0]
                disk.power_cut(Random(number * 1_000 + copy), target)
                found.append((target, number, last))

        disk = LossyDisk(folder, before)
        memory = self.open(folder / "alice.mc", disk=disk)
        for number in range(1, _STEPS + 1):
            last, ticket = story.tell(memory.journal)
            story.put_gists(memory.journal)
            if number % 3:  # sometimes two commits travel together
                ticket.wait()
                acknowledged[0] = last
            if number % _FLUSH_EVERY == 0:
                memory.journal.flush()
                acknowledged[0] = last
        memory.close()
        return disk.n_calls
