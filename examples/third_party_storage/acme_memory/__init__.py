"""The entry point of the Acme storage: it names the class and imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megacontext_sdk import StorageSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["megacontext_storages"]


@hookimpl
def megacontext_storages() -> Iterator[StorageSpec]:
    """Yield the record of this storage."""
    yield StorageSpec(
        "acme",
        "acme_memory.store:AcmeStorage",
        "One SQLite file per memory, from the standard library",
        requires="acme-memory",
    )
