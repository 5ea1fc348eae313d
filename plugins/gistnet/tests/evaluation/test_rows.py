"""Row keys and covers, against those of the core."""

from __future__ import annotations

import numpy as np
import pytest

from megacontext_gistnet.evaluation.rows import (
    fewest_gists,
    gist_parts,
    gists_then_raw,
    is_token,
    keys_of,
    rows_of_tokens,
    tokens_only,
    width,
)
from megacontext_sdk.contracts.positions import Layout
from megacontext_sdk.errors import ConfigError
from megacontext_sdk.memory import lod as levels
from megacontext_sdk.runtime import rows as core


def core_keys(entries, slots):
    lod = np.array([one[0] for one in entries], np.uint8)
    index = np.array([one[1] for one in entries], np.int64)
    tokens = levels.widths(lod)
    layout = Layout(
        lod=lod,
        index=index,
        start=index * tokens,
        n_tokens=tokens,
        cost=np.where(lod == 0, 32, slots),
        gist_slots=slots,
        epoch=0,
    )
    return core.row_keys(layout)


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_keys_are_those_of_the_core(slots):
    entries = [(3, 0), (2, 32), (1, 1056), (0, 1057), (1, 1058), (0, 1059)]
    keys = keys_of(entries, slots)
    assert np.array_equal(core_keys(entries, slots), keys)
    assert np.array_equal(core.is_token(keys), is_token(keys))
    for mine, theirs in zip(
        gist_parts(keys[~is_token(keys)]), core.gist_parts(keys[~is_token(keys)]), strict=True
    ):
        assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("n_blocks", [0, 1, 31, 32, 33, 1023, 1024, 1057, 40_000])
def test_covers_are_those_of_the_core(n_blocks):
    wanted = [(one.lod, one.index) for one in levels.minimal_cover(0, 32 * n_blocks)]
    assert wanted == fewest_gists(32 * n_blocks)


def test_a_node_is_as_wide_as_the_core_says():
    assert [levels.width(lod) for lod in range(4)] == [width(lod) for lod in range(4)]


def test_gists_come_first_and_raw_tokens_last():
    keys = gists_then_raw(160, 96, gist_slots=2)
    assert len(keys) == 2 * 2 + 96
    assert list(range(64, 160)) == keys[4:].tolist()
    assert list(range(64, 160)) == tokens_only(keys).tolist()


def test_a_token_behind_a_gist_cannot_be_scored():
    keys = gists_then_raw(160, 96)
    assert rows_of_tokens(keys, np.array([65])) == [3]
    with pytest.raises(ConfigError, match="token 64 has no raw token before it"):
        rows_of_tokens(keys, np.array([64]))
    with pytest.raises(ConfigError, match="token 3 has no raw token"):
        rows_of_tokens(keys, np.array([3, 70]))
    with pytest.raises(ConfigError, match="token 0 has"):
        rows_of_tokens(np.arange(4), np.array([0]))


def test_layouts_must_go_forward():
    with pytest.raises(ConfigError, match="in order"):
        keys_of([(0, 1), (0, 0)])
    with pytest.raises(ConfigError, match="no whole LOD2 nodes"):
        gists_then_raw(512, 96, lod=2)
