"""What every storage refuses, in the same words: unknown numbers, batches that do not follow.

Pure functions for whoever writes a backend; the contract (`contracts.storage`) says when to call
them, and the conformance kit that it was done. They look at shapes and numbers, never at content.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.errors import InvariantError

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Indices
    from megacontext_sdk.contracts.storage import Batch, StoreState

__all__ = ["check_batch", "check_interval", "check_numbers"]


def check_batch(batch: Batch, before: StoreState, block_bytes: int) -> None:
    """Check that a batch follows a state.

    Args:
        batch: about to be committed.
        before: what is committed.
        block_bytes: of the header.

    Raises:
        InvariantError: a gap in `seq`, or a wrong dtype or shape.
    """
    wanted = np.arange(before.seq + 1, before.seq + 1 + len(batch.commits))
    problem = None
    if not len(wanted) or not np.array_equal(batch.commits["seq"], wanted):
        problem = f"commit {before.seq + 1} is next and commits are dense"
    elif batch.blocks.shape[1:] != (block_bytes,) or batch.blocks.dtype != np.uint8:
        problem = (
            f"blocks are uint8[n, {block_bytes}], got {batch.blocks.dtype} of shape "
            f"{batch.blocks.shape}"
        )
    elif len(batch.messages) != len(batch.bodies):
        problem = f"{len(batch.messages)} messages have {len(batch.bodies)} bodies"
    if problem is not None:
        raise InvariantError(problem, code="batch", detail=problem, epoch=None)


def check_numbers(kind: str, numbers: Indices, stop: int) -> None:
    """Check that all numbers lie in `[0, stop)`.

    Raises:
        LookupError: naming kind, number and range.
    """
    if len(numbers) and not (int(numbers.min()) >= 0 and int(numbers.max()) < stop):
        bad = int(numbers[(numbers < 0) | (numbers >= stop)][0])
        raise LookupError(f"there is no {kind} {bad}; they run from 0 to {stop - 1}")


def check_interval(kind: str, start: int, stop: int, end: int, *, first: int = 0) -> None:
    """Check that `[start, stop)` lies in `[first, end)`.

    Raises:
        LookupError: naming kind, interval and range.
    """
    if not first <= start <= stop <= end:
        raise LookupError(
            f"there are no {kind}s [{start}, {stop}); they run from {first} to {end - 1}"
        )
