"""Forks: the same history up to the cut, and two memories from there on."""

from __future__ import annotations

import numpy as np
import pytest

from megacontext_sdk import MemorySession, errors
from megacontext_sdk.builtin.echo import EchoModel
from megacontext_sdk.builtin.heuristic import HeuristicFocus
from megacontext_sdk.builtin.sinks import InMemorySink


def test_a_fork_holds_what_its_origin_holds(place, fill, chain):
    with place.open() as session:
        fill(session)
        before = chain(session)
        with session.fork(place.path("b.mc")) as fork:
            assert before == chain(fork)
            assert session[:] == fork[:]
            assert [m.text for m in session.messages()] == [m.text for m in fork.messages()]
            assert session.search("Anna7", 1)[0].span == fork.search("Anna7", 1)[0].span


def test_gists_come_along(place, fill):
    with place.open() as session:
        fill(session)
        nodes = np.arange(8)
        with session.fork(place.path("b.mc")) as fork:
            assert {} == dict(fork._parts.tree.encode_calls)
            assert np.array_equal(
                session._parts.tree.gists(1, nodes), fork._parts.tree.gists(1, nodes)
            )


def test_appends_never_interact(place, fill):
    with place.open() as session:
        fill(session, 10)
        with session.fork(place.path("b.mc")) as fork:
            for number in range(12):
                session.append(f"The origin says {number} of zeppelins. " * 5)
                fork.append(f"The fork says {number} of submarines. " * 5)
            assert "submarines" not in session[:]
            assert "zeppelins" not in fork[:]
            assert [] == session.search("submarines")
            assert [] == fork.search("zeppelins")
            assert fork.verify().is_sound
            assert session.verify().is_sound


@pytest.mark.parametrize("by", ["name", "number"])
def test_a_fork_may_branch_off_earlier(place, fill, by):
    with place.open() as session:
        fill(session, 10)
        made, text = session.snapshot("here"), session[:]
        fill(session, 10, word="dog")
        at = "here" if by == "name" else made.seq
        with session.fork(place.path("b.mc"), at=at) as fork:
            assert text == fork[:]
            assert made.seq == fork._parts.journal.seq


def test_an_empty_memory_can_be_forked(place):
    with place.open() as session, session.fork(place.path("b.mc"), at=0) as fork:
        assert not fork[:]
        fork.append("The first words.")
        assert 0 == session.stats().n_tokens


def test_a_fork_of_a_fork(place, fill):
    with place.open() as session:
        fill(session, 10)
        with session.fork(place.path("b.mc")) as fork:
            fill(fork, 3, word="dog")
            with fork.fork(place.path("c.mc")) as third:
                assert fork[:] == third[:]


def test_a_fork_answers_as_its_origin_does(place, fill):
    with place.open() as session:
        fill(session)
        with session.fork(place.path("b.mc")) as fork:
            ask = {"prompt": "Where does the cat of Anna7 sleep?", "max_new_tokens": 16}
            assert session.generate(**ask).text == fork.generate(**ask).text


def test_the_last_session_closes_the_model(place, fill):
    with place.open(model="echo") as session:
        fill(session, 3)
        adapter = session._parts.state.adapter
        closed = []
        adapter.close = lambda: closed.append(True)
        fork = session.fork(place.path("b.mc"))
        assert adapter is fork._parts.state.adapter
    assert not closed
    fork.append("I am still here.")
    fork.close()
    fork.close()
    assert [True] == closed


def test_a_model_of_the_caller_is_not_closed(place, fill):
    model = EchoModel()
    closed = []
    model.close = lambda: closed.append(True)
    with place.open(model=model) as session:
        session.fork(place.path("b.mc")).close()
    assert not closed


def test_policies_given_as_objects_are_not_shared(place, fill):
    policy = HeuristicFocus()
    with place.open(focus=policy) as session:
        fill(session, 5)
        with session.fork(place.path("b.mc")) as fork:
            other = fork._parts.state.refocuser.policy
            assert isinstance(other, HeuristicFocus)
            assert policy is not other
            assert policy._cosines is not other._cosines


def test_sinks_given_as_objects_are_lent(place):
    class Sink(InMemorySink):
        closed = False

        def close(self):
            self.closed = True

    sink = Sink()
    with place.open(sinks=(sink,)) as session:
        session.fork(place.path("b.mc")).close()
        assert not sink.closed
    assert sink.closed


def test_the_origin_remembers_its_forks(disk, fill):
    with disk.open() as session:
        fill(session, 3)
        n_tokens, seq = session.stats().n_tokens, session._parts.journal.seq
        with session.fork(disk.path("b.mc")) as fork:
            uuid = fork._parts.memory.meta.uuid
        (note,) = session._parts.journal.settings["forks"]
        expected = {"uuid": uuid, "path": str(disk.path("b.mc")), "seq": seq, "n_tokens": n_tokens}
        assert expected == note


def test_a_fork_knows_where_it_comes_from(disk, fill):
    with disk.open() as session:
        fill(session, 3)
        meta = session._parts.memory.meta
        with session.fork(disk.path("b.mc")) as fork:
            assert meta.uuid == fork._parts.memory.meta.parent["uuid"]
            assert meta.root == fork._parts.memory.meta.root
            assert meta.uuid != fork._parts.memory.meta.uuid


def test_a_fork_reopens_on_its_own(disk, fill):
    with disk.open() as session:
        fill(session, 5)
        text = session[:]
        session.fork(disk.path("b.mc")).close()
        session.append("Only here.")
    with disk.open("b.mc") as fork:
        assert text == fork[:]


def test_a_path_that_exists_is_refused_and_nothing_is_noted(disk, fill, chain):
    disk.path("b.mc").mkdir()
    with disk.open() as session:
        fill(session, 1)
        before = chain(session)
        with pytest.raises(errors.ConfigError, match="exists"):
            session.fork(disk.path("b.mc"))
        assert before == chain(session)


def test_a_fork_that_fails_is_not_remembered(disk, fill, monkeypatch):
    with disk.open() as session:
        fill(session, 1)
        with pytest.raises(errors.ConfigError):
            session.fork(disk.folder / "no" / "such" / "place.mc")
        assert not session._parts.journal.settings.get("forks")
        session.append("It goes on.")


@pytest.mark.parametrize("at", ["there", -1, 10**9, 1.5, True])
def test_a_fork_at_nowhere_is_refused(place, fill, at):
    with place.open() as session:
        fill(session, 1)
        with pytest.raises(errors.ConfigError) as caught:
            session.fork(place.path("b.mc"), at=at)
        assert "at" == caught.value.field


def test_memories_fork_into_their_own_kind(tmp_path, model, disk):
    with MemorySession.open(None, model=model, storage="memory") as session:
        with pytest.raises(errors.ConfigError) as caught:
            session.fork(tmp_path / "b.mc")
        assert "path" == caught.value.field
    with disk.open() as session, pytest.raises(errors.ConfigError):
        session.fork(None)


def test_reading_only_forks_nothing(disk):
    disk.open().close()
    with disk.open(read_only=True) as session, pytest.raises(errors.ReadOnlyError):
        session.fork(disk.path("b.mc"))
