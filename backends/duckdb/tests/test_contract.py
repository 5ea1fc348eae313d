"""The DuckDB store keeps the contract: exactly the kit that strangers use."""

from megacontext_duckdb.store import DuckDBStorage
from megacontext_sdk.testing.storage import StorageConformance


class TestDuckDBStorage(StorageConformance):
    make = staticmethod(lambda folder: DuckDBStorage(folder / "data-000001"))
