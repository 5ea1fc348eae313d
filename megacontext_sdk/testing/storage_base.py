"""What the storage tests stand on: a store, a filled one, reopening, comparing states."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from megacontext_sdk.testing.kit import Kit
from megacontext_sdk.testing.oracle import HEADER, Oracle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from megacontext_sdk.contracts.storage import OpenMode, Storage

__all__ = ["StorageBase"]


class StorageBase(Kit):
    """Fixtures shared by the test classes of `StorageConformance`."""

    make: Callable[[Path], Storage]

    # --- what the tests stand on -------------------------------------------------------------

    @pytest.fixture
    def oracle(self) -> Oracle:
        """Return an oracle of an empty store."""
        return Oracle()

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Storage]:
        """Return a created, empty store."""
        store = type(self).make(tmp_path)
        store.open("create", HEADER)
        yield store
        store.close()

    @pytest.fixture
    def filled(self, store: Storage, oracle: Oracle) -> Storage:
        """Return a store with 12 commits of 45 tokens in three batches."""
        for n_commits in (1, 4, 7):
            store.commit(oracle.batch(45, n_commits=n_commits, n_messages=3))
        return store

    def reopen(self, store: Storage, folder: Path, mode: OpenMode = "write") -> Storage:
        """Close a store and open its data again with a new object."""
        if not store.capabilities.durability:
            pytest.skip("declares no durability: its data dies with the object")
        store.close()
        again = type(self).make(folder)
        again.open(mode, HEADER)
        return again

    def check_state(self, store: Storage, oracle: Oracle) -> None:
        """Compare the state with the oracle's."""
        state = store.state()
        assert len(oracle.commits) == state.seq
        assert oracle.commits[-1]["chain"].tobytes() == state.chain
        assert oracle.n_tokens == state.n_tokens
        assert len(oracle.blocks) == state.n_blocks
        assert len(oracle.messages) == state.n_messages
        assert oracle.tail == state.tail
