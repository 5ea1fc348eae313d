"""Typed telemetry events, and the fan-out that hands them to sinks.

Events hold counts, sizes, node addresses and seconds; never text, token ids or vectors. Replaying
`added` and `actions` of `assemble` and `refocus` events gives every working context again. This
module sends nothing anywhere by itself: a sink decides, and the built-in ones stay local.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from megacontext_sdk.contracts.telemetry import TelemetrySink

__all__ = [
    "EVENTS",
    "Action",
    "AssembleEvent",
    "AuditEvent",
    "DecodeEvent",
    "Event",
    "FallbackEvent",
    "GistEvent",
    "IngestEvent",
    "InvariantViolationEvent",
    "LossyEvent",
    "RebuildEvent",
    "RefocusEvent",
    "ScoreSummary",
    "SessionClosedEvent",
    "SessionOpenedEvent",
    "SkippedAction",
    "SwapEvent",
    "Telemetry",
    "decode_event",
    "encode_event",
]

_log = logging.getLogger(__name__)

MAX_SINK_FAILURES = 3
"""After so many exceptions a sink is dropped."""


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """One applied move: kind, node, the score that asked for it, its cost in rows, and why."""

    kind: str
    lod: int
    index: int
    score: float | None
    delta_cost: int
    n_actions: int = 1
    reason: str = ""


class SkippedAction(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate that was passed over, and why."""

    kind: str
    lod: int
    index: int
    score: float | None
    reason: str


class ScoreSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Focus scores of one refocus; `saturation` is the share above 0.98 in size."""

    mean: float
    std: float
    min: float
    max: float
    saturation: float


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """What every event has.

    Attributes:
        step: refocus steps made by this session so far.
        epoch: of the working context when the event was made.
        seconds: exclusive time of what the event reports.
    """

    step: int
    epoch: int
    seconds: float = 0.0


class SessionOpenedEvent(Event, frozen=True, kw_only=True, tag="session_opened"):
    """A session was opened: its providers, the size of its memory, its budget in rows."""

    storage: str
    model: str
    focus: str
    gist: str
    runtime: str
    allocator: str
    positions: str
    created: bool
    read_only: bool
    n_tokens: int
    w_max: int


class SessionClosedEvent(Event, frozen=True, kw_only=True, tag="session_closed"):
    """A session was closed; `error` is the class name of the exception that ended it, or None."""

    n_tokens: int
    error: str | None = None


class IngestEvent(Event, frozen=True, kw_only=True, tag="ingest"):
    """Tokens `[start, end)` in `n_messages` messages were accepted; `source` says by what."""

    start: int
    end: int
    n_messages: int
    source: str


class GistEvent(Event, frozen=True, kw_only=True, tag="gist"):
    """Gists were made: `lod_counts` gives how many per level since the last event of this kind.

    `version` is the encoder's, `provisional` how many nodes wait for it still: until then the gists
    of an encoder before, or plain means, stand in for theirs.
    """

    lod_counts: dict[int, int]
    version: int = 0
    provisional: int = 0


class AssembleEvent(Event, frozen=True, kw_only=True, tag="assemble"):
    """History up to `n_tokens` became entries, then `actions` made room.

    `added` are runs (lod, first index, count) of nodes: they replace every entry that begins where
    the first of them begins or behind it.
    """

    n_tokens: int
    n_entries: int
    cost_before: int
    cost_after: int
    w_max: int
    added: tuple[tuple[int, int, int], ...] = ()
    actions: tuple[Action, ...] = ()


class RefocusEvent(Event, frozen=True, kw_only=True, tag="refocus"):
    """One refocus, enough to replay it over the tree.

    Attributes:
        trigger: "turn", "block", "append" or "user".
        iterations: rounds of score, plan, apply.
        n_tokens: length of the history.
        epoch_before, epoch_after: of the working context.
        budget_before, budget_after: rows free under `w_max`.
        cost_before, cost_after: rows of all entries.
        entries_before: entries at the start.
        entries_replaced: entries that moves replaced; over `entries_before` the swap rate.
        actions: applied moves in order.
        skipped: candidates of the last iteration that were passed over.
        cooldowns: entries whose opposite action was blocked at the end.
        lod_counts: entries per level afterwards.
        scores: summary of the last scores, None without entries.
        policy: focus policy that served.
        scope_seconds: looking up lexical hits and query vectors.
        score_seconds, plan_seconds, apply_seconds: exclusive timers.
    """

    trigger: str
    iterations: int
    n_tokens: int
    epoch_before: int
    epoch_after: int
    budget_before: int
    budget_after: int
    cost_before: int
    cost_after: int
    entries_before: int
    entries_replaced: int
    actions: tuple[Action, ...]
    skipped: tuple[SkippedAction, ...]
    lod_counts: dict[int, int]
    policy: str
    cooldowns: int = 0
    scores: ScoreSummary | None = None
    scope_seconds: float = 0.0
    score_seconds: float = 0.0
    plan_seconds: float = 0.0
    apply_seconds: float = 0.0


class SwapEvent(Event, frozen=True, kw_only=True, tag="swap"):
    """The window followed the layout.

    Attributes:
        rows_new: rows that were not in the window.
        rows_cached: of these, restored from the block cache.
        rows_seam: kept rows that were recomputed.
        rows_released: rows that left.
        rows_moved: kept rows whose position changed.
        rows_live: rows in the window afterwards.
        stale_rows: rows computed when their left side looked different.
        forwards: forward passes of the base.
    """

    rows_new: int
    rows_cached: int
    rows_seam: int
    rows_released: int
    rows_moved: int
    rows_live: int
    stale_rows: int
    forwards: int


class RebuildEvent(Event, frozen=True, kw_only=True, tag="rebuild"):
    """The window was recomputed exactly; `reason` is "swaps", "stale", "audit" or "violation"."""

    reason: str
    rows: int
    stale_rows: int
    swaps_since_rebuild: int


class AuditEvent(Event, frozen=True, kw_only=True, tag="audit"):
    """Distance of the served window from an exact one, in nats over `n_rows` rows."""

    kl_mean_nats: float
    kl_p95_nats: float
    top1_agreement: float
    n_rows: int
    stale_rows: int
    swaps_since_rebuild: int


class DecodeEvent(Event, frozen=True, kw_only=True, tag="decode"):
    """`n_tokens` tokens were generated since the last event of this kind."""

    n_tokens: int
    rows_live: int
    finish_reason: str | None = None


class LossyEvent(Event, frozen=True, kw_only=True, tag="lossy"):
    """Something was kept in a lesser form (I16): what, how much, and why."""

    what: str
    count: int
    reason: str


class FallbackEvent(Event, frozen=True, kw_only=True, tag="fallback"):
    """A component gave way to a simpler one: which role, from what, to what, and why."""

    role: str
    wanted: str
    used: str
    reason: str


class InvariantViolationEvent(Event, frozen=True, kw_only=True, tag="invariant_violation"):
    """An invariant was broken and repaired: its code, what was found, what was done about it."""

    code: str
    detail: str
    action: str


EVENTS: tuple[type[Event], ...] = (
    SessionOpenedEvent,
    IngestEvent,
    GistEvent,
    AssembleEvent,
    RefocusEvent,
    SwapEvent,
    RebuildEvent,
    AuditEvent,
    DecodeEvent,
    LossyEvent,
    FallbackEvent,
    InvariantViolationEvent,
    SessionClosedEvent,
)
"""Every event there is."""


def encode_event(event: Event) -> bytes:
    """Return the event as one line of JSON without the line end."""
    return msgspec.json.encode(event)


@cache
def _decoder() -> msgspec.json.Decoder[Event]:
    union: Any = EVENTS[0]
    for kind in EVENTS[1:]:
        union |= kind
    return msgspec.json.Decoder(union)


def decode_event(line: bytes | str) -> Event:
    """Return the event of a line that `encode_event` made.

    Raises:
        msgspec.ValidationError: no event of this version.
    """
    return _decoder().decode(line)


class Telemetry:
    """Hands each event to every sink; a sink can slow itself down but never disturb a session.

    A sink that raises is logged; after `MAX_SINK_FAILURES` exceptions it is dropped, and the
    others get a `fallback` event. Used from the session's thread only.

    Args:
        sinks: where events go, in order.
    """

    def __init__(self, sinks: Iterable[TelemetrySink] = ()) -> None:
        self._sinks = tuple(sinks)
        self._failures = [0] * len(self._sinks)
        self._cache()

    @property
    def is_active(self) -> bool:
        """Tell whether anybody listens, so that callers can spare making events."""
        return bool(self._emits)

    def emit(self, event: Event) -> None:
        """Give the event to every sink."""
        dropped: list[str] = []
        for number, emit in self._emits:
            try:
                emit(event)
            except Exception as error:  # noqa: BLE001 - a sink may never disturb a session
                dropped += self._count(number, error)
        if dropped:
            self._cache()
            for name in dropped:
                self.emit(_dropped(name, event))

    def close(self) -> None:
        """Close all sinks, dropped ones included; idempotent as they are."""
        for sink in self._sinks:
            try:
                sink.close()
            except Exception as error:  # noqa: BLE001 - see emit
                _log.warning("sink %s: %s in close", sink.name, type(error).__name__)

    def _cache(self) -> None:
        # Bound methods are looked up once: a cached call costs 0.1 µs.
        live = (n for n, failures in enumerate(self._failures) if failures < MAX_SINK_FAILURES)
        self._emits = tuple((number, self._sinks[number].emit) for number in live)

    def _count(self, number: int, error: Exception) -> list[str]:
        """Count a failure; return the sink's name if that was one too many."""
        name = self._sinks[number].name
        self._failures[number] += 1
        _log.warning("sink %s: %s in emit", name, type(error).__name__)
        _log.debug("traceback of sink %s", name, exc_info=error)
        return [name] if self._failures[number] == MAX_SINK_FAILURES else []


def _dropped(name: str, event: Event) -> FallbackEvent:
    return FallbackEvent(
        step=event.step,
        epoch=event.epoch,
        role="sink",
        wanted=name,
        used="none",
        reason=f"dropped after {MAX_SINK_FAILURES} exceptions",
    )
