"""The body of a stored message: its text and everything said about it, as msgpack.

Typed decode with caps: a damaged or hostile body is a `CorruptError`, never a large allocation.
The user's metadata stays a plain map; nothing in it is ever turned into an object.
"""

from __future__ import annotations

import math
from typing import NoReturn

import msgspec

from megacontext_sdk.errors import ConfigError, CorruptError, QuotaError

__all__ = ["MAX_BODY_BYTES", "MessageBody", "check_metadata", "decode_body", "encode_body"]

MAX_BODY_BYTES = 16 * 2**20
MAX_METADATA_BYTES = 64 * 2**10
MAX_DEPTH = 8
_MAX_RECALL_BYTES = 2**20  # 50,000 spans; a window shows a few hundred
_INT_RANGE = range(-(2**63), 2**64)


class MessageBody(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a message row points to.

    Attributes:
        text: the message's text; None where only token ids were given.
        source: where it came from, in the caller's words.
        actor: who said it within its role (a name).
        metadata: the caller's own JSON-like map.
        origin: how it came about, such as "recall" for recalled text that came back.
        recall: the spans shown in full when a reply was made, as `(start, end)` pairs.
    """

    text: str | None = None
    source: str | None = None
    actor: str | None = None
    metadata: dict[str, object] = {}
    origin: str | None = None
    recall: tuple[tuple[int, int], ...] = ()


class _StoredBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A body as it lies on the disk: what may unfold to a multiple of its bytes stays folded."""

    text: str | None = None
    source: str | None = None
    actor: str | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"\x80")
    origin: str | None = None
    recall: msgspec.Raw = msgspec.Raw(b"\x90")


def encode_body(body: MessageBody) -> bytes:
    """Return the body as bytes.

    Raises:
        QuotaError: above 16 MiB.
    """
    raw = msgspec.msgpack.encode(body)
    if len(raw) > MAX_BODY_BYTES:
        message = (
            f"a message of {len(raw):,} bytes is above the limit of {MAX_BODY_BYTES:,}; "
            "append it as several messages"
        )
        raise QuotaError(
            message, field="content", value=len(raw), quota="body_bytes", limit=MAX_BODY_BYTES
        )
    return raw


def decode_body(raw: bytes, where: str = "message body") -> MessageBody:
    """Return the body of stored bytes; no bytes are an empty body.

    Raises:
        CorruptError: the bytes are damaged, too long or nested too deeply.
    """
    if not raw:
        return MessageBody()
    if len(raw) > MAX_BODY_BYTES:
        _damaged(where, f"{len(raw):,} bytes")
    try:
        stored = msgspec.msgpack.decode(raw, type=_StoredBody, ext_hook=_no_extension)
        body = _unfolded(stored, where)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        message = f"{where} is damaged and cannot be read; recover the memory from a copy"
        raise CorruptError(message, where=where, offset=None, have_seq=None) from error
    if _is_deeper(body.metadata, MAX_DEPTH):
        _damaged(where, f"metadata deeper than {MAX_DEPTH}")
    return body


def _unfolded(stored: _StoredBody, where: str) -> MessageBody:
    metadata, recall = memoryview(stored.metadata), memoryview(stored.recall)
    for name, part, most in (
        ("metadata", metadata, MAX_METADATA_BYTES),
        ("recall", recall, _MAX_RECALL_BYTES),
    ):
        if len(part) > most:
            _damaged(where, f"{name} above {most:,} bytes")
    decode = msgspec.msgpack.decode
    return MessageBody(
        text=stored.text,
        source=stored.source,
        actor=stored.actor,
        metadata=decode(metadata, type=dict[str, object], ext_hook=_no_extension),
        origin=stored.origin,
        recall=decode(recall, type=tuple[tuple[int, int], ...]),
    )


def check_metadata(metadata: object) -> dict[str, object]:
    """Return a plain copy of JSON-like metadata.

    Raises:
        ConfigError: not a map, keys that are no text, values that are no JSON, or too deep.
        QuotaError: above 64 KiB.
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        _refuse("metadata", f"must be a dict, got {type(metadata).__name__}")
    _check_value(metadata, "metadata", 1)
    try:
        raw = msgspec.msgpack.encode(metadata, enc_hook=_plain)
    except UnicodeEncodeError:
        _refuse("metadata", "holds half a surrogate pair, which is no text")
    if len(raw) > MAX_METADATA_BYTES:
        message = (
            f"metadata of {len(raw):,} bytes is above the limit of {MAX_METADATA_BYTES:,}; "
            "append what is long as content"
        )
        raise QuotaError(
            message,
            field="metadata",
            value=len(raw),
            quota="metadata_bytes",
            limit=MAX_METADATA_BYTES,
        )
    copy: dict[str, object] = msgspec.msgpack.decode(raw)
    return copy


def _no_extension(code: int, _data: memoryview) -> NoReturn:
    """Refuse msgpack's own types: nothing in a body is ever turned into an object."""
    message = f"extension type {code}"
    raise ValueError(message)


def _plain(value: object) -> object:
    """Return a subclass of text or a number as what it is; `_check_value` let nothing else in."""
    if isinstance(value, str):
        return str.__str__(value)
    return int.__int__(value) if isinstance(value, int) else float.__float__(value)  # type: ignore[arg-type]


def _check_value(value: object, field: str, depth: int) -> None:
    """Refuse what JSON cannot say; `field` is the path down to the value."""
    if value is None or isinstance(value, str | bool):
        return
    if isinstance(value, int):
        if value not in _INT_RANGE:
            _refuse(field, "holds an integer beyond 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            _refuse(field, f"holds {value}, which JSON cannot say")
    elif isinstance(value, dict | list | tuple):
        _check_container(value, field, depth)
    else:
        _refuse(field, f"holds a {type(value).__name__}; use text, numbers, lists and dicts")


def _check_container(
    value: dict[object, object] | list[object] | tuple[object, ...], field: str, depth: int
) -> None:
    if depth > MAX_DEPTH:
        _refuse(field, f"is nested deeper than {MAX_DEPTH} levels")
    if not isinstance(value, dict):
        for index, item in enumerate(value):
            _check_value(item, f"{field}[{index}]", depth + 1)
        return
    for key, item in value.items():
        if not isinstance(key, str):
            _refuse(field, f"has a key of type {type(key).__name__}; keys must be text")
        _check_value(item, f"{field}.{key:.40}", depth + 1)


def _refuse(field: str, why: str) -> NoReturn:
    raise ConfigError(f"metadata {why}", field=field, value=why)


def _damaged(where: str, what: str) -> NoReturn:
    message = f"{where} is damaged ({what}) and cannot be read; recover the memory from a copy"
    raise CorruptError(message, where=where, offset=None, have_seq=None)


def _is_deeper(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in inner)
