"""The plain runtime loop: ingest, refocus, decode. The reference every other loop must match.

Per 32 tokens, in this order: ingest (commit the block), gist, assemble (the block becomes an entry,
room is made), refocus (one iteration), decode. A user turn refocuses up to `max_iterations` times
before the first token. Between refocuses the working context only grows at its tail, and a token
costs one window step: no plugin manager, no copy of the window, nothing recomputed.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.contracts.focus import FocusQuery
from megacontext_sdk.contracts.runtime import DecodedToken, RuntimeLoop
from megacontext_sdk.errors import BudgetError
from megacontext_sdk.memory.lod import BLOCK_SIZE
from megacontext_sdk.runtime import trace

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from megacontext_sdk.contracts.arrays import Ids
    from megacontext_sdk.contracts.model import WindowOutput
    from megacontext_sdk.contracts.runtime import DecodeRequest
    from megacontext_sdk.focus.refocus import RefocusRecord
    from megacontext_sdk.focus.working_context import AppliedPlan
    from megacontext_sdk.runtime.state import SessionState

__all__ = ["PlainLoop"]

_RECENT_IDS = 64
_NO_IDS: Ids = np.zeros(0, dtype=np.int32)


class PlainLoop(RuntimeLoop):
    """Drives one session in the caller's thread.

    Args:
        state: everything a session is made of.
    """

    name = "plain"

    def __init__(self, state: SessionState) -> None:
        self._state = state
        self._turn_ids: Ids = _NO_IDS
        self._turn_text = ""
        self._turn_start: int | None = None
        self._n_messages = state.journal.n_messages

    # -- ingest ---------------------------------------------------------------------------------

    def ingest(self, source: str = "append") -> None:
        """Take newly committed history into the working context, making room at once."""
        state = self._state
        self._report_ingest(source)
        if not state.wc.n_tokens:
            state.hold_system_prompt()
        start = perf_counter()
        applied = self._extend()
        state.rows.note_moves(applied.moves)
        trace.assemble(state, applied, perf_counter() - start)

    def _extend(self) -> AppliedPlan:
        """Let the working context grow; pins the history has outgrown yield, oldest first.

        What was committed must be shown, if only as gists: a pin is a wish, and it is reported.
        """
        state = self._state
        while True:
            try:
                return state.wc.extend(state.tree.n_tokens)
            except BudgetError:
                if not state.wc.pins:
                    raise
                state.take_wish(state.wc.unpin(state.wc.pins[0]))
                state.save_pins()
                trace.lossy(state, "pin", 1, "the history has outgrown it")

    def _report_ingest(self, source: str) -> None:
        """Report tokens and gists that are new since the working context last looked."""
        state = self._state
        before, self._n_messages = self._n_messages, state.journal.n_messages
        trace.ingest(state, self._n_messages - before, source)
        state.report_gists()

    # -- refocus --------------------------------------------------------------------------------

    def refocus(
        self,
        turn_ids: Ids,
        turn_text: str,
        *,
        turn_start: int | None,
        max_iterations: int,
        trigger: str,
    ) -> RefocusRecord:
        """Score, plan and apply until nothing more is worth doing (bounded)."""
        self._turn_ids, self._turn_text, self._turn_start = turn_ids, turn_text, turn_start
        return self._refocus(_NO_IDS, max_iterations, trigger)

    def _refocus(self, recent_ids: Ids, max_iterations: int, trigger: str) -> RefocusRecord:
        state = self._state
        recent_text = state.tokenizer.decode(recent_ids, special=False) if len(recent_ids) else ""
        query = FocusQuery(
            turn_ids=self._turn_ids,
            turn_text=self._turn_text,
            recent_ids=recent_ids,
            recent_text=recent_text,
            turn_start=self._turn_start,
        )
        record = state.refocuser.run(
            query,
            max_iterations=max_iterations,
            trigger=trigger,
            price=state.config.focus.decode_price if trigger == "block" else 0.0,
        )
        state.remember_refocus(record)
        trace.refocus(state, record)
        return record

    # -- decode ---------------------------------------------------------------------------------

    def decode(self, request: DecodeRequest) -> Generator[DecodedToken]:
        """Generate tokens; every 32 seal the block, make one refocus step and sync the window.

        The consumer may stop early: what was generated is kept and the session stays usable.

        Raises:
            BudgetError: the rows of a reply that is not remembered cannot fit.
        """
        run = _Decode(self, self._state, request)
        try:
            yield from run.tokens()
        finally:
            run.finish()

    def make_room(self, reserve: int) -> None:
        """Free rows for a reply before it begins.

        Raises:
            BudgetError: they do not fit beside the history.
        """
        state = self._state
        try:
            start = perf_counter()
            applied = state.wc.make_room(reserve=reserve)
        except BudgetError as error:
            message = (
                f"{reserve} rows for this reply do not fit w_max={state.budget.w_max} beside the "
                "history; lower max_new_tokens, shorten the prompt, or use remember=True"
            )
            raise BudgetError(message, needed=reserve, available=error.available) from error
        if applied.moves:
            state.rows.note_moves(applied.moves)
            trace.assemble(state, applied, perf_counter() - start)

    def boundary(self, recent_ids: Ids) -> None:
        """Make one refocus step at a block boundary."""
        self._refocus(recent_ids[-_RECENT_IDS:], 1, "block")


class _Decode:
    """One reply on its way: pending tokens own rows behind the layout until their block is full."""

    def __init__(self, loop: PlainLoop, state: SessionState, request: DecodeRequest) -> None:
        self._loop = loop
        self._state = state
        self._request = request
        self._reply = request.reply
        self._pending: list[int] = request.header_ids.tolist()
        self._n_header = len(self._pending)
        self._recent: list[int] = []
        self._finished = False
        self._started = perf_counter()
        self._n_decoded = 0

    def tokens(self) -> Iterator[DecodedToken]:
        """Yield generated tokens, the end token included."""
        state, request = self._state, self._request
        sampler = state.adapter.sampler(request.sampling)
        eos = frozenset(state.adapter.info.eos_ids)
        output = self._first_logits()
        self._started = perf_counter()
        for n_generated in range(1, request.max_new_tokens + 1):
            token_id = sampler.sample(output)
            self._n_decoded += 1
            if token_id in eos:
                yield DecodedToken(token_id, is_eos=True)
                return
            yield self._take(token_id)
            if self._reply.stopped or n_generated == request.max_new_tokens:
                return
            output = self._advance(token_id)

    def _first_logits(self) -> WindowOutput:
        state = self._state
        reserve = len(self._pending)
        if not self._request.remember:
            reserve += self._request.max_new_tokens
        self._loop.make_room(reserve)
        reason = state.rebuild_reason()
        if reason is not None:
            trace.rebuild(state, reason)
        return self._sync(rebuild=reason is not None)

    def _take(self, token_id: int) -> DecodedToken:
        self._pending.append(token_id)
        self._recent.append(token_id)
        return DecodedToken(token_id, is_eos=False, text=self._reply.push(token_id))

    def _advance(self, token_id: int) -> WindowOutput:
        """Return the logits after the newest pending token."""
        state = self._state
        is_changed = self._request.remember and self._block_is_full()
        if is_changed:
            self._seal()
        if state.wc.cost + len(self._pending) > state.budget.w_max:
            # A stop string that may be under way holds more tokens back than the headroom takes.
            self._loop.make_room(len(self._pending))
            is_changed = True
        if is_changed:
            return self._sync()
        index = state.wc.n_tokens + len(self._pending) - 1
        return state.pager.step(token_id, index)

    def _block_is_full(self) -> bool:
        """Tell whether settled tokens complete the block."""
        missing = BLOCK_SIZE - self._state.wc.n_tokens % BLOCK_SIZE
        n_revocable = self._reply.n_tokens - self._reply.n_settled
        return len(self._pending) - n_revocable >= missing

    def _seal(self) -> None:
        """Commit the full blocks among the settled tokens and refocus once."""
        trace.decode(self._state, self._n_decoded, perf_counter() - self._started)
        self._n_decoded = 0
        n_tokens = self._state.wc.n_tokens
        n_revocable = self._reply.n_tokens - self._reply.n_settled
        end = (n_tokens + len(self._pending) - n_revocable) // BLOCK_SIZE * BLOCK_SIZE
        self._commit(end - n_tokens, final=False)
        del self._recent[:-_RECENT_IDS]
        self._loop.boundary(np.array(self._recent, dtype=np.int32))
        self._started = perf_counter()

    def _commit(self, n_take: int, *, final: bool, footer: Ids = _NO_IDS) -> None:
        """Move the first pending tokens (and a footer) into the memory."""
        head = self._pending[: min(self._n_header, n_take)]
        self._n_header -= len(head)
        ids, text = self._reply.take(n_take - len(head))
        part = np.concatenate([np.array(head, dtype=np.int32), ids, footer]).astype(np.int32)
        del self._pending[: len(head) + len(ids)]
        if len(part):
            self._request.commit(part, text, final)
            self._loop.ingest("generate")

    def _sync(self, *, rebuild: bool = False) -> WindowOutput:
        state = self._state
        pending = np.array(self._pending, dtype=np.int32)
        output = state.sync(pending, want_logits=True, rebuild=rebuild)
        if output is None:
            message = "the history is empty and the model has no token to begin with; append first"
            raise BudgetError(message, needed=1, available=0)
        return output

    def finish(self) -> None:
        """Commit what is left and the footer; drop rows of text that was taken back."""
        if self._finished:
            return
        self._finished = True
        trace.decode(self._state, self._n_decoded, perf_counter() - self._started)
        self._reply.finish()
        state = self._state
        if self._reply.stopped or not self._request.remember:
            state.pager.truncate(state.wc.n_tokens)
        if self._request.remember:
            n_left = self._n_header + self._reply.n_tokens - self._reply.n_taken
            self._commit(n_left, final=True, footer=self._request.footer_ids)
