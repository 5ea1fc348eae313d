"""A session in this process with the echo model, and a way to fill it."""

from __future__ import annotations

import pytest

from megacontext_sdk import MemorySession


@pytest.fixture
def open_session():
    def open_one(**settings) -> MemorySession:
        arguments = {"model": "echo", "storage": "memory", "strict": True, "w_max": 512}
        return MemorySession.open(None, **arguments | settings)

    return open_one


@pytest.fixture
def session(open_session):
    with open_session() as opened:
        yield opened


@pytest.fixture
def fill():
    """Append days of rain, one message each."""

    def append_days(session: MemorySession, n_messages: int = 60) -> None:
        for number in range(n_messages):
            session.append(f"Day {number}: rain on the hills, and the sheep stayed in the valley.")

    return append_days
