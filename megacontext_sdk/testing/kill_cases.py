"""SIGKILL at a random time, in the middle of everything a memory does.

What was acknowledged through the pipe is there afterwards byte for byte, commits are whole, and
nothing is refused.
"""

from __future__ import annotations

import time
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING

import attrs
import pytest

from megacontext_sdk.testing.crash_base import CrashBase
from megacontext_sdk.testing.story import HUGE, LARGE, PLAIN, Truth

if TYPE_CHECKING:
    from pathlib import Path

    from megacontext_sdk.testing.victims import Victim, Victims

__all__ = ["KillCases"]

_KILLS = 12
_MILESTONES = ("", "LOCK", "data-000001", "HEAD", "MEMORY", "cache")
_REOPEN_SECONDS = 5.0


def acknowledged(said: list[str]) -> int:
    """Return the newest commit a victim acknowledged."""
    return max((int(text) for text in said), default=0)


@attrs.frozen
class _Size:
    """A size that the data of a memory reach."""

    path: Path
    target: float

    def is_reached(self) -> bool:
        sizes = 0
        for file in self.path.glob("data-*/*"):
            with suppress(FileNotFoundError):  # a log that was folded meanwhile
                sizes += file.stat().st_size
        return sizes >= self.target


class KillCases(CrashBase):
    """Twelve kills each while creating, appending, appending much, flushing."""

    def test_a_kill_while_creating_leaves_a_path_that_opens(
        self, victims: Victims, tmp_path: Path
    ) -> None:
        """Creating is a switch like any other: it happened, or it did not."""
        rng, truth = Random(1), Truth()
        for number in range(_KILLS * self.effort):
            path = tmp_path / f"{number}.mc"
            victim = victims.start("append", path, story=attrs.asdict(PLAIN))
            milestone = path / _MILESTONES[number % len(_MILESTONES)]
            victim.linger_until(milestone.exists)
            victim.linger(rng.random() * 0.004)
            last = acknowledged(victim.kill())
            self._check(path, truth, last)

    @pytest.mark.parametrize("scenario", ["append", "flush"])
    def test_a_kill_loses_nothing_acknowledged(
        self, victims: Victims, tmp_path: Path, scenario: str
    ) -> None:
        """One memory, killed again and again; what is unacknowledged may be whole or absent."""
        rng, path = Random(2), tmp_path / "alice.mc"
        story = PLAIN if scenario == "append" else LARGE
        truth, last = Truth(story), 0
        for _ in range(_KILLS * self.effort):
            victim = victims.start(
                "append",
                path,
                story=attrs.asdict(story),
                flush_every=40 if story is PLAIN else 8,
            )
            said = self._kill(victim, rng, most=60 if story is PLAIN else 16)
            assert acknowledged(said) >= last
            last = self._check(path, truth, acknowledged(said))

    def test_a_kill_during_a_huge_append_leaves_whole_commits_and_the_retry_finishes_it(
        self, victims: Victims, tmp_path: Path
    ) -> None:
        """27 MiB in one call are three commits; the same key goes on where it was cut."""
        rng, truth = Random(3), Truth(HUGE)
        for number in range(_KILLS * self.effort):
            path = tmp_path / f"{number}.mc"
            victim = victims.start("append", path, story=attrs.asdict(HUGE), in_flight=0)
            last = int(victim.hear())
            # Somewhere in the three commits of this call, or in those of the next one.
            target = rng.random() * 1.3 * HUGE.commits_per_step * HUGE.body_bytes
            victim.linger_until(_Size(path, target).is_reached)
            last = max(last, acknowledged(victim.kill()))
            found = self._check(path, truth, last)
            if found % HUGE.commits_per_step:
                self._finish(path, truth)

    def _finish(self, path: Path, truth: Truth) -> None:
        memory = self.open(path)
        try:
            last, ticket = HUGE.tell(memory.journal)
            ticket.wait()
            assert last == memory.journal.seq
            truth.check(memory, at_least=last)
        finally:
            memory.close()

    def _kill(self, victim: Victim, rng: Random, *, most: int) -> list[str]:
        said = [victim.hear() for _ in range(rng.randrange(1, most))]
        victim.linger(rng.random() * 0.01)
        return said + victim.kill()

    def _check(self, path: Path, truth: Truth, last: int) -> int:
        started = time.monotonic()
        memory = self.open(path)
        seconds = time.monotonic() - started
        try:
            assert seconds < _REOPEN_SECONDS
            return truth.check(memory, at_least=last)
        finally:
            memory.close()
