"""Position schemes: ids per scheme, strictly increasing, inside the trained window or refused."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_sdk.builtin.positions import AbsolutePositions, CompactPositions
from megacontext_sdk.contracts.model import ModelInfo
from megacontext_sdk.errors import ConfigError
from megacontext_sdk.memory.lod import NodeId
from megacontext_sdk.testing.focus import allocator_case

INFO = ModelInfo(
    name="tiny",
    fingerprint="0" * 64,
    tokenizer_fingerprint="0" * 64,
    hidden_size=8,
    vocab_size=16,
    n_layers=1,
    trained_window=8192,
    rotary_dim=4,
    rope_theta=10_000.0,
    device="cpu",
    dtype="float32",
    bos_id=None,
    eos_ids=(),
)
ENDLESS = attrs.evolve(INFO, trained_window=2**60)


@pytest.fixture
def layout(tiled, golden_budget):
    """One LOD2, one LOD1, one raw block, a tail of 3 tokens."""

    def make(gist_slots=1):
        budget = attrs.evolve(golden_budget, gist_slots=gist_slots, recent_tokens=0)
        return tiled([(2, 0, 1), (1, 32, 33), (0, 33, 35)], 34 * 32 + 3, budget).layout()

    return make


def test_row61_compact_counts_rows(layout):
    assert list(range(1 + 1 + 32 + 3)) == CompactPositions().assign(layout(), INFO).tolist()
    assert 37 == CompactPositions().next_position(layout(), INFO)


def test_row61_compact_gives_each_slot_a_row(layout):
    positions = CompactPositions().assign(layout(4), INFO)
    assert list(range(4 + 4 + 32 + 3)) == positions.tolist()


def test_row61_a_swap_shifts_later_compact_rows_by_31(tiled, golden_budget):
    wc = tiled([(1, 0, 2), (0, 2, 4)], 128, attrs.evolve(golden_budget, recent_tokens=0))
    before = CompactPositions().assign(wc.layout(), INFO)
    wc.expand(NodeId(1, 0))
    after = CompactPositions().assign(wc.layout(), INFO)
    assert (before[1:] + 31).tolist() == after[32:].tolist()


def test_row61_absolute_puts_gists_at_their_centre_and_tokens_at_their_index(layout):
    positions = AbsolutePositions().assign(layout(), INFO).tolist()
    assert [512, 1024 + 16] == positions[:2]
    assert list(range(33 * 32, 34 * 32 + 3)) == positions[2:]
    assert 34 * 32 + 3 == AbsolutePositions().next_position(layout(), INFO)


def test_row61_absolute_gives_slots_consecutive_rows(layout):
    positions = AbsolutePositions().assign(layout(4), INFO).tolist()
    assert [512, 513, 514, 515, 1040, 1041, 1042, 1043] == positions[:8]


def test_row61_absolute_swaps_move_nothing(tiled, golden_budget):
    wc = tiled([(1, 0, 2), (0, 2, 4)], 128, attrs.evolve(golden_budget, recent_tokens=0))
    before = AbsolutePositions().assign(wc.layout(), INFO)
    wc.expand(NodeId(1, 0))
    after = AbsolutePositions().assign(wc.layout(), INFO)
    assert before[1:].tolist() == after[32:].tolist()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.sampled_from([CompactPositions, AbsolutePositions]))
def test_row61_positions_strictly_increase_and_end_before_the_next(seed, scheme):
    layout = allocator_case(seed).wc.layout()
    positions = scheme().assign(layout, ENDLESS)
    assert layout.n_rows == len(positions)
    assert np.int64 == positions.dtype
    assert (np.diff(positions) > 0).all()
    assert positions[-1] < scheme().next_position(layout, ENDLESS)


@pytest.mark.parametrize("scheme", [CompactPositions, AbsolutePositions])
def test_row61_an_empty_layout_has_no_positions(context, scheme):
    layout = context().layout()
    assert [] == scheme().assign(layout, INFO).tolist()
    assert 0 == scheme().next_position(layout, INFO)


def test_row61_compact_refuses_more_rows_than_the_trained_window(layout):
    exact = attrs.evolve(INFO, trained_window=37)
    assert 37 == len(CompactPositions().assign(layout(), exact))
    with pytest.raises(ConfigError, match=r"37 rows.*tiny ends at 36.*lower w_max") as caught:
        CompactPositions().assign(layout(), attrs.evolve(INFO, trained_window=36))
    assert ("w_max", 37) == (caught.value.field, caught.value.value)


def test_row61_absolute_refuses_an_index_outside_the_trained_window(layout):
    exact = attrs.evolve(INFO, trained_window=34 * 32 + 3)
    AbsolutePositions().assign(layout(), exact)
    with pytest.raises(ConfigError, match=r"index 1090 .*window of tiny, 1090.*compact") as caught:
        AbsolutePositions().assign(layout(), attrs.evolve(INFO, trained_window=1090))
    assert ("positions", "absolute") == (caught.value.field, caught.value.value)


def test_schemes_have_the_names_settings_use():
    assert ["compact", "absolute"] == [CompactPositions.name, AbsolutePositions.name]
