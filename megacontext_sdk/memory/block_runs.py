"""Blocks as an encoder is handed them: in runs of neighbours, with what stands left of each run.

An encoder may look left of a block, as far as it says and never right. It sees the same tokens
however appends were cut and whatever is encoded with the block, and no forgotten one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.contracts.gist import Blocks
from megacontext_sdk.errors import ConfigError
from megacontext_sdk.memory.forgotten import filled
from megacontext_sdk.memory.lod import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from megacontext_sdk.contracts.arrays import Ids, Indices
    from megacontext_sdk.contracts.gist import GistEncoder

__all__ = ["BlockRuns", "halves"]


class BlockRuns:
    """Reads blocks of one memory for one encoder.

    Args:
        read: ids int32[n, 32] of full blocks by number, -1 where forgotten.
        encoder: asks for `left_tokens`.
        filler_id: stands for forgotten tokens.

    Raises:
        ConfigError: the encoder asks for something else than a number of tokens.
    """

    def __init__(
        self, read: Callable[[Indices], Ids], encoder: GistEncoder, filler_id: int
    ) -> None:
        wanted = encoder.left_tokens
        if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 0:
            message = (
                f"gist encoder {encoder.name!r} declares left_tokens={wanted!r:.40}; it must be "
                "how many tokens left of a block it looks at, 0 or more"
            )
            raise ConfigError(message, field="left_tokens", value=type(wanted).__name__)
        self.left_tokens = wanted
        self._read = read
        self._encoder = encoder
        self._filler_id = filler_id

    def over(self, read: Callable[[Indices], Ids]) -> BlockRuns:
        """Return the same for the same encoder, over other blocks."""
        return BlockRuns(read, self._encoder, self._filler_id)

    def of(self, nodes: Indices) -> Iterator[Blocks]:
        """Yield ascending blocks as runs of neighbours; all are read at once.

        Raises:
            LookupError: a number that is no full block.
        """
        if not len(nodes):
            return
        runs = np.split(nodes, np.flatnonzero(np.diff(nodes) != 1) + 1)
        behind = -(-self.left_tokens // BLOCK_SIZE)
        begins = [max(0, int(run[0]) - behind) for run in runs]
        spans = [np.arange(at, int(run[-1]) + 1) for at, run in zip(begins, runs, strict=True)]
        wanted = np.unique(np.concatenate(spans)) if behind else nodes
        ids = filled(self._read(wanted), self._filler_id)
        for run, begin, place in zip(runs, begins, np.searchsorted(wanted, begins), strict=True):
            first = int(run[0])
            cut = int(place) + first - begin
            left = ids[place:cut].reshape(-1)
            yield Blocks(ids[cut : cut + len(run)], first, self._newest(left, first))

    def run(self, first: int, token_ids: Ids) -> Blocks:
        """Return blocks int32[n, 32] that are at hand; only what stands left of them is read."""
        behind = -(-self.left_tokens // BLOCK_SIZE)
        before = np.arange(max(0, first - behind), first)
        left = np.empty(0, np.int32)
        if len(before):
            left = filled(self._read(before), self._filler_id).reshape(-1)
        return Blocks(filled(token_ids, self._filler_id), first, self._newest(left, first))

    def _newest(self, left: Ids, first: int) -> Ids:
        """Return as many of the tokens in front of block `first` as the encoder asks for."""
        return left[len(left) - min(self.left_tokens, first * BLOCK_SIZE) :]


def halves(blocks: Blocks, left_tokens: int) -> tuple[Blocks, Blocks]:
    """Return two runs that together are one, of at least two blocks."""
    at = len(blocks.token_ids) // 2
    before, behind = blocks.token_ids[:at], blocks.token_ids[at:]
    first = blocks.first + at
    left = np.concatenate([blocks.left, before.reshape(-1)])
    left = left[len(left) - min(left_tokens, first * BLOCK_SIZE) :]
    return Blocks(before, blocks.first, blocks.left), Blocks(behind, first, left)
