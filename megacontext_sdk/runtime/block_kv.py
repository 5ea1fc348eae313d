"""Bounded LRU of keys and values of nodes that left the window.

Keyed by node, not by prefix, so it survives edits anywhere in the history. An entry that comes back
saw an older left side: it is reused as a stale row. Not a store: dropping it costs time only.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megacontext_sdk.contracts.model import BlockKV

__all__ = ["BlockKVCache"]


class BlockKVCache:
    """Least recently used blocks of keys and values, at most `max_bytes` of them.

    Args:
        max_bytes: bound on the sum of `BlockKV.n_bytes`; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self.hits = 0
        self.misses = 0
        self._blocks: OrderedDict[int, BlockKV] = OrderedDict()

    def __len__(self) -> int:
        """Number of nodes held."""
        return len(self._blocks)

    def put(self, node: int, block: BlockKV) -> None:
        """Keep a block, dropping the least recently used ones beyond the bound."""
        old = self._blocks.pop(node, None)
        if old is not None:
            self.n_bytes -= old.n_bytes
        self._blocks[node] = block
        self.n_bytes += block.n_bytes
        while self.n_bytes > self.max_bytes:
            _, dropped = self._blocks.popitem(last=False)
            self.n_bytes -= dropped.n_bytes

    def take(self, node: int) -> BlockKV | None:
        """Return the block and forget it (the window owns the rows now), or None."""
        block = self._blocks.pop(node, None)
        if block is None:
            self.misses += 1
            return None
        self.hits += 1
        self.n_bytes -= block.n_bytes
        return block

    def clear(self) -> None:
        """Forget everything."""
        self._blocks.clear()
        self.n_bytes = 0
