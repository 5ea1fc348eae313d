"""Array types that cross contracts, each with one fixed dtype.

Nothing here computes: these are names for the dtypes of docstrings and signatures.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bools", "Bytes2D", "Floats", "Ids", "Indices", "Lods", "Nodes", "readonly"]

Ids: TypeAlias = NDArray[np.int32]
"""Token ids, int32; -1 stands where a token was forgotten."""

Indices: TypeAlias = NDArray[np.int64]
"""Token, block, row or slot indices, int64."""

Nodes: TypeAlias = NDArray[np.uint64]
"""Keys of storage rows, uint64."""

Lods: TypeAlias = NDArray[np.uint8]
"""Levels of detail, uint8."""

Floats: TypeAlias = NDArray[np.float32]
"""Embedding rows, gists, scores, logits: float32."""

Bools: TypeAlias = NDArray[np.bool_]
"""Masks."""

Bytes2D: TypeAlias = NDArray[np.uint8]
"""Fixed-size byte rows, uint8[n, row_bytes]."""


def readonly(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return a view of the array that refuses writes."""
    view = array.view()
    view.flags.writeable = False
    return view
