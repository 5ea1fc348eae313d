"""Everything one session is made of, wired once at open, used by the session and its loop.

Holds references and a few totals; the algorithms live in the rooms it points to.
"""

from __future__ import annotations

from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.focus.refocus import RefocusRecord
from megacontext_sdk.memory.lod import BLOCK_SIZE
from megacontext_sdk.messages.roles import ROLE_CODES
from megacontext_sdk.runtime import trace
from megacontext_sdk.runtime.pager import Pager

if TYPE_CHECKING:
    from megacontext_sdk.config import Config
    from megacontext_sdk.contracts.arrays import Bools, Ids
    from megacontext_sdk.contracts.focus import Budget
    from megacontext_sdk.contracts.model import ModelAdapter, Tokenizer, WindowOutput
    from megacontext_sdk.contracts.positions import PositionScheme
    from megacontext_sdk.events import Telemetry
    from megacontext_sdk.focus.applied import AppliedPlan
    from megacontext_sdk.focus.refocus import Refocuser
    from megacontext_sdk.focus.working_context import WorkingContext
    from megacontext_sdk.memory.journal import Journal, Ticket
    from megacontext_sdk.memory.tree import MegaContextTree
    from megacontext_sdk.runtime.tree_rows import TreeRows

__all__ = ["SPARE_ROWS", "SessionState"]

SPARE_ROWS = 96
"""Slots of a window beyond `w_max`: rows in flight during one sync."""

_HISTORY = 256
_OPENING_MESSAGES = 16
_SYSTEM = ROLE_CODES["system"]


@attrs.define(eq=False, kw_only=True)
class SessionState:
    """The parts of one open session.

    Attributes:
        config: its settings.
        budget: resolved budget and rules.
        adapter: the base model.
        journal: commits and messages.
        tree: the history.
        rows: the tree as the pager sees it; counts accesses.
        wc: the working context.
        refocuser: runs refocus episodes over `wc`.
        scheme: position scheme.
        telemetry: where events go.
        records: the newest refocus records.
        revealed: block -> (score, reason) of blocks the policy revealed for the present turn.
        step: refocus steps so far.
        last_audit_nats: mean distance found by the last audit since a rebuild.
        n_provisional: gists that were stood in for when it was last reported.
    """

    config: Config
    budget: Budget
    adapter: ModelAdapter
    journal: Journal
    tree: MegaContextTree
    rows: TreeRows
    wc: WorkingContext
    refocuser: Refocuser
    scheme: PositionScheme
    telemetry: Telemetry
    records: deque[RefocusRecord] = attrs.Factory(lambda: deque(maxlen=_HISTORY))
    revealed: dict[int, tuple[float, str]] = attrs.Factory(dict)
    step: int = 0
    last_audit_nats: float = 0.0
    n_provisional: int = 0
    _pager: Pager | None = None
    _encoded: dict[int, int] = attrs.field(
        init=False,
        default=attrs.Factory(lambda self: dict(self.tree.encode_calls), takes_self=True),
    )

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.adapter.tokenizer

    @property
    def pager(self) -> Pager:
        """The pager; its window is opened on first use, so that appending needs none."""
        if self._pager is None:
            config = self.config
            self._pager = Pager(
                self.adapter.open_window(self.budget.w_max + SPARE_ROWS),
                self.rows,
                self.scheme,
                self.adapter.info,
                mode=config.runtime.kv_mode,
                seam_rows=config.runtime.seam_rows,
                cache_bytes=config.runtime.kv_cache_bytes,
            )
        return self._pager

    @property
    def has_window(self) -> bool:
        """Tell whether a window was opened."""
        return self._pager is not None

    def sync(
        self, pending: Ids, *, want_logits: bool, rebuild: bool = False
    ) -> WindowOutput | None:
        """Bring the window in line with the working context and tokens pending behind it."""
        start = perf_counter()
        if rebuild:
            self.last_audit_nats = 0.0
        layout = self.wc.layout()
        report, output = self.pager.sync(layout, pending, want_logits=want_logits, rebuild=rebuild)
        if self.config.runtime.strict:
            self.pager.check(layout, len(pending))
        trace.swap(self, report, perf_counter() - start)
        self._report_stand_ins()
        return output

    def report_gists(self) -> None:
        """Report the gists that were made since they were last reported."""
        before, self._encoded = self._encoded, dict(self.tree.encode_calls)
        trace.gist(self, {lod: n - before.get(lod, 0) for lod, n in self._encoded.items()})

    def _report_stand_ins(self) -> None:
        known, self.n_provisional = self.n_provisional, self.tree.n_provisional
        if self.n_provisional > known:
            error = self.tree.encoder_error
            encoder = getattr(error, "encoder", "gist encoder")
            reason = "the gist encoder is behind" if error is None else f"{encoder} failed"
            trace.lossy(self, "gist", self.n_provisional - known, reason)

    def provisional(self) -> Bools:
        """Tell of each entry, bool[E], whether it shows a gist in place of one still to be made."""
        entries = self.wc.entries
        found = np.zeros(len(entries), np.bool_)
        above = np.flatnonzero(entries.lod > 0)
        found[above] = self.tree.is_provisional(entries.lod[above], entries.index[above])
        return found

    def rebuild_reason(self) -> str | None:
        """Return why an exact rebuild is due at this user turn, None if it is not."""
        if self._pager is None or not self._pager.n_live:
            return None
        runtime = self.config.runtime
        if self._pager.swaps_since_rebuild > runtime.rebuild_after_swaps:
            return "swaps"
        if self._pager.stale_rows > runtime.rebuild_stale_ratio * self._pager.n_live:
            return "stale"
        return "audit" if self.last_audit_nats > runtime.audit_limit_nats else None

    def remember_refocus(self, record: RefocusRecord) -> None:
        """Keep the record and, for a user turn, what it revealed."""
        self.step += 1
        self.records.append(record)
        if record.trigger == "turn":
            self._keep_what_the_turn_wants()
        for move in record.moves:
            if move.kind == "reveal" or (move.kind == "expand" and move.node.lod == 1):
                self.revealed[move.node.index] = (move.score, move.reason or "score")

    def hold_system_prompt(self) -> None:
        """Protect the system messages a history opens with, as the first blocks are.

        They may take the share of the window that pins may take; what is longer is focused like
        any other text.
        """
        end = 0
        for row in self.journal.messages(0, min(self.journal.n_messages, _OPENING_MESSAGES)):
            if int(row["n_tokens"]) and int(row["role"]) != _SYSTEM:
                break
            end = int(row["start"]) + int(row["n_tokens"])
        limit = int(self.budget.pin_share * self.budget.w_max) // BLOCK_SIZE
        blocks = min(-(-end // BLOCK_SIZE), limit)
        if blocks > self.budget.sink_blocks:
            self.wc.budget = attrs.evolve(self.budget, sink_blocks=blocks)

    def save_pins(self) -> Ticket:
        """Keep the pins with the memory; durable when the ticket's `wait` returns."""
        pins = [[span.start, span.end] for span in self.wc.pins]
        return self.journal.update_settings({"pins": pins})

    def take_wish(self, applied: AppliedPlan) -> None:
        """Count, keep and report what a user's own wish changed; nothing if it changed nothing."""
        if not applied.moves and applied.violation is None:
            return
        self.rows.note_moves(applied.moves)
        record = RefocusRecord(
            trigger="user",
            iterations=1,
            moves=applied.moves,
            skipped=(),
            epoch_before=applied.epoch_before,
            epoch_after=applied.epoch_after,
            cost_before=applied.cost_before,
            cost_after=applied.cost_after,
            entries_before=applied.entries_before,
            entries_replaced=applied.entries_replaced,
            scores=np.zeros(0, dtype=np.float32),
            scope_seconds=0.0,
            score_seconds=0.0,
            plan_seconds=0.0,
            apply_seconds=0.0,
            fallbacks=(),
            violations=() if applied.violation is None else (applied.violation,),
        )
        self.step += 1
        self.records.append(record)
        trace.refocus(self, record)

    def _keep_what_the_turn_wants(self) -> None:
        """Forget what earlier turns revealed, unless this one asks for it, too."""
        entries = self.wc.entries
        wanted = (entries.lod == 0) & (entries.last_score > self.budget.tau_expand)
        still = set(entries.index[wanted].tolist())
        self.revealed = {b: why for b, why in self.revealed.items() if b in still}

    def close(self) -> None:
        """Free the window."""
        if self._pager is not None:
            self._pager.window.close()
