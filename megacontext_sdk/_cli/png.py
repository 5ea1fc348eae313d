"""The focus as a PNG: the history from left to right, one band of colour per entry.

The width of a band is its share of the window's rows, its height its level of detail. Only the
standard library writes the file; there is no text in it.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megacontext_sdk.results import EntryReport, FocusReport

__all__ = ["focus_png"]

_COLOURS = ((0, 153, 204), (51, 85, 204), (170, 68, 187), (204, 51, 68), (204, 170, 51))
_REVEALED = (34, 170, 68)
_PINNED = (255, 204, 0)
_PAPER = (255, 255, 255)
_HEIGHT = 64


def focus_png(report: FocusReport, *, width: int = 896) -> bytes:
    """Return a PNG of the window, `width` pixels wide; full height is full detail.

    Args:
        report: what the model sees.
        width: pixels; one per row of the budget looks best.
    """
    columns = _columns(report, width)
    lines = bytearray()
    for y in range(_HEIGHT):
        lines.append(0)  # PNG filter of this line: none
        for colour, height in columns:
            lines += bytes(colour if _HEIGHT - y <= height else _PAPER)
    header = struct.pack(">IIBBBBB", width, _HEIGHT, 8, 2, 0, 0, 0)  # 8 bits, RGB
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(name, data)
        for name, data in (
            (b"IHDR", header),
            (b"IDAT", zlib.compress(bytes(lines), 9)),
            (b"IEND", b""),
        )
    )


def _columns(report: FocusReport, width: int) -> list[tuple[tuple[int, int, int], int]]:
    """Return colour and height of each column of pixels, left to right."""
    columns: list[tuple[tuple[int, int, int], int]] = []
    total, seen = max(1, report.cost), 0
    for entry in report.entries:
        seen += entry.cost
        columns += [(_colour(entry), _height(entry.lod))] * (seen * width // total - len(columns))
    return columns + [(_PAPER, 0)] * (width - len(columns))


def _colour(entry: EntryReport) -> tuple[int, int, int]:
    if entry.pinned:
        return _PINNED
    if entry.revealed:
        return _REVEALED
    return _COLOURS[min(entry.lod, len(_COLOURS) - 1)]


def _height(lod: int) -> int:
    return max(8, _HEIGHT - 14 * lod)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
