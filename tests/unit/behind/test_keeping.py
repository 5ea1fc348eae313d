"""Restore, fork, forget, rebuild, export and verify while gists are pending, on every storage."""

from __future__ import annotations

import numpy as np
import pytest

from megacontext_sdk import MemorySession
from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.memory.lod import n_nodes
from megacontext_sdk.testing.encoders import TrailingMean

TEXT = "The tide is out, and the nets are dry on the quay. "


@pytest.fixture
def lagging(place):
    """A session with some hundred blocks pending, and its encoder, which is at work."""
    encoder = TrailingMean(seconds=0.01)
    with place.open(encoder) as session:
        session.append(TEXT * 300)
        session.snapshot("early")
        for number in range(20):
            session.append(f"Secret {number} of Anna{number}: the key is under stone {number}. ")
        session.append(TEXT * 300)
        assert session.stats().gists_pending > 300
        yield session, encoder


def done(session, encoder, lag):
    encoder.seconds = 0.0
    session.flush()
    assert 0 == session.stats().gists_missing
    lag.same(lag.eager(session), lag.gists(session))
    assert len(lag.builders()) <= 1


def test_a_restore_goes_on_with_what_is_left(lagging, lag):
    session, encoder = lagging
    session.restore("early")
    assert session.stats().gists_pending > 0
    session.append(TEXT * 10)
    done(session, encoder, lag)


def test_a_fork_has_its_own_background(lagging, lag, place):
    session, encoder = lagging
    with session.fork(place.path("b.mc")) as fork:
        fork.append(TEXT * 20)
        encoder.seconds = 0.0
        fork.flush()
        assert 0 == fork.stats().gists_missing
        lag.same(lag.eager(fork), lag.gists(fork))
    done(session, encoder, lag)


def test_forgetting_makes_no_gist_that_knows_of_it(lagging, lag):
    session, encoder = lagging
    numbers = [one.message_id for one in session.messages() if "Secret" in one.text][::3]
    receipt = session.forget(message_ids=numbers)
    assert receipt.verified
    assert receipt.gists_dropped >= receipt.gists_rebuilt
    done(session, encoder, lag)


def test_forgetting_after_everything_was_made_reaches_as_far_as_the_encoder_looks(place, lag):
    with place.open(TrailingMean()) as session:
        session.append(TEXT * 100)
        session.append("The key is under the third stone, and nobody must know.")
        session.append(TEXT * 100)
        session.flush()
        before = lag.gists(session)
        message = session.messages()[1]
        receipt = session.forget(message_ids=[message.message_id])
        session.flush()
        after = lag.gists(session)
        lag.same(lag.eager(session), after)
        start, end = message.span
        stop = -(-(end + TrailingMean.left_tokens) // 32)
        touched = list(range(start // 32, stop))
        changed = np.flatnonzero((before[1] != after[1]).any(axis=(1, 2))).tolist()
        assert set(changed) <= set(touched)
        assert stop - 1 in changed, "the last block that may have seen it"
        n_above = sum(
            len({node // 32 ** (lod - 1) for node in touched})
            for lod in range(2, 5)
            if n_nodes(session.stats().n_tokens, lod)
        )
        assert len(touched) + n_above == receipt.gists_dropped == receipt.gists_rebuilt


def test_a_rebuild_completes_the_encoder_in_use_in_the_foreground(lagging, lag):
    session, encoder = lagging
    encoder.seconds = 0.0
    seen = []
    made = session.rebuild(progress=lambda done, of: seen.append((done, of)))
    assert 0 == session.stats().gists_missing
    assert sum(session.stats().nodes.values()) == made.encoded + made.reused == seen[-1][1]
    done(session, encoder, lag)


def test_an_interrupted_rebuild_leaves_the_rest_to_the_background(lagging, lag):
    session, encoder = lagging

    def stop(at, of):
        if at > of // 2:
            raise KeyboardInterrupt

    encoder.seconds = 0.0
    with pytest.raises(KeyboardInterrupt):
        session.rebuild(gist=TrailingMean(5), progress=stop)
    assert "trailing-0" == session.stats().gist
    done(session, encoder, lag)


def test_a_rebuild_with_another_encoder_takes_the_place_of_one_that_is_behind(lagging, lag):
    session, _encoder = lagging
    session.rebuild(gist=TrailingMean(5))
    stats = session.stats()
    assert ("trailing-5", 0) == (stats.gist, stats.gists_missing)
    lag.same(lag.eager(session), lag.gists(session))
    session.rebuild(gist="mean")
    lag.same(lag.eager(session, MeanGistEncoder()), lag.gists(session))
    assert [] == lag.builders()


def test_what_is_exported_meanwhile_loads_and_is_completed(lagging, lag, tmp_path):
    session, encoder = lagging
    assert session.verify().is_sound
    session.export(tmp_path / "out.bundle")
    encoder.seconds = 0.0
    with MemorySession.load(
        tmp_path / "out.bundle",
        into=None,
        storage="memory",
        model=session._parts.state.adapter,
        gist=TrailingMean(),
        trust="keep",
    ) as copy:
        copy.flush()
        assert 0 == copy.stats().gists_missing
        assert copy.verify().is_sound
        lag.same(lag.eager(copy), lag.gists(copy))
    done(session, encoder, lag)
    assert session.verify().is_sound
