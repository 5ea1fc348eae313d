"""Gists as a memory would serve them: made by the encoder's contract, stored, read back.

A window is a history of its own: its blocks are handed over in order with the left context that the
contract names, its parents are made from children as storage gives them back, and every row goes
through the core's storage format, so what is measured is what is served.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_gistnet.nets.mean import BLOCK
from megacontext_sdk.contracts.gist import Blocks, Gists
from megacontext_sdk.errors import ModelError
from megacontext_sdk.measuring import as_stored

if TYPE_CHECKING:
    from collections.abc import Callable

    from megacontext_gistnet.evaluation.windows import Windows
    from megacontext_sdk.contracts.arrays import Floats, Ids
    from megacontext_sdk.contracts.gist import GistEncoder, GistServices

__all__ = ["STORED", "encode_history", "encode_windows"]

STORED = "i1"
"""How a memory stores gists by default: eight bits and a scale per row."""

_BLOCKS_PER_CALL = 512


def encode_history(
    encoder: GistEncoder,
    services: GistServices,
    token_ids: Ids,
    *,
    top: int = 1,
    dtype: str = STORED,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[int, Floats]:
    """Return the gists of one history, level -> float32[nodes, S, d], up to level `top`.

    Args:
        encoder: any gist encoder.
        services: the model adapter, as in a session.
        token_ids: int32[n]; tokens behind the last full block have no gist.
        top: highest level wanted; a level without a complete node is left out.
        dtype: number format of stored rows.
        advance: told how many blocks were encoded.

    Raises:
        ModelError: the encoder gave a gist that is not finite, or too few of them.
    """
    ids = np.asarray(token_ids, np.int32)
    blocks = ids[: len(ids) // BLOCK * BLOCK].reshape(-1, BLOCK)
    parts = []
    for first in range(0, len(blocks), _BLOCKS_PER_CALL):
        piece = blocks[first : first + _BLOCKS_PER_CALL]
        start = first * BLOCK
        left = ids[max(0, start - encoder.left_tokens) : start]
        made = encoder.encode_blocks(Blocks(piece, first, left), services)
        parts.append(_stored(made, dtype, encoder, len(piece)))
        advance(len(piece))
    if not parts:
        return {}
    level, found = _joined(parts), {}
    for lod in range(1, top + 1):
        found[lod] = level.rows
        n_parents = len(level.rows) // BLOCK
        children = _head(level, n_parents * BLOCK)
        if lod == top or not n_parents:
            break
        level = _stored(
            encoder.encode_gists(lod + 1, children, services), dtype, encoder, n_parents
        )
    return found


def encode_windows(
    encoder: GistEncoder,
    services: GistServices,
    windows: Windows,
    *,
    top: int = 1,
    dtype: str = STORED,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[int, Floats]:
    """Return the gists of windows, level -> float32[n, nodes, S, d]; see `encode_history`.

    Args:
        advance: told how many windows were encoded.
    """
    found: dict[int, list[Floats]] = {}
    for row in windows.token_ids:
        for lod, rows in encode_history(encoder, services, row, top=top, dtype=dtype).items():
            found.setdefault(lod, []).append(rows)
        advance(1)
    return {lod: np.stack(rows) for lod, rows in found.items()}


def _stored(made: Gists, dtype: str, encoder: GistEncoder, n: int) -> Gists:
    """Check what an encoder gave and take it through storage."""
    is_finite = np.isfinite(made.rows).all() and np.isfinite(made.aux).all()
    if len(made.rows) != n or not is_finite:
        message = (
            f"the encoder {encoder.name!r} gave {len(made.rows)} gists for {n} spans, or numbers "
            "that are not finite; it cannot be measured"
        )
        raise ModelError(message, encoder=encoder.name)
    return as_stored(made, dtype)


def _joined(parts: list[Gists]) -> Gists:
    return Gists(
        np.concatenate([one.rows for one in parts]), np.concatenate([one.aux for one in parts])
    )


def _head(gists: Gists, n: int) -> Gists:
    return Gists(gists.rows[:n], gists.aux[:n])
