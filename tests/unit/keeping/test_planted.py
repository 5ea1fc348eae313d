"""The test of tenants is tested: a name used as a path must not pass it."""

from __future__ import annotations

import pytest


def anything(name, _field):
    return name


def test_a_name_used_as_a_path_is_caught(store, tenants, monkeypatch):
    monkeypatch.setattr("megacontext_sdk.store.check_name", anything)
    monkeypatch.setattr("megacontext_sdk.store._directory_name", lambda name: name)
    with pytest.raises(AssertionError):
        tenants(store)


def test_a_name_that_is_only_not_checked_is_caught(store, tenants, monkeypatch):
    monkeypatch.setattr("megacontext_sdk.store.check_name", anything)
    with pytest.raises(AssertionError):
        tenants(store)


def test_a_namespace_that_is_left_out_is_caught(store, tenants, monkeypatch):
    monkeypatch.setattr("megacontext_sdk.store._checked_namespace", lambda _namespace: ("all",))
    with pytest.raises(AssertionError):
        tenants(store)
