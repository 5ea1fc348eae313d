"""What the crash tests stand on: the class under test, its victims, a place for copies.

The attributes of `CrashBase` are what a backend declares about itself; nothing is sniffed.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from megacontext_sdk.testing.kit import Kit
from megacontext_sdk.testing.scenarios import store_class
from megacontext_sdk.testing.scratch import scratch_folder
from megacontext_sdk.testing.story import PLAIN, kept
from megacontext_sdk.testing.victims import Victims

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from megacontext_sdk.contracts.disk import Disk
    from megacontext_sdk.memory.directory.stores import StorageFactory
    from megacontext_sdk.memory.directory.vault import OpenedMemory
    from megacontext_sdk.testing.story import Story, Truth

__all__ = ["CrashBase", "told"]

_VICTIMS = pytest.StashKey[Victims]()


def _close_victims(node: pytest.Item | pytest.Collector) -> None:
    """End the victims of a class; whoever runs its tests in several goes gets new ones."""
    node.stash[_VICTIMS].close()
    del node.stash[_VICTIMS]


class CrashBase(Kit):
    """Declarations and fixtures of `CrashConformance`.

    Attributes:
        storage: import string of the class, "package.module:Class"; victims import it themselves.
        takes_disk: the class takes `disk=`, a `contracts.disk.Disk`, and changes files only
            through it.
        log_glob: pattern of the newest log inside a memory; None if there is no log.
        log_step: bytes between two cuts of the log.
        finds_damage_behind_head: damage in the middle of a log is told from a torn tail even where
            HEAD does not reach.
        n_flips, n_damages: how many of each to try.
    """

    storage: str
    takes_disk: bool = False
    log_glob: str | None = None
    log_step: int = 1
    finds_damage_behind_head: bool = False
    n_flips: int = 300
    n_damages: int = 150

    @pytest.fixture
    def victims(self, request: pytest.FixtureRequest) -> Victims:
        """Return the parent of victims; one for all tests of the class."""
        node = request.node.getparent(pytest.Class) or request.node
        if _VICTIMS not in node.stash:
            node.stash[_VICTIMS] = Victims(self.storage)
            node.addfinalizer(lambda: _close_victims(node))
        found: Victims = node.stash[_VICTIMS]
        return found

    @pytest.fixture(autouse=True)
    def _skip_what_does_not_last(self) -> None:
        if not store_class(self.storage).capabilities.durability:
            pytest.skip("declares no durability: nothing survives its process")

    @pytest.fixture
    def copies(self) -> Iterator[Path]:
        """Return a folder for many short-lived copies, in memory where there is such a disk."""
        folder = scratch_folder()
        yield folder
        shutil.rmtree(folder, ignore_errors=True)

    def open(self, path: Path, *, disk: Disk | None = None, **options: object) -> OpenedMemory:
        """Open a memory of the class under test in this process."""
        factory: StorageFactory = store_class(self.storage)
        if disk is None:
            return kept(path, factory, **options)

        def on_disk(folder: Path, settings: object) -> object:
            return store_class(self.storage)(folder, settings, disk=disk)  # type: ignore[call-arg, arg-type]

        return kept(path, on_disk, disk=disk, **options)  # type: ignore[arg-type]

    def check(self, path: Path, truth: Truth, *, at_least: int) -> int:
        """Open a memory, compare all of it with the truth, close it; return its last commit."""
        memory = self.open(path)
        try:
            return truth.check(memory, at_least=at_least)
        finally:
            memory.close()


def told(memory: OpenedMemory, steps: int, story: Story = PLAIN) -> int:
    """Tell a story in this process; return the last commit."""
    last = 0
    for _ in range(steps):
        last, ticket = story.tell(memory.journal)
        story.put_gists(memory.journal)
        ticket.wait()
    return last
