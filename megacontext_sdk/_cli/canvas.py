"""Pixels and a PNG of them, with the standard library alone. Knows nothing of what is drawn."""

from __future__ import annotations

import struct
import zlib

from megacontext_sdk._cli.font import ADVANCE, dots

__all__ = ["Canvas", "Colour", "text_width"]

Colour = tuple[int, int, int]

_SCALE = 2  # pixels per dot of a letter


def text_width(text: str) -> int:
    """Return the pixels a line of text takes."""
    return _SCALE * ADVANCE * len(text)


class Canvas:
    """An opaque picture; drawing outside of it is cut off.

    Args:
        width, height: pixels.
        paper: colour it begins with.
    """

    def __init__(self, width: int, height: int, paper: Colour) -> None:
        self.width = width
        self._lines = [bytearray(bytes(paper) * width) for _ in range(height)]

    def fill(self, left: int, right: int, top: int, bottom: int, colour: Colour) -> None:
        """Fill the rectangle [left, right) by [top, bottom)."""
        left, right = max(left, 0), min(right, self.width)
        if right <= left:
            return
        pixels = bytes(colour) * (right - left)
        for line in self._lines[max(top, 0) : max(bottom, 0)]:
            line[3 * left : 3 * right] = pixels

    def write(self, left: int, top: int, text: str, colour: Colour) -> None:
        """Write a line of text; `left` and `top` are its upper left corner."""
        for column, row in dots(text):
            x, y = left + _SCALE * column, top + _SCALE * row
            self.fill(x, x + _SCALE, y, y + _SCALE, colour)

    def png(self) -> bytes:
        """Return the picture as a PNG, 8 bits per channel."""
        header = struct.pack(">IIBBBBB", self.width, len(self._lines), 8, 2, 0, 0, 0)
        # Each line begins with its filter: none.
        data = zlib.compress(b"".join(b"\0" + line for line in self._lines), 9)
        parts = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body) for name, body in parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
