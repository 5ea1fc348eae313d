"""Letters of five by seven dots, for the few words in a picture. It draws nothing itself.

A glyph is five columns of eight dots, two hexadecimal digits each, the lowest bit on top; the
eighth dot is for descenders.
"""

from __future__ import annotations

__all__ = ["ADVANCE", "HEIGHT", "dots"]

ADVANCE = 6
"""Dots from one letter to the next."""

HEIGHT = 8
"""Dots from the top of a letter to the bottom of a descender."""

_GLYPHS = {
    " ": "0000000000", ",": "0080703000", ".": "0000606000", "-": "0808080808",
    "0": "3E5149453E", "1": "00427F4000", "2": "7249494946", "3": "2141494D33",
    "4": "1814127F10", "5": "2745454539", "6": "3C4A494931", "7": "4121110907",
    "8": "3649494936", "9": "464949291E", "a": "2054547840", "b": "7F28444438",
    "c": "3844444428", "d": "384444287F", "e": "3854545418", "f": "00087E0902",
    "g": "18A4A49C78", "h": "7F08040478", "i": "00447D4000", "j": "2040403D00",
    "k": "7F10284400", "l": "00417F4000", "m": "7C04780478", "n": "7C08040478",
    "o": "3844444438", "p": "FC18242418", "q": "18242418FC", "r": "7C08040408",
    "s": "4854545424", "t": "04043F4424", "u": "3C4040207C", "v": "1C2040201C",
    "w": "3C4030403C", "x": "4428102844", "y": "4C9090907C", "z": "4464544C44",
}  # fmt: skip
_UNKNOWN = "7F4141417F"


def dots(text: str) -> list[tuple[int, int]]:
    """Return column and row of each dot of a line of text; what has no glyph becomes a box."""
    return [
        (number * ADVANCE + column, row)
        for number, letter in enumerate(text.lower())
        for column, bits in enumerate(bytes.fromhex(_GLYPHS.get(letter, _UNKNOWN)))
        for row in range(HEIGHT)
        if bits >> row & 1
    ]
