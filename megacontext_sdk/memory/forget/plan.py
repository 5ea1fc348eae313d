"""Which tokens and messages a forget would take: the plan, made without changing anything.

It reads message rows page by page, bodies only where the scope asks about them, so memory stays
bounded at any length. What is already forgotten is left out: planning the same twice gives nothing.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.errors import ConfigError
from megacontext_sdk.memory.chain import FLAG_CONTINUES, FLAG_FORGOTTEN, ROLE_SETTING, ROLES
from megacontext_sdk.memory.directory.replay import Redaction
from megacontext_sdk.memory.forget.scope import (
    checked_before,
    checked_ids,
    checked_span,
    checked_where,
    encoded,
)
from megacontext_sdk.memory.lod import Span
from megacontext_sdk.messages.body import decode_body

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bools, Indices
    from megacontext_sdk.memory.forget.scope import Where
    from megacontext_sdk.memory.reading import JournalReader

__all__ = ["heads_of", "plan_forget", "plan_shared"]

_PAGE = 4_096
_STRIDE = 256  # rows read at once while looking for the edge of a message
_PAGE_TOKENS = 2**18


@attrs.frozen(eq=False)
class _Page:
    """Whole messages: their rows without settings, and at which of them each message begins.

    Attributes:
        numbers: int64[n], of the rows.
        rows: MESSAGE[n].
        heads: int64[m], positions in `rows`.
        stop: the row at which the next page begins.
    """

    numbers: Indices
    rows: NDArray[np.void]
    heads: Indices
    stop: int

    def spread(self, chosen: Bools) -> Bools:
        """Return bool[n] over rows of bool[m] over messages."""
        lengths = np.diff(np.append(self.heads, len(self.rows)))
        return np.repeat(chosen, lengths)

    def any(self, rows: Bools) -> Bools:
        """Return bool[m]: messages of which a row is chosen."""
        found: Bools = np.logical_or.reduceat(rows, self.heads)
        return found


def plan_forget(
    journal: JournalReader,
    *,
    message_ids: object = None,
    span: object = None,
    where: object = None,
    before: object = None,
    everything: bool = False,
) -> Redaction:
    """Return what a forget with exactly one of these scopes would take.

    Messages are taken whole, with all their parts; a span is cut at its edges, and the messages it
    touches lose their body. Settings are never forgotten.

    Args:
        journal: the memory.
        message_ids: message numbers; that of a later part names its whole message.
        span: token indices `(start, end)`.
        where: equal fields out of role, source, actor, trust, origin, metadata.
        before: a datetime, or an age measured against the newest message time seen.
        everything: all there is.

    Raises:
        ConfigError: no scope or two, or one that names what does not exist.
        CorruptError: a damaged body.
    """
    given = {"message_ids": message_ids, "span": span, "where": where, "before": before}
    scopes = [name for name, value in given.items() if value is not None]
    if everything is not False and everything is not True:
        message = f"everything is True or False, got {type(everything).__name__}"
        raise ConfigError(message, field="everything", value=type(everything).__name__)
    if len(scopes) + everything != 1:
        message = (
            f"forget takes exactly one of {', '.join(given)} or everything=True, got "
            f"{len(scopes) + everything}"
        )
        raise ConfigError(message, field="scope", value=len(scopes) + everything)
    if span is not None:
        return _plan_span(journal, checked_span(span, journal.n_tokens))
    if message_ids is not None:
        return _plan_ids(journal, checked_ids(message_ids, journal.n_messages))
    test: Callable[[_Page], Bools] = _everything
    if where is not None:
        test = _matches(checked_where(where), journal)
    if before is not None:
        test = _older(journal, checked_before(before))
    return _collect(journal, _pages(journal, 0, journal.n_messages), test)


def plan_shared(
    fork: JournalReader, journal: JournalReader, redaction: Redaction, stop: int
) -> Redaction:
    """Return what a fork still holds of what its origin is about to forget.

    A message counts as shared if its row is the same in both: either may have been cut back since
    the fork, and grown again otherwise.

    Args:
        fork, journal: the fork and its origin.
        redaction: what the origin forgets.
        stop: number of messages that the fork began with.
    """
    end = min(stop, fork.n_messages, journal.n_messages)
    wanted = redaction.messages[redaction.messages < end]

    def shared(page: _Page) -> Bools:
        both = np.isin(page.numbers, wanted)
        first = int(page.numbers[0])
        known = journal.messages(first, min(int(page.numbers[-1]) + 1, journal.n_messages))
        at = np.minimum(page.numbers - first, len(known) - 1)
        for field in ("start", "n_tokens", "role", "ts_us"):
            both &= known[field][at] == page.rows[field]
        return page.any(both)

    plan = _collect(fork, _pages_of(fork, wanted), shared)
    messages = np.intersect1d(plan.messages, redaction.messages)
    return Redaction(tuple(_overlaps(plan.spans, redaction.spans)), messages)


def _overlaps(ones: Sequence[Span], others: Sequence[Span]) -> Iterator[Span]:
    """Yield what two ascending rows of disjoint spans have in common."""
    i = j = 0
    while i < len(ones) and j < len(others):
        start = max(ones[i].start, others[j].start)
        end = min(ones[i].end, others[j].end)
        if start < end:
            yield Span(start, end)
        if ones[i].end <= others[j].end:
            i += 1
        else:
            j += 1


def heads_of(journal: JournalReader, numbers: Indices) -> Indices:
    """Return the numbers of the messages that rows belong to, int64 ascending and distinct."""
    found = [
        page.numbers[page.heads[page.any(np.isin(page.numbers, numbers))]]
        for page in _pages_of(journal, numbers)
    ]
    return np.unique(np.concatenate([np.empty(0, np.int64), *found]))


# --- scopes ------------------------------------------------------------------------------------


def _plan_span(journal: JournalReader, span: Span) -> Redaction:
    if not span.n_tokens:
        return _redaction([], [])
    # One token earlier: messages without tokens may stand at the start.
    first = journal.message_at(span.start - 1) if span.start else 0
    stop = journal.message_at(span.end - 1) + 1

    def inside(page: _Page) -> Bools:
        starts = page.rows["start"].astype(np.int64)
        ends = starts + page.rows["n_tokens"]
        # A message without tokens lies in a span like the token in front of which it stands.
        return page.any((starts < span.end) & (np.maximum(ends, starts + 1) > span.start))

    return _collect(journal, _pages(journal, first, stop), inside, span)


def _plan_ids(journal: JournalReader, wanted: Indices) -> Redaction:
    known: list[Indices] = []

    def named(page: _Page) -> Bools:
        hit = np.isin(page.numbers, wanted)
        known.append(page.numbers[hit])
        return page.any(hit)

    plan = _collect(journal, _pages_of(journal, wanted), named)
    settings = np.setdiff1d(wanted, np.concatenate([np.empty(0, np.int64), *known]))
    if len(settings):
        message = f"{int(settings[0])} is a settings record, no message; those are never forgotten"
        raise ConfigError(message, field="message_ids", value=int(settings[0]))
    return plan


def _everything(page: _Page) -> Bools:
    return np.ones(len(page.heads), np.bool_)


def _older(journal: JournalReader, before: int | timedelta) -> Callable[[_Page], Bools]:
    """Return the test for messages older than a time, or than an age against the newest one."""
    bound = before if isinstance(before, int) else 0
    if isinstance(before, timedelta):
        newest = [int(page.rows["ts_us"].max()) for page in _pages(journal, 0, journal.n_messages)]
        bound = max(newest, default=0) - before // timedelta(microseconds=1)

    def older(page: _Page) -> Bools:
        old: Bools = page.rows["ts_us"][page.heads] < bound
        return old

    return older


def _matches(where: Where, journal: JournalReader) -> Callable[[_Page], Bools]:
    """Return the test for messages whose fields are equal."""
    role = ROLES.index(where.role) if where.role in ROLES else -1

    def matching(page: _Page) -> Bools:
        heads = page.rows[page.heads]
        found = heads["role"] == role if where.role is not None else _everything(page)
        if where.trust is not None:
            found = found & (np.minimum.reduceat(page.rows["trust"], page.heads) == where.trust)
        if where.needs_bodies:
            found = found & ((heads["flags"] & FLAG_FORGOTTEN) == 0)
            edges = np.append(page.heads, len(page.rows))
            for at in np.flatnonzero(found).tolist():
                found[at] = _fits(where, journal, page.numbers[edges[at] : edges[at + 1]])
        return found

    return matching


def _fits(where: Where, journal: JournalReader, numbers: Indices) -> bool:
    """Tell whether the bodies of one message have what is asked."""
    metadata: dict[str, object] = {}
    for at, raw in enumerate(journal.bodies(numbers)):
        body = decode_body(raw, f"body of message {int(numbers[at])}")
        if at == 0 and any(getattr(body, key) != text for key, text in where.texts.items()):
            return False
        metadata |= body.metadata
    return all(
        key in metadata and encoded(metadata[key]) == value for key, value in where.metadata.items()
    )


# --- from messages to spans --------------------------------------------------------------------


def _collect(
    journal: JournalReader,
    pages: Iterator[_Page],
    test: Callable[[_Page], Bools],
    within: Span | None = None,
) -> Redaction:
    """Return what the messages that pass a test still hold, cut to a span if there is one."""
    edges: list[Indices] = []
    numbers: list[Indices] = []
    low, high = (0, journal.n_tokens) if within is None else (within.start, within.end)
    for page in pages:
        chosen = page.spread(test(page))
        rows = page.rows[chosen]
        starts = np.clip(rows["start"].astype(np.int64), low, high)
        ends = np.clip(rows["start"].astype(np.int64) + rows["n_tokens"], low, high)
        fresh = (rows["flags"] & FLAG_FORGOTTEN) == 0
        held = fresh.copy()
        for at in np.flatnonzero(~fresh).tolist():
            left = _left(journal, int(starts[at]), int(ends[at]))
            held[at] = len(left) > 0
            edges.append(left)
        numbers.append(page.numbers[chosen][held])
        edges.append(np.stack([starts[fresh], ends[fresh]], axis=1))
    return _redaction(edges, numbers)


def _left(journal: JournalReader, start: int, end: int) -> Indices:
    """Return the parts of a span that are not forgotten yet, int64[n, 2]."""
    parts = [np.empty((0, 2), np.int64)]
    for at in range(start, end, _PAGE_TOKENS):
        known = journal.token_ids(Span(at, min(at + _PAGE_TOKENS, end))) >= 0
        turns = np.flatnonzero(np.diff(known, prepend=False, append=False)) + at
        parts.append(turns.reshape(-1, 2))
    return np.concatenate(parts)


def _redaction(edges: list[Indices], numbers: list[Indices]) -> Redaction:
    """Return the plan of spans `[start, end)`, int64[n, 2] each, and message numbers."""
    spans = np.concatenate([np.empty((0, 2), np.int64), *edges])
    spans = spans[spans[:, 0] < spans[:, 1]]
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    begins = np.ones(len(spans), np.bool_)  # neighbours become one
    begins[1:] = spans[1:, 0] != spans[:-1, 1]
    starts, ends = spans[begins, 0], spans[np.roll(begins, -1), 1]
    messages = np.concatenate([np.empty(0, np.int64), *numbers])
    return Redaction(tuple(map(Span, starts.tolist(), ends.tolist())), messages)


# --- pages of whole messages -------------------------------------------------------------------


def _pages(journal: JournalReader, first: int, stop: int) -> Iterator[_Page]:
    """Yield the messages of which a row lies in `[first, stop)`, in pages."""
    at = _begin(journal, first)
    while at < stop:
        end = _end(journal, min(at + _PAGE, stop))
        page = _page(at, journal.messages(at, end))
        if len(page.rows):
            yield page
        at = end


def _pages_of(journal: JournalReader, wanted: Indices) -> Iterator[_Page]:
    """Yield pages in which all the wanted rows are, and few others."""
    cuts = np.flatnonzero(np.diff(wanted) > _PAGE) + 1
    done = 0
    for part in np.split(wanted, cuts):
        if len(part) and part[-1] >= done:
            for page in _pages(journal, max(done, int(part[0])), int(part[-1]) + 1):
                done = page.stop
                yield page


def _page(first: int, rows: NDArray[np.void]) -> _Page:
    plain = np.flatnonzero(rows["role"] != ROLE_SETTING)
    kept = rows[plain]
    is_head = (kept["flags"] & FLAG_CONTINUES) == 0
    is_head[:1] = True
    return _Page(plain + first, kept, np.flatnonzero(is_head), first + len(rows))


def _begins(rows: NDArray[np.void]) -> Bools:
    """Tell which rows begin a message; a setting may stand between the parts of one."""
    begins: Bools = (rows["role"] != ROLE_SETTING) & ((rows["flags"] & FLAG_CONTINUES) == 0)
    return begins


def _begin(journal: JournalReader, number: int) -> int:
    """Return the row at which the message of a row begins; 0 if none does."""
    stop = min(number + 1, journal.n_messages)
    while stop > 0:
        start = max(0, stop - _STRIDE)
        begins = np.flatnonzero(_begins(journal.messages(start, stop)))
        if len(begins):
            return start + int(begins[-1])
        stop = start
    return 0


def _end(journal: JournalReader, number: int) -> int:
    """Return the first row from `number` on that begins a message, or how many rows there are."""
    while number < journal.n_messages:
        stop = min(number + _STRIDE, journal.n_messages)
        begins = np.flatnonzero(_begins(journal.messages(number, stop)))
        if len(begins):
            return number + int(begins[0])
        number = stop
    return journal.n_messages
