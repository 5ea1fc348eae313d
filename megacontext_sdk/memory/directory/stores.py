"""The store of one generation: built, verified, started. Not the directory around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import attrs

from megacontext_sdk.contracts.storage import Header
from megacontext_sdk.errors import CorruptError
from megacontext_sdk.memory.directory.damage import advice
from megacontext_sdk.memory.directory.head import Head
from megacontext_sdk.memory.directory.probe import Prober
from megacontext_sdk.memory.journal import Journal
from megacontext_sdk.memory.lod import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from megacontext_sdk.contracts.storage import OpenMode, Storage, StoreState
    from megacontext_sdk.memory.directory.manifest import MemoryMeta
    from megacontext_sdk.memory.writer import Guard

__all__ = ["StorageFactory", "build_store", "head_of", "header_of", "start_journal", "verify_store"]

StorageFactory: TypeAlias = "Callable[[Path, Mapping[str, str]], Storage]"
"""Makes a backend's store of a data folder and options."""


def header_of(meta: MemoryMeta) -> Header:
    """Return what a backend must know about the rows of a memory."""
    return Header(block_bytes=BLOCK_SIZE * meta.token_bytes)


def head_of(meta: MemoryMeta, generation: int, state: StoreState) -> Head:
    """Return what HEAD says of a store that was just built."""
    return Head(generation, state.seq, state.chain if state.seq else meta.root)


def build_store(
    storage: Storage, meta: MemoryMeta, fill: Callable[[Storage], None], mode: OpenMode = "create"
) -> StoreState:
    """Make a store, fill it, make it durable and close it.

    Args:
        storage: not opened yet.
        meta: of the memory.
        fill: puts content into the open store.
        mode: "create", or "write" for one that was cloned.

    Raises:
        StorageError: it cannot be written; it is closed then.
    """
    try:
        storage.open(mode, header_of(meta))
        fill(storage)
        storage.flush()
        return storage.state()
    finally:
        storage.close()


def verify_store(storage: Storage, meta: MemoryMeta, built: StoreState, path: str) -> None:
    """Check that a store that was built is there as it was meant to be: counts and chain.

    Gists are a cache: one that lost some costs time, not memory.

    Args:
        storage: not opened; closed afterwards.
        meta: of the memory.
        built: what it held when it was built.
        path: what messages call the memory.

    Raises:
        CorruptError: it is not.
    """
    try:
        storage.open("read", header_of(meta))
        prober = Prober(storage=storage, root=meta.root, token_bytes=meta.token_bytes, path=path)
        found = prober.check()
    finally:
        storage.close()
    if attrs.evolve(found, gist_rows=()) != attrs.evolve(built, gist_rows=()):
        raise CorruptError(
            f"what was just written to {storage.path} does not come back as it was written "
            f"(commit {found.seq}, built {built.seq}); check the disk. {advice(path)}",
            path=path,
            where=storage.path.name,
            offset=None,
            have_seq=found.seq,
        )


def start_journal(
    storage: Storage,
    mode: OpenMode,
    meta: MemoryMeta,
    *,
    clock: Callable[[], int],
    guard: Guard | None = None,
    sync: bool = True,
) -> Journal:
    """Open a store and return a journal over it.

    Raises:
        StorageError: it cannot be opened; it is closed then.
    """
    try:
        storage.open(mode, header_of(meta))
        return Journal(
            storage,
            root=meta.root,
            token_bytes=meta.token_bytes,
            clock=clock,
            read_only=mode == "read",
            guard=guard,
            sync=sync,
        )
    except BaseException:
        storage.close()
        raise
