"""What a caller may hand to the store: dense, of one width, of a bounded size.

Core has checked what users give; a refusal here means that its caller broke the contract.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_filesystem.faults import broken
from megacontext_filesystem.frames import MAX_FRAME_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megacontext_filesystem.view import View
    from megacontext_sdk.contracts.storage import GistBatch

__all__ = ["check_frame", "check_gists", "parts_of"]

_GIST_FRAME_BYTES = 16 * 2**20


def check_frame(n_bytes: int) -> None:
    """Check the size of a frame.

    Raises:
        InvariantError: it is too large.
    """
    if n_bytes > MAX_FRAME_BYTES:
        raise broken(f"a batch has at most {MAX_FRAME_BYTES} bytes, got {n_bytes}")


def check_gists(batch: GistBatch, view: View) -> None:
    """Check that gist rows go on where their level ends.

    Raises:
        InvariantError: a gap, or wrong shapes.
    """
    key, n_rows = (batch.version, batch.lod), len(batch.nodes)
    count, stride = view.gist_count(key), view.gist_stride(key)
    wanted = np.arange(count, count + n_rows, dtype=np.uint64)
    problem = None
    if batch.rows.ndim != 2 or batch.rows.dtype != np.uint8 or batch.trust.dtype != np.uint8:
        problem = f"rows are uint8[n, bytes] and trust uint8[n], got {batch.rows.dtype}"
    elif (n_rows, n_rows) != (len(batch.rows), len(batch.trust)):
        problem = f"{n_rows} nodes have {len(batch.rows)} rows"
    elif not np.array_equal(batch.nodes, wanted):
        problem = f"gists of version {key[0]}, LOD{key[1]} continue at node {count} without a gap"
    elif stride not in {0, batch.rows.shape[1]}:
        problem = f"gists of version {key[0]}, LOD{key[1]} have rows of {stride} bytes"
    if problem is not None:
        raise broken(problem)


def parts_of(batch: GistBatch) -> Iterator[GistBatch]:
    """Yield gist rows in parts that make frames of a bounded size."""
    step = max(1, _GIST_FRAME_BYTES // (batch.rows.shape[1] + 1))
    for first in range(0, len(batch.nodes), step):
        stop = first + step
        yield attrs.evolve(
            batch,
            nodes=batch.nodes[first:stop],
            trust=batch.trust[first:stop],
            rows=batch.rows[first:stop],
        )
