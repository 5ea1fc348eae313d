"""The examples in the docstrings of sessions and stores do what they say."""

from __future__ import annotations

import doctest

import pytest

from megacontext_sdk import AsyncMemorySession, MemorySession, MemoryStore
from megacontext_sdk.keeping import Keeping
from megacontext_sdk.moving import Moving

pytest.importorskip("megacontext_duckdb", reason="the duckdb backend is not installed")


@pytest.mark.parametrize("kind", [MemorySession, Keeping, Moving, MemoryStore, AsyncMemorySession])
def test_examples_run(kind):
    runner = doctest.DocTestRunner()
    for example in doctest.DocTestFinder().find(kind, kind.__name__, module=False, globs={}):
        runner.run(example)
    assert runner.tries > 0
    assert 0 == runner.failures
