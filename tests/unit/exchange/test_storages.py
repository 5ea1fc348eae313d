"""Bundles of every storage on disk that is installed: the same bytes of all, and back again."""

import numpy as np
import pytest

from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.contracts.storage import GistBatch, Header
from megacontext_sdk.memory.directory.manifest import MemoryMeta
from megacontext_sdk.memory.directory.opened import Fingerprints
from megacontext_sdk.memory.exchange.bundle import write_bundle
from megacontext_sdk.memory.exchange.loading import load_memory
from megacontext_sdk.memory.journal import Journal, MessageRecord
from megacontext_sdk.plugins import default_plugins

META = MemoryMeta(
    uuid="0" * 32,
    root=bytes(16),
    backend="any",
    generation=1,
    token_bytes=2,
    base_fp="a",
    tokenizer_fp="b",
)
DURABLE = [name for name in ("duckdb", "filesystem") if name in default_plugins().names("storage")]


@pytest.fixture(params=DURABLE)
def name(request):
    return request.param


@pytest.fixture
def make(name):
    """Make an unopened store of a folder."""
    return default_plugins().resolve("storage", name)


@pytest.fixture
def target(name, make):
    """Where a bundle is loaded into."""
    return {
        "backend": name,
        "factory": make,
        "fingerprints": Fingerprints("a", "b"),
        "vocab_size": 50_000,
        "width": 8,
        "factory_of": lambda _name: make,
        "trust": "keep",
    }


def written(store):
    """Write the same history, whatever the store."""
    store.open("create", Header(block_bytes=64))
    ticks = iter(range(10**6, 10**9, 10**3))
    journal = Journal(store, root=META.root, token_bytes=2, clock=ticks.__next__)
    random = np.random.default_rng(3)
    entry = {"fp": "e", "name": "mean", "slots": 1, "dtype": "f2", "aux": 0}
    journal.update_settings({"encoders": [entry]})
    for turn in range(300):
        ids = random.integers(0, 50_000, int(random.integers(1, 90))).astype(np.int32)
        body = b"\x81\xa4text\xa4turn"
        record = MessageRecord(
            role=turn % 3, trust=3, flags=0, ts_us=turn, n_tokens=len(ids), body=body
        )
        journal.append(ids, [record])
    journal.flush()
    for lod, size in ((1, 32), (2, 1_024)):
        n = journal.n_tokens // size
        journal.put_gists(
            GistBatch(
                version=0,
                lod=lod,
                nodes=np.arange(n, dtype=np.uint64),
                trust=np.full(n, 3, np.uint8),
                rows=random.standard_normal((n, 8)).astype("<f2").view(np.uint8),
            )
        )
    journal.flush()
    journal.abandon()
    return store


@pytest.fixture
def bundle(tmp_path, name, make):
    store = written(make(tmp_path / "data"))
    write_bundle(store, META, tmp_path / f"{name}.bundle")
    store.close()
    return tmp_path / f"{name}.bundle"


def test_a_bundle_does_not_tell_which_storage_it_comes_from(tmp_path, bundle):
    write_bundle(written(InMemoryStorage(tmp_path)), META, tmp_path / "memory.bundle")
    assert (tmp_path / "memory.bundle").read_bytes() == bundle.read_bytes()


def test_a_loaded_bundle_holds_the_same_history(tmp_path, bundle, make, target):
    source = written(InMemoryStorage(tmp_path)).state()
    load_memory(bundle, into=tmp_path / "b.mc", **target)
    store = make(tmp_path / "b.mc" / "data-000001")
    store.open("read", Header(block_bytes=64))
    assert source.chain == store.read_commits(source.seq, source.seq + 1)["chain"].tobytes()
    assert source.gist_rows == store.state().gist_rows
    store.close()


def test_a_directory_is_copied_without_a_model(tmp_path, bundle, make, target):
    load_memory(bundle, into=tmp_path / "b.mc", **target)
    meta = load_memory(
        tmp_path / "b.mc",
        into=tmp_path / "c.mc",
        **target | {"fingerprints": Fingerprints("other", "b")},
    )
    store = make(tmp_path / "c.mc" / "data-000001")
    store.open("read", Header(block_bytes=64))
    assert "other" == meta.base_fp
    assert 302 + 1 == store.state().seq
    assert () == store.state().gist_rows
    store.close()
