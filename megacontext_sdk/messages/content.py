"""What a caller may append, checked once, before anything is written.

Text, one chat message, a list of them, or raw token ids become drafts. Rendering through a chat
template and storing happen elsewhere; a refused call has changed nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NoReturn

import attrs
import numpy as np

from megacontext_sdk.errors import ConfigError, QuotaError, shown
from megacontext_sdk.messages.body import MAX_BODY_BYTES, MessageBody, check_metadata
from megacontext_sdk.messages.roles import ROLES, Trust, parse_trust

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypeAlias

    from megacontext_sdk.contracts.arrays import Ids

    Content: TypeAlias = (
        "str | Mapping[str, object] | Sequence[Mapping[str, object]] | Sequence[int] | Ids"
    )

__all__ = ["MessageDraft", "parse_content", "parse_timestamp"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_NAME = 256
_KEYS = ("role", "content", "name", "metadata", "source", "timestamp", "trust")


@attrs.frozen(eq=False, kw_only=True)
class MessageDraft:
    """One checked message that is not stored yet: text, or raw token ids instead.

    Attributes:
        role: one of `ROLES`.
        text: its text, or None for raw ids.
        token_ids: int32[n], or None for text.
        source, actor, metadata: see `MessageBody`.
        trust: how far it is trusted.
        ts_us: microseconds since 1970 in UTC, or None for the time of the append.
    """

    role: str
    text: str | None = None
    token_ids: Ids | None = None
    source: str | None = None
    actor: str | None = None
    trust: Trust = Trust.USER
    metadata: dict[str, object] = attrs.field(factory=dict)
    ts_us: int | None = None

    def body(self) -> MessageBody:
        """Return what is stored beside the token ids."""
        return MessageBody(
            text=self.text, source=self.source, actor=self.actor, metadata=self.metadata
        )


def parse_content(
    content: Content,
    *,
    role: str = "user",
    source: str | None = None,
    trust: str | int | None = None,
    metadata: Mapping[str, object] | None = None,
    timestamp: datetime | None = None,
    vocab_size: int | None = None,
) -> list[MessageDraft]:
    """Return the checked drafts of some content; an empty list or array is no draft at all.

    Args:
        content: text; a mapping with "role" and "content" (text, or a list of text parts); a list
            of such mappings; or integer token ids.
        role: role of text and ids; a mapping's own role wins.
        source, trust, metadata, timestamp: of every message that does not bring its own.
        vocab_size: bound of raw token ids.

    Raises:
        ConfigError: anything else: `field`, `value`, and `index` where there are several.
        QuotaError: a message above 16 MiB.
    """
    given: dict[str, object] = {
        "role": role,
        "source": source,
        "trust": trust,
        "metadata": metadata,
        "timestamp": timestamp,
    }
    if isinstance(content, str):
        return [_draft(given | {"content": content})]
    if _is_mapping(content):
        return [_from_mapping(content, given)]
    if isinstance(content, np.ndarray) or (
        isinstance(content, list | tuple) and not any(map(_is_mapping, content))
    ):
        ids = _token_ids(content, vocab_size)
        return [_draft(given | {"token_ids": ids})] if len(ids) else []
    if isinstance(content, list | tuple):
        return [_from_mapping(item, given, index) for index, item in enumerate(content)]
    return _refuse(
        f"content of type {type(content).__name__} is not understood; pass text, a message with "
        "'role' and 'content', a list of messages, or integer token ids",
        value=type(content).__name__,
    )


def parse_timestamp(timestamp: object) -> int | None:
    """Return microseconds since 1970 in UTC.

    Raises:
        ConfigError: no datetime, one without a time zone, or one outside the years 1 to 9999 UTC.
    """
    if timestamp is None:
        return None
    if not isinstance(timestamp, datetime):
        message = f"timestamp must be a datetime, got {type(timestamp).__name__}"
        raise ConfigError(message, field="timestamp", value=type(timestamp).__name__)
    if timestamp.utcoffset() is None:
        message = f"timestamp {timestamp} has no time zone; pass tzinfo=datetime.UTC, say"
        raise ConfigError(message, field="timestamp", value=timestamp)
    try:
        return (timestamp.astimezone(UTC) - EPOCH) // timedelta(microseconds=1)
    except OverflowError as error:
        message = f"timestamp {timestamp} is outside the years 1 to 9999 in UTC"
        raise ConfigError(message, field="timestamp", value=timestamp) from error


def _is_mapping(value: object) -> bool:
    return isinstance(value, dict) or (hasattr(value, "keys") and hasattr(value, "__getitem__"))


def _from_mapping(item: object, given: dict[str, object], index: int | None = None) -> MessageDraft:
    """Return the draft of one chat message; what it says itself wins over `given`."""
    if not _is_mapping(item):
        _refuse(
            f"message {index} is a {type(item).__name__}; a list of messages holds mappings with "
            "'role' and 'content' only",
            value=type(item).__name__,
            index=index,
        )
    fields: dict[str, object] = dict(item)  # type: ignore[call-overload]
    for key in fields:
        if key not in _KEYS:
            message = f"a message has the key {shown(key)}; it may have {', '.join(_KEYS)}"
            raise ConfigError(message, field="content", value=key, index=index)
    if "content" not in fields:
        _refuse("a message has no 'content'; add its text", value=None, index=index)
    return _draft(given | fields, index)


def _draft(fields: dict[str, object], index: int | None = None) -> MessageDraft:
    """Return the draft of named fields: `content` or `token_ids`, and the rest."""
    role = _role(fields["role"], index)
    ids = fields.get("token_ids")
    return MessageDraft(
        role=role,
        text=None if "token_ids" in fields else _text(fields["content"], index),
        token_ids=ids if isinstance(ids, np.ndarray) else None,
        source=_name(fields["source"], "source"),
        actor=_name(fields.get("name"), "name"),
        trust=parse_trust(fields["trust"], role),
        metadata=check_metadata(fields["metadata"]),
        ts_us=parse_timestamp(fields["timestamp"]),
    )


def _role(role: object, index: int | None) -> str:
    if isinstance(role, str) and role in ROLES:
        return role
    message = f"unknown role {shown(role)}; use one of {', '.join(ROLES)}"
    raise ConfigError(message, field="role", value=role, index=index)


def _name(name: object, field: str) -> str | None:
    if name is None:
        return None
    if not isinstance(name, str) or len(name) > _MAX_NAME:
        message = f"{field} must be text of at most {_MAX_NAME} characters"
        raise ConfigError(message, field=field, value=type(name).__name__)
    _utf8_length(name, field, None)
    return str.__str__(name)  # plain text, whatever subclass of it was given


def _text(content: object, index: int | None) -> str:
    """Return the text of a message's content, joined if it comes in parts."""
    if isinstance(content, list | tuple):
        content = "".join(_part_text(part, index) for part in content)
    if not isinstance(content, str):
        _refuse(
            f"content of a message is a {type(content).__name__}; pass text or a list of text "
            "parts",
            value=type(content).__name__,
            index=index,
        )
    if not content.strip():
        what = "only whitespace" if content else "empty"
        _refuse(f"content is {what}; there is nothing to remember", value=what, index=index)
    n_bytes = _utf8_length(content, "content", index)
    if n_bytes > MAX_BODY_BYTES:
        message = (
            f"a message of {n_bytes:,} bytes is above the limit of {MAX_BODY_BYTES:,}; "
            "append it as several messages"
        )
        raise QuotaError(
            message, field="content", value=n_bytes, quota="body_bytes", limit=MAX_BODY_BYTES
        )
    return str.__str__(content)


def _part_text(part: object, index: int | None) -> str:
    fields: dict[str, object] = dict(part) if _is_mapping(part) else {}  # type: ignore[call-overload]
    kind = fields.get("type", type(part).__name__)
    if kind == "text" and isinstance(fields.get("text"), str):
        return str(fields["text"])
    return _refuse(
        f"content part of type {shown(kind)} is not text; describe it in words as "
        "{'type': 'text', 'text': ...}",
        value=kind,
        index=index,
    )


def _utf8_length(text: str, field: str, index: int | None) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        message = (
            f"{field} holds half a surrogate pair at character {error.start}, which is no text; "
            "decode it with errors='replace' first"
        )
        raise ConfigError(message, field=field, value="surrogate", index=index) from None


def _token_ids(content: Sequence[object] | Ids, vocab_size: int | None) -> Ids:
    """Return raw ids as int32[n], or refuse the first that is no token id, by its index."""
    ids = content if isinstance(content, np.ndarray) else _integers(content)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        kind = "floats" if ids.dtype.kind == "f" else f"{ids.dtype}, {ids.ndim} dimensions"
        message = f"token ids must be a flat list of integers, got {kind}"
        raise ConfigError(message, field="content", value=str(ids.dtype), index=0)
    top = 2**31 if vocab_size is None else vocab_size
    wrong = np.flatnonzero((ids < 0) | (ids >= top))
    if len(wrong):
        index, value = int(wrong[0]), int(ids[wrong[0]])
        message = f"token id {value} at index {index} is outside the vocabulary [0, {top})"
        raise ConfigError(message, field="content", value=value, index=index)
    return np.asarray(ids, np.int32).copy()


def _integers(items: Sequence[object]) -> Ids:
    """Return a list as an array; what is no integer is refused by its index."""
    for index, item in enumerate(items):
        if isinstance(item, bool) or not isinstance(item, int | np.integer):
            message = f"item {index} of a list of token ids is a {type(item).__name__}, no integer"
            raise ConfigError(message, field="content", value=type(item).__name__, index=index)
    try:
        return np.asarray(items, np.int64)
    except OverflowError:
        index = next(i for i, item in enumerate(items) if abs(int(item)) >= 2**63)  # type: ignore[call-overload]
        message = f"token id at index {index} is beyond 64 bits"
        raise ConfigError(message, field="content", value="overflow", index=index) from None


def _refuse(message: str, *, value: object, index: int | None = None) -> NoReturn:
    raise ConfigError(message, field="content", value=value, index=index)
