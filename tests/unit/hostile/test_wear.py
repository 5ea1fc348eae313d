"""T16 and T19: caches that are lost or garbled, and clocks that are wrong.

What can be made again is made again and gives equal answers; what a clock says decides nothing.
"""

import random
import shutil
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from megacontext_sdk import assembly
from megacontext_sdk.memory.lod import Span

QUERIES = ["Who keeps a red boat?", "the tide at noon", "cat"]


@pytest.fixture
def kept(durable, open_session, tmp_path):
    with open_session(durable) as session:
        session.append("The harbour master of Aran keeps a red boat and a grey cat. ")
        for day in range(40):
            session.append(f"Day {day}: the tide at noon was {day % 7} m. " * 3)
        session.focus.pin((0, 32))
    return tmp_path / "alice.mc"


def answers(session):
    tree = session._parts.tree
    return {
        "hits": [[(hit.text, hit.span) for hit in session.search(query)] for query in QUERIES],
        "ids": tree.token_ids(Span(0, tree.n_tokens)).tobytes(),
        "gists": [
            tree.gists(lod, np.arange(tree.n_nodes(lod))).tobytes()
            for lod in range(1, tree.top_lod + 1)
        ],
        "pins": list(session._parts.state.wc.pins),
        "missing": tree.stats().n_missing_gists,
    }


CACHES = ["access.bin", "cache/lexical.sqlite", "cache/layout.msgpack", "cache"]
WEAR = {
    "gone": lambda file, rng: shutil.rmtree(file) if file.is_dir() else file.unlink(),
    "empty": lambda file, rng: file.write_bytes(b""),
    "garbled": lambda file, rng: file.write_bytes(rng.randbytes(file.stat().st_size)),
    "cut": lambda file, rng: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "one bit": lambda file, rng: _flip(file, rng),
    "zeroed": lambda file, rng: file.write_bytes(bytes(file.stat().st_size)),
}


def _flip(file, rng):
    raw = bytearray(file.read_bytes())
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    file.write_bytes(raw)


@pytest.mark.parametrize("wear", WEAR)
@pytest.mark.parametrize("name", CACHES)
def test_a_lost_or_garbled_cache_is_made_again_with_equal_answers(
    durable, open_session, kept, name, wear
):
    if name == "cache" and wear != "gone":
        pytest.skip("a folder can only be gone")
    with open_session(durable) as session:
        before = answers(session)
    WEAR[wear](kept / name, random.Random(f"{name} {wear}"))
    with open_session(durable) as session:
        assert before == answers(session)
        assert session.generate("And now?", max_new_tokens=3).text is not None
    with open_session(durable, read_only=True) as session:
        assert before["hits"][0] == answers(session)["hits"][0]


def test_access_counts_in_doubt_start_again_from_zero(durable, open_session, kept):
    with open_session(durable) as session:
        session.read((0, 640))
    (kept / "access.bin").write_bytes(b"\xff" * 100)
    with open_session(durable) as session:
        assert "red boat" in session[:]


class Clock:
    """A wall clock that a test sets."""

    def __init__(self, monkeypatch):
        self.now = datetime(2026, 6, 1, tzinfo=UTC)
        monkeypatch.setattr(time, "time_ns", self.time_ns)
        monkeypatch.setattr(assembly.time, "time_ns", self.time_ns)

    def time_ns(self):
        return int(self.now.timestamp() * 1e9)


@pytest.mark.parametrize("years", [[10, -10], [-10, 10], [0, 10, -20, 3]], ids=str)
def test_a_clock_that_jumps_decides_neither_order_nor_what_is_found(
    backend, open_session, monkeypatch, years
):
    clock = Clock(monkeypatch)
    session = open_session(backend)
    receipts = []
    for step, jump in enumerate(years):
        clock.now += timedelta(days=365 * jump)
        receipts.append(session.append(f"Said at step {step}.", idempotency_key=str(step)))
    assert sorted(r.seq for r in receipts) == [r.seq for r in receipts]
    said = [f"Said at step {step}." for step in range(len(years))]
    assert said == [message.text for message in session.messages()]
    assert session.append("Said at step 0.", idempotency_key="0").duplicate
    if backend != "memory":
        session.close()
        clock.now -= timedelta(days=3650)
        assert said == [message.text for message in open_session(backend).messages()]


def test_a_clock_stepping_back_never_unexpires_a_message(backend, open_session, monkeypatch):
    """Age counts against the newest time seen, not against the clock on the wall."""
    clock = Clock(monkeypatch)
    session = open_session(backend)
    session.append("Said long ago.")
    clock.now += timedelta(days=100)
    session.append("Said today.")
    clock.now -= timedelta(days=3650)
    plan = session.forget(before=timedelta(days=30), dry_run=True)
    assert ["Said long ago."] == [session.messages(n, n + 1)[0].text for n in plan.messages]
    clock.now += timedelta(days=7300)
    again = session.forget(before=timedelta(days=30), dry_run=True)
    assert plan.messages == again.messages
