"""The public names, pinned: adding one is a decision, losing one is a break."""

from __future__ import annotations

import tomllib

import pytest

import megacontext_sdk

PUBLIC = [
    "AllocatorSpec",
    "Appended",
    "AsyncMemorySession",
    "Audit",
    "Citation",
    "CommandSpec",
    "Completed",
    "Config",
    "Exported",
    "FocusChanged",
    "FocusPolicySpec",
    "FocusReport",
    "GistEncoderSpec",
    "Hit",
    "MemorySession",
    "MemoryStore",
    "Message",
    "ModelAdapterSpec",
    "NodeId",
    "PositionSchemeSpec",
    "Rebuilt",
    "Receipt",
    "Recovery",
    "Reply",
    "RuntimeSpec",
    "ScrubReport",
    "SinkSpec",
    "Snapshot",
    "Span",
    "Stats",
    "StorageSpec",
    "TextDelta",
    "Usage",
    "errors",
    "hookimpl",
]


def test_the_public_names_are_these():
    assert PUBLIC == megacontext_sdk.__all__


def test_the_public_names_are_sorted():
    assert sorted(PUBLIC) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_resolves(name):
    assert getattr(megacontext_sdk, name) is not None


@pytest.mark.parametrize("name", [name for name in PUBLIC if name[0].isupper()])
def test_every_public_class_claims_the_public_path(name):
    public = getattr(megacontext_sdk, name)
    assert ("megacontext_sdk", name) == (public.__module__, public.__qualname__)


@pytest.mark.parametrize("name", [name for name in PUBLIC if name[0].isupper()])
def test_every_public_class_is_documented(name):
    assert len(getattr(megacontext_sdk, name).__doc__ or "") > 20


def test_public_names_are_listed_before_they_are_loaded():
    assert set(PUBLIC) <= set(dir(megacontext_sdk))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'MemorySesion'"):
        _ = megacontext_sdk.MemorySesion


def test_the_version_is_the_one_that_is_packaged(root):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == megacontext_sdk.__version__
