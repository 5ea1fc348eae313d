"""Makes a golden memory of the format at hand: `python tests/golden/make.py STORAGE FOLDER`.

STORAGE is a name, or `filesystem-sealed` for one whose log was sealed into segments.

A golden memory is committed once per format and backend, and never made again: every later build
opens it, reads it, and appends to a copy (`tests/unit/hostile/test_golden.py`). What it holds is
said here once more, in `CONTENT`, for the comparison. Only calls of format 1.0 are used.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from megacontext_sdk import MemorySession

TIME = datetime(2026, 1, 2, 3, 4, 5, 678_900, tzinfo=UTC)
CONTENT = (
    {"role": "system", "content": "You keep the log of a harbour."},
    {"role": "user", "content": "My cat is called Turing.", "source": "chat", "trust": 3},
    {"role": "assistant", "content": "Noted: Turing, a cat. " * 12},
    {"role": "tool", "content": "Tide 3.1 m at 09:40.", "name": "tides", "source": "https://x"},
    {"role": "user", "content": "Größe: 3 m – 潮 🌊", "metadata": {"k": [1, 2.5, None, True, "é"]}},
    {"role": "user", "content": "The gate code is 4711. " * 80, "timestamp": TIME},
)
IDS = tuple(range(40, 110))
KEY = "golden"
PIN = (0, 64)
OPTIONS = {"model": "echo", "w_max": 512, "sinks": ()}


def make(path: Path, storage: str) -> None:
    """Make the golden memory at a path."""
    with MemorySession.open(path, storage=storage, **OPTIONS) as session:
        for message in CONTENT:
            session.append(message, idempotency_key=f"{KEY} {message['content'][:8]}")
        session.append(list(IDS), role="tool", idempotency_key=KEY)
        session.focus.pin(PIN)


if __name__ == "__main__":
    name, _, is_sealed = sys.argv[1].partition("-")
    if is_sealed:
        import_module(f"megacontext_{name}.store")._FLUSH_SEAL_BYTES = 1
    make(Path(sys.argv[2]), name)
