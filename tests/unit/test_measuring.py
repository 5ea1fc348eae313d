"""What measurements take from inside, and that they leave a session as it was."""

from __future__ import annotations

import numpy as np
import pytest

from megacontext_sdk import MemorySession
from megacontext_sdk.contracts.gist import Gists
from megacontext_sdk.errors import ConfigError
from megacontext_sdk.measuring import as_stored, read_on


@pytest.fixture
def session():
    with MemorySession.open(None, model="echo", storage="memory", w_max=512) as opened:
        opened.append("There was a cat. " * 60)
        yield opened


def test_gists_come_back_as_a_memory_gives_them():
    rng = np.random.default_rng(0)
    gists = Gists(
        rng.normal(0, 1, (3, 2, 8)).astype(np.float32), rng.normal(0, 1, (3, 1)).astype(np.float32)
    )
    exact, small = as_stored(gists, "f4"), as_stored(gists, "i1")
    assert np.array_equal(exact.rows, gists.rows)
    assert np.array_equal(small.aux, gists.aux)
    step = np.abs(gists.rows).max(axis=(1, 2), keepdims=True) / 127
    assert (np.abs(small.rows - gists.rows) <= step / 2 + 1e-6).all()
    assert not np.array_equal(small.rows, gists.rows)
    with pytest.raises(ConfigError, match="gist_dtype"):
        as_stored(gists, "i2")


def test_tokens_are_scored_behind_the_served_window(session):
    """The oracle: a probe by generate would feed the same rows; here all are scored at once."""
    ids = np.arange(10, 30).astype(np.int32)
    found = read_on(session, ids)
    assert found.shape == (19,)
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    again = read_on(session, ids[:5])  # nothing stayed behind in the window
    assert again == pytest.approx(found[:4], abs=1e-5)


def test_reading_on_leaves_no_trace(session):
    before, seen = session.stats(), session.focus.report()
    read_on(session, np.arange(10, 30).astype(np.int32))
    after = session.stats()
    assert (before.n_tokens, before.n_messages) == (after.n_tokens, after.n_messages)
    assert seen == session.focus.report()
    assert session.audit().kl_mean_nats < 1e-6


def test_too_few_and_too_many_tokens_are_refused(session):
    with pytest.raises(ConfigError, match="1 tokens cannot be read"):
        read_on(session, np.zeros(1, np.int32))
    with pytest.raises(ConfigError, match="cannot be read behind"):
        read_on(session, np.zeros(2000, np.int32))
