"""Rows 16 to 19 and 24: what is appended. A refused append writes nothing, on any backend."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest

from megacontext_sdk import AsyncMemorySession, errors
from megacontext_sdk.builtin.echo import EchoModel

VOCABULARY = EchoModel().info.vocab_size
NAIVE = datetime(2026, 1, 1)  # noqa: DTZ001 - on purpose


def numbered(*values):
    """Name parameters by place and type: some of these cannot even be printed."""
    return [pytest.param(v, id=f"{at}-{type(v).__name__}") for at, v in enumerate(values)]


# --- row 16 ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids",
    numbered(
        [5, -1],
        [5, VOCABULARY],
        [5, 2**31],
        [5, 2**63],
        [5, -(2**64)],
        [5, 10**5_000],
        [5, True],
        [5, 1.0],
        [5, "7"],
        [5, None],
        [5, [6]],
        [5, float("nan")],
        (5, -1),
        np.array([5, -1]),
        np.array([5, VOCABULARY], np.uint16),
        np.array([5, 2**63], np.uint64),
    ),
)
def test_row16_a_bad_token_id_is_refused_by_its_index(standing, refused, ids):
    with refused(standing, field="content") as caught:
        standing.append(ids)
    assert 1 == caught.value.index


@pytest.mark.parametrize(
    "ids",
    numbered(
        np.array([1.0, 2.0]),
        np.array([True, False]),
        np.array([[1, 2]]),
        np.array(7),
        np.array(["a"]),
        np.array([None, 1], dtype=object),
        np.array([1 + 2j]),
        np.zeros(2, np.dtype([("id", "<i4")])),
        np.array(["2020"], np.datetime64),
    ),
)
def test_row16_an_array_of_anything_else_is_refused(standing, refused, ids):
    with refused(standing, field="content"):
        standing.append(ids)


@pytest.mark.parametrize("ids", numbered([], (), np.zeros(0, np.int32), np.zeros(0, np.uint8)))
def test_row16_no_ids_are_no_append(standing, state_of, ids):
    before = state_of(standing)
    assert () == standing.append(ids).message_ids
    assert before == state_of(standing)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.int64, np.uint64, ">i4"])
def test_row16_ids_of_any_integer_type_are_ids(backend, open_session, dtype):
    session = open_session(backend)
    backing = np.arange(40, dtype=dtype)
    receipt = session.append(backing[::2])
    assert 20 == receipt.span.n_tokens
    backing[:] = 0  # the caller's array stays the caller's
    assert list(range(0, 40, 2)) == session._parts.tree.token_ids(receipt.span).tolist()


# --- row 17 ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    numbered(
        "",
        " \t\r\n\u2003",
        "half \ud83d of a pair",
        "\udcff",
        None,
        7,
        3.5,
        b"bytes",
        bytearray(b"bytes"),
        {"a", "b"},
        object(),
        lambda: "text",
        {"role": "user"},
        {"content": "x", "role": "root"},
        {"content": "x", "role": None},
        {"content": "x", "tool_calls": []},
        {"content": None, "role": "user"},
        {"content": ["x"]},
        {"content": [{"type": "image_url", "image_url": "http://x"}]},
        {"content": [{"type": "text", "text": 7}]},
        {"content": "x", "name": 7},
        {"content": "x", "name": "n" * 257},
        {"content": "x", "name": "\ud800"},
        {1: "x"},
        [{"role": "user", "content": "fine"}, {"role": "user", "content": ""}],
        [{"role": "user", "content": "fine"}, "text"],
        [{"role": "user", "content": "fine"}, 7],
        ["text", {"role": "user", "content": "fine"}],
        [["text"]],
        {"lc": 1, "type": "constructor", "id": ["langchain", "x"], "kwargs": {}},
    ),
)
def test_row17_content_that_is_none_is_refused(standing, refused, content):
    with refused(standing):
        standing.append(content)


@pytest.mark.parametrize(
    "role", numbered("root", "", "User", "setting", 0, None, b"user", ["user"])
)
def test_row17_an_unknown_role_is_refused(standing, refused, role):
    with refused(standing, field="role"):
        standing.append("hello", role=role)


def test_row17_a_text_above_sixteen_megabytes_is_a_quota(standing, refused):
    with refused(standing, errors.QuotaError, field="content") as caught:
        standing.append("x" * (20 * 2**20))
    assert ("body_bytes", 16 * 2**20, 20 * 2**20) == (
        caught.value.quota,
        caught.value.limit,
        caught.value.value,
    )


@pytest.mark.parametrize("source", numbered("s" * 257, 7, b"x", "\ud800", ["x"]))
def test_row17_a_source_is_short_text(standing, refused, source):
    with refused(standing, field="source"):
        standing.append("hello", source=source)


@pytest.mark.parametrize("trust", numbered(5, -1, 2.0, True, "root", "", b"user", [3]))
def test_row17_trust_is_one_of_five(standing, refused, trust):
    with refused(standing, field="trust"):
        standing.append("hello", trust=trust)


@pytest.mark.parametrize(
    "content", numbered("", "\ud800", 7, [5, -1], {"role": "x", "content": "y"})
)
def test_row17_the_asynchronous_session_refuses_the_same(echo, content):
    async def attempt():
        async with await AsyncMemorySession.open(
            None, model=echo, storage="memory", w_max=512, sinks=()
        ) as session:
            with pytest.raises(errors.ConfigError):
                await session.append(content)
            return (await session.stats()).n_tokens

    assert 0 == asyncio.run(attempt())


# --- row 18 ----------------------------------------------------------------------------------


def nested(depth, leaf=1):
    for _ in range(depth):
        leaf = {"k": leaf}
    return leaf


CYCLE = {}
CYCLE["self"] = CYCLE


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        (nested(9), "metadata.k.k.k.k.k.k.k.k"),
        (CYCLE, "metadata.self.self.self.self.self.self.self.self"),
        ({"a": [[[[[[[[[1]]]]]]]]]}, None),
        ({"score": float("nan")}, "metadata.score"),
        ({"score": float("inf")}, "metadata.score"),
        ({"deep": {"score": [1, float("-inf")]}}, "metadata.deep.score[1]"),
        ({1: "x"}, "metadata"),
        ({None: "x"}, "metadata"),
        ({("a", "b"): "x"}, "metadata"),
        ({"raw": b"bytes"}, "metadata.raw"),
        ({"when": datetime.now(UTC)}, "metadata.when"),
        ({"big": 2**64}, "metadata.big"),
        ({"big": -(2**63) - 1}, "metadata.big"),
        ({"set": {1}}, "metadata.set"),
        ({"array": np.zeros(2)}, "metadata.array"),
        ({"half": "\ud800"}, "metadata"),
        ({"\ud800": 1}, "metadata"),
        ([("a", 1)], "metadata"),
        ("text", "metadata"),
        (7, "metadata"),
    ],
    ids=range(20),
)
def test_row18_metadata_is_a_small_map_of_json(standing, refused, metadata, field):
    with refused(standing, field=field):
        standing.append("hello", metadata=metadata)


@pytest.mark.parametrize(
    "metadata", [{"k": "x" * 65 * 1024}, {str(n): n for n in range(20_000)}], ids=["text", "keys"]
)
def test_row18_metadata_above_64_kib_is_a_quota(standing, refused, metadata):
    with refused(standing, errors.QuotaError, field="metadata") as caught:
        standing.append("hello", metadata=metadata)
    assert ("metadata_bytes", 64 * 2**10) == (caught.value.quota, caught.value.limit)


@pytest.mark.parametrize(
    "metadata",
    [nested(8), {"": None, "a.b": 1, "$ne": "", "__class__": "x", "lc": 1}, {"n": 2**64 - 1}],
    ids=["depth 8", "odd keys", "64 bits"],
)
def test_row18_metadata_at_the_limits_comes_back_as_it_was(session, metadata):
    session.append("hello", metadata=metadata)
    assert metadata == session.messages()[-1].metadata


# --- row 19 ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "timestamp",
    numbered(
        NAIVE,
        NAIVE.replace(year=1),
        NAIVE.replace(year=9999),
        NAIVE.replace(year=1, tzinfo=timezone(timedelta(hours=14))),
        NAIVE.replace(year=9999, month=12, day=31, hour=23, tzinfo=timezone(timedelta(hours=-12))),
        0,
        1.5,
        "2026-01-01T00:00:00Z",
        timedelta(days=1),
        float("nan"),
    ),
)
def test_row19_a_time_without_a_zone_is_refused(standing, refused, timestamp):
    with refused(standing, field="timestamp"):
        standing.append("hello", timestamp=timestamp)


def test_row19_any_year_is_stored_and_order_is_that_of_the_appends(backend, open_session):
    times = [
        datetime(2026, 5, 1, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC),
        datetime(2200, 1, 1, tzinfo=timezone(timedelta(hours=-9, minutes=-30))),
    ]
    session = open_session(backend)
    receipts = [session.append(f"said {n}", timestamp=time) for n, time in enumerate(times)]
    assert sorted(r.seq for r in receipts) == [r.seq for r in receipts]
    messages = session.messages()
    assert [f"said {n}" for n in range(5)] == [message.text for message in messages]
    assert times == [message.timestamp for message in messages]


# --- row 24 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", numbered("", "k" * 10_240, 7, b"key", ["key"], {"$ne": ""}, True))
def test_row24_an_idempotency_key_is_short_text(standing, refused, key):
    with refused(standing, field="idempotency_key"):
        standing.append("hello", idempotency_key=key)


@pytest.mark.parametrize("key", ["one", "' OR 1=1--", "\ud800", "k" * 1_024, "\0"], ids=range(5))
def test_row24_the_same_key_with_other_content_is_refused(session, refused, key):
    first = session.append("one thing", idempotency_key=key)
    with refused(session, field="idempotency_key"):
        session.append("another thing", idempotency_key=key)
    again = session.append("one thing", idempotency_key=key)
    assert (first.span, True) == (again.span, again.duplicate)
