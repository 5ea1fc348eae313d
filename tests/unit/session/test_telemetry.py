"""Telemetry of whole sessions: documented is emitted, a trace replays, a sink never disturbs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import attrs
import numpy as np
import pytest

from megacontext_sdk import MemorySession, events
from megacontext_sdk.builtin.echo import EchoModel
from megacontext_sdk.builtin.greedy import GreedyAllocator
from megacontext_sdk.builtin.sinks import InMemorySink
from megacontext_sdk.contracts.focus import FocusPolicy, Move, Plan, Reveal
from megacontext_sdk.contracts.telemetry import TelemetrySink
from megacontext_sdk.memory.lod import NodeId, width


class Endless(EchoModel):
    """Never ends a reply by itself, so that replies cross as many blocks as they are asked for."""

    @property
    def info(self):
        return attrs.evolve(super().info, eos_ids=())


MODEL = Endless()
DOCUMENT = Path(__file__).resolve().parents[3] / "docs/reference/telemetry.md"


def open_session(**settings) -> MemorySession:
    arguments = {"model": MODEL, "storage": "memory", "strict": True, "w_max": 512} | settings
    return MemorySession.open(None, **arguments)


def fill(session: MemorySession, n_messages: int = 60) -> None:
    for number in range(n_messages):
        session.append(f"Day {number}: rain on the hills, and the sheep stayed in the valley.")


# --- row 93: what is documented is what is emitted ------------------------------------------------


def documented() -> dict[str, tuple[str, ...]]:
    """Return event -> fields as the table of the reference lists them."""
    section = DOCUMENT.read_text(encoding="utf-8").split("## Events", 1)[1]
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]*) \|$", section, flags=re.MULTILINE)
    return {name: tuple(re.findall(r"`(\w+)`", fields)) for name, fields in rows}


def tag(event: events.Event | type[events.Event]) -> str:
    return event.__struct_config__.tag


@pytest.mark.skipif(not DOCUMENT.is_file(), reason="the documentation is not beside the tests")
def test_row93_the_documented_events_and_fields_are_those_there_are() -> None:
    inherited = set(events.Event.__struct_fields__)
    there_are = {tag(kind): {*kind.__struct_fields__} - inherited for kind in events.EVENTS}

    assert {name: set(fields) for name, fields in documented().items()} == there_are


class Raising(FocusPolicy):
    name = "raising"

    def score(self, view):
        raise ZeroDivisionError

    def reveals(self, view, limit):
        return []


class Illegal(GreedyAllocator):
    """Plans a move that no layout allows, once."""

    def plan(self, entries, scores, reveals, budget):
        return Plan(moves=(Move(kind="expand", node=NodeId(0, 0), score=1.0, delta_cost=31),))


def every_kind_of_trouble() -> list[events.Event]:
    """Play the sessions in which each event has its reason; return all events."""
    sink = InMemorySink()
    with open_session(sinks=(sink,)) as session:
        fill(session)
        for number in range(20):  # swaps until an exact rebuild is due
            session.generate(f"Day {number} or {60 - number}?", max_new_tokens=34)
        session.audit()
    with open_session(sinks=(sink,), focus=Raising()) as session:
        fill(session, 10)
        session.generate("Go on.", max_new_tokens=2)
    with open_session(sinks=(sink,), w_max=256, recent_tokens=96) as session:
        # 31 blocks of each of two levels: their cover leaves no rows for the first block.
        session.append(MODEL.tokenizer.encode("x" * (63 * 1024 + 31 * 32 + 31)))
    with open_session(sinks=(sink,), strict=False) as session:
        fill(session)
        session._parts.state.refocuser._allocator = Illegal()
        session.generate("Go on.", max_new_tokens=1)  # a second broken plan in a turn would raise
    return list(sink.events)


def test_row93_test_sessions_emit_every_event_and_each_survives_its_line() -> None:
    emitted = every_kind_of_trouble()

    assert sorted(map(tag, events.EVENTS)) == sorted(set(map(tag, emitted)))
    for event in emitted[:: max(1, len(emitted) // 300)]:
        line = events.encode_event(event)
        assert event == events.decode_event(line)
        assert json.loads(line)["event"] == tag(event)


def test_row93_rates_recomputed_from_the_trace_agree_with_the_session() -> None:
    sink = InMemorySink()
    with open_session(sinks=(sink,)) as session:
        fill(session)
        reply = session.generate("Which day had rain?", max_new_tokens=70)
        stats = session.stats()
        n_rows = session._parts.journal.n_messages
    refocus, assemble = sink.named("refocus"), sink.named("assemble")
    for event in refocus:
        moved = sum(action.delta_cost for action in event.actions)
        assert event.cost_before + moved == event.cost_after
        assert (512 - event.cost_before, 512 - event.cost_after) == (
            event.budget_before,
            event.budget_after,
        )
        assert sum(event.lod_counts.values()) > 0
    assert stats.n_tokens == assemble[-1].n_tokens == sink.named("session_closed")[0].n_tokens
    assert stats.rows == assemble[-1].cost_after
    assert stats.entries == assemble[-1].n_entries
    assert reply.usage.generated_tokens == sum(event.n_tokens for event in sink.named("decode"))
    made: dict[int, int] = {}
    for event in sink.named("gist"):
        for lod, n in event.lod_counts.items():
            made[lod] = made.get(lod, 0) + n
    assert dict(stats.nodes) == made
    ingested = sink.named("ingest")
    assert [0, *[event.end for event in ingested[:-1]]] == [event.start for event in ingested]
    n_settings = 1  # the row that opening wrote: the table of encoders
    assert n_rows - n_settings == sum(event.n_messages for event in ingested)


def test_row93_events_hold_nothing_of_what_was_said() -> None:
    sink = InMemorySink()
    with open_session(sinks=(sink,)) as session:
        fill(session, 20)
        session.append("The canary sings quixotically.", source="canary", metadata={"k": "canary"})
        session.generate("canary?", max_new_tokens=40)
    trace = b"\n".join(events.encode_event(event) for event in sink.events)
    assert b"canary" not in trace
    assert b"quixotic" not in trace


# --- row 94: a trace replays ----------------------------------------------------------------------


class Replay:
    """A layout rebuilt from events alone: naive lists, no working context, no allocator."""

    def __init__(self) -> None:
        self.nodes: list[tuple[int, int]] = []
        self.n_tokens = 0

    def take(self, event: events.Event) -> None:
        if tag(event) not in {"assemble", "refocus"}:
            return
        self.n_tokens = event.n_tokens
        if tag(event) == "assemble" and event.added:
            self.add(event.added)
        for action in event.actions:
            self.play(action.kind, action.lod, action.index)
        assert event.cost_after == self.cost()

    def add(self, runs) -> None:
        lod, index, _ = runs[0]
        self.nodes = [node for node in self.nodes if node[1] * width(node[0]) < index * width(lod)]
        for lod, first, count in runs:
            self.nodes += [(lod, index) for index in range(first, first + count)]

    def cost(self) -> int:
        return sum(1 if lod else min(32, self.n_tokens - 32 * index) for lod, index in self.nodes)

    def play(self, kind: str, lod: int, index: int) -> None:
        if kind == "expand":
            self.expand(lod, index)
        elif kind == "collapse":
            below = [(0, index)] if lod == 1 else [(lod - 1, 32 * index + i) for i in range(32)]
            at = self.nodes.index(below[0])
            assert below == self.nodes[at : at + len(below)]
            self.nodes[at : at + len(below)] = [(lod, index)]
        else:
            while (lod, index) not in self.nodes:
                above = next(n for n in range(1, 12) if (n, index // 32 ** (n - 1)) in self.nodes)
                self.expand(above, index // 32 ** (above - 1))

    def expand(self, lod: int, index: int) -> None:
        at = self.nodes.index((lod, index))
        children = [(0, index)] if lod == 1 else [(lod - 1, 32 * index + i) for i in range(32)]
        self.nodes[at : at + 1] = children


class Watching(TelemetrySink):
    """Replays as it listens, and compares with the working context it was shown."""

    name = "watching"

    def __init__(self) -> None:
        self.replay = Replay()
        self.session: MemorySession | None = None
        self.n_compared = 0
        self.problems: list[str] = []

    def watch(self, session: MemorySession) -> None:
        self.session = session
        self.compare("open")

    def emit(self, event: events.Event) -> None:
        self.replay.take(event)
        if self.session is not None and tag(event) not in {"ingest", "gist"}:
            self.compare(tag(event))

    def compare(self, where: str) -> None:
        entries = self.session._parts.state.wc.entries
        shown = list(zip(entries.lod.tolist(), entries.index.tolist(), strict=True))
        self.n_compared += 1
        if shown != self.replay.nodes:
            self.problems.append(where)

    def close(self) -> None:
        pass


class Wandering(FocusPolicy):
    """Asks for another far block at every turn, so that blocks come up through several levels."""

    name = "wandering"

    def score(self, view):
        return np.where(view.entries.lod == 0, -0.5, 0.0).astype(np.float32)

    def reveals(self, view, limit):
        return [Reveal(20 + 7 * view.n_tokens % 50, 0.9), Reveal(300, 0.8)]


def play_a_session(session: MemorySession, sink: Watching) -> None:
    """Do everything that changes a layout; after each call the replay must agree."""
    fill(session, 8)
    peanuts = session.append("Allergic to peanuts, said the guest with the green hat.")
    fill(session, 40)
    session.append("A long report. " * 900)  # a bulk append, laid out coarsely
    calls = (
        lambda: session.generate("Who is allergic to peanuts?", max_new_tokens=70),
        lambda: session.focus.pin(peanuts.span),
        lambda: session.focus.expand((640, 704)),
        lambda: session.focus.collapse((640, 704)),
        lambda: session.generate("Go on.", max_new_tokens=40, stop="zz"),
        lambda: session.generate("A secret?", max_new_tokens=60, remember=False),
        lambda: session.focus.unpin(peanuts.span),
        lambda: session.audit(),
        lambda: fill(session, 20),
    )
    for call in calls:
        call()
        sink.compare("call")


@pytest.mark.parametrize("focus", ["heuristic", Wandering()])
def test_row94_the_trace_of_a_session_replays_every_layout(focus) -> None:
    sink = Watching()
    with open_session(sinks=(sink,), focus=focus) as session:
        sink.watch(session)
        play_a_session(session, sink)
    assert [] == sink.problems
    assert sink.n_compared > 50


def test_row94_the_written_trace_replays_like_the_live_one(tmp_path) -> None:
    path = tmp_path / "trace.jsonl"
    with open_session(sinks=(f"jsonl:{path}",)) as session:
        fill(session, 40)
        session.generate("Go on.", max_new_tokens=70)
        wc = session._parts.state.wc
        replay = Replay()
        expected = list(zip(wc.entries.lod.tolist(), wc.entries.index.tolist(), strict=True))
    for line in path.read_bytes().splitlines():
        replay.take(events.decode_event(line))
    assert expected == replay.nodes


class Throwing(TelemetrySink):
    name = "throwing"

    def __init__(self, kind=None) -> None:
        self.kind = kind
        self.n_calls = 0

    def emit(self, event: events.Event) -> None:
        if self.kind is None or tag(event) == self.kind:
            self.n_calls += 1
            raise RuntimeError("no telemetry today")

    def close(self) -> None:
        raise OSError("not even now")


@pytest.mark.parametrize("kind", [None, "swap", "decode", "session_closed"])
def test_row94_a_sink_that_raises_does_not_disturb_a_session(kind) -> None:
    def play(*sinks: TelemetrySink) -> tuple[object, ...]:
        with open_session(sinks=sinks) as session:
            fill(session, 30)
            reply = session.generate("Go on.", max_new_tokens=70)
            return reply.text, session[:], session.focus.report().to_dict()

    throwing, sink = Throwing(kind), InMemorySink()
    assert play() == play(throwing, sink)
    assert 0 < throwing.n_calls <= 3
    dropped = [event for event in sink.named("fallback") if event.role == "sink"]
    assert (throwing.n_calls == 3) == bool(dropped)


# --- row 12: access counts are what the trace says ------------------------------------------------


def touched(action: events.Action) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the nodes that an action brought in and those it opened or closed."""
    node = (action.lod, action.index)
    if action.kind == "collapse":
        return [node], [node]
    opened = [node]
    if action.kind == "reveal":
        opened = [(n, action.index // 32 ** (n - 1)) for n in range(action.n_actions, 0, -1)]
    entered = []
    for lod, index in opened:
        entered += [(0, index)] if lod == 1 else [(lod - 1, 32 * index + i) for i in range(32)]
    return entered, opened


def counted(trace: list[events.Event]) -> dict[tuple[int, int], list[int]]:
    """Replay the actions of a trace: (lod, index) -> [accesses, mutations]."""
    counts: dict[tuple[int, int], list[int]] = {}
    for event in trace:
        for action in getattr(event, "actions", ()):
            for column, nodes in enumerate(touched(action)):
                for node in nodes:
                    counts.setdefault(node, [0, 0])[column] += 1
    return counts


def test_row12_access_counts_equal_a_replay_of_the_trace() -> None:
    sink = InMemorySink(limit=100_000)
    with open_session(sinks=(sink,), focus=Wandering()) as session:
        watching = Watching()
        watching.watch(session)
        play_a_session(session, watching)
        tree = session._parts.tree
        expected = counted(list(sink.events))
        everything = [
            (lod, index) for lod in range(tree.top_lod + 1) for index in range(tree.n_nodes(lod))
        ]
        actual = {node: list(tree.access_counts(NodeId(*node))) for node in everything}
    assert {node: counts for node, counts in actual.items() if any(counts)} == expected
    kinds = {action.kind for event in sink.events for action in getattr(event, "actions", ())}
    assert {"collapse", "expand", "reveal"} == kinds


def test_an_action_of_the_user_is_in_the_history_and_in_the_trace() -> None:
    sink = InMemorySink()
    with open_session(sinks=(sink,)) as session:
        fill(session)
        session.focus.expand((640, 672))
        newest = session.focus.history()
        assert ("user", "expand", NodeId(1, 20)) in [(a.reason, a.kind, a.node) for a in newest]
        assert {"user"} == {action.trigger for action in newest}
    assert "user" == sink.named("refocus")[-1].trigger
