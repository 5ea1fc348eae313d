from __future__ import annotations

import struct
import zlib

import pytest
from rich.console import Console

from megacontext_sdk._cli.picture import (
    ASCII,
    UNICODE,
    draw_focus,
    draw_legend,
    draw_map,
    level_style,
)
from megacontext_sdk._cli.png import focus_png
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
    return [
        [tuple(rows[y * stride + 1 + 3 * x :][:3]) for x in range(width)] for y in range(height)
    ]


def test_the_png_is_well_formed_and_gives_each_entry_its_share_of_rows(small):
    bottom = png_pixels(focus_png(small, width=105))[-1]
    assert 32 == bottom.count((34, 170, 68))  # revealed: 32 rows of 105
    assert 32 == bottom.count((255, 204, 0))  # pinned
    assert 1 == bottom.count((51, 85, 204))  # one row of LOD1
    assert 32 + 7 == bottom.count((0, 153, 204))  # the first block and the tail


def test_full_detail_stands_higher_than_gists_in_the_png(small):
    top = png_pixels(focus_png(small, width=105))[0]
    assert (34, 170, 68) in top
    assert (51, 85, 204) not in top


def test_an_empty_history_gives_a_white_png():
    assert {(255, 255, 255)} == {
        pixel for line in png_pixels(focus_png(report())) for pixel in line
    }
