"""What a caller may name as the scope of a forget, checked before anything is read.

Values are compared, never interpreted: an unknown name is an error, an unknown value matches
nothing. Which rows of the memory match is found in `memory.forget.plan`.
"""

from __future__ import annotations

import operator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NoReturn

import attrs
import msgspec
import numpy as np

from megacontext_sdk.errors import ConfigError, shown
from megacontext_sdk.memory.lod import Span
from megacontext_sdk.messages.body import check_metadata
from megacontext_sdk.messages.content import EPOCH
from megacontext_sdk.messages.roles import Trust

if TYPE_CHECKING:
    from collections.abc import Mapping

    from megacontext_sdk.contracts.arrays import Indices

__all__ = [
    "WHERE_FIELDS",
    "Where",
    "checked_before",
    "checked_ids",
    "checked_span",
    "checked_where",
    "encoded",
]

WHERE_FIELDS = ("role", "source", "actor", "trust", "origin", "metadata")
"""What `where` may name; nothing else exists."""


@attrs.frozen(kw_only=True)
class Where:
    """Messages to match: every field that is given must be equal.

    Attributes:
        role: a role's name.
        trust: its number; None if not asked.
        texts: `source`, `actor` and `origin`, those that are asked.
        metadata: encoded values by key, all of which a message must have.
    """

    role: str | None = None
    trust: int | None = None
    texts: Mapping[str, str] = {}
    metadata: Mapping[str, bytes] = {}

    @property
    def needs_bodies(self) -> bool:
        """Rows alone do not answer it."""
        return bool(self.texts or self.metadata)


def encoded(value: object) -> bytes:
    """Return a value as bytes that are equal for equal values of equal type."""
    return msgspec.msgpack.encode(value, order="deterministic")


def checked_ids(message_ids: object, n_messages: int) -> Indices:
    """Return message numbers, int64 ascending and distinct.

    Raises:
        ConfigError: no collection of whole numbers, or a number outside `[0, n_messages)`.
    """
    if isinstance(message_ids, str | bytes):
        _refuse("message_ids", "is a collection of message numbers", message_ids)
    try:
        items = list(message_ids)  # type: ignore[call-overload]
    except Exception:  # noqa: BLE001 - whatever it is, it does not give numbers
        _refuse("message_ids", "is a collection of message numbers", message_ids)
    numbers = sorted({_whole("message_ids", item) for item in items})
    if numbers and not 0 <= numbers[0] <= numbers[-1] < n_messages:
        wrong = numbers[0] if numbers[0] < 0 else numbers[-1]
        message = f"there is no message {shown(wrong)}; they run from 0 to {n_messages - 1}"
        raise ConfigError(message, field="message_ids", value=wrong)
    return np.array(numbers, np.int64)


def checked_span(span: object, n_tokens: int) -> Span:
    """Return a span of the history.

    Raises:
        ConfigError: no pair of whole numbers, reversed, or outside the history.
    """
    if not isinstance(span, Span | tuple | list) or len(ends := tuple(span)) != 2:
        _refuse("span", "is a pair (start, end) of token indices", span)
    start, end = (_whole("span", at) for at in ends)
    if not 0 <= start <= end <= n_tokens:
        message = f"span {shown((start, end))} must have 0 <= start <= end <= {n_tokens}"
        raise ConfigError(message, field="span", value=shown((start, end)))
    return Span(start, end)


def checked_before(before: object) -> int | timedelta:
    """Return a time in microseconds since 1970, or an age.

    Raises:
        ConfigError: neither, a time without a zone, or a negative age.
    """
    if isinstance(before, timedelta):
        if before < timedelta(0):
            message = f"before={before!r} lies in the future; give an age of zero or more"
            raise ConfigError(message, field="before", value=before)
        return before
    if not isinstance(before, datetime):
        _refuse("before", "is a datetime with a time zone, or a timedelta", before)
    if before.utcoffset() is None:
        message = f"before={before} has no time zone; pass tzinfo=datetime.UTC, say"
        raise ConfigError(message, field="before", value=before)
    return (before - EPOCH) // timedelta(microseconds=1)


def checked_where(where: object) -> Where:
    """Return what to match.

    Raises:
        ConfigError: no map, an empty one, a field that does not exist, or a value of a wrong type.
        QuotaError: metadata above 64 KiB.
    """
    if not isinstance(where, dict):
        _refuse("where", "is a map of fields and values", where)
    if not where:
        message = "where names no field; everything=True forgets all there is"
        raise ConfigError(message, field="where", value="empty")
    for key in where:
        if not isinstance(key, str) or key not in WHERE_FIELDS:
            message = f"where has an unknown field; it may have {', '.join(WHERE_FIELDS)}"
            raise ConfigError(message, field="where", value=type(key).__name__)
    texts = {key: where[key] for key in ("role", "source", "actor", "origin") if key in where}
    for key, value in texts.items():
        if not isinstance(value, str):
            _refuse(f"where.{key}", "is text", value)
    role = texts.pop("role", None)
    return Where(
        role=role,
        trust=_trust(where["trust"]) if "trust" in where else None,
        texts=texts,
        metadata=_metadata(where["metadata"]) if "metadata" in where else {},
    )


def _trust(trust: object) -> int:
    """Return the number of a trust level; -1, which no message has, for a name that is none."""
    if isinstance(trust, str):
        return int(Trust.__members__.get(trust.upper(), -1))
    return _whole("where.trust", trust)


def _metadata(metadata: object) -> dict[str, bytes]:
    if not isinstance(metadata, dict) or not metadata:
        _refuse("where.metadata", "is a map with at least one item", metadata)
    return {key: encoded(value) for key, value in check_metadata(metadata).items()}


def _whole(field: str, value: object) -> int:
    if isinstance(value, bool | np.bool_):
        _refuse(field, "holds whole numbers", value)
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return _refuse(field, "holds whole numbers", value)


def _refuse(field: str, what: str, value: object) -> NoReturn:
    message = f"{field} {what}, got {type(value).__name__}"
    raise ConfigError(message, field=field, value=type(value).__name__)
