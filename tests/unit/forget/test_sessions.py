"""What was forgotten shows nowhere in a session: not in search, replies, texts, forks or caches."""

from __future__ import annotations

import pytest

from megacontext_sdk import MemorySession
from megacontext_sdk.builtin.echo import EchoModel
from megacontext_sdk.errors import ConfigError, DetailUnavailableError
from megacontext_sdk.memory.lexical import LexicalIndex
from megacontext_sdk.memory.lod import Span
from megacontext_sdk.plugins import default_plugins

STORAGES = [
    name
    for name in ("memory", "duckdb", "filesystem")
    if name in default_plugins().names("storage")
]
MODEL = EchoModel()
WORDS = ("amber", "basil", "cobalt", "dahlia", "ember", "fennel", "garnet", "hazel", "iris", "jade")


def marker(number):
    return f"zq{number:02d}{WORDS[number % 10]}{number * 7919:08d}"


def told(number):
    return f"Remember that the password of vault {number} is {marker(number)} and tell nobody."


class Place:
    """Sessions on one storage."""

    def __init__(self, storage, folder):
        self.storage = storage
        self.folder = folder

    def path(self, name="a.mc"):
        return None if self.storage == "memory" else self.folder / name

    def open(self, name="a.mc", **arguments):
        arguments = {"model": MODEL, "w_max": 512, "strict": True} | arguments
        return MemorySession.open(self.path(name), storage=self.storage, **arguments)


@pytest.fixture(params=STORAGES)
def place(request, tmp_path):
    return Place(request.param, tmp_path)


@pytest.fixture(params=sorted({"memory", STORAGES[-1]}))
def quick(request, tmp_path):
    """In this process, and on one storage with files."""
    return Place(request.param, tmp_path)


def plant(session, n=50):
    """Append markers between other messages, five per commit; return their message ids."""
    planted = []
    for number in range(n):
        ordinary = f"Ordinary talk number {number} about the weather, which changes every day."
        receipt = session.append(
            [
                {"role": "user", "content": told(number), "source": "vault"},
                {"role": "assistant", "content": ordinary},
            ]
        )
        planted.append(receipt.message_ids[0])
    return planted


def everything_said(session):
    """Return all that a session can be made to say."""
    said = [session[:]]
    said += [message.text for message in session.messages()]
    said += [str(message.to_dict()) for message in session.messages()]
    for number in (0, 7, 23, 49):
        said += [hit.text for hit in session.search(f"password of vault {number}", k=20)]
        said += [hit.text for hit in session.search(marker(number), k=20)]
    said.append(session.generate("What is the password of vault 7?", max_new_tokens=48).text)
    return said


def test_row14_no_search_text_or_reply_shows_a_forgotten_marker(place, tmp_path):
    with place.open() as session:
        planted = plant(session)
        assert any(marker(7) in text for text in everything_said(session))
        receipt = session.forget(where={"source": "vault"})
        assert (tuple(planted), True, 0) == (receipt.messages, receipt.verified, receipt.hits)
        said = everything_said(session)
        assert [] == [n for n in range(50) for text in said if marker(n) in text]
        assert any("Ordinary talk number 49" in text for text in said)
    if place.path() is None:
        return
    raw = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert [] == [n for n in range(50) if marker(n).encode() in raw]
    with place.open() as session:
        said = everything_said(session)
        assert [] == [n for n in range(50) for text in said if marker(n) in text]


def test_row14_no_term_of_a_forgotten_message_stays_in_the_index(place, terms_left):
    markers = [marker(number) for number in range(20)]
    with place.open() as session:
        plant(session, 20)
        assert set(markers) == set(terms_left(session, markers))
        session.forget(where={"source": "vault"})
        assert [] == terms_left(session, markers)
        assert 20 == session._parts.lexical.n_rows
        assert session._parts.tree.n_tokens == session._parts.lexical.end


def test_row22_a_search_after_the_forget_finds_what_is_left(quick):
    with quick.open() as session:
        planted = plant(session, 10)
        session.forget(message_ids=planted[:9])
        (hit, *_others) = session.search("password vault")
        assert marker(9) in hit.text
        assert planted[9] == hit.message_id


def test_forgotten_messages_stay_in_their_place_without_content(quick):
    with quick.open() as session:
        receipt = session.append("Say nothing.", source="mail", metadata={"k": 1})
        session.append("Another message.")
        session.forget(message_ids=receipt.message_ids)
        first, second = session.messages()
        assert ("", True, None, None, {}) == (
            first.text,
            first.is_forgotten,
            first.source,
            first.actor,
            first.metadata,
        )
        assert (receipt.span, "user") == (first.span, first.role)
        assert ("Another message.", False) == (second.text, second.is_forgotten)


def test_a_message_forgotten_in_part_is_searched_and_read_by_what_is_left(quick):
    with quick.open() as session:
        receipt = session.append("The gate opens with lavender and closes with marjoram.")
        start = receipt.span.start + session[:].index("lavender") + 2  # two chat markers
        session.forget(span=(start, start + len("lavender")))
        (message,) = session.messages()
        assert "The gate opens with  and closes with marjoram." == message.text
        assert [] == session.search("lavender")
        (hit,) = session.search("marjoram")
        assert "The gate opens with  and closes with marjoram." == hit.text


def test_a_forgotten_span_cannot_be_read_and_says_why(quick):
    with quick.open() as session:
        receipt = session.append("Say nothing of it to anybody.")
        session.append("Another message.")
        session.forget(message_ids=receipt.message_ids)
        with pytest.raises(DetailUnavailableError, match="forgotten"):
            session.read(receipt.span)
        assert "Another message." == session[:]


def test_a_forget_of_everything_leaves_a_memory_that_goes_on(place):
    with place.open() as session:
        plant(session, 10)
        n_tokens = session.stats().n_tokens
        session.generate("What is the password of vault 7?", max_new_tokens=8)
        receipt = session.forget(everything=True)
        assert receipt.verified
        assert [] == session.search("password")
        appended = session.append("A new beginning with marjoram.")
        assert appended.span.start > n_tokens
        (hit,) = session.search("marjoram")
        assert "A new beginning with marjoram." == hit.text
        session.generate("What now?", max_new_tokens=8)
    if place.path() is not None:
        with place.open() as session:
            assert 1 == len(session.search("marjoram"))


def test_an_index_that_ends_with_forgotten_messages_is_not_read_again_at_each_open(
    quick, monkeypatch
):
    if quick.path() is None:
        pytest.skip("nothing is opened again in one process")
    with quick.open() as session:
        plant(session, 5)
        session.append([{"role": "user", "content": told(number)} for number in range(5)])
        last = [message.message_id for message in session.messages()][-5:]
        session.forget(message_ids=last)
    asked = []
    add = LexicalIndex.add
    monkeypatch.setattr(
        LexicalIndex,
        "add",
        lambda self, rows, **kept: asked.append(rows) or add(self, rows, **kept),
    )
    with quick.open() as session:
        assert [] == asked
        assert session._parts.tree.n_tokens == session._parts.lexical.end


def test_a_reset_index_is_built_again_over_a_forgotten_beginning(quick):
    with quick.open() as session:
        planted = plant(session, 6)
        session.forget(message_ids=planted[:5])
        lexical = session._parts.lexical
        lexical.clear()
        lexical.was_reset = lexical._is_behind = True
        assert marker(5) in session.search(marker(5))[0].text


def test_row14_a_fork_forgets_with_its_origin_and_only_then(place, tmp_path):
    if place.path() is None:
        pytest.skip("a fork in this process is not known by a path")
    with place.open() as session:
        planted = plant(session, 10)
        with session.fork(place.path("fork.mc")) as fork:
            fork.append("Something of its own with marjoram.")
        receipt = session.forget(message_ids=planted, cascade="forks")
        assert (str(place.path("fork.mc")),) == receipt.forks
        with place.open("fork.mc") as fork:
            said = everything_said(fork)
            assert [] == [n for n in range(10) for text in said if marker(n) in text]
            assert 1 == len(fork.search("marjoram"))
    raw = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert [] == [n for n in range(10) if marker(n).encode() in raw]


def test_snapshots_taken_before_show_the_forgotten_place_empty(quick):
    with quick.open() as session:
        planted = plant(session, 4)
        session.snapshot("before")
        session.append("Said after the snapshot.")
        session.forget(message_ids=planted)
        session.restore("before")
        said = everything_said(session)
        assert [] == [n for n in range(4) for text in said if marker(n) in text]
        assert "Said after" not in session[:]


def test_row24_a_retried_append_of_a_forgotten_message_asks_for_a_new_key(quick):
    with quick.open() as session:
        receipt = session.append("Only once.", idempotency_key="a")
        session.forget(message_ids=receipt.message_ids)
        with pytest.raises(ConfigError, match="forgotten") as caught:
            session.append("Only once.", idempotency_key="a")
        assert "idempotency_key" == caught.value.field
        session.append("Only once.", idempotency_key="b")


def test_a_reply_is_forgotten_with_all_its_parts(quick):
    with quick.open() as session:
        session.append("My cat is called Turing.")
        session.generate("What is it called?", max_new_tokens=100, temperature=1.0, seed=1)
        reply = session.messages()[-1]
        assert reply.span.n_tokens > 64
        receipt = session.forget(message_ids=[reply.message_id])
        assert ((reply.message_id,), reply.span.n_tokens) == (receipt.messages, receipt.tokens)
        assert ("", True) == (session.messages()[-1].text, session.messages()[-1].is_forgotten)


def test_the_window_shows_filler_where_tokens_were_forgotten(quick):
    with quick.open() as session:
        receipt = session.append("Say nothing of it to anybody at all, please, never.")
        session.forget(message_ids=receipt.message_ids)
        rows = session._parts.state.rows
        ids = rows.token_ids_at(session._parts.tree.token_ids(Span(0, 4)) * 0)
        assert [ord("\n")] * 4 == ids.tolist()
