"""Making gists anew: only what is missing, again after an interruption, with another encoder."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from megacontext_sdk import GistEncoderSpec, errors, hookimpl
from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.memory.lod import n_nodes
from megacontext_sdk.plugins import Plugins


class Halved(MeanGistEncoder):
    """Gists of half the size; not finite for blocks that begin with certain ids."""

    name = "halved"

    def __init__(self, gist_slots=1, *, breaks=lambda ids: np.zeros(len(ids), bool)):
        super().__init__(gist_slots)
        self.breaks = breaks
        self.n_blocks = 0

    def fingerprint(self, info):
        return "5a" * 32

    def encode_blocks(self, blocks, services):
        self.n_blocks += len(blocks)
        found = super().encode_blocks(blocks, services)
        rows = found.rows / 2
        rows[self.breaks(blocks.token_ids)] = np.nan
        return attrs.evolve(found, rows=rows)


class HalvedPlugin:
    @hookimpl
    def megacontext_gist_encoders(self):
        yield GistEncoderSpec(
            "halved", lambda _argument, gist_slots: Halved(gist_slots), "Half the size"
        )


def total(session):
    n_tokens = session.stats().n_tokens
    return sum(n_nodes(n_tokens, lod) for lod in range(1, 11))


def test_a_complete_memory_has_nothing_to_do(place, fill):
    with place.open() as session:
        fill(session)
        made = session.rebuild()
        assert (0, total(session), 0) == (made.encoded, made.reused, made.kept_old)
        assert "mean" == made.gist


def test_another_encoder_makes_all_gists_and_serves_from_then_on(place, fill):
    with place.open() as session:
        fill(session)
        before = session._parts.tree.gists(1, np.arange(4)).copy()
        made = session.rebuild(gist=Halved())
        assert (total(session), 0) == (made.encoded, made.reused)
        assert "halved" == session.stats().gist
        after = session._parts.tree.gists(1, np.arange(4))
        assert np.allclose(before / 2, after, rtol=1e-2, atol=1e-4)
        assert 0 == session.stats().gists_missing


def test_going_back_to_the_encoder_before_reuses_its_gists(place, fill):
    with place.open() as session:
        fill(session)
        first = session.rebuild(gist=Halved())
        back = session.rebuild(gist="mean")
        assert (0, total(session)) == (back.encoded, back.reused)
        assert first.version != back.version
        assert "mean" == session.stats().gist


def test_the_session_answers_and_appends_afterwards(place, fill):
    with place.open() as session:
        fill(session)
        entries = len(session.focus.report().entries)
        session.rebuild(gist=Halved())
        assert entries == len(session.focus.report().entries)
        assert session.search("Anna7", 1)
        session.generate("Where does the cat sleep?", max_new_tokens=8)
        fill(session, 10)
        assert 0 == session.stats().gists_missing
        assert session.audit(8).top1_agreement > 0


def test_progress_rises_to_the_end(place, fill):
    seen = []
    with place.open() as session:
        fill(session)
        session.rebuild(gist=Halved(), progress=lambda done, of: seen.append((done, of)))
        assert sorted(seen) == seen
        assert (0, total(session)) == seen[0]
        assert (total(session), total(session)) == seen[-1]


@pytest.mark.parametrize("reopened", [False, True])
def test_an_interrupted_rebuild_goes_on_where_it_stopped(disk, fill, reopened, monkeypatch):
    monkeypatch.setattr("megacontext_sdk.memory.gist_rebuild._CHUNK_NUMBERS", 64 * 64)
    encoder = Halved()

    def stop_early(done, of):
        if done > of // 2:
            raise KeyboardInterrupt

    session = disk.open()
    try:
        fill(session, 60)
        with pytest.raises(KeyboardInterrupt):
            session.rebuild(gist=encoder, progress=stop_early)
        assert "mean" == session.stats().gist
        assert session.search("Anna7", 1)
        if reopened:
            session.close()
            session = disk.open()
        made = session.rebuild(gist=encoder)
        assert made.reused > 0
        assert total(session) == made.reused + made.encoded
        assert session.stats().n_blocks == encoder.n_blocks
    finally:
        session.close()


def test_where_the_new_gist_is_not_finite_the_old_one_serves(place, fill):
    encoder = Halved(breaks=lambda ids: ids.sum(axis=1) % 5 == 0)
    with place.open() as session:
        fill(session)
        n_blocks = session.stats().n_blocks
        ids = session._parts.tree.token_ids_of_blocks(np.arange(n_blocks))
        (wrong,) = np.nonzero(encoder.breaks(ids))
        assert len(wrong)
        before = session._parts.tree.gists(1, wrong).copy()
        made = session.rebuild(gist=encoder)
        assert len(wrong) == made.kept_old
        assert np.allclose(before, session._parts.tree.gists(1, wrong), rtol=1e-2, atol=1e-4)
        assert 0 == session.stats().gists_missing


def test_an_encoder_that_fails_changes_nothing(place, fill):
    class Broken(Halved):
        def encode_gists(self, lod, children, services):
            raise RuntimeError("no")

    with place.open() as session:
        fill(session, 200)
        with pytest.raises(errors.ModelError):
            session.rebuild(gist=Broken())
        assert "mean" == session.stats().gist
        assert 0 == session.stats().gists_missing
        session.generate("Hello?", max_new_tokens=4)


@pytest.mark.parametrize("gist", [7, b"mean", object()])
def test_what_is_no_encoder_is_refused(place, gist):
    with place.open() as session, pytest.raises(errors.ConfigError) as caught:
        session.rebuild(gist=gist)
    assert "gist" == caught.value.field


def test_an_unknown_encoder_is_refused(place):
    with place.open() as session, pytest.raises(errors.UnknownProviderError):
        session.rebuild(gist="nothing")


def test_another_number_of_slots_is_refused(place, fill):
    with place.open() as session:
        fill(session, 2)
        with pytest.raises(errors.ConfigError, match="gist_slots=2"):
            session.rebuild(gist=Halved(2))


def test_the_memory_opens_with_the_encoder_that_was_chosen(disk, fill):
    plugins = Plugins.load(modules=[HalvedPlugin()])
    with disk.open(plugins=plugins) as session:
        fill(session)
        session.rebuild(gist="halved")
    with disk.open(plugins=plugins) as session:
        assert "halved" == session.stats().gist
        assert 0 == session.stats().gists_rebuilt
        assert total(session) == session.stats().gists_reused
    with disk.open(plugins=plugins, gist="mean") as session:
        assert "mean" == session.stats().gist


def test_an_encoder_that_is_not_installed_is_missed_in_the_log(disk, fill, caplog):
    with disk.open(plugins=Plugins.load(modules=[HalvedPlugin()])) as session:
        fill(session, 3)
        session.rebuild(gist="halved")
    with disk.open() as session:
        assert "mean" == session.stats().gist
    assert "halved" in caplog.text


def test_gists_lost_in_a_crash_are_made_and_counted(disk, fill, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("megacontext_sdk.memory.journal.Journal.put_gists", lambda self, batch: None)
        with disk.open() as session:
            fill(session, 5)
    with disk.open() as session:
        stats = session.stats()
        assert (0, total(session), 0) == (
            stats.gists_reused,
            stats.gists_rebuilt,
            stats.gists_missing,
        )
