"""The telemetry contract: typed events go to sinks, and a sink may never disturb a session."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megacontext_sdk.events import Event

__all__ = ["TelemetrySink"]


class TelemetrySink(ABC):
    """Receives events in order, from the session's thread. Nothing leaves the machine by itself."""

    name: str

    @abstractmethod
    def emit(self, event: Event) -> None:
        """Take one event; an exception is logged, and repeated ones drop the sink."""

    def close(self) -> None:  # noqa: B027 - most sinks hold nothing
        """Release what the sink holds; idempotent."""
