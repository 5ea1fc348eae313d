"""Content in, messages out: what is accepted, what is refused and how, what comes back."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import numpy as np
import pytest

from megacontext_sdk.contracts.storage import MESSAGE
from megacontext_sdk.errors import ConfigError, CorruptError, QuotaError
from megacontext_sdk.memory.lod import Span
from megacontext_sdk.messages import (
    CONTINUES,
    ROLE_CODES,
    ROLES,
    MessageBody,
    Trust,
    decode_body,
    default_trust,
    encode_body,
    load_messages,
    merge_parts,
    parse_content,
)

# --- content that is accepted ----------------------------------------------------------------


def test_text_becomes_one_message_with_the_role_given():
    (draft,) = parse_content("Hello", role="tool", source="web")
    assert ("tool", "Hello", "web") == (draft.role, draft.text, draft.source)
    assert Trust.EXTERNAL is draft.trust
    assert draft.token_ids is None


def test_a_mappings_own_fields_win():
    item = {"role": "assistant", "content": "Hi", "name": "Ann", "metadata": {"a": 1}}
    (draft,) = parse_content(item, role="user", metadata={"b": 2})
    assert ("assistant", "Ann", {"a": 1}) == (draft.role, draft.actor, draft.metadata)
    assert Trust.MODEL is draft.trust


def test_a_list_of_mappings_keeps_its_order():
    drafts = parse_content([{"role": role, "content": role.upper()} for role in ROLES])
    assert [(role, role.upper()) for role in ROLES] == [(d.role, d.text) for d in drafts]


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    (draft,) = parse_content({"role": "user", "content": parts})
    assert "one two" == draft.text


@pytest.mark.parametrize(
    "ids", [[1, 2, 3], (1, 2, 3), np.array([1, 2, 3]), np.array([1, 2, 3], np.uint8)]
)
def test_integers_become_a_message_without_text(ids):
    (draft,) = parse_content(ids, vocab_size=4)
    assert draft.text is None
    assert np.int32 == draft.token_ids.dtype
    assert [1, 2, 3] == draft.token_ids.tolist()


def test_raw_ids_are_copied():
    ids = np.array([1, 2, 3], np.int32)
    (draft,) = parse_content(ids)
    ids[0] = 9
    assert 1 == draft.token_ids[0]


@pytest.mark.parametrize("nothing", [[], (), np.empty(0, np.int64), np.array([])])
def test_an_empty_list_is_no_message_at_all(nothing):
    assert [] == parse_content(nothing)


@pytest.mark.parametrize(
    ("trust", "expected"),
    [(None, 3), ("SYSTEM", 4), ("untrusted", 0), (0, 0), (2, 2), (Trust.EXTERNAL, 1)],
)
def test_trust_comes_by_name_number_or_role(trust, expected):
    assert expected == parse_content("x", trust=trust)[0].trust


def test_every_role_has_a_default_trust_and_a_code():
    assert [3, 2, 4, 1] == [default_trust(role) for role in ROLES]
    assert {"user": 0, "assistant": 1, "system": 2, "tool": 3, "setting": 4} == ROLE_CODES


@pytest.mark.parametrize(
    "moment",
    [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(2024, 2, 29, 12, 0, 0, 1, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    ],
)
def test_timestamps_keep_their_microsecond_in_utc(moment):
    (draft,) = parse_content("x", timestamp=moment)
    back = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=draft.ts_us)
    assert moment == back


# --- content that is refused -----------------------------------------------------------------


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "\u2003"])
def test_empty_and_whitespace_text_is_refused(text):
    with pytest.raises(ConfigError, match="nothing to remember") as caught:
        parse_content(text)
    assert "content" == caught.value.field


@pytest.mark.parametrize("content", [None, 5, 1.5, b"bytes", {"a", "b"}, object(), True])
def test_content_of_another_type_is_refused_by_its_name(content):
    with pytest.raises(ConfigError, match=type(content).__name__) as caught:
        parse_content(content)
    assert "content" == caught.value.field


@pytest.mark.parametrize("role", ["bot", "", "User", None, 3, "setting"])
def test_an_unknown_role_lists_the_roles_there_are(role):
    for content in ("x", {"role": role, "content": "x"}):
        with pytest.raises(ConfigError, match="user, assistant, system, tool") as caught:
            parse_content(content, role=role)
        assert "role" == caught.value.field


def test_a_part_that_is_not_text_is_named_with_the_fix():
    content = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    with pytest.raises(ConfigError, match=r"image_url.*describe it in words"):
        parse_content(content)


def test_a_key_that_would_be_dropped_is_refused():
    with pytest.raises(ConfigError, match="tool_calls") as caught:
        parse_content([{"role": "assistant", "content": "x", "tool_calls": []}])
    assert 0 == caught.value.index


def test_a_mapping_without_content_is_refused():
    with pytest.raises(ConfigError, match="no 'content'"):
        parse_content({"role": "user"})


def test_one_bad_message_refuses_the_list_and_is_named_by_its_index():
    good = {"role": "user", "content": "x"}
    for bad in ({"role": "user", "content": " "}, "text", 7, None):
        with pytest.raises(ConfigError) as caught:
            parse_content([good, bad])
        assert 1 == caught.value.index


@pytest.mark.parametrize(
    ("ids", "index"),
    [
        ([1, -1], 1),
        ([1, 2, 300], 2),
        ([1, 2.0], 1),
        ([True, 1], 0),
        ([1, 2**31], 1),
        ([1, 2**70], 1),
        ([1, -(2**70)], 1),
        (["text"], 0),
        ([1, None], 1),
        (np.array([1, 256]), 1),
        (np.array([1.0]), 0),
        (np.array([True]), 0),
        (np.array([[1, 2]]), 0),
        (np.array([2**63], np.uint64), 0),
    ],
)
def test_what_is_no_token_id_is_refused_by_its_index(ids, index):
    with pytest.raises(ConfigError) as caught:
        parse_content(ids, vocab_size=256)
    assert ("content", index) == (caught.value.field, caught.value.index)


def test_half_a_surrogate_pair_is_refused():
    for call in (
        lambda: parse_content("ab\ud800c"),
        lambda: parse_content("x", source="\udfff"),
        lambda: parse_content("x", metadata={"k": "\ud800"}),
        lambda: parse_content("x", metadata={"\ud800": 1}),
    ):
        with pytest.raises(ConfigError, match="surrogate"):
            call()


def test_a_message_above_16_mib_is_a_quota_error():
    with pytest.raises(QuotaError) as caught:
        parse_content("é" * (8 * 2**20 + 1))
    assert ("body_bytes", 16 * 2**20) == (caught.value.quota, caught.value.limit)
    assert 16 * 2**20 + 2 == caught.value.value


@pytest.mark.parametrize("trust", [-1, 5, True, "boss", 1.0, "", [3]])
def test_an_unknown_trust_is_refused(trust):
    with pytest.raises(ConfigError, match="untrusted, external, model, user, system") as caught:
        parse_content("x", trust=trust)
    assert "trust" == caught.value.field


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2024, 1, 1),  # noqa: DTZ001 - naive on purpose
        "2024-01-01",
        1_700_000_000,
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=3))),
        datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-3))),
    ],
)
def test_a_time_without_zone_or_outside_the_calendar_is_refused(moment):
    with pytest.raises(ConfigError) as caught:
        parse_content("x", timestamp=moment)
    assert "timestamp" == caught.value.field


@pytest.mark.parametrize("source", [5, "x" * 257, b"web"])
def test_a_source_is_text_of_at_most_256_characters(source):
    with pytest.raises(ConfigError, match="256") as caught:
        parse_content("x", source=source)
    assert "source" == caught.value.field


def nested(depth):
    value = {}
    for _ in range(depth - 1):
        value = {"k": value}
    return value


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ([1], "metadata"),
        ({1: 2}, "metadata"),
        ({"a": float("nan")}, "metadata.a"),
        ({"a": [1, float("inf")]}, "metadata.a[1]"),
        ({"a": b"x"}, "metadata.a"),
        ({"a": {"b": {1, 2}}}, "metadata.a.b"),
        ({"a": 2**64}, "metadata.a"),
        ({"a": datetime(2024, 1, 1, tzinfo=UTC)}, "metadata.a"),
        (nested(9), "metadata" + ".k" * 8),
    ],
)
def test_metadata_that_json_cannot_say_is_refused_by_its_path(metadata, field):
    with pytest.raises(ConfigError) as caught:
        parse_content("x", metadata=metadata)
    assert field == caught.value.field


def test_metadata_is_limited_to_64_kib():
    assert parse_content("x", metadata={"k": "v" * 65_000})
    with pytest.raises(QuotaError) as caught:
        parse_content("x", metadata={"k": "v" * 65 * 1024})
    assert ("metadata", "metadata_bytes") == (caught.value.field, caught.value.quota)


def test_metadata_is_copied_and_eight_levels_are_allowed():
    given = nested(8)
    (draft,) = parse_content("x", metadata=given)
    given["k"] = "changed"
    assert nested(8) == draft.metadata


def test_errors_hold_no_content():
    secret = "the secret is swordfish"
    for call in (
        lambda: parse_content(secret + "\ud800"),
        lambda: parse_content("x", source=secret * 20),
        lambda: parse_content("x", metadata={"k": secret.encode()}),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert "swordfish" not in str(caught.value)


# --- bodies ----------------------------------------------------------------------------------


def test_a_body_comes_back_as_it_was():
    body = MessageBody(
        text="Hé", source="s", actor="a", metadata={"k": [1, {"x": None}]}, recall=((0, 32),)
    )
    assert body == decode_body(encode_body(body))
    assert MessageBody() == decode_body(b"")


def test_a_plain_body_costs_little_more_than_its_text():
    assert len(encode_body(MessageBody(text="a" * 20))) <= 20 + 7


def deep(levels):
    value = b"\xc0"
    for _ in range(levels):
        value = b"\x81\xa1k" + value
    return b"\x81\xa8metadata" + value


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xff",
        b"\x81\xa4text\xdb\xff\xff\xff\xff",  # a text that claims 4 GiB
        b"\xdd\xff\xff\xff\xff",  # an array that claims 4 G items
        b"\x81\xa4text\x05",
        b"\x81\xa7unknown\x05",
        b"\x81\xa2lc\x01",
        b"\x81\xa4text\xa2\xff\xfe",  # no UTF-8
        msgspec.msgpack.encode({"text": "x"}) + b"\x00",
        deep(9),
        deep(5000),
    ],
)
def test_a_damaged_or_hostile_body_is_corrupt(raw):
    with pytest.raises(CorruptError) as caught:
        decode_body(raw, "body of message 5")
    assert "body of message 5" == caught.value.where


@pytest.mark.parametrize("field", [b"\xa8metadata\x81\xa1k", b"\xa6recall"])
def test_a_bomb_in_a_body_is_refused_before_it_unfolds(field):
    n = 8 * 2**20
    raw = b"\x81" + field + b"\xdd" + n.to_bytes(4, "big") + b"\x90" * n  # n empty lists
    tracemalloc.start()
    try:
        with pytest.raises(CorruptError, match="above"):
            decode_body(raw)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(raw)


def test_metadata_with_revival_keys_stays_a_plain_map():
    metadata = {"lc": 1, "type": "constructor", "id": ["os", "system"]}
    assert metadata == decode_body(encode_body(MessageBody(metadata=metadata))).metadata


def test_a_body_above_the_cap_is_neither_written_nor_read():
    with pytest.raises(QuotaError):
        encode_body(MessageBody(text="x" * (16 * 2**20)))
    with pytest.raises(CorruptError):
        decode_body(b"\x00" * (16 * 2**20 + 1))


# --- messages read back ----------------------------------------------------------------------


class Rows:
    """Message rows in a list: what reading needs of the journal."""

    def __init__(self, *parts):
        """Each part: role, n_tokens, flags, body."""
        self.rows = np.zeros(len(parts), MESSAGE)
        self.raw = []
        start = 0
        for row, (role, n_tokens, flags, body) in zip(self.rows, parts, strict=True):
            row["start"], row["n_tokens"], row["flags"] = start, n_tokens, flags
            row["role"], row["ts_us"] = ROLE_CODES[role], 1_000_000 * (1 + len(self.raw))
            row["trust"] = 4 - len(self.raw) % 5
            self.raw.append(body if isinstance(body, bytes) else encode_body(body))
            start += n_tokens
        self.n_messages = len(parts)

    def messages(self, start, stop):
        return self.rows[start:stop]

    def bodies(self, numbers):
        return [self.raw[number] for number in numbers]


def spelled(span):
    return f"<{span.start}-{span.end}>"


CONVERSATION = Rows(
    ("user", 5, 0, MessageBody(text="Hi", source="chat", metadata={"a": 1})),
    ("assistant", 10, 0, MessageBody(text="", metadata={"b": 1})),
    ("assistant", 32, CONTINUES, MessageBody()),
    ("assistant", 3, CONTINUES, MessageBody()),
    ("setting", 0, 0, b"\x81\xa1k\x01"),
    ("assistant", 1, CONTINUES, MessageBody()),
    ("tool", 4, 0, MessageBody()),
)


def test_parts_fold_into_one_message_and_settings_are_left_out():
    asked, replied, tool = load_messages(CONVERSATION, 0, 7, spelled)
    assert [0, 1, 6] == [m.message_id for m in (asked, replied, tool)]
    assert ["Hi", "<15-51>", "<51-55>"] == [m.text for m in (asked, replied, tool)]
    assert Span(5, 51) == replied.span
    assert Trust.EXTERNAL is replied.trust  # the least of its parts
    assert {"b": 1} == replied.metadata
    assert datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC) == asked.timestamp


def test_parts_with_text_are_joined_in_order():
    rows = Rows(
        ("assistant", 2, 0, MessageBody(text="a")),
        ("assistant", 2, CONTINUES, MessageBody()),
        ("assistant", 2, CONTINUES, MessageBody(text="b")),
        ("assistant", 2, CONTINUES, MessageBody(text="c")),
    )
    (message,) = merge_parts(0, rows.rows, rows.raw, spelled)
    assert "a<2-4>bc" == message.text


def test_a_range_never_tears_a_message():
    assert [(1, Span(5, 51))] == [
        (m.message_id, m.span) for m in load_messages(CONVERSATION, 1, 2, spelled)
    ]
    assert [6] == [m.message_id for m in load_messages(CONVERSATION, 2, 7, spelled)]
    assert [] == load_messages(CONVERSATION, 2, 5, spelled)
    assert [] == load_messages(CONVERSATION, 3, 3, spelled)


def test_a_message_as_a_dict_is_plain_json():
    (message,) = load_messages(CONVERSATION, 0, 1, spelled)
    expected = {
        "message_id": 0,
        "role": "user",
        "text": "Hi",
        "span": {"start": 0, "end": 5},
        "source": "chat",
        "actor": None,
        "trust": "system",
        "metadata": {"a": 1},
        "timestamp": "1970-01-01T00:00:01+00:00",
        "is_forgotten": False,
    }
    assert expected == msgspec.json.decode(msgspec.json.encode(message.to_dict()))


def test_a_damaged_body_is_named_by_its_message():
    rows = Rows(("user", 1, 0, MessageBody(text="x")), ("user", 1, 0, b"\xff"))
    with pytest.raises(CorruptError, match="message 8"):
        merge_parts(7, rows.rows, rows.raw, spelled)
