"""What the model is fed while gists are pending, and how the real ones get into its window."""

from __future__ import annotations

import numpy as np

from megacontext_sdk.builtin.recency import RecencyFocus
from megacontext_sdk.builtin.sinks import InMemorySink
from megacontext_sdk.memory.urgent import URGENT_BLOCKS, affordable
from megacontext_sdk.runtime.rows import gist_parts, is_token
from megacontext_sdk.testing.encoders import TrailingMean


class Watching(RecencyFocus):
    """Keeps the views it is shown."""

    def __init__(self):
        super().__init__()
        self.views = []

    def score(self, view):
        self.views.append(view)
        return super().score(view)


def window_gists(session):
    """Levels and nodes of the gist rows in the window."""
    keys, _positions = session._parts.state.pager.live()
    lods, nodes, _slot = gist_parts(keys[~is_token(keys)])
    return lods.astype(np.uint8), nodes


def let_go(encoder):
    encoder.breaks = ""
    encoder.released.set()


def test_rows_that_stood_in_are_swapped_when_the_real_ones_are_there(here, lag, hanging):
    sink = InMemorySink()
    with here.open(hanging, sinks=(sink,), kv_mode="exact") as session:
        lag.fill(session)
        session.generate("How was day 31?", max_new_tokens=4)
        pager, tree = session._parts.state.pager, session._parts.tree
        lods, nodes = window_gists(session)
        assert len(nodes) > 10
        assert tree.is_provisional(lods, nodes).all()
        before = pager.newest_logits(8)
        let_go(hanging)
        session.flush()
        n_swaps = len(sink.named("swap"))
        assert session.audit(8).kl_mean_nats < 1e-9, "the window holds what the tree has now"
        swap = sink.named("swap")[n_swaps]
        assert len(nodes) == swap.rows_released
        assert swap.rows_new - len(nodes) <= 2, "and the end of the reply, which no step has fed"
        assert np.abs(before - pager.newest_logits(8)).max() > 1e-3, "and it held something else"
        session.audit(8)
        assert 0 == sink.named("swap")[-1].rows_new, "once is enough"


def test_a_reply_says_that_gists_stood_in_and_reports_it_as_lossy(here, lag, hanging):
    sink = InMemorySink()
    with here.open(hanging, sinks=(sink,)) as session:
        lag.fill(session)
        reply = session.generate("How was day 31?", max_new_tokens=4)
        assert any(entry.provisional for entry in reply.focus.entries)
        lossy = [event for event in sink.named("lossy") if event.what == "gist"]
        assert lossy[0].reason == "the gist encoder is behind"
        assert session._parts.tree.n_provisional == sum(event.count for event in lossy)
        waiting = sink.named("gist")[-1]
        assert ({}, 0) == (waiting.lod_counts, waiting.version - session._parts.tree.gist_version)
        assert waiting.provisional == session.stats().gists_missing
        let_go(hanging)
        session.flush()
        session.append("One more day of rain.")
        made = sink.named("gist")[-1]
        assert made.lod_counts[1] > 100
        reply = session.generate("How was day 31?", max_new_tokens=4)
        assert not any(entry.provisional for entry in reply.focus.entries)


def test_a_reply_over_many_blocks_takes_up_gists_as_they_are_made(here, lag):
    encoder = TrailingMean(seconds=0.001)
    with here.open(encoder, kv_mode="exact") as session:
        session.append("The tide is out, and the nets are dry on the quay. " * 600)
        session.generate("Who is at sea?", max_new_tokens=200)
        session.flush()
        session.generate("And now?", max_new_tokens=70)
        lods, nodes = window_gists(session)
        assert not session._parts.tree.is_provisional(lods, nodes).any()
        assert session.audit(8).kl_mean_nats < 1e-9
        session._parts.state.wc.check()


def test_gists_that_are_cheap_to_make_never_enter_the_window_as_stand_ins(here, lag):
    with here.open(TrailingMean(seconds=0.0005), w_max=320) as session:
        lag.fill(session, 30)
        session.generate("How was day 11?", max_new_tokens=40)
        lods, nodes = window_gists(session)
        assert len(nodes)
        assert not session._parts.tree.is_provisional(lods, nodes).any()


def test_a_policy_sees_which_gists_are_provisional_and_whose_they_are(here, lag, hanging):
    policy = Watching()
    with here.open(hanging, focus=policy) as session:
        lag.fill(session)
        session.generate("How was day 31?", max_new_tokens=4)
        view = policy.views[-1]
        tail = (view.entries.lod == 0) & (view.entries.index >= view.n_blocks)
        assert view.provisional.tolist() == (~tail).tolist()
        assert (view.gist_versions == -1).all()
        let_go(hanging)
        session.flush()
        session.focus.report("How was day 32?")
        view = policy.views[-1]
        assert np.int16 == view.gist_versions.dtype
        assert not view.provisional.any()
        tail = (view.entries.lod == 0) & (view.entries.index >= view.n_blocks)
        own = session._parts.tree.gist_version
        assert np.where(tail, -1, own).tolist() == view.gist_versions.tolist()


def price_of(lods, nodes, counts=None):
    lacking = np.ones(len(nodes), bool)
    found = affordable(
        np.array(lods, np.uint8), np.array(nodes), lacking, lambda lod: (counts or {}).get(lod, 0)
    )
    return [(lod, part.tolist()) for lod, part in found]


def test_what_is_made_at_once_is_bounded_cheapest_and_newest_first():
    assert [] == price_of([], [])
    assert [(1, [3, 7])] == price_of([1, 1], [7, 3])
    assert [(1, list(range(136, 200)))] == price_of([1] * 200, list(range(200)))
    assert [(1, [64, 65]), (2, [1])] == price_of([2, 1, 1, 2], [0, 64, 65, 1])
    assert [] == price_of([3], [0]), "1,057 nodes are more than a window waits for"
    assert [(3, [0])] == price_of([3], [0], {1: 1024, 2: 32}), "unless they are all there"
    assert [(3, [0])] == price_of([3], [0], {1: 1000, 2: 31})
    assert URGENT_BLOCKS == 64


def test_what_is_there_is_not_made_again():
    lacking = np.array([False, True, False])
    found = affordable(np.ones(3, np.uint8), np.arange(3), lacking, lambda _lod: 0)
    assert [(1, [1])] == [(lod, nodes.tolist()) for lod, nodes in found]
