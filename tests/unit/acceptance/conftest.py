"""Sessions on the echo model in memory, for checks that span rooms."""

from __future__ import annotations

import attrs
import pytest

from megacontext_sdk import MemorySession
from megacontext_sdk.builtin.echo import EchoModel


class Endless(EchoModel):
    """Never ends a reply by itself, so that replies cross as many blocks as they are asked for."""

    @property
    def info(self):
        return attrs.evolve(super().info, eos_ids=())


MODEL = Endless()


def open_session(**settings):
    arguments = {"model": MODEL, "storage": "memory", "strict": True, "w_max": 512, "sinks": ()}
    return MemorySession.open(None, **(arguments | settings))


def fill(session, n_messages=60):
    for number in range(n_messages):
        session.append(f"Day {number}: rain on the hills, and the sheep stayed in the valley.")


@pytest.fixture
def sessions():
    """`sessions.open(**settings)`, `sessions.fill(session, n)` and `sessions.model`."""

    class Sessions:
        open = staticmethod(open_session)
        fill = staticmethod(fill)
        model = MODEL

    return Sessions
