"""The entry point of the filesystem storage: says where it is, loads nothing heavy."""

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
        "filesystem",
        "megacontext_filesystem.store:FilesystemStorage",
        "A log and sealed segments in plain files; many readers beside one writer",
        requires="megacontext-filesystem",
    )
