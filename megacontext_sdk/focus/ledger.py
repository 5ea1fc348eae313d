"""The ledger of a plan in the making: what its moves do to cost and entries.

It answers which candidates are still legal after the moves written so far, and at what price.
Strategies differ in what they choose; all of them write into a ledger, so none can plan an illegal
or unaffordable move.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.contracts.focus import Move, Plan, Skipped
from megacontext_sdk.focus.moves import delta_of_collapse, delta_of_expand
from megacontext_sdk.memory.lod import BLOCK_SIZE, NodeId

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from megacontext_sdk.contracts.focus import Budget, EntryArrays
    from megacontext_sdk.focus.candidates import Group, Opening

__all__ = ["Ledger"]

_MAX_SKIPPED = 32


class Ledger:
    """Moves planned so far, the cost after them, and the entries they have used up.

    Args:
        entries: the entries at the start of the iteration.
        budget: the budget and the rules.
        skipped: candidates that were passed over before.
    """

    def __init__(
        self, entries: EntryArrays, budget: Budget, skipped: Iterable[Skipped] = ()
    ) -> None:
        self.cost = int(entries.cost.sum())
        self.n_actions = 0
        self._budget = budget
        self._moves: list[Move] = []
        self._skipped = list(skipped)
        self._used = np.zeros(len(entries), dtype=np.bool_)
        self._closed: set[int] = set()
        self._opened: set[NodeId] = set()

    @property
    def actions_left(self) -> int:
        """Actions this iteration may still take."""
        return self._budget.n_diff - self.n_actions

    @property
    def cheapest(self) -> int:
        """Rows of the cheapest step towards detail there can be."""
        slots = self._budget.gist_slots
        return min(delta_of_expand(1, slots), delta_of_expand(2, slots))

    @property
    def excess(self) -> int:
        """Rows above the target, negative when rows are free."""
        return self.cost - self._budget.target

    def plan(self) -> Plan:
        """Return what was written."""
        return Plan(moves=tuple(self._moves), skipped=tuple(self._skipped[:_MAX_SKIPPED]))

    def chain(self, opening: Opening) -> list[NodeId]:
        """Return the nodes an opening still has to expand, coarsest first; empty if stale."""
        if opening.at in self._closed:
            return []
        if opening.kind == "expand":
            return [] if opening.node in self._opened else [opening.node]
        block = opening.node.index
        path = [NodeId(lod, block // BLOCK_SIZE ** (lod - 1)) for lod in range(opening.lod, 0, -1)]
        return [node for node in path if node not in self._opened]

    def price(self, chain: Iterable[NodeId]) -> int:
        """Return the rows a chain of expands adds."""
        return sum(delta_of_expand(node.lod, self._budget.gist_slots) for node in chain)

    def refund(self, group: Group) -> int:
        """Return the rows a collapse gives back."""
        return -delta_of_collapse(group.node.lod, self._budget.gist_slots)

    def is_open(self, group: Group) -> bool:
        """Tell whether none of the group's entries has been used by a move."""
        return not self._used[group.at : group.at + group.size].any()

    def relief(self, opening: Opening, price: int, groups: Sequence[Group]) -> list[Group] | None:
        """Return the first groups whose collapse makes an opening fit, or None if none do."""
        missing = self.excess + price
        chosen: list[Group] = []
        for group in groups:
            if missing <= 0:
                break
            if self.is_open(group) and not group.holds(opening.at):
                chosen.append(group)
                missing -= self.refund(group)
        return chosen if missing <= 0 else None

    def open(self, opening: Opening, chain: Sequence[NodeId]) -> None:
        """Write an expand or a reveal."""
        move = Move(
            kind=opening.kind,
            node=opening.node,
            score=opening.score,
            delta_cost=self.price(chain),
            n_actions=len(chain),
            reason=opening.reason,
        )
        self._used[opening.at] = True
        self._opened.update(chain)
        self._write(move)

    def close(self, group: Group, reason: str = "score") -> None:
        """Write a collapse."""
        move = Move(
            kind="collapse",
            node=group.node,
            score=group.score,
            delta_cost=-self.refund(group),
            reason=reason,
        )
        self._used[group.at : group.at + group.size] = True
        self._closed.update(range(group.at, group.at + group.size))
        self._write(move)

    def skip(self, opening: Opening, reason: str) -> None:
        """Note a candidate that was passed over."""
        if len(self._skipped) < _MAX_SKIPPED:
            self._skipped.append(
                Skipped(kind=opening.kind, node=opening.node, score=opening.score, reason=reason)
            )

    def _write(self, move: Move) -> None:
        self._moves.append(move)
        self.cost += move.delta_cost
        self.n_actions += move.n_actions
