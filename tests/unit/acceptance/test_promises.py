"""What a session promises at every moment: budget, coverage, stability, agreement with the window.

A sink looks at the working context whenever anything happens, and a window wrapper at every step.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise

import attrs
import numpy as np
import pytest

from megacontext_sdk.builtin.greedy import GreedyAllocator
from megacontext_sdk.builtin.sinks import InMemorySink
from megacontext_sdk.contracts.focus import Move, Plan
from megacontext_sdk.contracts.telemetry import TelemetrySink
from megacontext_sdk.errors import ContiguityError, ProtectionError
from megacontext_sdk.memory.lod import NodeId, Span
from megacontext_sdk.runtime.rows import row_keys


class Watchman(TelemetrySink):
    """Checks the working context at every event, once it was shown a session."""

    name = "watchman"

    def __init__(self):
        self.parts = None
        self.kinds = set()
        self.n_checks = 0
        self.worst = 0
        self.faults = []

    def watch(self, session):
        self.parts = session._parts
        pager = session._parts.state.pager
        step = pager.step

        def watched(token_id, index):
            output = step(token_id, index)
            self.look("step")
            return output

        pager.step = watched

    def emit(self, event):
        if self.parts is not None:
            self.look(type(event).__name__.removesuffix("Event"))

    def look(self, kind):
        wc, tree, pager = self.parts.state.wc, self.parts.tree, self.parts.state.pager
        self.kinds.add(kind)
        self.n_checks += 1
        self.worst = max(self.worst, wc.cost, pager.n_live if kind in {"step", "Swap"} else 0)
        try:
            wc.check()
        except Exception as error:  # noqa: BLE001 - a sink that raises is dropped; keep the fault
            self.faults.append((kind, str(error)))
        # What was ingested becomes entries before anything else happens.
        if kind not in {"Ingest", "Gist"} and wc.n_tokens != tree.n_tokens:
            self.faults.append((kind, "coverage"))

    def close(self):
        pass


@pytest.mark.parametrize("kv_mode", ["exact", "seam"])
def test_row49_budget_and_coverage_hold_at_every_event_and_step_of_a_session(sessions, kv_mode):
    watchman = Watchman()
    random = np.random.default_rng(49)
    with sessions.open(sinks=(watchman,), kv_mode=kv_mode) as session:
        watchman.watch(session)
        for size in (1, 31, 32, 33, 7, 500, 5_000, 64):
            session.append(random.integers(97, 122, size).astype(np.int32))
            session._parts.state.wc.check()
        for number in range(4):
            sessions.fill(session, 6)
            session.generate(f"Day {number}?", max_new_tokens=70)
            session.generate("A secret?", max_new_tokens=40, remember=False)
        session.focus.pin((640, 672))
        session.focus.collapse((1024, 2048))
        session.generate("Go on.", max_new_tokens=40, stop=("zz", "never said"))
    assert [] == watchman.faults
    assert {"Ingest", "Assemble", "Refocus", "Swap", "Decode", "step"} <= watchman.kinds
    assert watchman.n_checks > 500
    assert 448 < watchman.worst <= 512


@pytest.mark.parametrize("headroom", [32])
def test_row49_a_held_back_stop_string_never_pushes_rows_over_the_budget(sessions, headroom):
    with sessions.open(headroom=headroom) as session:
        sessions.fill(session, 50)
        whole = session.generate("Tell me.", max_new_tokens=150).text
    for start in range(0, 96, 5):  # some hold back 31 tokens where a block fills
        watchman = Watchman()
        with sessions.open(headroom=headroom, sinks=(watchman,)) as session:
            sessions.fill(session, 50)
            watchman.watch(session)
            stop = whole[start : start + 31] + "\x01"
            reply = session.generate("Tell me.", max_new_tokens=100, stop=stop)
            assert reply.text == session.messages()[-1].text
        assert 100 == reply.usage.generated_tokens
        assert [] == watchman.faults
        assert watchman.worst <= 512


class Notes(TelemetrySink):
    """Writes down the entries at every event, once it was given a working context."""

    name = "notes"

    def __init__(self):
        self.wc = None
        self.seen = []

    def emit(self, event):
        if self.wc is not None:
            entries = self.wc.entries
            nodes = list(zip(entries.lod.tolist(), entries.index.tolist(), strict=True))
            acted = bool(getattr(event, "actions", ()))
            name = type(event).__name__
            self.seen.append((name, acted, self.wc.epoch, self.wc.n_tokens, nodes))

    def close(self):
        pass


def test_row52_between_refocuses_only_the_tail_grows_and_each_change_raises_the_epoch(sessions):
    """I13: what `entries` were stays a prefix until a refocus or a lack of rows says otherwise."""
    notes = Notes()
    with sessions.open(sinks=(notes,)) as session:
        sessions.fill(session, 30)
        notes.wc = session._parts.state.wc
        for number in range(3):
            session.generate(f"Day {number * 7}?", max_new_tokens=70)
    assert len(notes.seen) > 50
    for before, after in pairwise(notes.seen):
        _, _, epoch, n_tokens, nodes = before
        name, acted, new_epoch, new_n_tokens, new_nodes = after
        if not acted:
            kept = nodes if n_tokens % 32 == 0 or n_tokens == new_n_tokens else nodes[:-1]
            assert kept == new_nodes[: len(kept)], name
        changed = (nodes, n_tokens) != (new_nodes, new_n_tokens)
        assert new_epoch >= epoch
        assert not changed or new_epoch > epoch, name
        assert changed or acted or new_epoch == epoch, name


def test_row52_live_rows_are_the_rows_of_the_layout_after_every_turn(sessions):
    """I14: each row of the layout owns one slot at its position; nothing else is live."""
    with sessions.open() as session:
        state = session._parts.state
        for number in range(8):
            sessions.fill(session, 12)
            session.generate(f"Day {number}?", max_new_tokens=50)
            session.audit(4)
            keys, positions = state.pager.live()
            order = np.argsort(positions)
            assert row_keys(state.wc.layout()).tolist() == keys[order].tolist()
            expected = state.scheme.assign(state.wc.layout(), state.adapter.info)
            assert expected.tolist() == positions[order].tolist()
            assert state.pager.window.n_live == len(keys)


def test_row52_a_row_that_lost_its_key_is_computed_again(sessions):
    """I14: a slot whose key names no row of the layout is released, and the row comes back."""
    with sessions.open() as session:
        sessions.fill(session, 30)
        session.generate("Day 3?", max_new_tokens=20)
        session.audit(4)
        pager = session._parts.state.pager
        pager._keys[5] = 10**15
        report, _ = pager.sync(session._parts.state.wc.layout())
        assert (1, 1) == (report.rows_released, report.rows_new)
        keys, positions = pager.live()
        expected = row_keys(session._parts.state.wc.layout()).tolist()
        assert expected == keys[np.argsort(positions)].tolist()


def test_row52_every_span_gives_its_original_ids_back_at_any_level(sessions):
    """I12: whatever level an entry is shown at, the tree has its ids."""
    given = np.random.default_rng(12).integers(97, 122, 6_000).astype(np.int32)
    with sessions.open() as session:
        session.append(given)
        session.generate("Where?", max_new_tokens=40)
        levels = set()
        for entry in session.focus.report().entries:
            levels.add(entry.lod)
            start, end = entry.span.start, min(entry.span.end, len(given))
            if start < end:
                ids = session._parts.tree.token_ids(Span(start, end))
                assert np.array_equal(given[start:end], ids)
        assert {0, 1, 2} <= levels


class WrongPlan(GreedyAllocator):
    """Plans one illegal move, as a broken plugin would; then behaves."""

    def __init__(self):
        self.n_plans = 0

    def plan(self, entries, scores, reveals, budget):
        self.n_plans += 1
        if self.n_plans > 1:
            return super().plan(entries, scores, reveals, budget)
        move = Move(kind="expand", node=NodeId(0, 0), score=1.0, delta_cost=31)
        return Plan(moves=(move,))


def test_row52_a_broken_plan_in_a_session_is_rolled_back_reported_and_served_by_recency(sessions):
    sink = InMemorySink()
    with sessions.open(sinks=(sink,), strict=False) as session:
        sessions.fill(session)
        before = session.focus.report()
        session._parts.state.refocuser._allocator = WrongPlan()
        reply = session.generate("Day 7?", max_new_tokens=3)
        assert 0 < reply.usage.generated_tokens
        assert before.epoch <= session.focus.report().epoch
        session._parts.state.wc.check()
        found = [v[:2] for record in session._parts.state.records for v in record.violations]
    assert ["I9"] == found
    assert "I9" == sink.named("invariant_violation")[0].code


def test_row52_strict_sessions_raise_at_once_and_stay_usable(sessions):
    with sessions.open() as session:
        sessions.fill(session)
        good = session._parts.state.refocuser._allocator
        session._parts.state.refocuser._allocator = WrongPlan()
        with pytest.raises(ProtectionError):
            session.generate("Day 7?", max_new_tokens=3)
        session._parts.state.refocuser._allocator = good
        session._parts.state.wc.check()
        assert session.generate("Day 7?", max_new_tokens=3).text is not None


def test_row52_the_weights_are_the_same_before_and_after(sessions):
    """I17: nothing a session does touches the base."""
    weights = sessions.model._weights

    def digest():
        parts = (weights.table, weights.projections, weights.head, weights.bias)
        return [hashlib.sha256(part.tobytes()).hexdigest() for part in parts]

    before = digest()
    with sessions.open() as session:
        sessions.fill(session, 30)
        session.generate("Day 3?", max_new_tokens=70)
        session.audit()
    assert before == digest()


def test_row52_the_checker_of_a_session_finds_a_planted_fault(sessions):
    with sessions.open() as session:
        sessions.fill(session)
        wc = session._parts.state.wc
        start = wc.entries.start.copy()
        start[3] += 1
        wc._state = attrs.evolve(wc._state, entries=attrs.evolve(wc.entries, start=start))
        with pytest.raises(ContiguityError):
            session.append("One more.")


@pytest.mark.parametrize(
    "rules",
    [
        {"gist_slots": 4, "w_max": 768},
        {"allocator": "knapsack"},
        {"allocator": "stochastic"},
        {"sink_blocks": 0, "recent_tokens": 0},
        {"sink_blocks": 3, "w_max": 640},
        {"n_diff": 64, "cooldown": 0, "hysteresis": 0.0},
        {"seam_rows": 0, "kv_cache_bytes": 0, "gist_cache_rows": 1},
        {"headroom": 200, "w_max": 900, "max_iterations": 1},
    ],
)
def test_row49_the_promises_hold_under_any_rules(sessions, rules):
    watchman = Watchman()
    with sessions.open(sinks=(watchman,), **rules) as session:
        sessions.fill(session, 50)
        watchman.watch(session)
        for number in range(2):
            session.generate(f"Day {number * 9}?", max_new_tokens=40)
        session.audit(2)
        assert session._parts.state.wc.cost == session._parts.state.pager.n_live
    assert [] == watchman.faults
    assert watchman.worst <= rules.get("w_max", 512)
