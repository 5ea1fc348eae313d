import os
import random
from collections import Counter
from datetime import UTC, datetime

import attrs
import msgspec
import pytest

from megacontext_sdk.errors import BundleError, ConfigError, QuotaError, SessionNotFoundError
from megacontext_sdk.memory.exchange.transcript_file import write_transcript
from megacontext_sdk.memory.lod import Span
from megacontext_sdk.messages import Message, Trust
from megacontext_sdk.messages.transcript import MAX_LINE_BYTES, read_transcript

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOON_US = 1_772_366_400_000_000


@pytest.fixture
def messages():
    first = Message(
        message_id=17,
        role="user",
        text="My cat is called Turing.\nSo is my dog: \u2028\x01 \U0001f408",
        span=Span(0, 9),
        source="mail",
        actor="alice",
        trust=Trust.USER,
        metadata={"n": 1, "deep": {"list": [1.5, None, True, "x"]}},
        timestamp=NOON,
    )
    reply = attrs.evolve(
        first, message_id=18, role="assistant", text="Noted.", actor=None, source=None
    )
    return [first, attrs.evolve(reply, span=Span(9, 20), trust=Trust.MODEL, metadata={})]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "chat.jsonl"


def lines_of(path, *lines):
    path.write_bytes(b"\n".join(lines))
    return path


def refused(path, *lines):
    with pytest.raises(BundleError) as caught:
        list(read_transcript(lines_of(path, *lines)))
    return caught.value


def test_one_object_per_line(path, messages):
    done = write_transcript(messages, path, n_tokens=20)
    first, second, rest = path.read_bytes().split(b"\n")
    assert b"" == rest
    assert {
        "role": "user",
        "content": messages[0].text,
        "source": "mail",
        "actor": "alice",
        "trust": "user",
        "metadata": messages[0].metadata,
        "timestamp": "2026-03-01T12:00:00+00:00",
        "message_id": 17,
    } == msgspec.json.decode(first)
    assert "assistant" == msgspec.json.decode(second)["role"]
    assert ("jsonl", 20, 2, path.stat().st_size) == (
        *(done.format, done.n_tokens, done.n_messages, done.n_bytes),
    )


@pytest.mark.parametrize("trust", ["cap", "keep"])
def test_what_was_written_is_read_again(path, messages, trust):
    write_transcript(messages, path, n_tokens=20)
    drafts = list(read_transcript(path, trust=trust))
    cap = Trust.EXTERNAL if trust == "cap" else Trust.SYSTEM
    assert [
        (one.role, one.text, one.source, one.actor, one.metadata, min(one.trust, cap))
        for one in messages
    ] == [(one.role, one.text, one.source, one.actor, one.metadata, one.trust) for one in drafts]
    assert [NOON_US, NOON_US] == [one.ts_us for one in drafts]


def test_forgotten_and_empty_messages_are_left_out(path, messages):
    gone = attrs.evolve(messages[0], is_forgotten=True)
    blank = attrs.evolve(messages[0], text=" \n")
    done = write_transcript([gone, blank, *messages], path, n_tokens=20)
    assert 2 == done.n_messages
    assert [message.text for message in messages] == [one.text for one in read_transcript(path)]


def test_progress_follows_the_messages(path, messages):
    seen = []
    write_transcript(messages, path, n_tokens=20, progress=lambda *pair: seen.append(pair))
    assert [(9, 20), (20, 20)] == seen


def test_an_existing_file_is_replaced_only_if_asked(path, messages):
    path.write_bytes(b"mine")
    with pytest.raises(ConfigError):
        write_transcript(messages, path, n_tokens=20)
    assert b"mine" == path.read_bytes()
    write_transcript(messages, path, n_tokens=20, overwrite=True)
    assert 2 == len(list(read_transcript(path)))


def test_a_message_too_long_for_a_line_leaves_no_file(tmp_path, path, messages):
    huge = attrs.evolve(messages[0], text="\x01" * (MAX_LINE_BYTES // 6 + 1))
    with pytest.raises(QuotaError) as caught:
        write_transcript([*messages, huge], path, n_tokens=20)
    assert MAX_LINE_BYTES == caught.value.limit
    assert [] == list(tmp_path.iterdir())


def test_role_and_content_are_enough(path):
    (draft,) = read_transcript(lines_of(path, b'{"role":"system","content":"Be kind."}'))
    assert ("system", "Be kind.", Trust.EXTERNAL) == (draft.role, draft.text, draft.trust)
    assert (None, None, None, {}) == (draft.source, draft.actor, draft.ts_us, draft.metadata)


def test_trust_kept_without_a_word_is_that_of_the_role(path):
    line = b'{"role":"system","content":"Be kind."}'
    (draft,) = read_transcript(lines_of(path, line), trust="keep")
    assert Trust.SYSTEM == draft.trust


def test_trust_below_the_cap_stays(path):
    line = b'{"role":"user","content":"x","trust":"untrusted"}'
    assert [Trust.UNTRUSTED] == [one.trust for one in read_transcript(lines_of(path, line))]


def test_what_chat_formats_call_name_is_the_actor(path):
    line = b'{"role":"user","content":"x","name":"alice"}'
    assert ["alice"] == [one.actor for one in read_transcript(lines_of(path, line))]


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_are_passed_over(path):
    line = b'{"role":"user","content":"x"}'
    raw = (b"\xef\xbb\xbf" + line + b"\r", b"", b"  \r", line, b"")
    assert ["x", "x"] == [one.text for one in read_transcript(lines_of(path, *raw))]


def test_an_empty_file_holds_no_message(path):
    assert [] == list(read_transcript(lines_of(path, b"")))


GOOD = b'{"role":"user","content":"x"}'


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"{}",
        GOOD[:-1],
        GOOD + GOOD,
        b'{"role":"user"}',
        b'{"content":"x"}',
        b'{"role":"user","content":""}',
        b'{"role":"user","content":" "}',
        b'{"role":"user","content":null}',
        b'{"role":"user","content":7}',
        b'{"role":"user","content":["x"]}',
        b'{"role":"setting","content":"x"}',
        b'{"role":"god","content":"x"}',
        b'{"role":4,"content":"x"}',
        b'{"role":"user","content":"\\ud800"}',
        b'{"role":"user","content":"\xff"}',
        b'{"role":"user","content":"x","trust":9}',
        b'{"role":"user","content":"x","trust":-1}',
        b'{"role":"user","content":"x","trust":true}',
        b'{"role":"user","content":"x","trust":"root"}',
        b'{"role":"user","content":"x","timestamp":"noon"}',
        b'{"role":"user","content":"x","timestamp":"2026-03-01T12:00:00"}',
        b'{"role":"user","content":"x","timestamp":"0001-01-01T00:00:00+14:00"}',
        b'{"role":"user","content":"x","timestamp":1e99}',
        b'{"role":"user","content":"x","metadata":[]}',
        b'{"role":"user","content":"x","metadata":{"a":NaN}}',
        b'{"role":"user","content":"x","metadata":{"a":' + b"[" * 9 + b"]" * 9 + b"}}",
        b'{"role":"user","content":"x","metadata":{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}}",
        b'{"role":"user","content":"x","metadata":{"a":' + b"9" * 50 + b"}}",
        b'{"role":"user","content":"x","metadata":{"a":"' + b"y" * 70_000 + b'"}}',
        b'{"role":"user","content":"x","metadata":[' + b"[]," * 200_000 + b"[]]}",
        b'{"role":"user","content":"x","actor":"' + b"y" * 300 + b'"}',
        b'{"role":"user","content":"x","message_id":"17"}',
        b'{"role":"user","content":"x","unknown":1}',
        b'{"x":' + b"[" * 100_000,
        b"\x80\x04\x95",
    ],
)
def test_a_line_that_is_no_message_is_refused_with_its_number(path, line):
    error = refused(path, GOOD, b"", line)
    assert ("line 3", len(GOOD) + 2) == (error.part, error.offset)
    assert "line 3 of " in str(error)


def test_a_message_above_the_limit_is_refused(path):
    error = refused(path, b'{"role":"user","content":"' + b"x" * (16 * 2**20 + 1) + b'"}')
    assert 16 * 2**20 == error.limit


def test_a_line_above_the_limit_is_refused_without_reading_on(path):
    error = refused(path, GOOD, b" " * (MAX_LINE_BYTES + 1) + GOOD)
    assert ("line 2", MAX_LINE_BYTES) == (error.part, error.limit)


def test_an_error_never_quotes_the_line(path):
    for line in (
        b'{"role":"user","content":"x","the gate code":4711}',
        b'{"role":"the gate code","content":"x"}',
        b'{"role":"user","content":"x","trust":"the gate code"}',
        b'{"role":"user","content":"x","timestamp":"the gate code"}',
        b'{"role":"user","content":"x","metadata":{"the gate code":NaN}}',
    ):
        error = refused(path, line)
        assert "gate" not in str(error)
        assert error.__cause__ is None


def test_messages_come_one_by_one(path):
    drafts = read_transcript(lines_of(path, GOOD, b"{"))
    assert "x" == next(drafts).text
    with pytest.raises(BundleError):
        next(drafts)


def test_a_missing_file_is_not_found(path):
    with pytest.raises(SessionNotFoundError):
        list(read_transcript(path))


@pytest.mark.parametrize("kind", ["fifo", "directory", "nul", "bytes"])
def test_what_is_no_file_is_refused(path, kind):
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    with pytest.raises(ConfigError):
        list(read_transcript({"nul": "a\0b", "bytes": 3.5}.get(kind, path)))


def test_two_thousand_damaged_lines_are_messages_or_typed_errors(path, messages):
    write_transcript(messages, path, n_tokens=20)
    good, rng = path.read_bytes(), random.Random(11)
    outcomes = Counter()
    for _ in range(2_000):
        raw = bytearray(good)
        for _ in range(rng.choice([1, 1, 2, 5])):
            at = rng.randrange(len(raw))
            raw[at : at + rng.choice([0, 1, 4])] = rng.choice(
                [
                    bytes([rng.randrange(256)]),
                    b'"',
                    b"\n",
                    b"{",
                    b"[",
                    b"\\",
                    b"null",
                    b"1e999",
                    b"",
                ]
            )
        path.write_bytes(raw)
        try:
            outcomes["read"] += len(list(read_transcript(path)))
        except BundleError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 500
    assert outcomes["read"] > 200
