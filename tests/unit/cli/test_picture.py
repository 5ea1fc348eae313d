from __future__ import annotations

import struct
import zlib

import pytest
from rich.console import Console

from megacontext_sdk._cli.font import dots
from megacontext_sdk._cli.picture import (
    ASCII,
    UNICODE,
    draw_focus,
    draw_legend,
    draw_map,
    level_style,
)
from megacontext_sdk._cli.png import (
    FREE,
    HISTORY_Y,
    LEVELS,
    MARGIN,
    PINNED,
    REVEALED,
    WINDOW_Y,
    _ticks,
    focus_png,
)
from megacontext_sdk.memory.lod import Span
from megacontext_sdk.results import EntryReport, FocusReport


def entry(start, width, lod=0, **marks):
    known = {"score": None, "protected": False, "pinned": False, "revealed": False}
    cost = width if lod == 0 else 1
    return EntryReport(lod=lod, span=Span(start, start + width), cost=cost, **(known | marks))


def report(*entries):
    counts = {}
    for item in entries:
        counts[item.lod] = counts.get(item.lod, 0) + 1
    return FocusReport(
        entries=entries,
        n_tokens=entries[-1].span.end if entries else 0,
        cost=sum(item.cost for item in entries),
        w_max=896,
        epoch=1,
        lod_counts=counts,
    )


@pytest.fixture
def small():
    return report(
        entry(0, 32, protected=True),
        entry(32, 32, lod=1),
        entry(64, 32, revealed=True),
        entry(96, 32, pinned=True),
        entry(128, 1024, lod=2),
        entry(1152, 7, protected=True),
    )


def test_the_map_shows_one_glyph_per_entry_in_order(small):
    lines = draw_map(small).plain.splitlines()
    assert "    0  █▓◆■▒█" == lines[0]
    assert "1,159  end" == lines[-1]


def test_the_map_needs_no_unicode(small):
    assert "    0  #1*P2#" == draw_map(small, glyphs=ASCII).plain.splitlines()[0]
    assert draw_map(small, glyphs=ASCII).plain.isascii()


def test_lines_begin_with_the_token_index_of_their_first_entry():
    long = report(*(entry(32 * i, 32, lod=1) for i in range(100)))
    lines = draw_map(long, width=47).plain.splitlines()
    assert 40 == lines[0].count("▓")
    assert lines[1].startswith("1,280  ▓")
    assert lines[2].startswith("2,560  ▓")
    assert 100 == sum(line.count("▓") for line in lines)


def test_levels_beyond_the_last_glyph_share_it():
    deep = report(entry(0, 32**6, lod=6))
    assert UNICODE.levels[-1] in draw_map(deep).plain
    assert level_style(4) == level_style(6)


def test_levels_have_different_colours():
    assert 5 == len({level_style(lod) for lod in range(5)})


def test_glyphs_are_coloured_by_level(small):
    styles = [str(span.style) for span in draw_map(small).spans]
    assert level_style(0) in styles
    assert level_style(1) in styles
    assert level_style(2) in styles


def test_the_legend_counts_entries_per_level(small):
    legend = draw_legend(small).plain
    assert "in full ×4" in legend
    assert "gist of 32 tokens ×1" in legend
    assert "gist of 1,024 tokens ×1" in legend
    assert "revealed" in legend
    assert "pinned" in legend


def test_the_legend_explains_only_what_is_there():
    legend = draw_legend(report(entry(0, 32))).plain
    assert "revealed" not in legend
    assert "pinned" not in legend
    assert "gist" not in legend


def test_the_whole_picture_says_tokens_and_rows(small):
    console = Console(width=60, record=True, force_terminal=False)
    with console.capture() as captured:
        console.print(draw_focus(small, width=60))
    assert "1,159 tokens in 105 of 896 rows, 6 entries" in captured.get()


def test_an_empty_history_has_an_empty_map():
    assert "0  end" == draw_map(report()).plain


def png_pixels(data):
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at, chunks = 8, {}
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        (crc,) = struct.unpack(">I", data[at + 8 + length : at + 12 + length])
        assert zlib.crc32(name + body) == crc
        chunks[name] = body
        at += 12 + length
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    rows = zlib.decompress(chunks[b"IDAT"])
    assert height * (1 + 3 * width) == len(rows)
    stride = 1 + 3 * width
    lines = [rows[y * stride + 1 : (y + 1) * stride] for y in range(height)]
    return [[tuple(line[3 * x : 3 * x + 3]) for x in range(width)] for line in lines]


def band(data, lines):
    """Return the pixels of the middle line of a band, without the margins."""
    return png_pixels(data)[sum(lines) // 2][MARGIN:-MARGIN]


def test_the_png_gives_each_entry_its_share_of_the_windows_rows(small):
    window = band(focus_png(small, width=896 + 2 * MARGIN), WINDOW_Y)
    assert 32 == window.count(REVEALED)
    assert 32 == window.count(PINNED)
    assert 1 == window.count(LEVELS[1])
    assert 1 == window.count(LEVELS[2])
    assert 32 + 7 == window.count(LEVELS[0])  # the first block and the tail
    assert 896 - 105 == window.count(FREE)


def test_the_png_gives_each_token_the_same_share_of_the_history(small):
    history = band(focus_png(small, width=1159 + 2 * MARGIN), HISTORY_Y)
    assert 32 == history.count(REVEALED)
    assert 1024 == history.count(LEVELS[2])
    assert 32 + 7 == history.count(LEVELS[0])


def test_what_was_revealed_can_be_seen_in_a_history_of_any_length():
    half = 32**4
    huge = report(
        entry(0, half, lod=4), entry(half, 32, revealed=True), entry(half + 32, half, lod=4)
    )
    assert 2 == band(focus_png(huge), HISTORY_Y).count(REVEALED)


def test_the_legend_of_the_png_grows_with_the_colours_in_use(small):
    plain = png_pixels(focus_png(report(entry(0, 32))))
    assert len(plain) < len(png_pixels(focus_png(small)))
    colours = {pixel for line in plain for pixel in line}
    assert colours.isdisjoint({REVEALED, PINNED, LEVELS[1]})


def test_an_empty_history_gives_an_empty_window():
    assert {FREE} == set(band(focus_png(report()), WINDOW_Y))


def test_scales_have_a_few_round_numbers():
    assert [0, 50_000, 100_000, 150_000, 200_000] == list(_ticks(200_531))
    assert [0, 200, 400, 600, 800] == list(_ticks(896))
    assert [0] == list(_ticks(0))


def test_letters_differ_and_unknown_ones_are_boxes():
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.-"
    assert len(letters) == len({tuple(dots(letter)) for letter in letters})
    assert dots("€") == dots("@")
    assert [] == dots(" ")
    assert dots("A") == dots("a")
