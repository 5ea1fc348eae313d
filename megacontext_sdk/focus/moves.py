"""Moves: expand, collapse and reveal on a draft of an entry list, each checked for legality (I9).

A draft is edited step by step and becomes entries only when it is finished, so nobody ever sees
half a swap. It knows nothing about scores' meaning, thresholds or the budget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.contracts.focus import EntryArrays, Move
from megacontext_sdk.errors import ProtectionError
from megacontext_sdk.focus.entries import row_costs, span_lengths
from megacontext_sdk.memory.lod import BLOCK_SIZE, MAX_LOD, NodeId, width, widths

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike

    from megacontext_sdk.contracts.arrays import Bools, Indices
    from megacontext_sdk.focus.protection import Protection

__all__ = ["Draft", "delta_of_collapse", "delta_of_expand"]

# Rows of a draft's table.
_START, _LOD, _INDEX, _ORIGIN, _GUARD = range(5)

_NO_ACTION, _EXPANDED, _COLLAPSED = 0, 1, -1


def delta_of_expand(lod: int, gist_slots: int) -> int:
    """Return the rows one expand of a node of level `lod` adds: 32 - S, or 31 * S above LOD1."""
    return BLOCK_SIZE - gist_slots if lod == 1 else (BLOCK_SIZE - 1) * gist_slots


def delta_of_collapse(lod: int, gist_slots: int) -> int:
    """Return the (negative) rows the collapse into a node of level `lod` adds."""
    return -delta_of_expand(lod, gist_slots)


class Draft:
    """An entry list being edited.

    Entries that stay remember where they came from; a new one remembers which birth made it, and
    takes its score and action from there.

    Args:
        entries: the entries before the edit; they are not changed.
        n_tokens: N of the history they tile.
        gist_slots: S.
    """

    def __init__(self, entries: EntryArrays, n_tokens: int, gist_slots: int) -> None:
        n = len(entries)
        table = np.empty((5, n), dtype=np.int64)
        table[_START], table[_LOD], table[_INDEX] = entries.start, entries.lod, entries.index
        table[_ORIGIN] = np.arange(n)
        table[_GUARD] = entries.protected
        self._before = entries
        self._table = table
        self._births: list[tuple[float, int]] = []
        self._gist_slots = gist_slots
        self.n_tokens = n_tokens

    def copy(self) -> Draft:
        """Return a draft that can be edited apart."""
        twin = object.__new__(Draft)
        twin.__dict__.update(self.__dict__)
        twin._table = self._table.copy()
        twin._births = list(self._births)
        return twin

    @property
    def origin(self) -> Indices:
        """Index of each entry in the old list, negative for new ones, int64[E]."""
        origin: Indices = self._table[_ORIGIN]
        return origin

    @property
    def cost(self) -> int:
        """Rows of the draft."""
        lods = self._table[_LOD]
        lengths = span_lengths(lods, self._table[_START], self.n_tokens)
        return int(row_costs(lods, lengths, self._gist_slots).sum())

    def append(self, lods: ArrayLike, indices: ArrayLike, n_tokens: int) -> None:
        """Let the history grow to `n_tokens`: drop the old partial tail, add nodes behind."""
        table = self._table
        if table.shape[1] and self.n_tokens % BLOCK_SIZE:
            table = table[:, :-1]
        added = np.zeros((5, len(np.atleast_1d(lods))), dtype=np.int64)
        added[_LOD], added[_INDEX] = lods, indices
        added[_START] = added[_INDEX] * widths(added[_LOD])
        added[_ORIGIN] = self._birth(float("nan"), _NO_ACTION)
        self._table = np.concatenate((table, added), axis=1)
        self.n_tokens = n_tokens

    def guard(self, mask: Bools) -> None:
        """Name the entries that may not be collapsed, bool[E]."""
        self._table[_GUARD] = mask

    def play(self, moves: Iterable[Move]) -> None:
        """Apply moves in order.

        Raises:
            ProtectionError: a move is illegal here (I9).
        """
        for move in moves:
            if move.kind == "expand":
                self.expand(move.node, move.score)
            elif move.kind == "collapse":
                self.collapse(move.node, move.score)
            else:
                self.reveal(move.node, move.score)

    def expand(self, node: NodeId, score: float) -> Move:
        """Replace a gist by all its children.

        Raises:
            ProtectionError: the node is raw or no entry.
        """
        if node.lod == 0:
            raise _illegal(f"{node} is raw already and has nothing below")
        at = self._locate(node)
        if node.lod == 1:
            children = np.array([[node.index * BLOCK_SIZE], [0], [node.index], [0], [0]])
        else:
            children = np.zeros((5, BLOCK_SIZE), dtype=np.int64)
            children[_LOD] = node.lod - 1
            children[_INDEX] = node.index * BLOCK_SIZE + np.arange(BLOCK_SIZE)
            children[_START] = children[_INDEX] * width(node.lod - 1)
        children[_ORIGIN] = self._birth(score, _EXPANDED)
        self._splice(at, 1, children)
        delta = delta_of_expand(node.lod, self._gist_slots)
        return Move(kind="expand", node=node, score=score, delta_cost=delta)

    def collapse(self, node: NodeId, score: float) -> Move:
        """Replace all children of a node by the node.

        Raises:
            ProtectionError: a child is missing, at another level, or protected; or the node itself
                does not exist.
        """
        size = 1 if node.lod == 1 else BLOCK_SIZE
        at = self._group(node, size)
        if self._table[_GUARD, at : at + size].any():
            raise _illegal(f"{node} has a protected child")
        birth = self._birth(score, _COLLAPSED)
        column = [node.index * width(node.lod), node.lod, node.index, birth, 0]
        self._splice(at, size, np.array(column).reshape(5, 1))
        delta = delta_of_collapse(node.lod, self._gist_slots)
        return Move(kind="collapse", node=node, score=score, delta_cost=delta)

    def reveal(self, block: NodeId, score: float) -> None:
        """Expand every gist above one block, from the covering entry down.

        Raises:
            ProtectionError: the node is no full block under a gist.
        """
        start = block.index * BLOCK_SIZE
        if block.lod or not 0 <= start <= self.n_tokens - BLOCK_SIZE:
            raise _illegal(f"{block} is no full block of {self.n_tokens} tokens")
        if self.cover(start).lod == 0:
            raise _illegal(f"{block} is shown already")
        while (node := self.cover(start)).lod:
            self.expand(node, score)

    def cover(self, token_index: int) -> NodeId:
        """Return the entry's node that covers a token."""
        at = int(np.searchsorted(self._table[_START], token_index, side="right")) - 1
        return NodeId(int(self._table[_LOD, at]), int(self._table[_INDEX, at]))

    def open(self, ranges: Indices, score: float, reason: str) -> list[Move]:
        """Expand until every token of the ranges is at LOD0; return the moves.

        Args:
            ranges: int64[r, 2], block-aligned token ranges.
            score: what the new entries remember as their score.
            reason: why, for telemetry.
        """
        moves: list[Move] = []
        for start, end in ranges.tolist():
            while (node := self._gist_between(start, end)) is not None:
                move = self.expand(node, score)
                moves.append(_because(move, reason))
        return moves

    def fold(self, node: NodeId, score: float, reason: str) -> list[Move]:
        """Collapse all that lies below a node, finest level first; return the moves.

        Raises:
            ProtectionError: something below is protected.
        """
        moves: list[Move] = []
        while (fine := self._finest_below(node)).shape[1]:
            level = int(fine[_LOD, 0])
            for index in np.unique(fine[_INDEX] if level == 0 else fine[_INDEX] // BLOCK_SIZE):
                above = NodeId(max(1, level + 1), int(index))
                moves.append(_because(self.collapse(above, score), reason))
        return moves

    def finish(self, protection: Protection) -> EntryArrays:
        """Return the edited entries; those that stayed keep what they remember."""
        table, before = self._table, self._before
        lods, start, origin = table[_LOD], table[_START].copy(), table[_ORIGIN]
        lengths = span_lengths(lods, start, self.n_tokens)
        kept = origin >= 0
        source = np.where(kept, origin, 0)
        born = np.array([*self._births, (0.0, 0)])[np.where(kept, -1, -1 - origin)]
        blank = np.zeros(1, dtype=np.int64)  # lets an empty list be indexed

        def carry(old: Indices, new: Indices | int) -> Indices:
            return np.where(kept, (old if len(old) else blank)[source], new)

        old_score = before.last_score if len(before) else np.zeros(1, dtype=np.float32)
        entries = EntryArrays(
            lod=lods.astype(np.uint8),
            index=table[_INDEX].copy(),
            start=start,
            n_tokens=lengths,
            cost=row_costs(lods, lengths, self._gist_slots),
            protected=(ends := start + lengths) < 0,
            pinned=ends < 0,
            residency=carry(before.residency, 0),
            last_score=np.where(kept, old_score[source], born[:, 0].astype(np.float32)),
            last_action=carry(before.last_action, born[:, 1].astype(np.int64)),
            # The next iteration is the first one after the action.
            action_age=carry(before.action_age, 1),
        )
        entries.protected[:], entries.pinned[:] = protection.mark(entries)
        return entries

    def _birth(self, score: float, action: int) -> int:
        self._births.append((score, action))
        return -len(self._births)

    def _splice(self, at: int, size: int, columns: Indices) -> None:
        table = self._table
        self._table = np.concatenate((table[:, :at], columns, table[:, at + size :]), axis=1)

    def _locate(self, node: NodeId) -> int:
        starts = self._table[_START]
        at = int(np.searchsorted(starts, node.index * width(node.lod)))
        if at < len(starts):
            lod, index = self._table[_LOD : _INDEX + 1, at].tolist()
            if (lod, index) == (node.lod, node.index):
                return at
        raise _illegal(f"{node} is no entry")

    def _group(self, node: NodeId, size: int) -> int:
        """Return where the complete sibling group below a node starts."""
        if not 1 <= node.lod <= MAX_LOD:
            raise _illegal(f"{node} has no children")
        if node.index < 0 or (node.index + 1) * width(node.lod) > self.n_tokens:
            raise _illegal(f"{node} is not complete at {self.n_tokens} tokens")
        at = int(np.searchsorted(self._table[_START], node.index * width(node.lod)))
        group = self._table[:, at : at + size]
        first = node.index * size
        if group.shape[1] < size or not (
            (group[_LOD] == node.lod - 1).all() and (group[_INDEX] == first + np.arange(size)).all()
        ):
            raise _illegal(f"{node} does not have all its children as entries")
        return at

    def _between(self, start: int, end: int) -> Indices:
        """Return the columns of the entries that share a token with `[start, end)`."""
        starts = self._table[_START]
        low = int(np.searchsorted(starts, start, side="right")) - 1
        return self._table[:, max(0, low) : int(np.searchsorted(starts, end))]

    def _gist_between(self, start: int, end: int) -> NodeId | None:
        columns = self._between(start, end)
        gists = np.flatnonzero(columns[_LOD])
        if not len(gists):
            return None
        return NodeId(*columns[_LOD : _INDEX + 1, gists[0]].tolist())

    def _finest_below(self, node: NodeId) -> Indices:
        columns = self._between(node.span.start, node.span.end)
        columns = columns[:, columns[_LOD] < node.lod]
        return columns[:, columns[_LOD] == columns[_LOD].min()] if columns.shape[1] else columns


def _because(move: Move, reason: str) -> Move:
    return Move(
        kind=move.kind,
        node=move.node,
        score=move.score,
        delta_cost=move.delta_cost,
        reason=reason,
    )


def _illegal(detail: str) -> ProtectionError:
    return ProtectionError(
        f"I9: illegal move: {detail}. Plan from the present entries.",
        code="I9",
        detail=detail,
        epoch=None,
    )
