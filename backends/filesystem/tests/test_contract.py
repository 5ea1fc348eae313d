"""The filesystem store keeps the contract: exactly the kit that strangers use."""

from megacontext_filesystem.store import FilesystemStorage
from megacontext_sdk.testing.storage import StorageConformance


class TestFilesystemStorage(StorageConformance):
    make = staticmethod(lambda folder: FilesystemStorage(folder / "data-000001"))
