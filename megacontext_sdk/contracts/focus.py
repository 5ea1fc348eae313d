"""Focus contracts: what a policy sees, what it says, what an allocator may do about it.

A policy gives each entry a signed score: positive asks for detail, negative offers it back. An
allocator turns scores into legal, budgeted, reversible moves; it is pure and never mutates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bools, Floats, Ids, Indices, Lods
    from megacontext_sdk.memory.lod import NodeId

__all__ = [
    "Budget",
    "EntryArrays",
    "FocusAllocator",
    "FocusPolicy",
    "FocusQuery",
    "FocusView",
    "GistReader",
    "LexicalHits",
    "Move",
    "Plan",
    "Reveal",
    "Skipped",
]


@attrs.frozen(kw_only=True)
class Budget:
    """The budget and the rules of one working context (spec sections 1 and 7).

    Attributes:
        w_max: rows the entries may cost at most.
        headroom: rows kept free at each block boundary.
        gist_slots: S, rows per gist.
        recent_tokens: newest tokens held at LOD0.
        sink_blocks: first blocks held at LOD0, where attention parks.
        pin_share: largest share of `w_max` that pins may take.
        tau_expand, tau_collapse: score thresholds.
        n_diff: actions per iteration.
        cooldown: iterations in which the opposite action is blocked.
        hysteresis: extra score a reversal within `hysteresis_iterations` needs.
    """

    w_max: int
    headroom: int = 64
    gist_slots: int = 1
    recent_tokens: int = 256
    sink_blocks: int = 1
    pin_share: float = 0.25
    tau_expand: float = 0.20
    tau_collapse: float = 0.20
    n_diff: int = 4
    cooldown: int = 2
    hysteresis: float = 0.10
    hysteresis_iterations: int = 8

    @property
    def target(self) -> int:
        """Rows to stay within at a boundary: `w_max - headroom`."""
        return self.w_max - self.headroom


@attrs.frozen(eq=False, kw_only=True)
class EntryArrays:
    """The entries of a working context in order, one array element per entry (E entries).

    Attributes:
        lod: uint8[E].
        index: int64[E]; the partial tail has lod 0 and the number of its unfinished block.
        start: int64[E], first token index.
        n_tokens: int64[E].
        cost: int64[E], rows: a LOD0 block 32, a gist S, the tail its token count.
        protected: bool[E]: sink, recent, pinned or tail; never collapsed.
        pinned: bool[E]: by the user.
        residency: int64[E], iterations at this level.
        last_score: float32[E]; NaN if never scored.
        last_action: int8[E]: +1 this entry came from an expand, -1 from a collapse, 0 neither.
        action_age: int64[E], iterations since that action.
    """

    lod: Lods
    index: Indices
    start: Indices
    n_tokens: Indices
    cost: Indices
    protected: Bools
    pinned: Bools
    residency: Indices
    last_score: Floats
    last_action: Indices
    action_age: Indices

    def __len__(self) -> int:
        """Number of entries."""
        return len(self.lod)


@attrs.frozen(eq=False, kw_only=True)
class FocusQuery:
    """What the model is about to answer or continue.

    Attributes:
        turn_ids: int32[n], the pending user turn (may be empty).
        turn_text: its text.
        recent_ids: int32[m], the last generated tokens (at most 64).
        recent_text: their text.
        turn_start: token index at which the pending turn begins, so that it does not match
            itself; None if nothing of it is in the history yet.
    """

    turn_ids: Ids
    turn_text: str
    recent_ids: Ids
    recent_text: str
    turn_start: int | None = None


@attrs.frozen(eq=False, kw_only=True)
class LexicalHits:
    """Messages (or pieces of long ones) that match the query, best first.

    Attributes:
        start, end: int64[h], token spans.
        score: float32[h], BM25 smoothed over neighbouring messages, larger is better.
    """

    start: Indices
    end: Indices
    score: Floats

    def __len__(self) -> int:
        """Number of hits."""
        return len(self.start)


class GistReader(Protocol):
    """Reads of the tree that a policy may make."""

    def gists(self, lod: int, indices: Indices) -> Floats:
        """Gists of nodes of one level, float32[n, S, d]."""

    def token_ids_of_blocks(self, blocks: Indices) -> Ids:
        """Token ids of full blocks, int32[n, 32]."""

    def tail_gists(self) -> Floats:
        """Newest five LOD1 gists and newest LOD2 one, float32[6, d]; missing ones NaN, in front."""

    def precision(self, blocks: Indices) -> Floats:
        """Count of numbers, dates, ids, code identifiers, URLs, negations per block, float32[n]."""


@attrs.frozen(eq=False, kw_only=True)
class FocusView:
    """All a policy may look at; tokens not yet appended cannot influence it (I15).

    Attributes:
        entries: the working context, in order.
        budget: its budget and rules.
        n_tokens: N, the cursor.
        n_blocks: full blocks of the history.
        iteration: number of the iteration within this refocus.
        query: pending turn and last generated tokens.
        query_vector: float32[d], mean embedding of the turn (or of the recent tokens).
        hits: lexical hits over the whole history.
        gist_versions: int16[E], number of the encoder that made each entry's gist (of a LOD0 block:
            its LOD1 gist); -1 where it is stored nowhere.
        provisional: bool[E], whether that gist serves in place of the one that the encoder in use
            has still to make.
        tree: reads of gists and blocks; a provisional gist is read like any other.
    """

    entries: EntryArrays
    budget: Budget
    n_tokens: int
    n_blocks: int
    iteration: int
    query: FocusQuery
    query_vector: Floats
    hits: LexicalHits
    gist_versions: NDArray[np.int16]
    provisional: Bools
    tree: GistReader

    @property
    def tail_gists(self) -> Floats:
        """Newest five LOD1 gists and newest LOD2 gist, float32[6, d]; missing ones NaN, in front.

        Read when asked for: while a reply is decoded, the newest gists are made for those only who
        look at them.
        """
        return self.tree.tail_gists()


@attrs.frozen(order=True)
class Reveal:
    """A wish to see one block deep inside a coarse entry in full.

    Attributes:
        block: block number.
        utility: score in [-1, 1], on the scale of focus scores.
        reason: why, for the focus report ("lexical", "cosine", ...).
    """

    block: int
    utility: float
    reason: str = attrs.field(default="", order=False)


class FocusPolicy(ABC):
    """Says which spans deserve detail. One instance per session; may keep caches, no state.

    A session that goes on over another history (after `restore` or `forget`), or another gist
    encoder, calls `drop_caches`; a fork works with a shallow copy of the policy on which it was
    called. So it makes new caches instead of emptying the old ones.
    """

    name: str

    @abstractmethod
    def score(self, view: FocusView) -> Floats:
        """Return float32[E] in [-1, 1]: > 0 asks for detail, < 0 offers it back."""

    def reveals(self, view: FocusView, limit: int) -> Sequence[Reveal]:
        """Return at most `limit` blocks under coarse entries worth showing, best first."""
        del view, limit
        return ()

    def drop_caches(self) -> None:  # noqa: B027 - most policies keep none
        """Start with new caches: nodes may hold other content now."""


@attrs.frozen(kw_only=True)
class Move:
    """One legal change: a node against *all* its children.

    Attributes:
        kind: "expand" replaces `node` by its children; "collapse" replaces the children by `node`;
            "reveal" expands every coarse node from the covering entry down to block `node`.
        node: see `kind`.
        score: focus score that asked for it.
        delta_cost: change of the cost in rows.
        n_actions: elementary expands it consists of (1, but for a reveal).
        reason: short word for telemetry.
    """

    kind: Literal["expand", "collapse", "reveal"]
    node: NodeId
    score: float
    delta_cost: int
    n_actions: int = 1
    reason: str = ""


@attrs.frozen(kw_only=True)
class Skipped:
    """A candidate that was not acted upon, and why."""

    kind: str
    node: NodeId
    score: float
    reason: str


@attrs.frozen(kw_only=True)
class Plan:
    """Moves to apply in order, and what was passed over."""

    moves: tuple[Move, ...]
    skipped: tuple[Skipped, ...] = ()


class FocusAllocator(ABC):
    """Turns scores into a plan. Pure and deterministic: same input, same plan, on all platforms."""

    name: str

    @abstractmethod
    def plan(
        self, entries: EntryArrays, scores: Floats, reveals: Sequence[Reveal], budget: Budget
    ) -> Plan:
        """Return at most `budget.n_diff` actions that keep the cost within `budget.target`."""

    @abstractmethod
    def make_room(self, entries: EntryArrays, budget: Budget) -> Plan:
        """Return the collapses that bring the cost within `budget.target` (mandatory phase).

        Ignores thresholds, `n_diff` and hysteresis; uses `entries.last_score` where there is one,
        else finest first, then oldest.

        Raises:
            BudgetError: protected rows leave no legal collapse.
        """
