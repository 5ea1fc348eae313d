"""A layout as plain integers and bytes, and back: what `layout.mcl` holds of a working context.

Little-endian arrays without framing; the file around it belongs to the session. Reading checks
types and lengths; whether the entries tile is checked by `invariants`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.errors import ConfigError
from megacontext_sdk.focus.entries import entries_from_nodes
from megacontext_sdk.memory.lod import MAX_LOD, Span

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Floats, Indices
    from megacontext_sdk.contracts.focus import EntryArrays

__all__ = ["SavedLayout", "pack", "unpack"]

_VERSION = 1
_MAX_TOKENS = 2**48
_COLUMNS = {
    "lod": "<u1",
    "index": "<i8",
    "residency": "<i8",
    "last_action": "<i1",
    "action_age": "<i8",
}
_SCORE = "last_score"
_SCORE_DTYPE = np.dtype("<f4")


@attrs.frozen(eq=False, kw_only=True)
class SavedLayout:
    """A saved layout whose parts have the right types and lengths."""

    n_tokens: int
    epoch: int
    pins: tuple[Span, ...]
    columns: Mapping[str, Indices]
    scores: Floats

    def entries(self, gist_slots: int) -> EntryArrays:
        """Return the entries, not yet protected."""
        columns = self.columns
        fresh = entries_from_nodes(columns["lod"], columns["index"], self.n_tokens, gist_slots)
        return attrs.evolve(
            fresh,
            residency=columns["residency"],
            last_score=self.scores,
            last_action=columns["last_action"],
            action_age=columns["action_age"],
        )


def pack(
    entries: EntryArrays, n_tokens: int, pins: tuple[Span, ...], epoch: int
) -> dict[str, object]:
    """Return the layout as integers and bytes."""
    saved: dict[str, object] = {
        name: getattr(entries, name).astype(dtype).tobytes() for name, dtype in _COLUMNS.items()
    }
    return saved | {
        _SCORE: entries.last_score.astype(_SCORE_DTYPE).tobytes(),
        "version": _VERSION,
        "n_tokens": n_tokens,
        "epoch": epoch,
        "pins": [[pin.start, pin.end] for pin in pins],
    }


def unpack(saved: Mapping[str, object]) -> SavedLayout:
    """Return the checked parts of a saved layout.

    Raises:
        ConfigError: it is no saved layout of this version.
    """
    if saved.get("version") != _VERSION:
        raise _unusable(f"version {saved.get('version')!r}, this is {_VERSION}")
    columns = {
        name: _column(saved.get(name), name, np.dtype(dtype)).astype(np.int64)
        for name, dtype in _COLUMNS.items()
    }
    scores = _column(saved.get(_SCORE), _SCORE, _SCORE_DTYPE).astype(np.float32)
    if len({len(scores), *map(len, columns.values())}) != 1:
        raise _unusable("its columns differ in length")
    if (columns["lod"] > MAX_LOD).any():
        raise _unusable(f"a level above {MAX_LOD}")
    n_tokens = _integer(saved.get("n_tokens"), "n_tokens")
    if (columns["index"] < 0).any() or (columns["index"] > n_tokens).any():
        raise _unusable("an index outside the history")
    return SavedLayout(
        n_tokens=n_tokens,
        epoch=_integer(saved.get("epoch"), "epoch"),
        pins=_pins(saved.get("pins"), n_tokens),
        columns=columns,
        scores=scores,
    )


def _column(value: object, name: str, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    if not isinstance(value, bytes) or len(value) % dtype.itemsize:
        raise _unusable(f"column {name} is no {dtype.name} array")
    return np.frombuffer(value, dtype=dtype)


def _integer(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_TOKENS:
        raise _unusable(f"{name} is no count")
    return value


def _pins(value: object, n_tokens: int) -> tuple[Span, ...]:
    if not isinstance(value, list | tuple):
        raise _unusable("pins are no list")
    pins: list[Span] = []
    for pair in value:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise _unusable("a pin is no pair")
        span = Span(_integer(pair[0], "pin start"), _integer(pair[1], "pin end"))
        if not span.start < span.end <= n_tokens:
            raise _unusable("a pin lies outside the history")
        pins.append(span)
    return tuple(pins)


def _unusable(detail: str) -> ConfigError:
    return ConfigError(
        f"the saved layout cannot be used ({detail}): lay the history out anew",
        field="layout",
        value=detail,
    )
