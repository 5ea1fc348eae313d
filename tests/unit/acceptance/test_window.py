"""The window against plain recomputation: what is computed, when it is rebuilt, what a fault costs.

Rows 69 to 71 of the acceptance table, through the pager and through whole sessions.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_sdk.builtin.echo import EchoModel
from megacontext_sdk.builtin.greedy import GreedyAllocator
from megacontext_sdk.builtin.positions import CompactPositions
from megacontext_sdk.builtin.sinks import InMemorySink
from megacontext_sdk.contracts.focus import Budget
from megacontext_sdk.focus.working_context import WorkingContext
from megacontext_sdk.memory.lod import NodeId, width
from megacontext_sdk.runtime.audit import kl_nats
from megacontext_sdk.runtime.pager import Pager
from megacontext_sdk.runtime.rows import row_keys

MODEL = EchoModel()
IDS = np.random.default_rng(3).integers(97, 123, 32**3, dtype=np.int32)


class History:
    def token_ids_at(self, indices):
        return IDS[indices]

    def is_provisional(self, lods, indices):
        return np.zeros(len(indices), bool)

    def need(self, lods, indices):
        pass

    def gists(self, lod, indices):
        size = width(lod)
        rows = [MODEL.embed(IDS[i * size : (i + 1) * size]).mean(axis=0) for i in indices]
        return np.array(rows, dtype=np.float32)[:, None, :]


class Spy:
    """A real window that counts forwards and can be told to fail at one."""

    def __init__(self, window):
        self._window = window
        self.capacity = window.capacity
        self.rows = []
        self.fails_at = -1

    def __getattr__(self, name):
        return getattr(self._window, name)

    def write(self, rows, positions, slots, want="nothing"):
        if len(self.rows) == self.fails_at:
            self.fails_at = -1
            raise MemoryError("no memory for this forward")
        self.rows.append(sorted(np.asarray(positions).tolist()))
        return self._window.write(rows, positions, slots, want)


def make_pager(mode="seam", cache_bytes=0, w_max=224):
    window = Spy(MODEL.open_window(w_max + 96))
    return Pager(
        window, History(), CompactPositions(), MODEL.info, mode=mode, cache_bytes=cache_bytes
    )


def make_context(n_tokens, w_max=224):
    budget = Budget(w_max=w_max, headroom=32, recent_tokens=32, sink_blocks=1)
    wc = WorkingContext(budget, allocator=GreedyAllocator(), strict=True)
    wc.lay_out(n_tokens)
    return wc


def plain_rows(before, after, seam_rows, mode):
    """The positions that must be computed: new rows, and what follows them; one row at a time."""
    old, rows, last = set(before), [], None
    for position, key in enumerate(after):
        if key not in old:
            last = position
            rows.append(position)
        elif last is not None and (mode == "exact" or position - last <= seam_rows):
            rows.append(position)
    return rows


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    mode=st.sampled_from(["exact", "seam"]),
    picks=st.lists(st.integers(0, 10_000), min_size=1, max_size=3),
)
def test_row69_one_forward_computes_the_new_rows_and_their_seams_and_nothing_else(mode, picks):
    wc, pager = make_context(6_000), make_pager(mode)
    pager.sync(wc.layout())
    before = row_keys(wc.layout()).tolist()
    pager.window.rows.clear()
    for pick in picks:  # several edits, one refocus
        gists = np.flatnonzero(wc.entries.lod == 1)
        at = int(gists[pick % len(gists)])
        if wc.cost + 31 <= wc.budget.w_max:
            wc.expand(NodeId(1, int(wc.entries.index[at])))
    after = row_keys(wc.layout()).tolist()
    pager.sync(wc.layout())
    expected = plain_rows(before, after, pager.seam_rows, mode)
    assert [expected] == pager.window.rows if expected else [] == pager.window.rows


def test_row69_cached_rows_are_not_computed_but_their_seams_are():
    wc, pager = make_context(6_000), make_pager("seam", cache_bytes=1 << 22)
    pager.sync(wc.layout())
    gist = NodeId(1, int(wc.entries.index[np.flatnonzero(wc.entries.lod == 1)[3]]))
    for change in (wc.expand, wc.collapse):
        change(gist)
        pager.sync(wc.layout())
    before = row_keys(wc.layout()).tolist()
    pager.window.rows.clear()
    wc.expand(gist)
    after = row_keys(wc.layout()).tolist()
    report, _ = pager.sync(wc.layout())
    new = {at for at, key in enumerate(after) if key not in set(before)}
    expected = [at for at in plain_rows(before, after, 16, "seam") if at not in new]
    assert 32 == len(new) == report.rows_cached
    assert [expected] == pager.window.rows
    assert report.rows_seam == report.rows_recomputed == len(expected) == 16


def test_row71_blocks_are_found_again_after_edits_earlier_in_the_history():
    wc, pager = make_context(6_000), make_pager("stale", cache_bytes=1 << 22)
    pager.sync(wc.layout())
    gists = [int(i) for i in wc.entries.index[wc.entries.lod == 1]]
    early, late = NodeId(1, gists[0]), NodeId(1, gists[-1])
    wc.expand(late)
    pager.sync(wc.layout())
    wc.collapse(late)
    pager.sync(wc.layout())
    wc.expand(early)  # shifts everything behind it by 31 rows
    pager.sync(wc.layout())
    wc.expand(late)
    report, _ = pager.sync(wc.layout())
    # Room was made by a collapse, so a gist may be new besides the block.
    assert (0, True) == (report.rows_recomputed, report.rows_new == report.rows_cached >= 32)


@pytest.mark.parametrize("mode", ["exact", "seam", "stale"])
@pytest.mark.parametrize("fails_at", [0, 1])
def test_row53_a_forward_that_fails_leaves_no_row_that_was_never_computed(mode, fails_at):
    wc, pager = make_context(6_000), make_pager(mode)
    if fails_at:
        pager.sync(wc.layout())
        for at in np.flatnonzero(wc.entries.lod == 1)[[0, 5]]:
            wc.expand(NodeId(1, int(wc.entries.index[at])))
    pager.window.fails_at = len(pager.window.rows)
    with pytest.raises(MemoryError):
        pager.sync(wc.layout())

    assert 0 == pager.n_live == pager.window.n_live
    report, _ = pager.sync(wc.layout())
    assert wc.cost == report.rows_recomputed

    keys, positions = pager.live()
    assert row_keys(wc.layout()).tolist() == keys[np.argsort(positions)].tolist()
    fresh = make_pager("exact")
    fresh.sync(wc.layout())
    assert float(kl_nats(pager.newest_logits(24), fresh.newest_logits(24)).max()) < 1e-6


def talk(session):
    for number in range(20):
        session.generate(f"Day {number * 2}?", max_new_tokens=20)


@pytest.mark.parametrize("method", ["write", "step", "move", "restore"])
def test_row53_a_window_that_fails_in_a_session_costs_the_reply_only(sessions, method):
    with sessions.open() as session:
        sessions.fill(session, 40)
        session.generate("Day 3?", max_new_tokens=8)
        window = session._parts.state.pager.window
        works = getattr(window, method)

        def fails(*args):
            setattr(window, method, works)
            works(*args)  # an interrupt comes when the work is half done
            raise KeyboardInterrupt

        setattr(window, method, fails)
        with pytest.raises(KeyboardInterrupt):
            talk(session)
        reply = session.generate("Day 9?", max_new_tokens=8)
        assert 8 == reply.usage.generated_tokens
        keys, positions = session._parts.state.pager.live()
        assert sorted(positions.tolist()) == list(range(len(keys)))
        assert session._parts.state.pager.window.n_live == len(keys)
        session._parts.state.wc.check()


# --- row 70: when a rebuild is due ------------------------------------------------------------


def rebuilds(sessions, turns, **settings_):
    sink = InMemorySink()
    with sessions.open(sinks=(sink,), **settings_) as session:
        sessions.fill(session, 60)
        for number in range(turns):
            session.generate(f"Day {(number * 17) % 50}?", max_new_tokens=4)
            if settings_.get("audit_limit_nats") == 0.0:
                session.audit()
        state = session._parts.state
        return sink.named("rebuild"), state.pager.rebuilds


NEVER = {"rebuild_after_swaps": 10_000, "rebuild_stale_ratio": 1.0, "audit_limit_nats": 100.0}


def test_row70_without_a_reason_nothing_is_rebuilt(sessions):
    events, count = rebuilds(sessions, 6, **NEVER)
    assert (0, 0) == (len(events), count)


@pytest.mark.parametrize(
    ("reason", "setting"),
    [
        ("swaps", {"rebuild_after_swaps": 2}),
        ("stale", {"rebuild_stale_ratio": 0.05}),
        ("audit", {"audit_limit_nats": 0.0}),
    ],
)
def test_row70_each_limit_brings_an_exact_rebuild_at_a_user_turn(sessions, reason, setting):
    events, count = rebuilds(sessions, 6, **(NEVER | setting))
    assert {reason} == {event.reason for event in events}
    assert len(events) == count > 0


def test_row70_the_audit_of_exact_mode_is_zero_whatever_happened_before(sessions):
    with sessions.open(kv_mode="exact") as session:
        sessions.fill(session, 60)
        for number in range(4):
            session.generate(f"Day {number * 9}?", max_new_tokens=40)
            session.focus.expand((640 + 32 * number, 672 + 32 * number))
            audit = session.audit()
            assert audit.kl_mean_nats < 1e-6
            assert (0, 1.0) == (audit.stale_rows, audit.top1_agreement)


@pytest.mark.parametrize("kv_mode", ["exact", "seam"])
def test_row70_an_audit_leaves_the_next_reply_as_it_was(sessions, kv_mode):
    def play(audits):
        with sessions.open(kv_mode=kv_mode, gist_dtype="f2") as session:
            sessions.fill(session, 50)
            texts = []
            for number in range(3):
                texts.append(session.generate(f"Day {number * 9}?", max_new_tokens=40).text)
                if audits:
                    session.audit()
            return texts

    assert play(audits=False) == play(audits=True)


@pytest.mark.parametrize("kv_mode", ["exact", "seam"])
@pytest.mark.parametrize("n_before", [0, 1, 12, 33, 50])
def test_row70_an_audit_amid_a_reply_does_not_change_what_follows(sessions, kv_mode, n_before):
    def play(look):
        with sessions.open(kv_mode=kv_mode) as session:
            sessions.fill(session, 50)
            text = ""
            for number, item in enumerate(session.stream("Day 7?", max_new_tokens=60)):
                text += getattr(item, "text", "")
                if number == n_before:
                    look(session)
            return text

    assert play(lambda session: None) == play(lambda session: session.audit())
