"""What gives way, and how it is said: outgrown pins, broken plugins, illegal plans."""

from __future__ import annotations

import numpy as np
import pytest

from megacontext_sdk import MemorySession, StorageSpec, errors, hookimpl
from megacontext_sdk.builtin.echo import EchoModel
from megacontext_sdk.builtin.greedy import GreedyAllocator
from megacontext_sdk.builtin.sinks import InMemorySink
from megacontext_sdk.contracts.focus import FocusPolicy, Move, Plan, Reveal
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


def test_row43_a_long_system_prompt_stays_in_full_over_many_turns() -> None:
    prompt = "You are the keeper of a lighthouse. Be brief, be kind, and never lie to a sailor."
    with MemorySession.open(None, model=MODEL, storage="memory", w_max=512, strict=True) as session:
        told = session.append(prompt, role="system").span
        for number in range(60):
            session.append(f"Day {number}: rain on the hills, and the sheep stayed in the valley.")
        for number in range(20):
            report = session.generate(f"What of day {number}?", max_new_tokens=8).focus
            shown = [e for e in report.entries if e.span.overlaps(told)]
            assert {0} == {entry.lod for entry in shown}
            assert all(entry.protected for entry in shown)


def test_row43_a_system_prompt_takes_no_more_than_the_share_of_pins() -> None:
    with MemorySession.open(None, model=MODEL, storage="memory", w_max=512) as session:
        session.append("Be brief. " * 200, role="system")
        for number in range(60):
            session.append(f"Day {number}: rain on the hills, and the sheep stayed in the valley.")
        entries = session.focus.report().entries
        held = [e for e in entries if e.protected and e.span.start < 1024]

        assert 4 == len(held)


@pytest.mark.parametrize("how", ["text", "nan", "huge"])
def test_row75_odd_scores_and_reveals_cost_the_policy_its_opinion_only(how) -> None:
    class Odd(FocusPolicy):
        name = "odd"

        def score(self, view):
            size = 3e38 if how == "huge" else 0.5
            return np.full(len(view.entries), size, dtype=np.float32)

        def reveals(self, view, limit):
            return {"text": ["block 3"], "nan": [Reveal(3, float("nan"))], "huge": []}[how]

    sink = InMemorySink()
    with MemorySession.open(
        None, model=MODEL, storage="memory", focus=Odd(), w_max=512, sinks=(sink,)
    ) as session:
        for number in range(40):
            session.append(f"Day {number}: rain on the hills, and the sheep stayed in the valley.")
        assert session.generate("Go on.", max_new_tokens=4).usage.generated_tokens > 0
    assert any(type(event).__name__ == "FallbackEvent" for event in sink.events)


def test_the_report_of_a_reply_is_what_the_window_served() -> None:
    """Rows for an unremembered reply are freed before the focus is reported, not after."""
    with MemorySession.open(None, model=MODEL, storage="memory", w_max=512, strict=True) as session:
        for number in range(80):
            session.append(f"Day {number}: rain on the hills, and the sheep stayed in the valley.")
        reply = session.generate("Day 7?", max_new_tokens=120, remember=False)

        assert reply.focus.cost == session.focus.report().cost
        assert reply.focus.cost + 120 <= 512
        for citation in reply.citations:
            shown = [e.lod for e in reply.focus.entries if e.span.overlaps(citation.span)]
            assert {0} == set(shown)


def test_a_question_asked_again_is_cited_again() -> None:
    with MemorySession.open(None, model=MODEL, storage="memory", w_max=512) as session:
        session.append("The quick brown fox jumps over the lazy dog by the river.")
        told = session.append("Zanzibar exports cloves.").span
        for number in range(80):
            session.append(f"Day {number}: rain on the hills, and the sheep stayed in the valley.")
        for _ in range(2):
            reply = session.generate("What does Zanzibar export?", max_new_tokens=2, remember=False)
            assert any(citation.span.overlaps(told) for citation in reply.citations)


def test_search_for_a_word_of_every_message_finds_messages() -> None:
    with MemorySession.open(None, model=MODEL, storage="memory") as session:
        for number in range(60):
            session.append(f"Line {number} of the poem.")

        assert 5 == len(session.search("line", 5))
