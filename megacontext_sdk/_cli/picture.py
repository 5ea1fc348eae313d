"""The focus as a picture: one glyph per entry, coloured by level of detail.

Pure functions from a `FocusReport` to rich renderables; they open and print nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from rich.console import Group
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from megacontext_sdk.results import EntryReport, FocusReport

__all__ = ["ASCII", "UNICODE", "Glyphs", "draw_focus", "draw_legend", "draw_map", "level_style"]

_LEVEL_STYLES = ("cyan", "blue", "magenta", "red", "yellow")
_REVEALED_STYLE = "bold green"
_PINNED_STYLE = "bold yellow"


@attrs.frozen(kw_only=True)
class Glyphs:
    """What entries look like.

    Attributes:
        levels: by lod; the last one stands for all coarser levels.
        revealed: shown in full for the last query.
        pinned: held in full by the user.
    """

    levels: tuple[str, ...]
    revealed: str
    pinned: str


UNICODE = Glyphs(levels=("█", "▓", "▒", "░", "·"), revealed="◆", pinned="■")
ASCII = Glyphs(levels=("#", "1", "2", "3", "4"), revealed="*", pinned="P")


def level_style(lod: int) -> str:
    """Return the colour of a level; levels beyond the last colour share it."""
    return _LEVEL_STYLES[min(lod, len(_LEVEL_STYLES) - 1)]


def draw_focus(report: FocusReport, *, width: int = 80, glyphs: Glyphs = UNICODE) -> Group:
    """Draw the map, the legend and one line of figures.

    Args:
        report: what the model sees.
        width: columns to use.
        glyphs: `ASCII` for terminals without Unicode.
    """
    figures = Text(
        f"{report.n_tokens:,} tokens in {report.cost:,} of {report.w_max:,} rows, "
        f"{len(report.entries):,} entries"
    )
    return Group(draw_map(report, width=width, glyphs=glyphs), draw_legend(report, glyphs), figures)


def draw_map(report: FocusReport, *, width: int = 80, glyphs: Glyphs = UNICODE) -> Text:
    """Draw one glyph per entry, in lines that begin with the token index of their first entry."""
    margin = len(f"{report.n_tokens:,}") + 2
    per_line = max(8, width - margin)
    text = Text(no_wrap=True)
    for line in _lines(report.entries, per_line):
        text.append(f"{line[0].span.start:>{margin - 2},}  ", style="dim")
        for entry in line:
            text.append(*_mark(entry, glyphs))
        text.append("\n")
    text.append(f"{report.n_tokens:>{margin - 2},}  end", style="dim")
    return text


def draw_legend(report: FocusReport, glyphs: Glyphs = UNICODE) -> Text:
    """Explain the glyphs in use, with entries per level."""
    text = Text()
    for lod in sorted(report.lod_counts):
        glyph = glyphs.levels[min(lod, len(glyphs.levels) - 1)]
        text.append(glyph, style=level_style(lod))
        text.append(f" {_level_name(lod)} ×{report.lod_counts[lod]:,}  ")
    if any(entry.revealed for entry in report.entries):
        text.append(glyphs.revealed, style=_REVEALED_STYLE)
        text.append(" revealed for the last question  ")
    if any(entry.pinned for entry in report.entries):
        text.append(glyphs.pinned, style=_PINNED_STYLE)
        text.append(" pinned  ")
    return text


def _mark(entry: EntryReport, glyphs: Glyphs) -> tuple[str, str]:
    if entry.pinned:
        return glyphs.pinned, _PINNED_STYLE
    if entry.revealed:
        return glyphs.revealed, _REVEALED_STYLE
    return glyphs.levels[min(entry.lod, len(glyphs.levels) - 1)], level_style(entry.lod)


def _level_name(lod: int) -> str:
    if lod == 0:
        return "in full"
    return f"gist of {32**lod:,} tokens"


def _lines(entries: Sequence[EntryReport], per_line: int) -> Iterator[Sequence[EntryReport]]:
    for start in range(0, len(entries), per_line):
        yield entries[start : start + per_line]
