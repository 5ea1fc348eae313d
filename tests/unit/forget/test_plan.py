"""The plan of a forget: exactly what the scope says, against a search message by message."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.contracts.storage import Header
from megacontext_sdk.errors import ConfigError, QuotaError
from megacontext_sdk.memory.chain import MessageRecord
from megacontext_sdk.memory.directory.replay import Redaction, copy_commits
from megacontext_sdk.memory.forget import plan as forget_plan
from megacontext_sdk.memory.forget.forgetting import plan_forget
from megacontext_sdk.memory.journal import Journal
from megacontext_sdk.messages import MessageBody, encode_body

SETTING = 4
CONTINUES = 1
NAIVE = datetime(2020, 1, 1, tzinfo=UTC).replace(tzinfo=None)


def new_journal():
    store = InMemoryStorage(Path("unused"))
    store.open("create", Header(block_bytes=64))
    return Journal(store, root=bytes(16), token_bytes=2, clock=lambda: 5)


def record(n_tokens, *, role=0, trust=3, flags=0, ts_us=0, **body):
    raw = encode_body(MessageBody(**body)) if body else b""
    return MessageRecord(role, trust, flags, ts_us, n_tokens, raw)


def journal_of(*records):
    journal = new_journal()
    total = sum(one.n_tokens for one in records)
    journal.append(np.arange(total, dtype=np.int32) % 900, list(records)).wait()
    return journal


def shape(plan):
    return [(span.start, span.end) for span in plan.spans], plan.messages.tolist()


def redacted(journal, plan):
    """Return a journal over a copy of the store without what was planned."""
    journal.flush()
    target = InMemoryStorage(Path("unused"))
    target.open("create", Header(block_bytes=64))
    copy_commits(journal._storage, target, root=bytes(16), token_bytes=2, redaction=plan)
    target.open("write", Header(block_bytes=64))
    return Journal(target, root=bytes(16), token_bytes=2, clock=lambda: 5)


# --- against a search message by message -------------------------------------------------------

rows = st.tuples(
    st.integers(0, 9),  # tokens
    st.sampled_from(["new", "new", "continues", "setting"]),
    st.integers(0, 3),  # role
    st.integers(0, 4),  # trust
    st.integers(0, 5),  # time
    st.sampled_from([{}, {"text": "a"}, {"text": "b", "source": "mail"}, {"metadata": {"k": 1}}]),
)
scopes = st.one_of(
    st.fixed_dictionaries({"message_ids": st.lists(st.integers(0, 11), max_size=4)}),
    st.fixed_dictionaries({"span": st.tuples(st.integers(0, 60), st.integers(0, 60))}),
    st.fixed_dictionaries({"before": st.integers(0, 6)}),
    st.fixed_dictionaries(
        {
            "where": st.fixed_dictionaries(
                {},
                optional={
                    "role": st.sampled_from(["user", "tool"]),
                    "trust": st.integers(0, 4),
                    "source": st.just("mail"),
                    "metadata": st.just({"k": 1}),
                },
            )
        }
    ),
    st.just({"everything": True}),
)


def plain_plan(given_rows, scope, gone):
    """Return tokens and rows to forget, one message at a time."""
    at, groups = 0, []
    for number, (n_tokens, kind, role, trust, ts, body) in enumerate(given_rows):
        if kind == "setting":
            continue
        row = (number, at, at + n_tokens, role, trust, ts, body)
        if kind == "continues" and groups:
            groups[-1].append(row)
        else:
            groups.append([row])
        at += n_tokens
    newest = max((row[5] for group in groups for row in group), default=0)
    tokens, numbers = set(), set()
    for group in groups:
        if not plain_match(group, scope, newest):
            continue
        low, high = scope.get("span", (0, at))
        for number, start, end, *_rest in group:
            held = set(range(max(start, low), min(end, high))) - gone[0]
            tokens |= held
            if held or number not in gone[1]:
                numbers.add(number)
    return tokens, numbers


def plain_match(group, scope, newest):
    head = group[0]
    if "everything" in scope:
        return True
    if "message_ids" in scope:
        return any(row[0] in scope["message_ids"] for row in group)
    if "span" in scope:
        low, high = scope["span"]
        return any(row[1] < high and max(row[2], row[1] + 1) > low for row in group) and low < high
    if "before" in scope:
        return head[5] < newest - scope["before"]
    where = scope["where"]
    metadata = {key: value for row in group for key, value in row[6].get("metadata", {}).items()}
    names = ["user", "assistant", "system", "tool"]
    return (
        names[head[3]] == where.get("role", names[head[3]])
        and min(row[4] for row in group) == where.get("trust", min(row[4] for row in group))
        and head[6].get("source") == where.get("source", head[6].get("source"))
        and all(metadata.get(key) == value for key, value in where.get("metadata", {}).items())
    )


def drawn_journal(given_rows):
    records, at_head = [], True
    for n_tokens, kind, role, trust, ts, body in given_rows:
        is_setting = kind == "setting"
        flags = CONTINUES if kind == "continues" and not at_head else 0
        at_head = at_head and is_setting
        records.append(
            record(
                0 if is_setting else n_tokens,
                role=SETTING if is_setting else role,
                trust=trust,
                flags=flags,
                ts_us=ts,
                **({} if is_setting else body),
            )
        )
    return journal_of(*records)


def checked_scope(scope, journal):
    """Keep a drawn scope inside the history; None if it cannot be asked."""
    if "message_ids" in scope:
        roles = journal.messages(0, journal.n_messages)["role"]
        ids = [i for i in scope["message_ids"] if i < len(roles) and roles[i] != SETTING]
        return {"message_ids": ids}
    if "span" in scope:
        low, high = sorted(min(at, journal.n_tokens) for at in scope["span"])
        return {"span": (low, high)}
    return None if scope.get("where") == {} else scope


def asked(scope):
    if "before" in scope:
        return {"before": timedelta(microseconds=scope["before"])}
    return scope


@given(
    given_rows=st.lists(rows, min_size=1, max_size=12),
    drawn=st.lists(scopes, min_size=1, max_size=3),
    page=st.integers(1, 4),
)
@settings(max_examples=400, deadline=None)
def test_any_scopes_one_after_the_other_take_what_a_plain_search_takes(given_rows, drawn, page):
    given_rows = [(0, *row[1:]) if row[1] == "setting" else row for row in given_rows]
    journal = drawn_journal(given_rows)
    gone = (set(), set())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forget_plan, "_PAGE", page)
        patch.setattr(forget_plan, "_STRIDE", page)
        for one in drawn:
            scope = checked_scope(one, journal)
            if scope is None or ("where" in scope and gone[1]):
                continue  # bodies of forgotten messages have no fields any more
            plan = plan_forget(journal, **asked(scope))
            tokens, numbers = plain_plan(given_rows, scope, gone)
            planned = {token for span in plan.spans for token in range(span.start, span.end)}
            assert (tokens, sorted(numbers)) == (planned, plan.messages.tolist()), scope
            edges = [edge for span in plan.spans for edge in (span.start, span.end)]
            assert sorted(set(edges)) == edges, "ascending, disjoint and merged"
            gone = (gone[0] | tokens, gone[1] | numbers)
            journal = redacted(journal, plan)


# --- what belongs to a message -----------------------------------------------------------------


def test_a_message_is_taken_with_all_its_parts_across_settings():
    parts = [record(40), record(32, flags=1), record(0, role=SETTING), record(8, flags=1)]
    journal = journal_of(*parts, record(5))
    for number in (0, 1, 3):
        expected = [(0, 80)], [0, 1, 3]
        assert expected == shape(plan_forget(journal, message_ids=[number]))


def test_a_span_is_cut_at_its_edges_and_every_message_it_touches_loses_its_text():
    journal = journal_of(record(10), record(10), record(10), record(10))
    assert ([(5, 25)], [0, 1, 2]) == shape(plan_forget(journal, span=(5, 25)))
    assert ([(10, 20)], [1]) == shape(plan_forget(journal, span=(10, 20)))
    assert ([], []) == shape(plan_forget(journal, span=(10, 10)))


def test_a_span_in_a_later_part_of_a_message_takes_the_text_kept_with_the_first():
    journal = journal_of(record(40), record(40, flags=1), record(5))
    assert ([(60, 70)], [0, 1]) == shape(plan_forget(journal, span=(60, 70)))


def test_messages_without_tokens_are_taken_with_the_place_they_stand_at():
    journal = journal_of(record(10), record(0, text="x"), record(10), record(0, text="y"))
    assert ([(10, 11)], [1, 2]) == shape(plan_forget(journal, span=(10, 11)))
    assert ([(9, 10)], [0]) == shape(plan_forget(journal, span=(9, 10)))
    assert ([], [3]) == shape(plan_forget(journal, message_ids=[3]))


def test_settings_are_never_forgotten():
    journal = journal_of(record(0, role=SETTING), record(10), record(0, role=SETTING))
    journal.update_settings({"a": 1}).wait()
    assert ([(0, 10)], [1]) == shape(plan_forget(journal, everything=True))
    for number in (0, 2, 3):
        with pytest.raises(ConfigError, match="settings record") as caught:
            plan_forget(journal, message_ids=[1, number])
        assert "message_ids" == caught.value.field


def test_what_is_forgotten_already_is_not_planned_again():
    journal = journal_of(record(40, text="a"), record(40, text="b"))
    after = redacted(journal, plan_forget(journal, span=(10, 50)))
    assert ([], []) == shape(plan_forget(after, span=(10, 50)))
    assert ([(0, 10), (50, 60)], [0, 1]) == shape(plan_forget(after, span=(0, 60)))
    assert ([(0, 10), (50, 80)], [0, 1]) == shape(plan_forget(after, everything=True))


def test_an_empty_memory_has_nothing_to_forget():
    journal = new_journal()
    assert ([], []) == shape(plan_forget(journal, everything=True))
    assert ([], []) == shape(plan_forget(journal, message_ids=[]))
    assert ([], []) == shape(plan_forget(journal, before=timedelta(0)))
    assert ([], []) == shape(plan_forget(journal, span=(0, 0)))


def test_a_plan_of_nothing_is_false():
    assert not Redaction((), np.empty(0, np.int64))
    assert plan_forget(journal_of(record(0, text="x")), message_ids=[0])


# --- time --------------------------------------------------------------------------------------


def test_an_age_is_measured_against_the_newest_message_time_and_not_the_clock():
    day = 86_400_000_000
    journal = journal_of(*(record(10, ts_us=at * day) for at in (1, 9, 3, 5)))
    assert ([(0, 10)], [0]) == shape(plan_forget(journal, before=timedelta(days=7)))
    assert ([(0, 10), (20, 30)], [0, 2]) == shape(plan_forget(journal, before=timedelta(days=5)))
    early = datetime(1970, 1, 4, tzinfo=UTC)
    assert ([(0, 10)], [0]) == shape(plan_forget(journal, before=early))
    late = datetime(9999, 1, 1, tzinfo=UTC)
    assert [0, 1, 2, 3] == plan_forget(journal, before=late).messages.tolist()


@pytest.mark.parametrize("before", [NAIVE, "2020", 5, True, timedelta(seconds=-1)], ids=repr)
def test_a_time_without_a_zone_or_from_the_future_is_refused(before):
    with pytest.raises(ConfigError) as caught:
        plan_forget(journal_of(record(10)), before=before)
    assert "before" == caught.value.field


# --- where -------------------------------------------------------------------------------------


def test_all_fields_of_where_must_be_equal():
    journal = journal_of(
        record(10, text="a", source="mail", actor="Anna", metadata={"k": [1, 2], "u": "x"}),
        record(10, text="b", source="mail", actor="Ben", trust=1),
        record(10, text="c", role=3, origin="recall", metadata={"k": [1, 2]}),
    )

    def found(**where):
        return plan_forget(journal, where=where).messages.tolist()

    assert [0, 1] == found(source="mail")
    assert [1] == found(source="mail", trust=1)
    assert [1] == found(trust="external")
    assert [0] == found(actor="Anna", role="user")
    assert [2] == found(origin="recall")
    assert [0, 2] == found(metadata={"k": [1, 2]})
    assert [0] == found(metadata={"k": [1, 2], "u": "x"})
    assert [] == found(metadata={"k": [2, 1]})
    assert [] == found(metadata={"k": None})


@pytest.mark.parametrize("value", [1, 1.0, True, "1"], ids=repr)
def test_values_of_metadata_are_equal_only_with_their_type(value):
    journal = journal_of(*(record(9, metadata={"k": one}) for one in (1, 1.0, True, "1")))
    found = plan_forget(journal, where={"metadata": {"k": value}}).messages.tolist()
    assert 1 == len(found)


@pytest.mark.parametrize(
    "value",
    ['" or true or "', "'); DROP TABLE mc_message; --", "*", "x" * 1_000_000, ""],
    ids=["or", "drop", "star", "megabyte", "empty"],
)
@pytest.mark.parametrize("field", ["role", "source", "actor", "origin"])
def test_row05_a_filter_value_is_plain_text_that_matches_nothing(field, value):
    journal = journal_of(record(10, text="a", source="mail"))
    assert ([], []) == shape(plan_forget(journal, where={field: value}))


@pytest.mark.parametrize("key", ["a') OR 1=1--", "$.x", "text", "message_ids", "", 3, None])
def test_row06_an_unknown_filter_key_lists_the_closed_set(key):
    with pytest.raises(ConfigError, match="role, source, actor, trust, origin, metadata"):
        plan_forget(journal_of(record(10)), where={key: "x"})


@pytest.mark.parametrize(
    "where",
    [
        {},
        [],
        "role",
        {"role": None},
        {"role": 3},
        {"source": None},
        {"source": {"$ne": ""}},
        {"actor": ["Anna"]},
        {"trust": None},
        {"trust": True},
        {"trust": 1.5},
        {"metadata": {}},
        {"metadata": None},
        {"metadata": {"k": complex(0, 1)}},
        {"metadata": {1: 2}},
        {"metadata": {"k": float("nan")}},
    ],
    ids=repr,
)
def test_row22_a_filter_of_another_type_never_means_all(where):
    with pytest.raises(ConfigError):
        plan_forget(journal_of(record(10, text="a")), where=where)


def test_row18_metadata_above_64_kib_is_refused():
    with pytest.raises(QuotaError):
        plan_forget(journal_of(record(10)), where={"metadata": {"k": "x" * 70_000}})


# --- scopes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scopes",
    [
        {},
        {"everything": False},
        {"everything": True, "span": (0, 1)},
        {"message_ids": [0], "span": (0, 1)},
        {"where": {"role": "user"}, "before": timedelta(0)},
    ],
)
def test_row22_exactly_one_scope_is_needed(scopes):
    with pytest.raises(ConfigError, match="exactly one") as caught:
        plan_forget(journal_of(record(10)), **scopes)
    assert "scope" == caught.value.field


@pytest.mark.parametrize("everything", [1, "yes", None])
def test_row22_everything_is_a_plain_truth_value(everything):
    with pytest.raises(ConfigError):
        plan_forget(journal_of(record(10)), everything=everything)


@pytest.mark.parametrize(
    "ids",
    [[1], [-1], [0, 99], [2**70], [0.0], [True], ["0"], [None], "0", b"0", 0, 1.5, [[0]]],
    ids=repr,
)
def test_row22_an_unknown_message_is_refused(ids):
    with pytest.raises(ConfigError) as caught:
        plan_forget(journal_of(record(10)), message_ids=ids)
    assert "message_ids" == caught.value.field


@pytest.mark.parametrize(
    "ids", [(0, 2), {0, 2}, np.array([2, 0]), range(0, 3, 2), [0, 0, 2]], ids=repr
)
def test_any_collection_of_whole_numbers_names_messages(ids):
    journal = journal_of(record(10), record(10), record(10))
    assert ([(0, 10), (20, 30)], [0, 2]) == shape(plan_forget(journal, message_ids=ids))


@pytest.mark.parametrize(
    "span",
    [(-1, 5), (5, 1), (0, 11), (0.0, 5), (0, True), (0,), (0, 1, 2), "ab", 5, [None, 5], {0: 1}],
    ids=repr,
)
def test_row20_a_span_outside_the_history_is_refused(span):
    with pytest.raises(ConfigError) as caught:
        plan_forget(journal_of(record(10)), span=span)
    assert "span" == caught.value.field
