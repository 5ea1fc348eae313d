"""Candidates: which expands, reveals and collapses a list of entries allows at all.

All from the entries at the start of an iteration, vectorised, in the total order of spec section 7.
Cooldown and hysteresis filter here; the budget does not: that is the planner's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs
import numpy as np

from megacontext_sdk.contracts.focus import Skipped
from megacontext_sdk.memory.lod import BLOCK_SIZE, MAX_LOD, NodeId

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from megacontext_sdk.contracts.arrays import Bools, Floats, Indices
    from megacontext_sdk.contracts.focus import Budget, EntryArrays, Reveal

__all__ = [
    "NEVER",
    "Group",
    "Groups",
    "Opening",
    "Openings",
    "openings",
    "sibling_groups",
    "willing_groups",
]

_MAX_REPORTED = 16
_MAX_CLOSES = 128
"""More groups than any one plan can use: `n_diff` collapses, or those before the deepest reveal."""


@attrs.frozen(kw_only=True)
class Opening:
    """A wish for detail: expand entry `at`, or reveal a block below it.

    Attributes:
        kind: "expand" or "reveal".
        node: the entry's node, or the block.
        at: number of the entry.
        lod: level of the entry.
        score: focus score or utility.
        reason: for telemetry.
    """

    kind: Literal["expand", "reveal"]
    node: NodeId
    at: int
    lod: int
    score: float
    reason: str


@attrs.frozen(eq=False, kw_only=True)
class Openings:
    """Openings in the order to try them.

    Attributes:
        order: int64[P], positions to try: an entry's number, or E + number of a wish.
        blocked: int64[Q], positions that cooldown or hysteresis holds back.
    """

    entries: EntryArrays
    scores: Floats
    wishes: Sequence[Opening]
    order: Indices
    blocked: Indices

    def __len__(self) -> int:
        """Number of openings to try."""
        return len(self.order)

    def __iter__(self) -> Iterator[Opening]:
        """Yield the openings; objects are made only for those really tried."""
        return (self._make(int(position)) for position in self.order)

    def held_back(self) -> tuple[Skipped, ...]:
        """Return the best of the blocked candidates, for telemetry."""
        return tuple(
            Skipped(kind=o.kind, node=o.node, score=o.score, reason="cooldown")
            for o in map(self._make, self.blocked[:_MAX_REPORTED].tolist())
        )

    def _make(self, position: int) -> Opening:
        if position >= len(self.entries):
            return self.wishes[position - len(self.entries)]
        node = NodeId(int(self.entries.lod[position]), int(self.entries.index[position]))
        return Opening(
            kind="expand",
            node=node,
            at=position,
            lod=node.lod,
            score=float(self.scores[position]),
            reason="score",
        )


@attrs.frozen(kw_only=True)
class Group:
    """One sibling group that may be collapsed.

    Attributes:
        node: what it collapses into.
        at: number of its first entry.
        size: entries in it, 1 or 32.
        score: their mean score.
    """

    node: NodeId
    at: int
    size: int
    score: float

    def holds(self, entry: int) -> bool:
        """Tell whether an entry belongs to the group."""
        return self.at <= entry < self.at + self.size


@attrs.frozen(eq=False, kw_only=True)
class Groups:
    """All complete, unprotected sibling groups (G of them), in order of their start.

    Attributes:
        at: int64[G], first entry.
        size: int64[G], 1 or 32.
        lod: int64[G], level of the parent.
        index: int64[G], index of the parent.
        end: int64[G], end of the span in tokens.
        score: float32[G], mean score.
        age: int64[G], iterations since a member was expanded; very large if never.
    """

    at: Indices
    size: Indices
    lod: Indices
    index: Indices
    end: Indices
    score: Floats
    age: Indices

    def take(self, order: Indices) -> tuple[Group, ...]:
        """Return some groups as objects, in the given order."""
        columns = (self.lod, self.index, self.at, self.size, self.score)
        return tuple(
            Group(node=NodeId(lod, index), at=at, size=size, score=score)
            for lod, index, at, size, score in zip(
                *(column[order].tolist() for column in columns), strict=True
            )
        )


NEVER = 2**62


def sibling_groups(entries: EntryArrays, scores: Floats) -> Groups:
    """Return the groups a collapse may take: complete, at one level, none protected."""
    raw = entries.lod == 0
    single = np.flatnonzero(raw & (entries.n_tokens == BLOCK_SIZE) & ~entries.protected)
    heads = _heads(entries, raw)
    members = heads + np.arange(BLOCK_SIZE)[:, None]  # int64[32, H]
    age = np.where(entries.last_action > 0, entries.action_age, NEVER)
    mean = scores[members].astype(np.float64).sum(axis=0) / BLOCK_SIZE
    at = np.concatenate((single, heads))
    size = np.repeat((1, BLOCK_SIZE), (len(single), len(heads)))
    order = np.argsort(at)
    at, size = at[order], size[order]
    return Groups(
        at=at,
        size=size,
        lod=entries.lod[at].astype(np.int64) + 1,
        index=np.where(size == 1, entries.index[at], entries.index[at] // BLOCK_SIZE),
        end=entries.start[at] + entries.n_tokens[at] * size,
        score=np.concatenate((scores[single], mean.astype(np.float32)))[order],
        age=np.concatenate((age[single], age[members].min(axis=0)))[order],
    )


def _heads(entries: EntryArrays, raw: Bools) -> Indices:
    """Return the first entries of all runs of 32 unprotected gist siblings, int64[H]."""
    last = len(entries) - BLOCK_SIZE
    lods, index = entries.lod, entries.index
    heads = np.flatnonzero(~raw & (index % BLOCK_SIZE == 0) & (lods < MAX_LOD))
    heads = heads[heads <= last]
    tails = heads + BLOCK_SIZE - 1
    heads = heads[(lods[tails] == lods[heads]) & (index[tails] == index[heads] + BLOCK_SIZE - 1)]
    # 32 aligned entries over 32 widths: only a raw block among LOD1 gists can still disagree.
    bad = np.concatenate(((0,), np.cumsum(raw | entries.protected)))
    whole: Indices = heads[bad[heads + BLOCK_SIZE] == bad[heads]]
    return whole


def willing_groups(entries: EntryArrays, scores: Floats, budget: Budget) -> tuple[Group, ...]:
    """Return the groups that offer detail back, lowest score first, ties farther from the cursor.

    Mean score below `-tau_collapse`; off cooldown; past hysteresis or clearly below it.
    """
    groups = sibling_groups(entries, scores)
    willing = groups.score < -np.float32(budget.tau_collapse)
    firm = groups.score <= -np.float32(budget.tau_collapse + budget.hysteresis)
    willing &= (groups.age > budget.cooldown) & (firm | (groups.age > budget.hysteresis_iterations))
    order = np.lexsort((groups.at, groups.end, groups.score))
    return groups.take(order[willing[order]][: _MAX_CLOSES + 2 * budget.n_diff])


def openings(
    entries: EntryArrays, scores: Floats, reveals: Sequence[Reveal], budget: Budget
) -> Openings:
    """Return expands and reveals, highest score first, ties nearer the cursor, then smaller start.

    Score above `tau_expand`; off cooldown; past hysteresis or clearly above it.
    """
    gists = np.flatnonzero((entries.lod > 0) & (scores > np.float32(budget.tau_expand)))
    wishes = _wishes(entries, reveals, budget)
    at = np.concatenate((gists, np.array([w.at for w in wishes], dtype=np.int64)))
    score = np.concatenate((scores[gists], np.array([w.score for w in wishes], dtype=np.float32)))
    block = np.array([w.node.index for w in wishes], dtype=np.int64) * BLOCK_SIZE
    start = np.concatenate((entries.start[gists], block))
    end = np.concatenate((entries.start[gists] + entries.n_tokens[gists], block + BLOCK_SIZE))
    # A stable sort: an expand stands before the reveal of the same tokens.
    order = np.lexsort((start, -end, -score))
    free = ~_held_back(entries, at, score, budget)[order]
    position = np.concatenate((gists, len(entries) + np.arange(len(wishes))))[order]
    return Openings(
        entries=entries,
        scores=scores,
        wishes=wishes,
        order=position[free],
        blocked=position[~free],
    )


def _held_back(entries: EntryArrays, at: Indices, score: Floats, budget: Budget) -> Bools:
    """Tell which openings would reverse a collapse too early."""
    age = np.where(entries.last_action[at] < 0, entries.action_age[at], NEVER)
    weak = score < np.float32(budget.tau_expand + budget.hysteresis)
    return (age <= budget.cooldown) | (weak & (age <= budget.hysteresis_iterations))


def _wishes(entries: EntryArrays, reveals: Sequence[Reveal], budget: Budget) -> list[Opening]:
    """Return the reveals of full blocks that lie under a gist and score enough, one per block."""
    if not reveals or not len(entries):
        return []
    blocks = np.array([r.block for r in reveals], dtype=np.int64)
    covers = np.searchsorted(entries.start, blocks * BLOCK_SIZE, side="right") - 1
    utility = np.array([r.utility for r in reveals], dtype=np.float32)
    end = entries.start[-1] + entries.n_tokens[-1]
    useful = (utility > np.float32(budget.tau_expand)) & (covers >= 0)
    useful &= ((blocks + 1) * BLOCK_SIZE <= end) & (entries.lod[covers] > 0)
    best: dict[int, Opening] = {}
    for i in np.flatnonzero(useful).tolist():
        wish = Opening(
            kind="reveal",
            node=NodeId(0, int(blocks[i])),
            at=int(covers[i]),
            lod=int(entries.lod[covers[i]]),
            score=float(utility[i]),
            reason=reveals[i].reason or "reveal",
        )
        known = best.get(wish.node.index)
        if known is None or known.score < wish.score:
            best[wish.node.index] = wish
    return list(best.values())
