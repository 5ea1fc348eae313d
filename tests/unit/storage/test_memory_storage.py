"""The in-memory store keeps the contract; what is its own is here too."""

import numpy as np
import pytest

from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.contracts.storage import Header
from megacontext_sdk.testing import CrashConformance
from megacontext_sdk.testing.storage import Oracle, StorageConformance


class TestInMemoryStorage(StorageConformance):
    make = staticmethod(lambda folder: InMemoryStorage(folder / "data-000001"))


class TestInMemoryCrashes(CrashConformance):
    storage = "megacontext_sdk.builtin.memory_storage:InMemoryStorage"


def test_same_object_finds_its_rows_again_after_close(tmp_path):
    store = InMemoryStorage(tmp_path)
    store.open("create", Header(block_bytes=64))
    oracle = Oracle()
    store.commit(oracle.batch(70))
    store.close()
    store.open("write", Header(block_bytes=64))
    assert 70 == store.state().n_tokens
    assert b"".join(oracle.blocks) == store.read_blocks(np.arange(2)).tobytes()


def test_rows_handed_out_stay_valid_while_the_store_grows(tmp_path):
    store = InMemoryStorage(tmp_path)
    store.open("create", Header(block_bytes=64))
    oracle = Oracle()
    store.commit(oracle.batch(32))
    early = store.read_commits(1, 2)
    for _ in range(200):
        store.commit(oracle.batch(32))
    assert oracle.commits[0].tobytes() == early.tobytes()


@pytest.mark.parametrize("word", ["sync", "os"])
def test_declares_that_it_promises_no_durability(word):
    assert word not in InMemoryStorage.capabilities.durability
    assert not InMemoryStorage.capabilities.local
