"""Appends do not wait for an encoder that runs behind; in the end its gists are the same."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from megacontext_sdk import AsyncMemorySession
from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.errors import ConfigError, StorageError
from megacontext_sdk.memory.lod import NodeId
from megacontext_sdk.testing.encoders import TrailingMean


def let_go(encoder):
    encoder.breaks = ""
    encoder.released.set()


def test_appends_return_while_the_encoder_hangs_and_flush_completes_them(place, lag, hanging):
    with place.open(hanging) as session:
        lag.fill(session)
        stats = session.stats()
        assert stats.n_blocks == stats.gists_pending > 100
        assert sum(stats.nodes.values()) == stats.gists_missing
        let_go(hanging)
        session.flush()
        stats = session.stats()
        assert (0, 0) == (stats.gists_pending, stats.gists_missing)
        lag.same(lag.eager(session), lag.gists(session))


@pytest.mark.parametrize("background", ["auto", "on", "off"])
@pytest.mark.parametrize("encoder", [TrailingMean, MeanGistEncoder])
def test_the_gists_are_the_same_whoever_makes_them(here, lag, background, encoder):
    with here.open(encoder(), gist_background=background) as session:
        lag.fill(session, 150)
        behind = background == "on" or (background == "auto" and encoder is TrailingMean)
        assert behind == bool(lag.builders())
        session.flush()
        lag.same(lag.eager(session, encoder()), lag.gists(session))
        assert 0 == session.stats().gists_missing


def test_a_pending_gist_is_provisional_and_never_passes_for_the_encoders_own(here, lag, hanging):
    with here.open(hanging) as session:
        lag.fill(session)
        tree = session._parts.tree
        served = lag.gists(session)
        plain = lag.eager(session, MeanGistEncoder())
        np.testing.assert_allclose(served[1], plain[1], atol=2e-2)
        nodes = np.arange(tree.n_blocks)
        assert tree.is_provisional(np.ones(len(nodes), np.uint8), nodes).all()
        report = session.focus.report()
        assert [entry.lod > 0 for entry in report.entries] == [
            entry.provisional for entry in report.entries
        ]
        above = sum(entry.lod > 0 for entry in report.entries)
        assert above == session.stats().gists_provisional > 0
        let_go(hanging)
        session.flush()
        assert 0 == session.stats().gists_provisional
        assert not any(entry.provisional for entry in session.focus.report().entries)
        assert not np.allclose(lag.gists(session)[1], plain[1], atol=2e-2)


def test_a_gist_the_model_is_about_to_be_fed_is_made_at_once(here, lag):
    encoder = TrailingMean(seconds=0.01)
    with here.open(encoder) as session:
        lag.fill(session, 400)
        tree = session._parts.tree
        last = tree.n_blocks - 1
        own = tree.rows(NodeId(1, last)).copy()
        assert session.stats().gists_pending > 0
        assert not tree.is_provisional(np.array([1], np.uint8), np.array([last]))[0]
        encoder.seconds = 0.0
        session.flush()
        np.testing.assert_array_equal(own, tree.rows(NodeId(1, last)))


def test_nobody_waits_twice_for_an_encoder_that_hangs(here, lag, hanging):
    with here.open(hanging) as session:
        lag.fill(session, 10)
        tree = session._parts.tree
        tree.rows(NodeId(1, 3))
        started = time.monotonic()
        for block in range(19):
            tree.rows(NodeId(1, block))
        assert time.monotonic() - started < 0.1


@pytest.mark.parametrize("how", ["raise", "nan"])
def test_an_encoder_that_fails_costs_no_append_no_flush_and_no_close(place, lag, how):
    encoder = TrailingMean()
    with place.open(encoder) as session:
        lag.fill(session, 20)
        session.flush()
        encoder.breaks = how
        with np.errstate(all="ignore"):
            lag.fill(session, 40, first=20)
            session.flush()
            session.generate("How was day 31?", max_new_tokens=4)
        stats = session.stats()
        assert stats.gists_pending > 0
        assert session._parts.tree.encoder_error is not None
        encoder.breaks = ""
        session.flush()
        assert 0 == session.stats().gists_missing
        assert session._parts.tree.encoder_error is None
        lag.same(lag.eager(session), lag.gists(session))
        encoder.breaks = how
        lag.fill(session, 5, first=60)


def test_a_close_does_not_wait_for_a_long_backlog_and_the_next_open_goes_on(disk, lag):
    encoder = TrailingMean(seconds=0.01)
    session = disk.open(encoder)
    try:
        session.append("The tide is out, and the nets are dry. " * 1_500)
        pending = session.stats().gists_pending
        started = time.monotonic()
    finally:
        session.close()
    assert pending > 1_000
    assert time.monotonic() - started < 4.0
    assert [] == lag.builders()
    with disk.open(TrailingMean()) as session:
        assert session.stats().gists_rebuilt == 0
        session.flush()
        assert 0 == session.stats().gists_missing
        lag.same(lag.eager(session), lag.gists(session))


def test_a_close_leaves_an_encoder_behind_that_does_not_return(place, lag, hanging, caplog):
    session = place.open(hanging)
    lag.fill(session)
    lag.until(lag.builders)
    started = time.monotonic()
    session.close()
    assert time.monotonic() - started < 5.0
    assert "left behind" in caplog.text
    let_go(hanging)
    lag.until(lambda: not lag.builders())


def test_another_thread_appends_while_one_waits_in_flush(here, lag, hanging):
    with here.open(hanging) as session:
        lag.fill(session, 10)
        flushing = threading.Thread(target=session.flush)
        flushing.start()
        lag.fill(session, 10, first=10)
        assert flushing.is_alive()
        let_go(hanging)
        flushing.join(20)
        assert not flushing.is_alive()


def test_a_session_closed_under_a_flush_ends_it(here, lag, hanging):
    session = here.open(hanging)
    lag.fill(session, 10)
    errors = []

    def flush():
        try:
            session.flush()
        except StorageError as error:
            errors.append(error)

    flushing = threading.Thread(target=flush)
    flushing.start()
    lag.until(lag.builders)
    session.close()
    flushing.join(20)
    assert ["closed"] == [error.reason for error in errors]


def test_a_reader_makes_what_it_needs_and_stores_nothing(disk, lag):
    with disk.open("mean") as session:
        lag.fill(session, 100)
        before = session.stats().seq
    with disk.open(TrailingMean(), read_only=True) as session:
        tree = session._parts.tree
        expected = lag.eager(session)
        np.testing.assert_array_equal(expected[1][7], tree.rows(NodeId(1, 7)))
        assert (before, -1) == (session.stats().seq, tree.gist_version)
        assert session.audit(4).n_rows == 4
    with disk.open("mean") as session:
        assert {0} == {v for v, n in session.stats().gist_versions.items() if n}


def test_several_threads_append_while_gists_are_made(here, lag):
    encoder = TrailingMean(seconds=0.0005)
    with here.open(encoder) as session:

        def append(number):
            for at in range(40):
                session.append(f"Thread {number} says {at}: the tide is out, and the nets are dry.")
                if at % 10 == number:
                    session.flush()

        threads = [threading.Thread(target=append, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        session.flush()
        assert 1 == len(lag.builders())
        assert 0 == session.stats().gists_missing
        lag.same(lag.eager(session), lag.gists(session))


def test_a_word_that_is_no_way_to_make_gists_is_refused(here):
    with pytest.raises(ConfigError, match="'auto', 'on', 'off'"):
        here.open(gist_background="later")


def test_an_asyncio_program_appends_while_it_flushes(here, lag, hanging):
    async def main():
        arguments = {"storage": "memory", "gist": hanging, "sinks": ()}
        async with await AsyncMemorySession.open(None, model="echo", **arguments) as session:
            await session.append("Rain in Oslo. " * 20)
            flushing = asyncio.create_task(session.flush())
            await asyncio.sleep(0.01)
            await session.append("Sun in Bergen. " * 20)
            assert not flushing.done()
            let_go(hanging)
            await asyncio.wait_for(flushing, 20)
            stats = await session.stats()
            assert 0 == stats.gists_pending

    asyncio.run(main())
