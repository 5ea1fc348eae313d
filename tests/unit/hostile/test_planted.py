"""The tests of filters are tested: a key that becomes a part of a statement must not pass them."""

import sqlite3

import pytest


@pytest.mark.parametrize(
    ("key", "caught"),
    [
        ("a') OR 1=1--", sqlite3.OperationalError),
        ("unknown", sqlite3.OperationalError),
        ("1=1 OR source", pytest.fail.Exception),
        ("Source", pytest.fail.Exception),
    ],
)
def test_a_filter_key_pasted_into_sql_is_caught(quick, unknown_field, pasted_sql, key, caught):
    with pytest.raises(caught):
        unknown_field(quick, key)


def test_a_filter_key_pasted_into_sql_names_everything(quick, pasted_sql):
    """What the bug would do: a key that is always true takes messages of everybody."""
    plan = quick.forget(where={"1=1 OR source": "nobody"}, dry_run=True)
    assert {message.message_id for message in quick.messages()} == set(plan.messages)
