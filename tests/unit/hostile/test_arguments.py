"""What goes beside content: numbers, switches, bounds; and values that misbehave when looked at."""

import enum

import numpy as np
import pytest

from megacontext_sdk import Span, errors
from megacontext_sdk.errors import shown


class Loud:
    """Raises from everything an error message might do with it."""

    def __repr__(self):
        raise RuntimeError("repr of a hostile value ran")

    __str__ = __format__ = __len__ = __iter__ = __bool__ = __repr__


class Text(str):
    """Text of a library that marks what it has escaped, say."""

    __slots__ = ()


class Kind(enum.StrEnum):
    NOTE = "note"


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def numbered(*values):
    """Name parameters by place and type: some of these cannot even be printed."""
    return [pytest.param(v, id=f"{at}-{type(v).__name__}") for at, v in enumerate(values)]


HOSTILE = numbered(Loud(), nested(5_000), 10**5_000, "x" * 2**20, np.array([1, 2]), NotImplemented)


@pytest.mark.parametrize("value", HOSTILE)
def test_any_bad_value_can_be_shown_in_a_line(value):
    assert len(shown(value)) <= 120


CALLS = {
    "append role": lambda s, v: s.append("x", role=v),
    "append trust": lambda s, v: s.append("x", trust=v),
    "message role": lambda s, v: s.append([{"role": v, "content": "x"}]),
    "generate max_new_tokens": lambda s, v: s.generate("x", max_new_tokens=v),
    "generate temperature": lambda s, v: s.generate("x", temperature=v),
    "generate top_p": lambda s, v: s.generate("x", top_p=v),
    "generate top_k": lambda s, v: s.generate("x", top_k=v),
    "generate seed": lambda s, v: s.generate("x", seed=v),
    "generate stop": lambda s, v: s.generate("x", stop=[v]),
    "generate remember": lambda s, v: s.generate("x", remember=v),
    "search k": lambda s, v: s.search("boat", v),
    "read span": lambda s, v: s.read(v),
    "slice span": lambda s, v: s[v],
    "pin span": lambda s, v: s.focus.pin(v),
}


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("call", CALLS)
def test_a_value_that_misbehaves_is_refused_like_any_other(quick, refused, call, value):
    with refused(quick, field=call.split()[1]):
        CALLS[call](quick, value)


@pytest.mark.parametrize("value", numbered(True, 0, 1.5, "two", {"a": 1}, Loud(), b"x", object()))
def test_messages_to_answer_are_a_list(quick, refused, value):
    with refused(quick, field="messages"):
        quick.generate(messages=value)


@pytest.mark.parametrize("value", numbered(0, ["x"], {"content": "x"}, b"x", Loud()))
def test_a_prompt_is_text(quick, refused, value):
    with refused(quick, field="prompt"):
        quick.generate(value)


@pytest.mark.parametrize("value", numbered(None, True, 3, 1.5, b"x", {"a"}, iter(["x"])))
def test_stops_are_a_text_or_a_list_of_texts(quick, refused, value):
    with refused(quick, field="stop"):
        quick.generate("x", stop=value)


@pytest.mark.parametrize("seed", numbered(1.5, True, -1, 2**63, "1", float("nan")))
def test_a_seed_is_a_whole_number(quick, refused, seed):
    with refused(quick, field="seed"):
        quick.generate("x", temperature=1.0, seed=seed)


@pytest.mark.parametrize("bound", numbered(1.5, "0", [0], True, float("inf"), b"\x00"))
def test_bounds_are_whole_numbers(quick, refused, bound):
    with refused(quick, field="messages"):
        quick.messages(bound)
    with refused(quick, field="messages"):
        quick.messages(0, bound)
    with refused(quick, field="span"):
        quick[bound:]
    with refused(quick, field="span"):
        quick[:bound]


def test_bounds_beyond_the_history_stop_at_its_ends(quick):
    assert quick.messages() == quick.messages(-(10**30), 10**30)
    assert quick[:] == quick[-(10**30) : 10**30]


@pytest.mark.parametrize(
    "given",
    numbered(
        ("read_only", np.array([1, 2])),
        ("read_only", 1),
        ("create", "no"),
        ("config", True),
        ("config", {"w_max": 512}),
        ("plugins", ["duckdb"]),
        ("plugins", 0),
        ("w_max", 10**5_000),
        ("w_max", Loud()),
        ("sinks", nested(5_000)),
        ("model", object()),
        ("storage", 7),
        ("focus", Loud()),
        ("gist", nested(100)),
    ),
)
def test_a_bad_argument_of_open_is_refused_by_name(open_session, given):
    name, value = given
    with pytest.raises(errors.ConfigError) as caught:
        open_session("memory", **{name: value})
    assert name == caught.value.field


def test_subclasses_of_text_and_numbers_are_stored_as_what_they_are(session):
    """Marked-up text, names of an enumeration, and numbers of numpy arrive every day."""
    receipt = session.append(
        Text("A marked sentence."),
        source=Text("form"),
        metadata={"kind": Kind.NOTE, "score": np.float64(0.5), "tag": Text("a"), Text("k"): 1},
        idempotency_key=Text("one"),
    )
    (message,) = session.messages(receipt.message_ids[0])
    assert ("A marked sentence.", "form") == (message.text, message.source)
    assert {"kind": "note", "score": 0.5, "tag": "a", "k": 1} == message.metadata
    assert Span(*receipt.span) == message.span
    assert str is type(message.text)


def test_an_idempotency_key_is_not_repeated_in_the_error(quick, refused):
    quick.append("one", idempotency_key="key-of-a-customer")
    with refused(quick, field="idempotency_key") as caught:
        quick.append("two", idempotency_key="key-of-a-customer")
    assert "key-of-a-customer" not in repr(caught.value) + str(vars(caught.value))
