"""Memories on DuckDB survive what the crash kit does to them."""

import pytest

from megacontext_sdk.testing import CrashConformance


@pytest.mark.slow
class TestDuckDBCrashes(CrashConformance):
    storage = "megacontext_duckdb.store:DuckDBStorage"
    log_glob = "data-*/memory.duckdb.wal"
    log_step = 8
