"""The slot table knows what is live, where, and when a new row needs no mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_sdk.contracts.slots import SlotTable
from megacontext_sdk.errors import ModelError


def filled(n=5, capacity=10, trained_window=100):
    table = SlotTable(capacity, trained_window)
    table.write(np.arange(n), np.arange(n) * 2)
    return table


def test_a_new_table_is_empty():
    table = SlotTable(4, 8)
    assert (0, 0, -1) == (table.n_live, table.end, table.top)
    assert 0 == len(table.live_slots())


def test_appending_takes_the_next_slot_at_the_largest_position():
    table = filled()
    assert table.append(5, 9)
    assert (6, 6, 9) == (table.n_live, table.end, table.top)
    assert 9 == table.positions[5] == table.base_positions[5]


@pytest.mark.parametrize(
    ("slot", "position"),
    [(6, 20), (4, 20), (5, 8), (5, 3), (5, 100), (5, -1)],
    ids=["gap", "live", "same position", "behind", "beyond the window", "negative"],
)
def test_appending_anything_else_is_left_to_a_write(slot, position):
    table = filled()
    assert not table.append(slot, position)
    assert (5, 5, 8) == (table.n_live, table.end, table.top)


def test_appending_to_a_full_or_holed_table_is_left_to_a_write():
    assert not filled(10).append(10, 50)
    holed = filled()
    holed.release(np.array([2]))
    assert not holed.append(4, 50)
    assert not holed.append(5, 50)


def test_moving_the_last_row_lowers_the_top():
    table = filled()
    table.move(np.array([4]), np.array([1]))
    assert 6 == table.top
    assert 8 == table.base_positions[4]
    assert table.append(5, 7)


def test_relocation_carries_position_and_base():
    table = filled()
    table.move(np.array([4]), np.array([33]))
    table.release(np.array([0]))
    table.relocate(np.array([4]), np.array([0]))
    assert (33, 8) == (table.positions[0], table.base_positions[0])
    assert (4, 4, 33) == (table.n_live, table.end, table.top)


def test_nothing_changes_when_a_call_is_refused():
    table = filled()
    before = table.positions.copy()
    for call in (
        lambda: table.relocate(np.array([0]), np.array([1])),
        lambda: table.relocate(np.array([0, 1]), np.array([7])),
        lambda: table.move(np.array([9]), np.array([1])),
        lambda: table.move(np.array([0]), np.array([100])),
        lambda: table.move(np.array([0, 1]), np.array([3])),
        lambda: table.release(np.array([10])),
        lambda: table.release(np.array([1, 1])),
        lambda: table.check_live(np.array([5])),
    ):
        with pytest.raises(ModelError):
            call()
    np.testing.assert_array_equal(before, table.positions)
    assert (5, 5, 8) == (table.n_live, table.end, table.top)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 11), st.integers(0, 49)), max_size=25))
def test_row68_counts_agree_with_a_plain_dictionary_and_no_slot_leaks(actions):
    table, model = SlotTable(12, 50), {}
    for action, slot, position in actions:
        if action == 0:
            table.write(np.array([slot]), np.array([position]))
            model[slot] = position
        elif action == 1:
            table.release(np.array([slot]))
            model.pop(slot, None)
        elif action == 2 and table.append(slot, position):
            assert position > max(model.values(), default=-1)
            assert slot == len(model)
            model[slot] = position
        elif action == 3 and slot in model and (slot + 5) % 12 not in model:
            table.relocate(np.array([slot]), np.array([(slot + 5) % 12]))
            model[(slot + 5) % 12] = model.pop(slot)
        assert sorted(model) == table.live_slots().tolist()
        assert len(model) == table.n_live
        assert max(model, default=-1) + 1 == table.end
        assert max(model.values(), default=-1) == table.top
