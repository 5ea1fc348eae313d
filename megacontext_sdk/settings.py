"""The kinds of settings: each checks a value, says what it wants, and reads it from text.

A kind makes an attrs field. Which settings exist is `config.py`'s business.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import attrs

from megacontext_sdk.errors import ConfigError, shown

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["choice", "flag", "integer", "name", "number", "parse", "sinks"]

_NAME = re.compile(r"[a-z][a-z0-9-]*")
_WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_UNSET = frozenset({"", "auto", "none"})


def integer(default: int | None, low: int, high: int, doc: str) -> Any:  # noqa: ANN401 - a field
    """Make a field of whole numbers from `low` to `high`; a default of None allows None."""
    wanted = f"a whole number from {low} to {high}"

    def fits(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return _field(default, fits, wanted, doc, int)


def number(default: float | None, low: float, high: float, doc: str) -> Any:  # noqa: ANN401
    """Make a field of numbers from `low` to `high`; a default of None allows None."""
    wanted = f"a number from {low:g} to {high:g}"

    def fits(value: object) -> bool:
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        )

    return _field(default, fits, wanted, doc, float)


def flag(*, default: bool, doc: str) -> Any:  # noqa: ANN401
    """Make a field that is True or False."""

    def read(text: str) -> bool:
        return _WORDS[text.strip().lower()]

    return _field(default, lambda value: isinstance(value, bool), "True or False", doc, read)


def choice(default: int | str, allowed: tuple[int | str, ...], doc: str) -> Any:  # noqa: ANN401
    """Make a field that is one of a few values."""
    kind = type(default)
    wanted = "one of " + ", ".join(repr(one) for one in allowed)
    return _field(
        default, lambda value: type(value) is kind and value in allowed, wanted, doc, kind
    )


def name(default: str, doc: str, what: str = "a provider's name") -> Any:  # noqa: ANN401
    """Make a field that holds a name of lower-case letters, digits and hyphens."""

    def fits(value: object) -> bool:
        return isinstance(value, str) and _NAME.fullmatch(value) is not None

    return _field(default, fits, f"{what} such as {default!r}", doc, str)


def sinks(default: tuple[str, ...], doc: str) -> Any:  # noqa: ANN401
    """Make a field that holds sinks: names, `"name:argument"`, or objects with `emit`."""

    def fits(value: object) -> bool:
        return isinstance(value, tuple) and all(
            _is_sink_name(one) if isinstance(one, str) else callable(getattr(one, "emit", None))
            for one in value
        )

    def split(text: str) -> tuple[str, ...]:
        return tuple(one.strip() for one in text.split(",") if one.strip())

    wanted = f"a tuple of sinks, by name or as objects, such as {default!r}"
    return _field(default, fits, wanted, doc, split, converter=_as_tuple)


def parse(field: attrs.Attribute[Any], text: str) -> object:
    """Read a field's value from the text of an environment variable.

    Raises:
        ConfigError: text that is no such value; the field names the setting.
    """
    if field.default is None and text.strip().lower() in _UNSET:
        return None
    try:
        value: object = field.metadata["read"](text)
    except (KeyError, ValueError):
        raise _error(field, text) from None
    return value


def _field(
    default: object,
    fits: Callable[[object], bool],
    wanted: str,
    doc: str,
    read: Callable[[str], object],
    converter: Callable[[Any], Any] | None = None,
) -> Any:  # noqa: ANN401 - attrs' own fields are Any, so that the annotation decides
    def check(_: object, field: attrs.Attribute[Any], value: object) -> None:
        if not (fits(value) or (value is None and default is None)):
            raise _error(field, value)

    metadata = {"read": read, "wanted": wanted, "doc": doc}
    return attrs.field(default=default, validator=check, converter=converter, metadata=metadata)


def _error(field: attrs.Attribute[Any], value: object) -> ConfigError:
    return ConfigError(
        f"{field.name} is {shown(value)}; it must be {field.metadata['wanted']}",
        field=field.name,
        value=value,
    )


def _is_sink_name(text: str) -> bool:
    return _NAME.fullmatch(text.partition(":")[0]) is not None


def _as_tuple(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value
