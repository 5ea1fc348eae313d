"""What gives way, and how it is said: outgrown pins, broken plugins, plans that break invariants."""

from __future__ import annotations

import numpy as np
import pytest

from megacontext_sdk import MemorySession, StorageSpec, errors, hookimpl
from megacontext_sdk.builtin.echo import EchoModel
from megacontext_sdk.builtin.greedy import GreedyAllocator
from megacontext_sdk.builtin.sinks import InMemorySink
from megacontext_sdk.contracts.focus import Move, Plan
from megacontext_sdk.memory.lod import NodeId
from megacontext_sdk.plugins import Plugins
from megacontext_sdk.records import AllocatorSpec

MODEL = EchoModel()


def test_row16_pins_the_history_has_outgrown_yield_and_are_reported() -> None:
    sink = InMemorySink()
    with MemorySession.open(
        None,
        model=MODEL,
        storage="memory",
        w_max=320,
        headroom=32,
        recent_tokens=128,
        pin_share=1.0,
        sinks=(sink,),
    ) as session:
        for number in range(400):
            receipt = session.append(f"Day {number}: rain on the hills, sheep in the valley.")
            if number in {3, 60, 120}:
                session.focus.pin((receipt.span.start, receipt.span.start + 1))
        rng = np.random.default_rng(0)
        session.append(rng.integers(97, 122, 300_000).astype(np.int32))
        report = session.focus.report()

        assert report.cost <= 320
        assert session.stats().n_tokens == report.entries[-1].span.end
    lost = [event for event in sink.events if getattr(event, "what", "") == "pin"]
    pinned = sum(entry.pinned for entry in report.entries)
    assert pinned + sum(event.count for event in lost) >= 3


def test_messages_are_counted_as_people_count_them() -> None:
    with MemorySession.open(None, model=MODEL, storage="memory") as session:
        receipt = session.append("One.")
        session.append("Two.")
        session.focus.pin(receipt.span)
        session.generate("Three?", max_new_tokens=100)

        assert 4 == session.stats().n_messages == len(session.messages())


class BrokenStorage:
    """A storage plugin whose constructor fails."""

    @hookimpl
    def megacontext_storages(self):
        def broken(path, options):
            raise ZeroDivisionError("secret content")

        yield StorageSpec("broken", broken, "Fails at once")


def test_row95_a_storage_plugin_that_raises_is_wrapped_once_and_named(tmp_path) -> None:
    plugins = Plugins.load(plugins=(), modules=(BrokenStorage(),))

    with pytest.raises(errors.StorageError, match="broken") as caught:
        MemorySession.open(tmp_path / "m.mc", model=MODEL, storage="broken", plugins=plugins)

    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "secret" not in str(caught.value)
    assert any("broken" in note for note in caught.value.__notes__)


class IllegalAllocator(GreedyAllocator):
    """Plans an expand of a node that is not there."""

    name = "illegal"

    def plan(self, entries, scores, reveals, budget):
        return Plan(
            moves=(Move(kind="expand", node=NodeId(5, 99), score=1.0, delta_cost=31),),
        )


class IllegalPlugin:
    @hookimpl
    def megacontext_allocators(self):
        yield AllocatorSpec("illegal", IllegalAllocator, "Breaks the rules")


def illegal_session(**settings) -> MemorySession:
    plugins = Plugins.load(plugins=(), modules=(IllegalPlugin(),))
    return MemorySession.open(
        None, model=MODEL, storage="memory", allocator="illegal", plugins=plugins, **settings
    )


def test_row52_a_broken_plan_is_rolled_back_reported_and_raised_at_the_second_of_a_turn() -> None:
    sink = InMemorySink()
    with illegal_session(sinks=(sink,)) as session:
        session.append("The cat sleeps on the mat and the dog by the door.")
        assert session.generate("Hm?", max_new_tokens=3).text is not None
        session._parts.state.wc.check()
        kinds = [type(event).__name__ for event in sink.events]
        assert 1 == kinds.count("InvariantViolationEvent")

        with pytest.raises(errors.InvariantError, match="twice in one turn"):
            session.generate("Hm?", max_new_tokens=200)
        session._parts.state.wc.check()
        assert session.append("Still usable.").span.n_tokens > 0


def test_row52_strict_mode_raises_at_once() -> None:
    with illegal_session(strict=True) as session:
        session.append("The cat sleeps on the mat and the dog by the door.")
        with pytest.raises(errors.InvariantError):
            session.generate("Hm?", max_new_tokens=3)
