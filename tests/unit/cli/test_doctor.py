from __future__ import annotations

import sqlite3

import pytest

from megacontext_sdk import MemorySession, StorageSpec, hookimpl
from megacontext_sdk._cli import doctor
from megacontext_sdk._cli.doctor import examine
from megacontext_sdk.plugins import Plugins


class Broken:
    """A plugin whose storage cannot be imported."""

    @hookimpl
    def megacontext_storages(self):
        yield StorageSpec("acme", "no_such_module:Store", "In Acme", requires="acme-memory")


class Wrong:
    """A plugin that is left out whole: its hook yields no record."""

    @hookimpl
    def megacontext_storages(self):
        yield "acme"


def named(checks, name):
    (found,) = (check for check in checks if check.name == name)
    return found


@pytest.fixture(scope="module")
def healthy():
    return examine(Plugins.load(plugins=()))


def test_the_builtins_are_fine(healthy):
    assert [] == [check for check in healthy if not check.is_fine]


def test_it_looks_at_python_packages_search_and_every_provider(healthy):
    names = {check.name for check in healthy}
    assert {"python", "numpy", "msgspec", "sqlite fts5"} <= names
    assert {"model echo", "focus heuristic", "gist mean", "storage memory"} <= names


def test_it_writes_and_reads_a_memory_on_every_storage(healthy):
    assert "appended and found again" == named(healthy, "memory on memory").detail


def test_a_provider_that_cannot_be_imported_says_what_to_install():
    checks = examine(Plugins.load(plugins=(), modules=(Broken(),), strict=False))
    found = named(checks, "storage acme")
    assert not found.is_fine
    assert "pip install acme-memory" in found.detail
    assert not named(checks, "memory on acme").is_fine
    assert named(checks, "memory on memory").is_fine


def test_a_plugin_that_was_left_out_is_listed():
    plugins = Plugins.load(plugins=(), modules=(Wrong(),), strict=False)
    left_out = [check for check in examine(plugins) if check.name.startswith("plugin ")]
    assert [False] == [check.is_fine for check in left_out]


def test_sqlite_without_full_text_search_names_the_cure(monkeypatch):
    class Plain:
        def __enter__(self):
            return self

        def __exit__(self, *args):
            return False

        def execute(self, statement):
            raise sqlite3.OperationalError("no such module: fts5")

    monkeypatch.setattr(doctor.sqlite3, "connect", lambda place: Plain())
    found = doctor._full_text_search()
    assert not found.is_fine
    assert "no such module: fts5" in found.detail
    assert "FTS5" in found.detail


def test_a_memory_that_forgets_is_found_out(monkeypatch):
    monkeypatch.setattr(MemorySession, "search", lambda self, query, k: [])
    checks = examine(Plugins.load(plugins=()))
    assert "what was appended was not found again" == named(checks, "memory on memory").detail
