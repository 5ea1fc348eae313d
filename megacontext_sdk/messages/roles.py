"""Who speaks, and how far it is trusted: names here, the codes of stored rows beside them."""

from __future__ import annotations

from enum import IntEnum

from megacontext_sdk.errors import ConfigError, shown

__all__ = [
    "CONTINUES",
    "FORGOTTEN",
    "ROLES",
    "ROLE_CODES",
    "SETTING",
    "Trust",
    "default_trust",
    "parse_trust",
]

ROLES = ("user", "assistant", "system", "tool")
"""Roles a message may have; the index is the code in its stored row."""

SETTING = len(ROLES)
"""Role code of the settings map, which is stored as a message without tokens."""

ROLE_CODES = {role: code for code, role in enumerate((*ROLES, "setting"))}
"""Code of every role name."""

CONTINUES = 1
"""Flag of a stored row that continues the message before it (replies are stored by the block)."""

FORGOTTEN = 2
"""Flag of a stored row whose tokens were forgotten, all or some; its body is empty."""


class Trust(IntEnum):
    """How far content is trusted; nothing raises it later."""

    UNTRUSTED = 0
    """Of unknown origin."""
    EXTERNAL = 1
    """From tools, the web, files."""
    MODEL = 2
    """Said by the model."""
    USER = 3
    """Said by the user."""
    SYSTEM = 4
    """Said by whoever runs the session."""


_DEFAULT_TRUST = {
    "user": Trust.USER,
    "assistant": Trust.MODEL,
    "system": Trust.SYSTEM,
    "tool": Trust.EXTERNAL,
}


def default_trust(role: str) -> Trust:
    """Return the trust of a role's messages unless the caller says otherwise."""
    return _DEFAULT_TRUST[role]


def parse_trust(trust: object, role: str) -> Trust:
    """Return a trust level from its name, its number, or None for the role's default.

    Raises:
        ConfigError: neither a name nor a number from 0 to 4.
    """
    if trust is None:
        return default_trust(role)
    if isinstance(trust, str) and trust.upper() in Trust.__members__:
        return Trust[trust.upper()]
    if isinstance(trust, int) and not isinstance(trust, bool) and 0 <= trust <= Trust.SYSTEM:
        return Trust(trust)
    names = ", ".join(level.name.lower() for level in Trust)
    message = f"unknown trust {shown(trust)}; use 0 to 4 or one of {names}"
    raise ConfigError(message, field="trust", value=trust)
