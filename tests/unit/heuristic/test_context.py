"""Strong hits come with the raw text before them; a turn clears what it scores low first."""

from __future__ import annotations

import numpy as np

from megacontext_sdk import MemorySession
from megacontext_sdk.builtin.echo import EchoModel
from megacontext_sdk.builtin.heuristic import FEW_RIVALS, LEAD_BLOCKS, MORE_BLOCKS, _hit_blocks
from megacontext_sdk.contracts.focus import LexicalHits

ROOMY = 832


def hits(*found):
    """Each found is (first block, last block + 1, score)."""
    return LexicalHits(
        start=np.array([a * 32 for a, _, _ in found]),
        end=np.array([b * 32 for _, b, _ in found]),
        score=np.array([score for _, _, score in found], dtype=np.float32),
    )


def test_a_hit_that_stands_out_takes_more_text_before_it_and_leaves_weak_hits_alone():
    shown = _hit_blocks(hits((500, 501, 20.0), (300, 301, 5.0), (700, 702, 4.0)), 1000, ROOMY)

    assert range(500 - LEAD_BLOCKS, 501) == shown.ranges[0]
    assert set(range(500 - LEAD_BLOCKS - MORE_BLOCKS, 501)) == set(shown.blocks.tolist())


def test_rivals_are_all_shown_and_only_strong_ones_with_what_leads_up_to_them():
    found = [(100 * n, 100 * n + 1, 20.0) for n in range(1, FEW_RIVALS + 2)]

    shown = _hit_blocks(hits(*found, (900, 901, 5.0)), 1000, ROOMY)

    assert [range(100 * n - LEAD_BLOCKS, 100 * n + 1) for n in range(1, FEW_RIVALS + 2)] + [
        range(900, 901)
    ] == list(shown.ranges)


def test_a_small_window_shows_hits_bare():
    shown = _hit_blocks(hits((500, 501, 20.0), (300, 301, 5.0)), 1000, 448)

    assert [range(500, 501), range(300, 301)] == list(shown.ranges)


def test_nothing_before_the_first_block_is_asked_for():
    shown = _hit_blocks(hits((1, 2, 20.0)), 1000, ROOMY)

    assert [0, 1] == shown.blocks.tolist()


def test_a_new_turn_frees_what_the_last_one_held_by_hysteresis():
    """Questions one after the other: each finds its fact in full, although the last one's blocks
    are too young to be given back by ordinary moves."""
    names = ["Zanzibar", "Quebec", "Osaka", "Tbilisi", "Lima", "Cardiff"]
    with MemorySession.open(
        None, model=EchoModel(), storage="memory", strict=True, w_max=512
    ) as session:
        told = {}
        for name in names:
            for number in range(40):
                session.append(f"Day {number}: rain on the hills, sheep in the valley.")
            told[name] = session.append(f"{name} exports cloves.").span
        for name in names:
            reply = session.generate(f"What does {name} export?", max_new_tokens=2)
            shown = [e.lod for e in reply.focus.entries if e.span.overlaps(told[name])]
            assert {0} == set(shown), name
