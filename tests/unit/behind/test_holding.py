"""While a reply is decoded, the gists of new blocks wait for each other."""

from __future__ import annotations

import numpy as np
import pytest

from megacontext_sdk import TextDelta
from megacontext_sdk.memory import gist_store
from megacontext_sdk.testing.encoders import NumberedMean, TrailingMean


def counted(kind):
    """Return an encoder of a kind that notes how many blocks each call was handed."""

    class Counted(kind):
        calls = ()

        def encode_blocks(self, blocks, services):
            self.calls += (len(blocks),)
            return super().encode_blocks(blocks, services)

    return Counted(3)


@pytest.mark.parametrize("kind", [NumberedMean, TrailingMean])
def test_blocks_of_a_reply_are_encoded_together(here, lag, kind):
    """In one call at its end, or when a policy looks at a block that is no longer protected."""
    encoder = counted(kind)
    with here.open(encoder) as session:
        lag.fill(session, 20)
        session.flush()
        encoder.calls = ()
        session.generate("How was day 3?", max_new_tokens=200)
        session.flush()
        assert 200 // 32 <= sum(encoder.calls)
        assert len(encoder.calls) <= 3
        assert 0 == session.stats().gists_pending
        lag.same(lag.eager(session, kind(3)), lag.gists(session))


@pytest.mark.parametrize("kind", [NumberedMean, TrailingMean])
def test_a_long_reply_does_not_gather_more_than_its_share(here, lag, kind):
    encoder = counted(kind)
    with here.open(encoder) as session:
        most = 0
        for item in session.stream("Tell me all.", max_new_tokens=32 * 40):
            if isinstance(item, TextDelta):
                most = max(most, session.stats().gists_pending)
        session.flush()
        assert most <= gist_store._HELD_BLOCKS + 2, "and what the thread has in hand"
        n_blocks = session._parts.tree.n_blocks
        assert 2 <= len(encoder.calls) <= n_blocks // 2
        assert sum(encoder.calls) == n_blocks, "no block is encoded twice"


def test_a_gist_that_is_read_meanwhile_is_made(here):
    with here.open(NumberedMean(3)) as session:
        with session._parts.tree.holding():
            session.append("word " * 80)
            tree = session._parts.tree
            assert 0 < session.stats().gists_missing
            rows = tree.gists(1, np.arange(tree.n_blocks))
            assert np.abs(rows).max(axis=(1, 2)).min() > 0
        assert 0 == session.stats().gists_missing


def test_an_abandoned_reply_leaves_no_gist_behind(here):
    with here.open(NumberedMean(3)) as session:
        stream = session.stream("Tell me all.", max_new_tokens=400)
        for number, _item in enumerate(stream):
            if number > 150:
                break
        stream.close()
        assert 0 == session.stats().gists_missing
        session.append("and on")
