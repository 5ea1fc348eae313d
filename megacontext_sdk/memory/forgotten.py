"""What stands where tokens were forgotten: -1 in the history, a filler id before an encoder.

Indices never move, so a forgotten token keeps its place. Text is decoded from what is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Ids

__all__ = ["FORGOTTEN_ID", "filled", "remaining"]

FORGOTTEN_ID = -1
"""What a forgotten token reads as."""


def filled(token_ids: Ids, filler_id: int) -> Ids:
    """Return ids with the filler in place of forgotten ones; the array itself if there are none.

    Example:
        >>> filled(np.array([7, -1, 9]), 0).tolist()
        [7, 0, 9]
    """
    gone = token_ids < 0
    if not gone.any():
        return token_ids
    return np.where(gone, np.int32(filler_id), token_ids)


def remaining(token_ids: Ids) -> Ids:
    """Return the ids that were not forgotten, in order.

    Example:
        >>> remaining(np.array([7, -1, 9])).tolist()
        [7, 9]
    """
    return token_ids[token_ids >= 0]
