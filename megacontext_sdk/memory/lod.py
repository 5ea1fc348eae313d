"""Level-of-detail arithmetic: spans, node ids, widths, parents, children, covers.

Pure functions of integers. This module knows nothing about storage, gists or models.
Source: `docs/reference/glossary.md`; the tree is 32-ary at every level, without a top.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import attrs
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = [
    "BLOCK_SIZE",
    "MAX_LOD",
    "NodeId",
    "Span",
    "children",
    "min_cost",
    "minimal_cover",
    "n_nodes",
    "node_at",
    "node_span",
    "pack",
    "parent",
    "refined",
    "top_lod",
    "unpack",
    "width",
    "widths",
]

BLOCK_SIZE = 32
"""K: tokens per block = tree arity = refocus cadence."""

MAX_LOD = 10
"""Deepest level a memory may reach: 32**10 tokens is above the limit of 2**48."""


@attrs.frozen(order=True)
class Span:
    """Half-open interval `[start, end)` of absolute token indices, which never shift."""

    start: int
    end: int

    @property
    def n_tokens(self) -> int:
        """Length in tokens."""
        return self.end - self.start

    def __contains__(self, token_index: int) -> bool:
        """Tell whether a token index lies inside."""
        return self.start <= token_index < self.end

    def __iter__(self) -> Iterator[int]:
        """Unpack as `start, end`."""
        return iter((self.start, self.end))

    def overlaps(self, other: Span) -> bool:
        """Tell whether the two spans share a token."""
        return self.start < other.end and other.start < self.end

    def blocks(self) -> range:
        """Return the numbers of all blocks this span touches."""
        return range(self.start // BLOCK_SIZE, -(-self.end // BLOCK_SIZE))

    def to_dict(self) -> dict[str, int]:
        """Return `{"start": ..., "end": ...}`."""
        return {"start": self.start, "end": self.end}


@attrs.frozen(order=True)
class NodeId:
    """Address of a node: level of detail and index within that level."""

    lod: int
    index: int

    @property
    def span(self) -> Span:
        """Token span of the (complete) node."""
        return node_span(self)

    def __str__(self) -> str:
        """Return `LOD1:3001`."""
        return f"LOD{self.lod}:{self.index}"


def width(lod: int) -> int:
    """Return how many tokens a complete node covers: `32**max(1, lod)`."""
    return int(BLOCK_SIZE ** max(1, lod))


_WIDTHS = np.array([width(lod) for lod in range(MAX_LOD + 1)], dtype=np.int64)


def widths(lods: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return `width` of each level, int64[n]."""
    result: NDArray[np.int64] = _WIDTHS[lods]
    return result


def node_span(node: NodeId) -> Span:
    """Return the token span of a complete node."""
    w = width(node.lod)
    return Span(node.index * w, (node.index + 1) * w)


def node_at(token_index: int, lod: int) -> NodeId:
    """Return the node of level `lod` that covers a token."""
    return NodeId(lod, token_index // width(lod))


def parent(node: NodeId) -> NodeId:
    """Return the parent: a block's is the gist over the same 32 tokens."""
    return NodeId(1, node.index) if node.lod == 0 else NodeId(node.lod + 1, node.index // 32)


def children(node: NodeId) -> tuple[NodeId, ...]:
    """Return the children: none for a block, one block for LOD1, 32 nodes above.

    Raises:
        ValueError: for a LOD0 node, which has no children.
    """
    if node.lod == 0:
        message = f"{node} is a block of raw tokens and has no children"
        raise ValueError(message)
    if node.lod == 1:
        return (NodeId(0, node.index),)
    first = node.index * BLOCK_SIZE
    return tuple(NodeId(node.lod - 1, first + i) for i in range(BLOCK_SIZE))


def n_nodes(n_tokens: int, lod: int) -> int:
    """Return how many complete nodes of a level a history of `n_tokens` has."""
    return n_tokens // width(lod)


def top_lod(n_tokens: int) -> int:
    """Return the highest level that has a complete node (0 if not even a block is full)."""
    lod = 0
    while n_nodes(n_tokens, lod + 1):
        lod += 1
    return lod


def pack(lod: int, index: int) -> int:
    """Return the packed id `lod << 56 | index`."""
    return lod << 56 | index


def unpack(packed: int) -> NodeId:
    """Return the node of a packed id."""
    return NodeId(packed >> 56, packed & ((1 << 56) - 1))


def minimal_cover(start: int, end: int) -> list[NodeId]:
    """Return the fewest complete gist nodes that tile `[start, end)`.

    Both ends must lie on block boundaries. Levels rise towards the middle and fall again.

    Raises:
        ValueError: if an end is not a multiple of 32.
    """
    if start % BLOCK_SIZE or end % BLOCK_SIZE:
        message = f"minimal_cover needs block boundaries, got [{start}, {end})"
        raise ValueError(message)
    cover: list[NodeId] = []
    at = start
    while at < end:
        lod = 1
        while at % width(lod + 1) == 0 and at + width(lod + 1) <= end:
            lod += 1
        cover.append(NodeId(lod, at // width(lod)))
        at += width(lod)
    return cover


def min_cost(n_tokens: int, gist_slots: int = 1) -> int:
    """Return the fewest rows that tile `[0, n_tokens)`.

    `S * (sum of the base-32 digits but the lowest) + lowest digit`: spec section 1.
    """
    blocks, rows = divmod(n_tokens, BLOCK_SIZE)
    while blocks:
        blocks, digit = divmod(blocks, BLOCK_SIZE)
        rows += gist_slots * digit
    return rows


def refined(nodes: list[NodeId], free_rows: int, slots: int) -> list[NodeId]:
    """Expand the coarsest, of those the newest, while rows are left; return nodes in order.

    Args:
        nodes: they tile a span.
        free_rows: what expanding may cost.
        slots: S, rows per gist.
    """
    heap = [(-node.lod, -node.index, node) for node in nodes]
    heapq.heapify(heap)
    done: list[NodeId] = []
    while heap:
        node = heapq.heappop(heap)[2]
        price = BLOCK_SIZE - slots if node.lod == 1 else (BLOCK_SIZE - 1) * slots
        if node.lod == 0 or price > free_rows:
            done.append(node)
            continue
        free_rows -= price
        for child in children(node):
            heapq.heappush(heap, (-child.lod, -child.index, child))
    return sorted(done, key=lambda node: node.span)
