"""A virtual memory for frozen language models: everything an application imports is named here.

The names resolve on first use, so `import megacontext_sdk` loads no room of the house, not even
numpy. This module holds no logic of its own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megacontext_sdk import errors
    from megacontext_sdk.async_session import AsyncMemorySession
    from megacontext_sdk.config import Config
    from megacontext_sdk.hookspecs import hookimpl
    from megacontext_sdk.memory.lod import NodeId, Span
    from megacontext_sdk.messages.message import Message
    from megacontext_sdk.receipts import (
        Exported,
        Rebuilt,
        Receipt,
        Recovery,
        ScrubReport,
        Snapshot,
    )
    from megacontext_sdk.records import (
        AllocatorSpec,
        CommandSpec,
        FocusPolicySpec,
        GistEncoderSpec,
        ModelAdapterSpec,
        PositionSchemeSpec,
        RuntimeSpec,
        SinkSpec,
        StorageSpec,
    )
    from megacontext_sdk.results import (
        Appended,
        Audit,
        Citation,
        Completed,
        FocusChanged,
        FocusReport,
        Hit,
        Reply,
        Stats,
        TextDelta,
        Usage,
    )
    from megacontext_sdk.session import MemorySession
    from megacontext_sdk.store import MemoryStore

__version__ = "0.1.0"

__all__ = [
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

# Name of each room -> the public names that live in it.
_ROOMS = {
    "async_session": ("AsyncMemorySession",),
    "config": ("Config",),
    "hookspecs": ("hookimpl",),
    "memory.lod": ("NodeId", "Span"),
    "messages.message": ("Message",),
    "receipts": ("Exported", "Rebuilt", "Receipt", "Recovery", "ScrubReport", "Snapshot"),
    "records": (
        "AllocatorSpec",
        "CommandSpec",
        "FocusPolicySpec",
        "GistEncoderSpec",
        "ModelAdapterSpec",
        "PositionSchemeSpec",
        "RuntimeSpec",
        "SinkSpec",
        "StorageSpec",
    ),
    "results": (
        "Appended",
        "Audit",
        "Citation",
        "Completed",
        "FocusChanged",
        "FocusReport",
        "Hit",
        "Reply",
        "Stats",
        "TextDelta",
        "Usage",
    ),
    "session": ("MemorySession",),
    "store": ("MemoryStore",),
}


def __getattr__(name: str) -> object:
    """Load a public name on first use and keep it."""
    if name == "errors":
        return import_module(f"{__name__}.errors")
    for room, names in _ROOMS.items():
        if name in names:
            value: object = getattr(import_module(f"{__name__}.{room}"), name)
            if isinstance(value, type):
                value.__module__ = __name__  # tracebacks and docs show where users import it from
            globals()[name] = value
            return value
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, "__version__"]
