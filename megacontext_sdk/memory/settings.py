"""The settings map of a memory as bytes: msgpack with caps. Not where it is stored."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from megacontext_sdk.errors import ConfigError, CorruptError, QuotaError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["decode_settings", "encode_settings", "merged"]

_MAX_BYTES = 2**20
_MAX_DEPTH = 8


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, (list, tuple)):
        return 1 + max(map(_depth, value), default=0)
    return 0


def merged(old: Mapping[str, object], changes: Mapping[str, object]) -> Mapping[str, object]:
    """Return the map with the changes applied; a value of None removes its key.

    Raises:
        ConfigError: a key that is no string, or values nested deeper than 8.
    """
    for key in changes:
        if not isinstance(key, str):
            raise ConfigError(f"settings keys are strings, got {key!r}", field="changes", value=key)
    kept = {key: value for key, value in {**old, **changes}.items() if value is not None}
    if _depth(kept) > _MAX_DEPTH:
        raise ConfigError(
            f"settings may nest {_MAX_DEPTH} levels deep; flatten them", field="changes", value=None
        )
    return MappingProxyType(kept)


def encode_settings(settings: Mapping[str, object]) -> bytes:
    """Return the map as msgpack.

    Raises:
        ConfigError: a value that msgpack cannot hold.
        QuotaError: more than 1 MiB.
    """
    try:
        body = msgspec.msgpack.encode(dict(settings), order="deterministic")
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"settings hold a value that cannot be stored: {error}", field="changes", value=None
        ) from error
    if len(body) > _MAX_BYTES:
        raise QuotaError(
            f"settings may take {_MAX_BYTES} bytes, these take {len(body)}; remove entries",
            field="changes",
            value=len(body),
            quota="settings_bytes",
            limit=_MAX_BYTES,
        )
    return body


def decode_settings(body: bytes) -> Mapping[str, object]:
    """Return the map that a settings message holds.

    Raises:
        CorruptError: the bytes are no such map.
    """
    try:
        decoded = msgspec.msgpack.decode(body, type=dict[str, object])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise CorruptError(
            f"the newest settings message cannot be read: {error}", where="settings", offset=None
        ) from error
    return MappingProxyType(decoded)
