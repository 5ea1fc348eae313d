"""Conformance kits for third parties: subclass one per contract in a test module.

The kits need pytest (extra `testing`), are used by the members of this repository as by strangers,
and say in sentences which line of a contract disagrees. They hold no tests of the SDK itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from megacontext_sdk.testing.crashes import CrashConformance
    from megacontext_sdk.testing.focus import AllocatorConformance
    from megacontext_sdk.testing.gist import GistEncoderConformance
    from megacontext_sdk.testing.model import ModelAdapterConformance
    from megacontext_sdk.testing.plugin import PluginConformance
    from megacontext_sdk.testing.storage import StorageConformance

__all__ = [
    "AllocatorConformance",
    "CrashConformance",
    "GistEncoderConformance",
    "ModelAdapterConformance",
    "PluginConformance",
    "StorageConformance",
]

_KITS = {
    "AllocatorConformance": "focus",
    "CrashConformance": "crashes",
    "GistEncoderConformance": "gist",
    "ModelAdapterConformance": "model",
    "PluginConformance": "plugin",
    "StorageConformance": "storage",
}

# Asserts in the kits then show both sides, as asserts in a test module do.
_ROOMS = {
    *_KITS.values(),
    *("crash_base", "damage_cases", "disk_cases", "kill_cases", "machine", "machine_cases"),
    *("power_cases", "race_cases", "session_kills"),
    *("storage_base", "storage_sharing", "story", "victims"),
}
pytest.register_assert_rewrite(*(f"{__name__}.{room}" for room in sorted(_ROOMS)))


def __getattr__(name: str) -> object:
    """Load a kit on first use, so that one kit's needs are not another's."""
    if name not in _KITS:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(f"{__name__}.{_KITS[name]}"), name)
