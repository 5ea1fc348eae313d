"""Names: of snapshots within a memory, and which names may be given at all.

A snapshot is an entry in the memory's settings, nothing else: it copies nothing and keeps nothing
alive. This module reads and makes such entries; it writes none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

from megacontext_sdk.errors import ConfigError, shown
from megacontext_sdk.receipts import Snapshot

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SNAPSHOTS", "check_name", "find_snapshot", "list_snapshots", "packed", "resolve_at"]

SNAPSHOTS = "snapshots"
"""Key of the memory's settings."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


def check_name(name: object, field: str) -> str:
    """Return a name that may stand in paths, commands and settings.

    Raises:
        ConfigError: no text, or other than 1 to 128 letters, digits, "_" and "-", the first one a
            letter or digit. Nothing is trimmed or converted.
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    message = (
        f"{field}={shown(name)} is no name; give 1 to 128 ASCII letters, digits, '_' or '-', "
        "starting with a letter or digit"
    )
    raise ConfigError(message, field=field, value=shown(name))


def list_snapshots(settings: Mapping[str, object]) -> tuple[Snapshot, ...]:
    """Return the snapshots of a memory, oldest place first."""
    stored = cast("Mapping[str, Mapping[str, int]]", settings.get(SNAPSHOTS, {}))
    found = [Snapshot(name=name, **entry) for name, entry in stored.items()]
    return tuple(sorted(found, key=lambda one: (one.seq, one.name)))


def find_snapshot(settings: Mapping[str, object], name: object, field: str = "name") -> Snapshot:
    """Return a snapshot by name.

    Raises:
        ConfigError: there is none of that name; the message lists those that exist.
    """
    checked = check_name(name, field)
    known = list_snapshots(settings)
    for one in known:
        if one.name == checked:
            return one
    there = ", ".join(sorted(one.name for one in known)) or "none"
    message = f"there is no snapshot {checked!r}; there are: {there}"
    raise ConfigError(message, field=field, value=checked)


def packed(snapshots: tuple[Snapshot, ...]) -> dict[str, dict[str, int]]:
    """Return snapshots as the settings hold them."""
    return {
        one.name: {
            "seq": one.seq,
            "n_tokens": one.n_tokens,
            "n_messages": one.n_messages,
            "ts_us": one.ts_us,
        }
        for one in snapshots
    }


def resolve_at(at: object, settings: Mapping[str, object], seq: int) -> int:
    """Return the commit that `at` means: the name of a snapshot, or a commit's number.

    Args:
        at: as given by a caller.
        settings: of the memory, present ones.
        seq: its newest commit.

    Raises:
        ConfigError: an unknown name, or a number outside `[0, seq]`.
    """
    if isinstance(at, str):
        return find_snapshot(settings, at, "at").seq
    if isinstance(at, int) and not isinstance(at, bool) and 0 <= at <= seq:
        return at
    message = f"at={shown(at)} must be the name of a snapshot or a commit from 0 to {seq}"
    raise ConfigError(message, field="at", value=shown(at))
