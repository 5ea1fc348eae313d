"""Stored messages read back: rows, bodies and, where a body has no text, the tokens' own text."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import attrs
import numpy as np

from megacontext_sdk.memory.lod import Span
from megacontext_sdk.messages.body import decode_body
from megacontext_sdk.messages.content import EPOCH
from megacontext_sdk.messages.roles import CONTINUES, FORGOTTEN, ROLES, SETTING, Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Indices
    from megacontext_sdk.messages.body import MessageBody

__all__ = ["Message", "MessageReader", "load_messages", "merge_parts"]


@attrs.frozen(kw_only=True)
class Message:
    """One message of the history.

    Attributes:
        message_id: its number; parts of one reply share the number of the first.
        role: "user", "assistant", "system" or "tool".
        text: what was said; for raw ids, and for what is left of a message that was forgotten in
            part, the text of the tokens.
        span: its tokens, chat format included.
        source, actor, metadata: as given when it was appended; empty once it was forgotten.
        trust: how far it is trusted.
        timestamp: when, in UTC.
        is_forgotten: its content was forgotten, all of it or a part.
    """

    message_id: int
    role: str
    text: str
    span: Span
    source: str | None
    actor: str | None
    trust: Trust
    metadata: dict[str, object]
    timestamp: datetime
    is_forgotten: bool = False

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON-like values."""
        return {
            "message_id": self.message_id,
            "role": self.role,
            "text": self.text,
            "span": self.span.to_dict(),
            "source": self.source,
            "actor": self.actor,
            "trust": self.trust.name.lower(),
            "metadata": dict(self.metadata),
            "timestamp": self.timestamp.isoformat(),
            "is_forgotten": self.is_forgotten,
        }


class MessageReader(Protocol):
    """What reading messages needs of the journal."""

    @property
    def n_messages(self) -> int:
        """Number of stored rows."""

    def messages(self, start: int, stop: int) -> NDArray[np.void]:
        """MESSAGE rows of `[start, stop)`."""

    def bodies(self, numbers: Indices) -> Sequence[bytes]:
        """Bodies of message numbers int64[n]."""


def load_messages(
    journal: MessageReader, start: int, stop: int, text_of: Callable[[Span], str]
) -> list[Message]:
    """Return the messages that begin in `[start, stop)`, each whole.

    Args:
        journal: where the rows are.
        start, stop: message numbers.
        text_of: the text of a span of tokens.

    Raises:
        CorruptError: a damaged body.
    """
    end = stop
    while stop > start and end < journal.n_messages and not _begins(journal, end):
        end += 1
    while start < end and not _begins(journal, start):
        start += 1
    bodies = journal.bodies(np.arange(start, end))
    return merge_parts(start, journal.messages(start, end), bodies, text_of)


def merge_parts(
    first: int,
    rows: NDArray[np.void],
    bodies: Sequence[bytes],
    text_of: Callable[[Span], str],
) -> list[Message]:
    """Fold rows into messages: a row that continues joins the one before it; settings are left out.

    Args:
        first: number of the first row, which must not continue another.
        rows: MESSAGE[n].
        bodies: n bodies.
        text_of: the text of a span of tokens, asked where a body has none; neighbouring parts
            without text are asked together, so that no character is torn.

    Raises:
        CorruptError: a damaged body.
    """
    numbers = np.flatnonzero(rows["role"] != SETTING)
    kept = rows[numbers]
    decoded = [decode_body(bodies[i], f"body of message {first + i}") for i in numbers.tolist()]
    edges = [*np.flatnonzero((kept["flags"] & CONTINUES) == 0).tolist(), len(kept)]
    if len(kept) and edges[0] > 0:
        edges.insert(0, 0)
    return [
        _message(first + int(numbers[at]), kept[at:end], decoded[at:end], text_of)
        for at, end in pairwise(edges)
    ]


def _message(
    number: int,
    rows: NDArray[np.void],
    bodies: Sequence[MessageBody],
    text_of: Callable[[Span], str],
) -> Message:
    head, body = rows[0], bodies[0]
    last = rows[-1]
    merged: dict[str, object] = {}
    for part in bodies:
        merged |= part.metadata
    return Message(
        message_id=number,
        role=ROLES[head["role"]],
        text="".join(_texts(rows, bodies, text_of)),
        span=Span(int(head["start"]), int(last["start"]) + int(last["n_tokens"])),
        source=body.source,
        actor=body.actor,
        trust=Trust(min(int(row["trust"]) for row in rows)),
        metadata=merged,
        timestamp=EPOCH + timedelta(microseconds=int(head["ts_us"])),
        is_forgotten=bool((rows["flags"] & FORGOTTEN).any()),
    )


def _texts(
    rows: NDArray[np.void], bodies: Sequence[MessageBody], text_of: Callable[[Span], str]
) -> Iterator[str]:
    """Yield the text of each part, of neighbours without text together."""
    start = end = int(rows[0]["start"])
    for row, body in zip(rows, bodies, strict=True):
        if body.text is not None:
            if end > start:
                yield text_of(Span(start, end))
            yield body.text
            start = int(row["start"]) + int(row["n_tokens"])
        end = int(row["start"]) + int(row["n_tokens"])
    if end > start:
        yield text_of(Span(start, end))


def _begins(journal: MessageReader, number: int) -> bool:
    """Tell whether a row begins a message; a setting may stand between the parts of one."""
    row = journal.messages(number, number + 1)[0]
    return row["role"] != SETTING and not row["flags"] & CONTINUES
