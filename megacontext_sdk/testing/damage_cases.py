"""Damage to a closed memory: cut logs, flipped bits, holes, missing and foreign files.

Every case ends in one of two ways. Opening or reading raises a typed error, and a refused open has
changed no byte; or everything read back equals what was acknowledged. Nothing in between.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from megacontext_sdk.errors import (
    CommittedDataLostError,
    ConfigError,
    CorruptError,
    InvariantError,
    MegaContextError,
    StorageError,
)
from megacontext_sdk.memory.directory.head import Head, pack_slot
from megacontext_sdk.testing.crash_base import CrashBase, told
from megacontext_sdk.testing.damage import Damage, draw_damage, draw_flip, files_of, fingerprint
from megacontext_sdk.testing.story import Truth

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from megacontext_sdk.testing.victims import Victims

__all__ = ["DamageCases"]

_LOGGED = 12
_LAST = 3


class DamageCases(CrashBase):
    """Cuts, flips and worse, on copies of one memory."""

    @pytest.fixture
    def sound(self, copies: Path) -> Path:
        """Return a closed memory: most of it flushed, the last 12 commits behind the flush."""
        path = copies / "sound.mc"
        memory = self.open(path)
        told(memory, 60)
        memory.journal.flush()
        told(memory, 12)
        memory.close()
        return path

    @pytest.fixture
    def logged(self, victims: Victims, copies: Path) -> tuple[Path, Path, list[int]]:
        """Return a memory that nobody closed, its newest log, and the log's size per commit."""
        if self.log_glob is None:
            pytest.skip("declares no log_glob: there is no log to cut")
        path = copies / "logged.mc"
        said = victims.run("log", path, glob=self.log_glob, before=20, after=_LOGGED)
        files = {line.split()[1] for line in said}
        assert len(files) == 1, "the log changed while it was told; tell less"
        return path, Path(files.pop()), [int(line.split()[2]) for line in said]

    # --- T7: the log cut short ---------------------------------------------------------------

    def test_a_log_cut_inside_acknowledged_commits_is_refused(
        self, logged: tuple[Path, Path, list[int]], copies: Path
    ) -> None:
        """At every byte of the last three commits: typed, nothing changed."""
        path, log, sizes = logged
        truth, last = Truth(), 20 + _LOGGED
        found = Counter(
            self._judge(path, copies, [Damage("cut", log, cut)], truth, last)
            for cut in self._cuts(sizes)
            if cut < sizes[-1]
        )
        assert set(found) <= {"refused"}, "a cut log was opened"

    def test_a_log_cut_behind_head_ends_at_its_last_whole_commit(
        self, logged: tuple[Path, Path, list[int]], copies: Path
    ) -> None:
        """What was never acknowledged may go; what is there is whole, and the memory goes on."""
        path, log, sizes = logged
        last = 20 + _LOGGED
        self._set_head(path, last - _LAST)
        truth = Truth()
        for cut in self._cuts(sizes):
            copy = copies / "cut.mc"
            shutil.copytree(path, copy)
            Damage("cut", log, cut).apply(copy)
            whole = last - _LAST + sum(size <= cut for size in sizes[-_LAST:])
            memory = self.open(copy)
            try:
                assert whole == truth.check(memory, at_least=last - _LAST), f"cut at {cut}"
                if cut % 16 == 0:
                    truth.check(memory, at_least=told(memory, 2))
            finally:
                memory.close()
            shutil.rmtree(copy)

    def _cuts(self, sizes: Sequence[int]) -> list[int]:
        """Return where to cut: each step of the last commits, and around their ends."""
        edges = [size + by for size in sizes[-_LAST - 1 :] for by in (-1, 0, 1)]
        steps = range(sizes[-_LAST - 1], sizes[-1] + 1, self.log_step)
        return sorted({cut for cut in (*edges, *steps) if sizes[-_LAST - 1] <= cut <= sizes[-1]})

    def _set_head(self, path: Path, seq: int) -> None:
        """Make HEAD say what it might say after a power cut: an older commit."""
        memory = self.open(path, read_only=True)
        chain = memory.storage.read_commits(seq, seq + 1)["chain"].tobytes()
        memory.close()
        (path / "HEAD").write_bytes(pack_slot(Head(1, seq, chain)) * 2)

    def test_damage_in_the_middle_of_a_log_is_no_torn_tail(
        self, logged: tuple[Path, Path, list[int]], copies: Path
    ) -> None:
        """Where HEAD does not reach, whole commits behind the damage show that it is damage."""
        if not self.finds_damage_behind_head:
            pytest.skip("declares finds_damage_behind_head = False: HEAD and chain must do")
        path, log, sizes = logged
        last, truth, rng = 20 + _LOGGED, Truth(), Random(70)
        self._set_head(path, last - 8)
        for number in range(150 * self.effort):
            at = rng.randrange(sizes[-9], sizes[-2])
            if number % 3 == 0:  # where a commit begins are lengths and checksums
                at = rng.choice(sizes[-9:-2]) + rng.randrange(48)
            damage = Damage("flip", log, at, rng.randrange(8))
            # Everything up to the newest commit was acknowledged, whatever HEAD has of it.
            self._judge(path, copies, [damage], truth, last)

    # --- T8, T9: bits, holes, files ----------------------------------------------------------

    def test_flipped_bits_are_detected_or_harmless(self, sound: Path, copies: Path) -> None:
        """Any bit of any file: no silent loss, no wrong byte."""
        rng, truth = Random(8), Truth()
        n_flips = self.n_flips * self.effort
        self._judge_all(sound, copies, ([draw_flip(sound, rng)] for _ in range(n_flips)), truth)

    def test_holes_and_moved_ranges_are_detected_or_harmless(
        self, sound: Path, copies: Path
    ) -> None:
        """Zeroed, doubled, dropped, swapped ranges; foreign, cut, longer and missing files."""
        rng, truth = Random(9), Truth()
        n_damages = self.n_damages * self.effort
        cases = ([draw_damage(sound, rng)] for _ in range(n_damages))
        self._judge_all(sound, copies, cases, truth)

    def test_each_file_missing_is_detected_or_harmless(self, sound: Path, copies: Path) -> None:
        """Each file alone, and with another one cut short."""
        files = files_of(sound)
        alone = [[Damage("delete", file)] for file in files]
        pairs = [
            [Damage("delete", file), Damage("cut", other, (sound / other).stat().st_size // 2)]
            for file in files
            for other in files
            if other != file
        ]
        self._judge_all(sound, copies, [*alone, *pairs[: 60 * self.effort]], Truth())

    def test_a_missing_head_is_refused(self, sound: Path, copies: Path) -> None:
        """Nobody can say then how far the memory was acknowledged: it is no new memory."""
        found = self._judge(sound, copies, [Damage("delete", Path("HEAD"))], Truth(), 72)
        assert found == "refused"

    def test_an_older_head_does_not_excuse_damage(self, sound: Path, copies: Path) -> None:
        """The same flips where HEAD reaches only to the flush: nothing older is served."""
        if not self.finds_damage_behind_head:
            pytest.skip("declares finds_damage_behind_head = False: HEAD and chain must do")
        self._set_head(sound, 30)
        rng, truth = Random(80), Truth()
        data = [file for file in files_of(sound) if file.parent.name.startswith("data-")]
        n_flips = self.n_flips * self.effort // 3
        for _ in range(n_flips):
            # The last frame of a log may be a torn tail: then the last commit was never whole.
            flip = draw_flip(sound, rng, only=rng.choice(data))
            self._judge(sound, copies, [flip], truth, 72, at_least=71)

    def _judge_all(
        self, sound: Path, copies: Path, cases: Iterable[list[Damage]], truth: Truth
    ) -> Counter[str]:
        return Counter(self._judge(sound, copies, case, truth, 72) for case in cases)

    def _judge(
        self,
        sound: Path,
        copies: Path,
        damages: list[Damage],
        truth: Truth,
        last: int,
        *,
        at_least: int | None = None,
    ) -> str:
        """Damage a copy; return "refused", "detected" or "harmless", or fail."""
        copy = copies / "damaged.mc"
        shutil.copytree(sound, copy)
        try:
            changed = [damage.apply(copy) for damage in damages]
            if not any(changed):
                return "harmless"
            return self._outcome(copy, truth, (last if at_least is None else at_least, last))
        except BaseException as error:
            error.add_note("after " + " and ".join(map(str, damages)))
            raise
        finally:
            shutil.rmtree(copy)

    def _outcome(self, copy: Path, truth: Truth, bounds: tuple[int, int]) -> str:
        at_least, last = bounds
        before = fingerprint(copy)
        try:
            memory = self.open(copy)
        except (StorageError, ConfigError) as error:
            return self._refused(copy, before, error, last)
        try:
            found = truth.check(memory, at_least=at_least)
            assert found <= last, f"commit {found} was never made"
        except CorruptError:
            return "detected"
        finally:
            self._close(memory)
        return "harmless"

    def _refused(
        self, copy: Path, before: dict[str, str], error: MegaContextError, last: int
    ) -> str:
        assert before == fingerprint(copy), "a refused open changed a file"
        if isinstance(error, CommittedDataLostError):
            assert (error.have_seq or 0) < error.want_seq <= last
        return "refused"

    def _close(self, memory: object) -> None:
        """Close what may be damaged: it may say so, once more."""
        try:
            memory.close()  # type: ignore[attr-defined]
        except InvariantError:
            raise
        except MegaContextError:
            return
