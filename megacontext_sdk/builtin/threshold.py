"""From utilities to signed focus scores: where the budget draws the line.

Every focus policy ranks wishes by a utility of its own. This module fills the budget in that order,
on paper, starting from the coarsest legal layout. What fits asks for detail, what does not offers
its detail back, by as much as its utility is away from the line. It looks at no text, gist or tree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.memory.lod import BLOCK_SIZE, top_lod, width

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bools, Floats, Indices
    from megacontext_sdk.contracts.focus import Budget, EntryArrays

__all__ = ["Choice", "choose", "focus_scores"]

MIN_SCALE = 1e-3
"""Smallest spread of utilities that scores are measured in."""

MARGIN = 0.02
"""How far beyond the thresholds of the allocator a score is that crosses the line: the line itself
is drawn by the budget, and stickiness in the utilities keeps entries from flickering around it."""

PATIENCE = 64
"""Wishes in a row that may fail to fit before the budget counts as full."""


@attrs.frozen(eq=False)
class Choice:
    """What the budget has room for.

    Attributes:
        blocks: int64[n], blocks to be at LOD0 besides the protected ones, ascending.
        nodes: per level from 2 on the nodes that must be open, int64[*], ascending.
        line: utility of the least wish that fits.
    """

    blocks: Indices
    nodes: dict[int, Indices]
    line: float


def choose(
    entries: EntryArrays,
    utility: NDArray[np.float64],
    groups: Sequence[tuple[range, float]],
    budget: Budget,
) -> Choice:
    """Fill the budget in order of utility, from the layout with only protected rows at LOD0.

    A block at LOD0 costs `32 - S` rows more than its gist, and the first one below a gist of LOD2
    or above also pays for the siblings that stay on every level of its path.

    Coarse entries come last, each as a wish for its newest block: opened for less, they would have
    nothing to show and be closed again.

    Args:
        entries: the working context.
        utility: float64[E], of each entry.
        groups: ranges of blocks that are of use only together, with their utility.
        budget: its budget.
    """
    tab = _Tab(entries, budget)
    order = np.flatnonzero(~entries.protected)
    order = order[np.lexsort((-entries.start[order], -utility[order]))]
    is_block = entries.lod[order] <= 1
    together = sorted(groups, key=lambda group: (-group[1], -group[0].start))
    tab.fill(_newest_blocks(entries, utility, order[is_block]), together)
    tab.fill(_newest_blocks(entries, utility, order[~is_block]), ())
    return tab.choice()


def focus_scores(
    entries: EntryArrays, utility: NDArray[np.float64], choice: Choice, budget: Budget
) -> Floats:
    """Return float32[E] in [-1, 1]; zero for protected entries and gists that hold a path open.

    With slack everything is chosen, so slack never causes a collapse.
    """
    scale = spread(utility[~entries.protected])
    size = signed_size(utility - choice.line, scale, budget)
    chosen = is_chosen(entries, choice)
    scores = np.where(chosen, size, -size)
    scores[entries.protected | (~chosen & _holds_path(entries, choice))] = 0.0
    return scores.astype(np.float32)


def signed_size(distance: NDArray[np.float64], scale: float, budget: Budget) -> NDArray[np.float64]:
    """Return the size of scores at a distance from the line, in (threshold, 1]."""
    least = min(max(budget.tau_expand, budget.tau_collapse) + MARGIN, 1.0)
    return least + (1.0 - least) * np.tanh(np.abs(distance) / scale)


def spread(utility: NDArray[np.float64]) -> float:
    """Return the standard deviation scores are measured in."""
    return max(float(utility.std()), MIN_SCALE) if len(utility) else 1.0


def is_chosen(entries: EntryArrays, choice: Choice) -> Bools:
    """Tell which entries the choice wants in more detail than a gist, bool[E]."""
    chosen = (entries.lod <= 1) & np.isin(entries.index, choice.blocks)
    for lod, nodes in choice.nodes.items():
        chosen |= (entries.lod == lod) & np.isin(entries.index, nodes)
    return chosen & ~entries.protected


def _newest_blocks(
    entries: EntryArrays, utility: NDArray[np.float64], order: Indices
) -> Iterable[tuple[float, range]]:
    """Return the utility and the newest block of some entries, in order."""
    newest = (entries.start[order] + np.maximum(entries.n_tokens[order], 1) - 1) // BLOCK_SIZE
    return (
        (worth, range(block, block + 1))
        for worth, block in zip(utility[order].tolist(), newest.tolist(), strict=True)
    )


def _holds_path(entries: EntryArrays, choice: Choice) -> Bools:
    """Tell which gists stay only because a sibling is shown: no collapse of them is possible."""
    holds = np.zeros(len(entries), np.bool_)
    for lod, nodes in choice.nodes.items():
        below = entries.lod == max(lod - 1, 1)
        holds |= below & np.isin(entries.start // width(lod), nodes)
    return holds


_NO_GROUP = (range(0), float("-inf"))


class _Tab:
    """Rows left, and what they were spent on."""

    def __init__(self, entries: EntryArrays, budget: Budget) -> None:
        self._block_rows = BLOCK_SIZE - budget.gist_slots
        self._node_rows = budget.gist_slots * (BLOCK_SIZE - 1)
        n_tokens = int(entries.start[-1] + entries.n_tokens[-1]) if len(entries) else 0
        self._n_blocks = n_tokens // BLOCK_SIZE
        self._n_nodes = {lod: n_tokens // width(lod) for lod in range(2, top_lod(n_tokens) + 1)}
        held = entries.start[entries.protected] // BLOCK_SIZE
        self._held = set(held.tolist())
        self._open = {
            lod: set(np.unique(held // BLOCK_SIZE ** (lod - 1)).tolist()) for lod in self._n_nodes
        }
        self._left = budget.target - self._coarsest_cost(entries)
        self._blocks: set[int] = set()
        self._line = float("inf")
        self._in_a_row = 0

    def _coarsest_cost(self, entries: EntryArrays) -> int:
        raw = np.count_nonzero((entries.lod == 0) & ~entries.protected)
        cost = int(entries.cost.sum()) - int(raw) * self._block_rows
        for lod, n_nodes in self._n_nodes.items():
            nodes = np.unique(entries.start[entries.lod < lod] // width(lod))
            extra = set(nodes[nodes < n_nodes].tolist()) - self._open[lod]
            cost -= self._node_rows * len(extra)
        return cost

    def fill(
        self, singles: Iterable[tuple[float, range]], groups: Iterable[tuple[range, float]]
    ) -> None:
        """Spend rows on both kinds of wishes, merged by falling utility; groups first at ties."""
        waiting = iter(groups)
        blocks, worth = next(waiting, _NO_GROUP)
        self._in_a_row = 0
        for utility, single in singles:
            while worth >= utility:
                self._show(blocks, worth)
                blocks, worth = next(waiting, _NO_GROUP)
            if self._in_a_row >= PATIENCE:
                return
            self._show(single, utility)
        while worth > -np.inf:
            self._show(blocks, worth)
            blocks, worth = next(waiting, _NO_GROUP)

    def _show(self, blocks: range, utility: float) -> None:
        """Pay for a wish, or refuse all of it."""
        new = [b for b in blocks if b < self._n_blocks and not self._is_shown(b)]
        path = self._path(new)
        rows = len(new) * self._block_rows + len(path) * self._node_rows
        if not rows:
            return
        if rows > self._left:
            self._in_a_row += 1
            return
        self._in_a_row = 0
        self._left -= rows
        self._blocks.update(new)
        for lod, index in path:
            self._open[lod].add(index)
        self._line = min(self._line, utility)

    def _is_shown(self, block: int) -> bool:
        return block in self._blocks or block in self._held

    def _path(self, blocks: Iterable[int]) -> set[tuple[int, int]]:
        """Return the nodes that would have to be opened besides those that are."""
        path = set()
        for block in blocks:
            at = block
            for level, n_nodes in self._n_nodes.items():
                at //= BLOCK_SIZE
                if at in self._open[level] or at >= n_nodes:
                    break
                path.add((level, at))
        return path

    def choice(self) -> Choice:
        """Return what was paid for."""
        return Choice(
            blocks=np.array(sorted(self._blocks), np.int64),
            nodes={lod: np.array(sorted(n), np.int64) for lod, n in self._open.items()},
            line=self._line if np.isfinite(self._line) else 0.0,
        )
