"""The mandatory phase: which collapses bring the cost back to the target.

Lowest-scored legal groups first, groups off cooldown before the others, without scores finest and
then oldest. Thresholds, `n_diff` and hysteresis do not count here: room must be made.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from megacontext_sdk.contracts.focus import Move, Plan
from megacontext_sdk.errors import BudgetError
from megacontext_sdk.focus.candidates import sibling_groups
from megacontext_sdk.focus.moves import delta_of_collapse
from megacontext_sdk.memory.lod import BLOCK_SIZE, MAX_LOD, NodeId, width

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megacontext_sdk.contracts.arrays import Floats
    from megacontext_sdk.contracts.focus import Budget, EntryArrays

__all__ = ["mandatory_collapses"]


class _Key(NamedTuple):
    """A group in the order of the mandatory phase: the smallest collapses first."""

    is_cooling: bool
    score: float
    lod: int
    start: int


def mandatory_collapses(entries: EntryArrays, budget: Budget) -> Plan:
    """Return the collapses that bring the cost within the target.

    Raises:
        BudgetError: protected rows leave no legal collapse.
    """
    excess = int(entries.cost.sum()) - budget.target
    moves: list[Move] = []
    queue = _Queue(entries, budget)
    while excess > 0:
        key = queue.pop()
        if key is None:
            raise BudgetError(
                f"the working context cannot go below {budget.target + excess} rows, but only "
                f"{budget.target} are free: unpin spans or raise w_max",
                needed=budget.target + excess,
                available=budget.target,
            )
        node = NodeId(key.lod, key.start // width(key.lod))
        delta = delta_of_collapse(key.lod, budget.gist_slots)
        moves.append(
            Move(
                kind="collapse",
                node=node,
                score=key.score,
                delta_cost=delta,
                reason="make_room",
            )
        )
        excess += delta
        queue.collapsed(key)
    return Plan(moves=tuple(moves))


class _Queue:
    """The groups there are, merged with those that collapses complete one level up."""

    def __init__(self, entries: EntryArrays, budget: Budget) -> None:
        self._entries = entries
        self._cooldown = budget.cooldown
        self._scores: Floats = np.nan_to_num(entries.last_score, nan=0.0)
        self._present = self._sorted()
        self._head = next(self._present, None)
        self._formed: list[_Key] = []
        self._parents: dict[NodeId, _Family] = {}

    def _sorted(self) -> Iterator[_Key]:
        groups = sibling_groups(self._entries, self._scores)
        start = self._entries.start[groups.at]
        cooling = groups.age <= self._cooldown
        order = np.lexsort((start, groups.lod, groups.score, cooling))
        for i in order:
            yield _Key(bool(cooling[i]), float(groups.score[i]), int(groups.lod[i]), int(start[i]))

    def pop(self) -> _Key | None:
        """Return the next group to collapse, or None."""
        if self._formed and (self._head is None or self._formed[0] < self._head):
            return heappop(self._formed)
        key, self._head = self._head, next(self._present, None)
        return key

    def collapsed(self, key: _Key) -> None:
        """Note a collapse; its node may complete a group one level up."""
        above = NodeId(key.lod + 1, key.start // width(key.lod + 1))
        family = self._parents.get(above)
        if family is None:
            family = self._parents[above] = self._family(above)
        family.n_members += 1
        family.score += key.score
        if family.n_members == BLOCK_SIZE and key.lod < MAX_LOD:
            mean = family.score / BLOCK_SIZE
            heappush(self._formed, _Key(family.is_cooling, mean, above.lod, above.span.start))

    def _family(self, above: NodeId) -> _Family:
        """Count the children of a node that are entries by themselves."""
        entries, span = self._entries, above.span
        low, high = np.searchsorted(entries.start, (span.start, span.end)).tolist()
        child = (entries.lod[low:high] == above.lod - 1) & ~entries.protected[low:high]
        young = (entries.last_action[low:high] > 0) & (
            entries.action_age[low:high] <= self._cooldown
        )
        return _Family(
            int(child.sum()),
            float(self._scores[low:high][child].astype(np.float64).sum()),
            is_cooling=bool((young & child).any()),
        )


class _Family:
    """Children of one node that are entries: how many, and the sum of their scores."""

    def __init__(self, n_members: int, score: float, *, is_cooling: bool) -> None:
        self.n_members = n_members
        self.score = score
        self.is_cooling = is_cooling
