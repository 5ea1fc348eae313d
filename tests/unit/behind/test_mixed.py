"""A memory whose gists are another encoder's: served, counted and replaced; or refused."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from megacontext_sdk.builtin.echo import EchoModel
from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.errors import ModelMismatchError
from megacontext_sdk.memory.lod import NodeId
from megacontext_sdk.testing.encoders import NumberedMean, TrailingMean

TEXT = "The tide is out, and the nets are dry on the quay. "


def let_go(encoder):
    encoder.breaks = ""
    encoder.released.set()


@pytest.fixture
def reopened(place):
    """Open the memory again with another encoder, by `rebuild` where nothing can be opened."""

    def reopen(session, gist, **settings):
        if place.is_durable:
            session.close()
            return place.open(gist, **settings)
        # A memory in this process cannot be opened again: its rooms are made again over it.
        parts = session._parts
        parts.wiring.providers = parts.wiring.providers.with_gist(gist)
        parts.tree.close()
        session._renew(parts.memory, keep_layout=True)
        return session

    return reopen


def total(session):
    return sum(session.stats().nodes.values())


def test_row13_gists_of_the_encoder_before_serve_until_there_are_others(
    place, reopened, lag, hanging
):
    session = place.open("mean")
    try:
        session.append(TEXT * 100)
        old = lag.gists(session)
        session = reopened(session, hanging)
        stats = session.stats()
        assert (total(session), 0) == (stats.gists_missing, stats.gists_rebuilt)
        assert {0: total(session)} == stats.gists_served
        lag.same(old, lag.gists(session))
        session.generate("Who is at sea?", max_new_tokens=4)
        n_new = total(session) - stats.gists_missing
        assert {0: stats.gists_missing, -1: n_new} == {
            version: n for version, n in session.stats().gists_served.items() if n
        }
        let_go(hanging)
        session.flush()
        stats = session.stats()
        own = session._parts.tree.gist_version
        assert ({own: total(session)}, 0) == (stats.gists_served, stats.gists_missing)
        assert stats.gist_versions[0] == len(old[1]), "nothing was dropped"
        lag.same(lag.eager(session), lag.gists(session))
    finally:
        session.close()


def test_row13_half_a_change_serves_both(place, reopened, lag, monkeypatch):
    monkeypatch.setattr("megacontext_sdk.memory.gist_rebuild._CHUNK_NUMBERS", 64 * 64)
    encoder = TrailingMean()

    def stop(at, of):
        if at > of // 2:
            encoder.breaks = "raise"

    session = place.open("mean", gist_background="off")
    try:
        session.append(TEXT * 100)
        old = lag.gists(session)
        with pytest.raises(Exception, match="failed"):
            session.rebuild(gist=encoder, progress=stop)
        assert {0: total(session)} == session.stats().gists_served
        session = reopened(session, encoder)
        stats = session.stats()
        own = session._parts.tree.gist_version
        assert set(stats.gists_served) == {0, own}
        assert total(session) == sum(stats.gists_served.values())
        n_own = len(old[1]) - stats.gists_pending
        assert 0 < n_own < len(old[1])
        served = lag.gists(session)[1]
        np.testing.assert_array_equal(old[1][n_own:], served[n_own:])
        np.testing.assert_array_equal(lag.eager(session)[1][:n_own], served[:n_own])
        encoder.breaks = ""
        made = session.rebuild()
        assert total(session) == made.encoded + made.reused
        assert stats.n_blocks == encoder.n_blocks, "none was made twice"
        lag.same(lag.eager(session), lag.gists(session))
    finally:
        session.close()


def test_row13_of_several_encoders_before_the_newest_serves(here, lag, hanging):
    with here.open(NumberedMean(1), gist_background="off") as session:
        session.append(TEXT * 30)
        session.rebuild(gist=TrailingMean(2))
        newest = lag.gists(session)
        session.append(TEXT * 3)
        session.flush()
        parts = session._parts
        n_two = session.stats().n_blocks
        parts.wiring.providers = parts.wiring.providers.with_gist(hanging)
        parts.wiring.providers = attrs.evolve(
            parts.wiring.providers, config=parts.wiring.config.replace(gist_background="on")
        )
        session._renew(parts.memory, keep_layout=True)
        served = lag.gists(session)
        np.testing.assert_array_equal(newest[1], served[1][: len(newest[1])])
        view = parts.tree.serving(np.ones(n_two, np.uint8), np.arange(n_two))
        versions = {
            entry["name"]: at for at, entry in enumerate(parts.tree.gist_store.table.entries)
        }
        assert {versions["trailing-2"]} == set(view[0].tolist())
        assert view[1].all()


def test_row13_where_the_encoder_fails_the_one_before_serves(here, lag):
    encoder = TrailingMean()
    with here.open("mean") as session:
        session.append(TEXT * 30)
        old = lag.gists(session)
        parts = session._parts
        encoder.breaks = "nan"
        parts.wiring.providers = parts.wiring.providers.with_gist(encoder)
        with np.errstate(all="ignore"):
            session._renew(parts.memory, keep_layout=True)
            session.flush()
        assert session.stats().gists_missing == total(session)
        lag.same(old, lag.gists(session))


@pytest.mark.parametrize("settings", [{"gist_dtype": "f4"}, {"gist_slots": 2}])
def test_rows_of_another_layout_cannot_serve(disk, lag, hanging, settings):
    with disk.open("mean") as session:
        session.append(TEXT * 30)
    encoder = hanging
    if "gist_slots" in settings:
        encoder = TrailingMean(0, 2)
        encoder.breaks = "raise"
    with disk.open(encoder, **settings) as session:
        assert {-1: total(session)} == session.stats().gists_served
        assert np.isfinite(session._parts.tree.rows(NodeId(1, 0))).all()
        let_go(encoder)
        session.flush()
        assert 0 == session.stats().gists_missing


def test_a_reader_with_a_quick_encoder_is_served_by_nobody_else(disk, lag):
    with disk.open(NumberedMean(1)) as session:
        session.append(TEXT * 30)
    with disk.open(TrailingMean(), read_only=True, gist_background="off") as session:
        assert {-1: total(session)} == session.stats().gists_served
        assert 0 == session.stats().gists_provisional
        lag.same(lag.eager(session), lag.gists(session))


class Stranger(EchoModel):
    """Another base with the same tokenizer."""

    @property
    def info(self):
        return attrs.evolve(super().info, fingerprint="5" * 64)


def test_row14_gists_of_another_base_never_serve(disk, lag, hanging):
    with disk.open("mean") as session:
        session.append(TEXT * 30)
    with disk.open(hanging, model=Stranger(), adopt_model=True) as session:
        assert {-1: total(session)} == session.stats().gists_served
        let_go(hanging)
        session.flush()
        assert 0 == session.stats().gists_missing


def test_row14_a_strict_session_refuses_gists_of_another_encoder(disk, lag):
    with disk.open(NumberedMean(1)) as session:
        session.append(TEXT * 30)
        before = session.stats().seq
    for read_only in (False, True):
        with pytest.raises(ModelMismatchError, match="mean-1.*trailing-0") as caught:
            disk.open(TrailingMean(), strict_encoder=True, read_only=read_only)
        assert "rebuild(gist='trailing-0')" in str(caught.value)
        assert "encoder" == caught.value.kind
        assert caught.value.stored != caught.value.given
    with disk.open(NumberedMean(1), strict_encoder=True) as session:
        assert before == session.stats().seq, "nothing was written"
        session.rebuild(gist=TrailingMean())
    with disk.open(TrailingMean(), strict_encoder=True) as session:
        assert 0 == session.stats().gists_missing
        session.append(TEXT * 10)
        session.flush()
    with pytest.raises(ModelMismatchError):
        disk.open(NumberedMean(1), strict_encoder=True)


def test_row14_gists_that_are_only_missing_are_no_reason_to_refuse(disk, hanging):
    with disk.open(hanging) as session:
        session.append(TEXT * 30)
    let_go(hanging)
    with disk.open(TrailingMean(), strict_encoder=True) as session:
        session.flush()
        assert 0 == session.stats().gists_missing


def test_a_quick_encoder_leaves_a_long_memory_of_another_one_to_the_background(
    disk, lag, monkeypatch
):
    monkeypatch.setattr("megacontext_sdk.memory.gist_store._AT_ONCE", 100)
    with disk.open(NumberedMean(1)) as session:
        session.append(TEXT * 300)
    with disk.open(NumberedMean(2)) as session:
        assert 0 == session.stats().gists_rebuilt
        session.flush()
        assert 0 == session.stats().gists_missing
        session.append(TEXT * 3)
        assert 0 == session.stats().gists_missing, "from then on it is quick again"
        assert [] == lag.builders()
        lag.same(lag.eager(session, MeanGistEncoder()), lag.gists(session))
    with disk.open(NumberedMean(3), gist_background="off") as session:
        assert 0 == session.stats().gists_missing
        assert total(session) == session.stats().gists_rebuilt


def test_forgetting_in_the_middle_of_a_change_keeps_what_still_serves(disk, lag, hanging):
    with disk.open("mean") as session:
        session.append(TEXT * 60)
        session.append("The key is under the third stone, and nobody must know.")
        session.append(TEXT * 60)
        old = lag.gists(session)
    with disk.open(hanging) as session:
        message = session.messages()[1]
        receipt = session.forget(message_ids=[message.message_id])
        assert receipt.verified
        first = message.span.start // 32
        served = session.stats().gists_served
        assert 0 < served[-1] < served[0] + served[-1] == total(session)
        np.testing.assert_array_equal(old[1][:first], lag.gists(session)[1][:first])
        let_go(hanging)
        session.flush()
        lag.same(lag.eager(session), lag.gists(session))
        receipt = session.forget(span=(0, 40))
        assert receipt.verified
        assert 0 == session.stats().gist_versions.get(0, 0), "what serves no more goes"
