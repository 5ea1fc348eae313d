"""The tree as the pager and the access counts see it: scattered tokens, nodes that enter and leave.

Translates between moves, rows and the tree's batched reads; holds no state of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.memory.forgotten import filled
from megacontext_sdk.memory.lod import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megacontext_sdk.contracts.arrays import Bools, Floats, Ids, Indices, Lods
    from megacontext_sdk.contracts.focus import Move
    from megacontext_sdk.memory.tree import MegaContextTree

__all__ = ["TreeRows", "entered_nodes", "mutated_nodes"]


class TreeRows:
    """Row content for the pager, and access counts for moves.

    Args:
        tree: the session's tree.
    """

    def __init__(self, tree: MegaContextTree) -> None:
        self._tree = tree

    def token_ids_at(self, indices: Indices) -> Ids:
        """Return token ids at absolute token indices, int32[n], in one batched read.

        A forgotten token is shown as the filler: the layout keeps its row.
        """
        blocks, at = np.unique(indices // BLOCK_SIZE, return_inverse=True)
        ids = np.zeros((len(blocks), BLOCK_SIZE), dtype=np.int32)
        full = blocks < self._tree.n_blocks
        if full.any():
            ids[full] = self._tree.token_ids_of_blocks(blocks[full])
        if not full.all():
            tail = self._tree.tail
            ids[-1, : len(tail)] = tail
        result: Ids = ids[at, indices % BLOCK_SIZE]
        return filled(result, self._tree.filler_id)

    def gists(self, lod: int, indices: Indices) -> Floats:
        """Return gist rows of nodes of one level, float32[n, S, d]."""
        return self._tree.gists(lod, indices)

    def is_provisional(self, lods: Lods, indices: Indices) -> Bools:
        """Tell whether something serves for now in place of a node's own gist, bool[n]."""
        return self._tree.is_provisional(lods, indices)

    def need(self, lods: Lods, indices: Indices) -> None:
        """Make gists that are about to be fed to the model, as far as that is cheap."""
        self._tree.need(lods, indices)

    def note_moves(self, moves: Sequence[Move]) -> None:
        """Count the nodes that applied moves expanded or collapsed, and those that came in."""
        if not moves:
            return
        mutated = np.array([n for move in moves for n in mutated_nodes(move)], dtype=np.int64)
        entered = np.array([n for move in moves for n in entered_nodes(move)], dtype=np.int64)
        self._tree.note_mutation(mutated[:, 0].astype(np.uint8), mutated[:, 1])
        self._tree.note_access(entered[:, 0].astype(np.uint8), entered[:, 1])


def mutated_nodes(move: Move) -> list[tuple[int, int]]:
    """Return (lod, index) of the nodes a move expanded or collapsed."""
    if move.kind != "reveal":
        return [(move.node.lod, move.node.index)]
    return [
        (lod, move.node.index // BLOCK_SIZE ** (lod - 1)) for lod in range(move.n_actions, 0, -1)
    ]


def entered_nodes(move: Move) -> list[tuple[int, int]]:
    """Return (lod, index) of the nodes that a move brought into the working context."""
    if move.kind == "collapse":
        return [(move.node.lod, move.node.index)]
    entered: list[tuple[int, int]] = []
    for lod, index in mutated_nodes(move):
        if lod == 1:
            entered.append((0, index))
        else:
            first = index * BLOCK_SIZE
            entered += [(lod - 1, first + i) for i in range(BLOCK_SIZE)]
    return entered
