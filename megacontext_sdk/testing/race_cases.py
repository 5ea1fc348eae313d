"""One writer, whatever happens: processes that race, die, fork, delete the lock; threads; limits.

The losers of a race learn who won. A child forked from the owner can do no harm. Many threads share
one memory, and each sees prefixes only.
"""

from __future__ import annotations

import fcntl
import os
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from megacontext_sdk.errors import (
    ConfigError,
    MegaContextError,
    SessionClosedError,
    SessionLockedError,
)
from megacontext_sdk.memory.lod import Span
from megacontext_sdk.testing.crash_base import CrashBase, told
from megacontext_sdk.testing.damage import fingerprint
from megacontext_sdk.testing.story import Story, Truth

if TYPE_CHECKING:
    from pathlib import Path

    from megacontext_sdk.memory.directory.vault import OpenedMemory
    from megacontext_sdk.testing.victims import Victims

__all__ = ["RaceCases"]

_RACES = 6
_GROWTH_KIB = 24 * 1_024
_DESCRIPTORS = 64


class RaceCases(CrashBase):
    """Locks, forks, threads, descriptors."""

    # --- who writes --------------------------------------------------------------------------

    @pytest.mark.parametrize("n_processes", [2, 8])
    def test_one_of_many_processes_wins_and_the_others_learn_its_number(
        self, victims: Victims, tmp_path: Path, n_processes: int
    ) -> None:
        """They start together, on a memory that exists or not."""
        path, gate = tmp_path / "alice.mc", tmp_path / "gate"
        gate.touch()
        for number in range(_RACES * self.effort):
            with gate.open("rb") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                racers = [victims.start("race", path, gate=str(gate)) for _ in range(n_processes)]
                assert [racer.hear() for racer in racers] == ["ready"] * n_processes
            said = {racer: racer.hear().split() for racer in racers}
            winners = [racer for racer, words in said.items() if words[0] == "won"]
            assert len(winners) == 1, f"race {number}: {len(winners)} writers"
            for racer, words in said.items():
                if racer is not winners[0]:
                    assert words[:2] == ["locked", str(winners[0].pid)], f"race {number}"
                    racer.wait()
            winners[0].kill()
        self.check(path, Truth(), at_least=_RACES * self.effort)

    def test_the_same_process_may_not_open_twice(self, tmp_path: Path) -> None:
        """Nor through a link to the directory above."""
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        memory = self.open(tmp_path / "real" / "alice.mc")
        for path in (tmp_path / "real" / "alice.mc", tmp_path / "link" / "alice.mc"):
            with pytest.raises(SessionLockedError) as caught:
                self.open(path)
            assert caught.value.owner_pid == os.getpid()
        assert told(memory, 3) == 3
        memory.close()

    def test_links_in_the_place_of_our_files_are_refused(self, tmp_path: Path) -> None:
        """A symbolic link to a memory, or in the place of its data or of MEMORY."""
        path = tmp_path / "alice.mc"
        memory = self.open(path)
        told(memory, 3)
        memory.close()
        (tmp_path / "link.mc").symlink_to(path)
        with pytest.raises(ConfigError):
            self.open(tmp_path / "link.mc")
        for name in ("MEMORY", "HEAD", "LOCK"):
            (path / name).rename(tmp_path / name)
            (path / name).symlink_to(tmp_path / name)
            before = fingerprint(path)
            with pytest.raises(ConfigError):
                self.open(path)
            assert before == fingerprint(path)
            (path / name).unlink()
            (tmp_path / name).rename(path / name)
        self.check(path, Truth(), at_least=3)

    def test_a_careless_reader_in_the_owner_does_not_open_the_lock(
        self, victims: Victims, tmp_path: Path
    ) -> None:
        """The owner opens and closes its own files, as a backup would; it stays the owner."""
        path = tmp_path / "alice.mc"
        owner = victims.start("hold", path)
        assert owner.hear() == "1"
        with pytest.raises(SessionLockedError) as caught:
            self.open(path)
        assert caught.value.owner_pid == owner.pid
        other = victims.start("hold", path)
        other.wait_for_trace()
        assert "SessionLockedError" in other.trace
        owner.kill()
        self.check(path, Truth(), at_least=1)

    def test_a_killed_owner_leaves_the_memory_open_to_others(
        self, victims: Victims, tmp_path: Path
    ) -> None:
        """The kernel decides; what LOCK says is the number of the dead."""
        path = tmp_path / "alice.mc"
        for number in range(1, 6):
            owner = victims.start("hold", path)
            assert owner.hear() == str(number)
            owner.kill()
        assert self.check(path, Truth(), at_least=5) == 5

    def test_an_owner_whose_lock_was_deleted_writes_no_more(self, tmp_path: Path) -> None:
        """Somebody else may have a new LOCK by now: exactly one of the two goes on."""
        path = tmp_path / "alice.mc"
        memory = self.open(path)
        last = told(memory, 3)
        (path / "LOCK").unlink()
        (path / "LOCK").write_bytes(b"")
        with pytest.raises(SessionClosedError) as caught:
            self._go_on(memory)
        assert caught.value.reason == "failed"
        try:
            memory.close()
        except SessionClosedError as error:
            assert error.reason == "failed"  # noqa: PT017 - closing may or may not say it again
        self.check(path, Truth(), at_least=last)

    def _go_on(self, memory: OpenedMemory) -> None:
        Story().tell(memory.journal)[1].wait()

    # --- forks, threads ----------------------------------------------------------------------

    @pytest.mark.parametrize("ending", ["close", "collect", "exit"])
    def test_a_forked_child_that_ends_leaves_the_memory_alone(
        self, victims: Victims, tmp_path: Path, ending: str
    ) -> None:
        """It is told that it was forked; the parent goes on and is killed."""
        for number in range(4 * self.effort):
            path = tmp_path / f"{number}.mc"
            victim = victims.start("fork", path, ending=ending)
            said = [victim.hear() for _ in range(21)]
            victim.kill()
            assert "forked" in said
            assert self.check(path, Truth(), at_least=20) == 20

    def test_many_threads_append_and_read_until_they_are_killed(
        self, victims: Victims, tmp_path: Path
    ) -> None:
        """Eight write, eight read: all acknowledged is there, nobody saw history change."""
        path, rng = tmp_path / "alice.mc", Random(13)
        victim = victims.start("threads", path, writers=8, readers=8)
        assert victim.hear() == "open"
        said = [victim.hear() for _ in range(rng.randrange(600, 1_000) * self.effort)]
        said += victim.kill()
        assert [line for line in said if "reader" in line] == []
        memory = self.open(path, read_only=True)
        bodies = memory.journal.bodies(np.arange(memory.journal.n_messages))
        for line in said:
            writer, number, message, start = map(int, line.split())
            assert bodies[message] == f"{writer} {number}".encode()
            n_tokens = 1 + (number * 7 + writer) % 50
            ids = memory.journal.token_ids(Span(start, start + n_tokens))
            assert ids.tolist() == [1 + writer] * n_tokens
        assert len(set(bodies)) == len(bodies)
        memory.close()

    # --- limits and permissions --------------------------------------------------------------

    def test_64_descriptors_are_enough_and_their_end_is_typed(
        self, victims: Victims, tmp_path: Path
    ) -> None:
        """The memory works; opening too many more raises one of our errors."""
        said = victims.run("count_descriptors", tmp_path / "alice.mc", limit=_DESCRIPTORS)
        assert len(said) == 3, f"opening did not fail with a typed error: {said}"
        assert (said[0], said[2]) == ("60", "61")

    def test_ten_thousand_tiny_appends_do_not_make_the_process_grow(
        self, victims: Victims, tmp_path: Path
    ) -> None:
        """Resident memory after the second half is what it was after the first."""
        count = 10_000 * self.effort
        sizes = [int(text) for text in victims.run("tiny_appends", tmp_path / "a.mc", count=count)]
        assert len(sizes) == 10
        assert sizes[-1] - sizes[4] < _GROWTH_KIB, f"resident KiB: {sizes}"

    def test_a_folder_without_permissions_is_read_but_not_written(
        self, victims: Victims, copies: Path
    ) -> None:
        """Writing and creating are refused by type; reading works and changes nothing."""
        path = copies / "alice.mc"
        memory = self.open(path)
        told(memory, 20)
        memory.close()
        places = [*path.rglob("*"), path, copies]
        for place in places:
            if os.geteuid() == 0:
                os.chown(place, 65_534, 65_534)
            place.chmod(0o500 if place.is_dir() else 0o400)
        before = fingerprint(path)
        try:
            said = victims.run("read_as_nobody", path)
            assert said == ["ReadOnlyError", "ReadOnlyError", "20"]
            assert before == fingerprint(path)
        finally:
            for place in reversed(places):
                place.chmod(0o700 if place.is_dir() else 0o600)

    @pytest.mark.parametrize("what", ["missing", "empty", "file", "fifo", "foreign"])
    def test_what_is_no_memory_is_refused_by_type(self, tmp_path: Path, what: str) -> None:
        """Nothing there, an empty folder, a file, a pipe, a folder of something else."""
        path = tmp_path / "alice.mc"
        if what == "file":
            path.write_bytes(b"not a memory")
        elif what == "fifo":
            os.mkfifo(path)
        elif what != "missing":
            path.mkdir()
        if what == "foreign":
            (path / "notes.txt").write_bytes(b"mine")
        before = fingerprint(tmp_path)
        with pytest.raises(MegaContextError):
            self.open(path, read_only=True)
        with pytest.raises(MegaContextError):
            self.open(path, create=False)
        assert before == fingerprint(tmp_path)
