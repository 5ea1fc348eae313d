"""Telemetry sinks that stay on this machine: a log line, a list, a file of JSON lines.

None of them sees memory content, because events hold none.
"""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from megacontext_sdk.contracts.telemetry import TelemetrySink
from megacontext_sdk.events import encode_event

if TYPE_CHECKING:
    from typing import BinaryIO

    from megacontext_sdk.events import Event

__all__ = ["InMemorySink", "JsonLinesSink", "LoggingSink"]


class LoggingSink(TelemetrySink):
    """Writes each event as one DEBUG line of the logger `megacontext_sdk.telemetry`."""

    name = "logging"

    def __init__(self) -> None:
        self._log = logging.getLogger("megacontext_sdk.telemetry")

    def emit(self, event: Event) -> None:
        """Log the event; costs one level check while DEBUG is off."""
        if self._log.isEnabledFor(logging.DEBUG):
            self._log.debug("%s", encode_event(event).decode())


class InMemorySink(TelemetrySink):
    """Keeps the newest events in a list, for tests and notebooks.

    Args:
        limit: how many to keep.
    """

    name = "memory"

    def __init__(self, limit: int = 10_000) -> None:
        self._events: deque[Event] = deque(maxlen=limit)

    @property
    def events(self) -> tuple[Event, ...]:
        """The newest events, oldest first."""
        return tuple(self._events)

    def emit(self, event: Event) -> None:
        """Keep the event."""
        self._events.append(event)

    def named(self, name: str) -> tuple[Event, ...]:
        """Return the kept events of one name, such as "refocus"."""
        return tuple(one for one in self._events if type(one).__struct_config__.tag == name)


class JsonLinesSink(TelemetrySink):
    """Appends each event as one line of JSON to a file, opened at the first event.

    Args:
        path: the file; its folder must exist.
        buffer_bytes: what may be lost when the process is killed.
    """

    name = "jsonl"

    def __init__(self, path: Path | str, buffer_bytes: int = 65_536) -> None:
        self._path = Path(path)
        self._buffer_bytes = buffer_bytes
        self._file: BinaryIO | None = None
        self._encoder = msgspec.json.Encoder()

    def emit(self, event: Event) -> None:
        """Append the event.

        Raises:
            OSError: the file cannot be written; the fan-out logs it.
        """
        if self._file is None:
            self._file = self._path.open("ab", buffering=self._buffer_bytes)
        self._file.write(self._encoder.encode(event) + b"\n")

    def close(self) -> None:
        """Write out the buffer and close the file; idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None
