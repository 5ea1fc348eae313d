"""Row 75: an encoder that fails in mid-session; mean gists stand in, and the session says so."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.builtin.sinks import InMemorySink
from megacontext_sdk.memory.stand_in import StandIns


class Flaky(MeanGistEncoder):
    """Fails while told to; otherwise the mean of the tokens, mirrored, so that one can tell."""

    name = "flaky"
    fails = False

    def fingerprint(self, info):
        return "f" * 64

    def encode_blocks(self, blocks, services):
        if self.fails:
            raise RuntimeError("no device")
        gists = super().encode_blocks(blocks, services)
        gists.rows[:] *= -1
        return gists


@pytest.fixture
def flaky_session(sessions):
    encoder, sink = Flaky(), InMemorySink()
    with sessions.open(gist=encoder, sinks=(sink,)) as session:
        parts = session._parts
        stand_ins = StandIns(MeanGistEncoder(), parts.journal, parts.state.adapter)
        parts.tree._gists.stand_ins = stand_ins
        yield session, encoder, sink


def test_row75_an_encoder_failure_costs_no_token_and_no_reply(sessions, flaky_session, caplog):
    session, encoder, sink = flaky_session
    sessions.fill(session, 10)
    encoder.fails = True
    with caplog.at_level(logging.ERROR):
        sessions.fill(session, 50)
        reply = session.generate("Day 33?", max_new_tokens=70)
    assert 70 == reply.usage.generated_tokens
    assert 512 >= reply.usage.window_rows
    assert 0 < session._parts.tree.stats().n_missing_gists
    session._parts.state.wc.check()
    lossy = [event for event in sink.named("lossy") if event.what == "gist"]
    assert lossy
    assert "flaky" in lossy[0].reason
    assert session._parts.tree.n_provisional == sum(event.count for event in lossy)


def test_row75_stand_ins_give_way_once_the_encoder_works_again(sessions, flaky_session, caplog):
    session, encoder, _ = flaky_session
    tree = session._parts.tree
    encoder.fails = True
    with caplog.at_level(logging.ERROR):
        sessions.fill(session, 60)
        stood_in = tree.gists(1, np.arange(tree.n_blocks))
    encoder.fails = False
    session.append("The device is back, and the sheep are counted again.")
    made = tree.gists(1, np.arange(len(stood_in)))
    assert 0 == tree.stats().n_missing_gists
    assert tree.encoder_error is None
    rounding = np.abs(stood_in).max(axis=-1, keepdims=True) / 127
    assert (np.abs(stood_in + made) <= 0.51 * rounding).all()
