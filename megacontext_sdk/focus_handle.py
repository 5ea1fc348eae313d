"""`session.focus`: what the model sees, why, and the user's own wishes (pins, expand, collapse).

Reports are built from the working context's arrays on request; nothing here scores or plans.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.contracts.focus import FocusQuery
from megacontext_sdk.errors import ConfigError
from megacontext_sdk.memory.lod import BLOCK_SIZE, Span
from megacontext_sdk.results import Citation, EntryReport, FocusAction, FocusReport

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from megacontext_sdk.contracts.arrays import Floats
    from megacontext_sdk.parts import Parts

    Guard = Callable[[], AbstractContextManager[None]]

__all__ = ["FocusHandle"]


class FocusHandle:
    """Looks at and steers the focus of one session.

    Args:
        parts: the session's parts.
        reading, writing: the session's guards.
    """

    def __init__(self, parts: Parts, reading: Guard, writing: Guard) -> None:
        self._parts = parts
        self._reading = reading
        self._writing = writing

    def report(self, query: str | None = None) -> FocusReport:
        """Return what the model sees.

        Args:
            query: score the entries for this text instead of the last turn; nothing changes.

        Raises:
            ConfigError: a query that is no text.
        """
        with self._reading():
            if query is None:
                return self._report(self._parts.state.wc.entries.last_score)
            if not isinstance(query, str):
                message = f"query must be text, got {type(query).__name__}"
                raise ConfigError(message, field="query", value=type(query).__name__)
            return self._report(self._score(query))

    def pin(self, span: Span | tuple[int, int]) -> FocusReport:
        """Hold a span at full detail until it is unpinned; pins are kept with the memory.

        Raises:
            ConfigError: a span outside the history.
            DetailUnavailableError: all its blocks were forgotten.
            BudgetError: it does not fit the share of the window that pins may take.
        """
        with self._writing():
            checked = self._parts.check_detail(span)
            self._parts.state.take_wish(self._parts.state.wc.pin(checked))
            self._parts.save_pins()
            return self.report()

    def unpin(self, span: Span | tuple[int, int]) -> FocusReport:
        """Release a pin.

        Raises:
            ConfigError: no pin covers the span.
        """
        with self._writing():
            checked = self._parts.check_span(span)
            self._parts.state.take_wish(self._parts.state.wc.unpin(checked))
            self._parts.save_pins()
            return self.report()

    def expand(self, span: Span | tuple[int, int]) -> FocusReport:
        """Show a span in full now; the policy may collapse it again later.

        Raises:
            ConfigError: a span outside the history.
            DetailUnavailableError: all its blocks were forgotten.
            BudgetError: it does not fit.
        """
        with self._writing():
            checked = self._parts.check_detail(span)
            self._parts.state.take_wish(self._parts.state.wc.expand(checked))
            return self.report()

    def collapse(self, span: Span | tuple[int, int]) -> FocusReport:
        """Show a span as its coarsest gists now.

        Raises:
            ConfigError: a span outside the history, or protected.
        """
        with self._writing():
            checked = self._parts.check_span(span)
            self._parts.state.take_wish(self._parts.state.wc.collapse(checked))
            return self.report()

    def history(self) -> tuple[FocusAction, ...]:
        """Return the newest applied changes of focus, oldest first."""
        with self._reading():
            return tuple(
                FocusAction(
                    epoch=record.epoch_after,
                    kind=move.kind,
                    node=move.node,
                    score=move.score,
                    delta_cost=move.delta_cost,
                    reason=move.reason,
                    trigger=record.trigger,
                )
                for record in self._parts.state.records
                for move in record.moves
            )

    def _score(self, query: str) -> Floats:
        state = self._parts.state
        ids = state.tokenizer.encode(query)
        scope = state.refocuser.scope(
            FocusQuery(turn_ids=ids, turn_text=query, recent_ids=ids[:0], recent_text="")
        )
        return state.refocuser.policy.score(state.refocuser.view(scope, 0))

    def _report(self, scores: Floats) -> FocusReport:
        state = self._parts.state
        entries = state.wc.entries
        revealed = self._revealed()
        inside = _marked(entries.start, entries.lod, revealed)
        reports = tuple(
            EntryReport(
                lod=lod,
                span=Span(start, start + n_tokens),
                cost=cost,
                score=None if math.isnan(score) else score,
                protected=protected,
                pinned=pinned,
                revealed=start in inside,
                reason=inside.get(start, ""),
                provisional=provisional,
            )
            for lod, start, n_tokens, cost, score, protected, pinned, provisional in zip(
                entries.lod.tolist(),
                entries.start.tolist(),
                entries.n_tokens.tolist(),
                entries.cost.tolist(),
                scores.tolist(),
                entries.protected.tolist(),
                entries.pinned.tolist(),
                state.provisional().tolist(),
                strict=True,
            )
        )
        lods, counts = np.unique(entries.lod, return_counts=True)
        last = state.records[-1] if state.records else None
        return FocusReport(
            entries=reports,
            n_tokens=state.wc.n_tokens,
            cost=state.wc.cost,
            w_max=state.budget.w_max,
            epoch=state.wc.epoch,
            lod_counts=dict(zip(lods.tolist(), counts.tolist(), strict=True)),
            revealed=revealed,
            iterations=0 if last is None else last.iterations,
        )

    def _revealed(self) -> tuple[Citation, ...]:
        """Return the blocks revealed for the present turn that are still at LOD0, best first."""
        state, journal = self._parts.state, self._parts.journal
        entries = state.wc.entries
        shown = set(entries.index[entries.lod == 0].tolist())
        blocks = sorted(block for block in state.revealed if block in shown)
        citations = []
        for first, last in _runs(blocks):
            span = Span(first * BLOCK_SIZE, min((last + 1) * BLOCK_SIZE, state.wc.n_tokens))
            score, reason = max(state.revealed[block] for block in range(first, last + 1))
            messages = range(journal.message_at(span.start), journal.message_at(span.end - 1) + 1)
            citations.append(
                Citation(span=span, message_ids=tuple(messages), score=score, reason=reason)
            )
        return tuple(sorted(citations, key=lambda one: (-one.score, one.span.start)))


def _runs(blocks: list[int]) -> list[tuple[int, int]]:
    """Return first and last of each run of consecutive block numbers."""
    runs: list[tuple[int, int]] = []
    for block in blocks:
        if runs and runs[-1][1] == block - 1:
            runs[-1] = (runs[-1][0], block)
        else:
            runs.append((block, block))
    return runs


def _marked(starts: np.ndarray, lods: np.ndarray, revealed: tuple[Citation, ...]) -> dict[int, str]:
    """Return start -> reason of the LOD0 entries inside revealed spans."""
    marked: dict[int, str] = {}
    for citation in revealed:
        at = (lods == 0) & (starts >= citation.span.start) & (starts < citation.span.end)
        marked |= dict.fromkeys(starts[at].tolist(), citation.reason)
    return marked
