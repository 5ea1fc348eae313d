"""What a call takes besides content: numbers, flags, bounds. Checked before anything is touched.

Values are refused, never coerced: a float is no count and a list is no flag. Content is checked in
`messages.content`, spans where the length of the history is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from megacontext_sdk.contracts.model import SamplingOptions
from megacontext_sdk.errors import ConfigError, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "check_bounds",
    "check_count",
    "check_flags",
    "check_messages",
    "check_progress",
    "check_sampling",
    "check_timeout",
]

_LEAST_SHARE = 1e-9  # of probability: a top_p of 0 leaves nothing to draw from


def check_count(name: str, value: object, most: int = 2**31 - 1) -> int:
    """Return a whole number from 1 to `most`.

    Raises:
        ConfigError: anything else.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most:
        return value
    message = f"{name}={shown(value)} must be a whole number from 1 to {most}"
    raise ConfigError(message, field=name, value=value)


def check_flags(**flags: object) -> None:
    """Check that switches are True or False.

    Raises:
        ConfigError: naming the first that is neither.
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            message = f"{name}={shown(value)} must be True or False"
            raise ConfigError(message, field=name, value=value)


def check_progress(progress: object) -> None:
    """Check that whoever wants to know of progress can be called.

    Raises:
        ConfigError: it cannot.
    """
    if progress is not None and not callable(progress):
        message = f"progress={shown(progress)} cannot be called; give a function of (done, total)"
        raise ConfigError(message, field="progress", value=type(progress).__name__)


def check_timeout(timeout: object) -> float | None:
    """Return seconds to wait, None for no wait.

    Raises:
        ConfigError: no number, or none from 0 to a day.
    """
    return None if timeout is None else _number("timeout", timeout, 0.0, 86_400.0)


def check_bounds(start: object, stop: object, field: str) -> slice:
    """Return a slice of whole numbers; None leaves an end open.

    Raises:
        ConfigError: an end that is neither.
    """
    for end in (start, stop):
        if end is not None and (not isinstance(end, int) or isinstance(end, bool)):
            message = f"{field}: {shown(end)} is no whole number; give start and stop as integers"
            raise ConfigError(message, field=field, value=end)
    return slice(start, stop)


def check_messages(prompt: object, messages: object) -> str | list[Mapping[str, object]] | None:
    """Return what is to be answered: a prompt, a list of messages, or None to go on.

    Raises:
        ConfigError: both, or neither text nor a sequence of messages.
    """
    if prompt is not None and messages is not None:
        message = "give either prompt or messages, not both"
        raise ConfigError(message, field="messages", value="both")
    if messages is None:
        if prompt is None or isinstance(prompt, str):
            return prompt
        message = f"prompt must be text, got {type(prompt).__name__}; give messages= for a list"
        raise ConfigError(message, field="prompt", value=type(prompt).__name__)
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes | bytearray):
        message = f"messages must be a list of chat messages, got {type(messages).__name__}"
        raise ConfigError(message, field="messages", value=type(messages).__name__)
    return list(messages)


def check_sampling(
    temperature: object, top_p: object, top_k: object, seed: object
) -> SamplingOptions:
    """Return how to draw tokens.

    Raises:
        ConfigError: a number out of range, or a fraction where a whole number belongs.
    """
    return SamplingOptions(
        temperature=_number("temperature", temperature, 0.0, 100.0),
        top_p=_number("top_p", top_p, _LEAST_SHARE, 1.0),
        top_k=_whole("top_k", top_k, 2**31),
        seed=None if seed is None else _whole("seed", seed, 2**63 - 1),
    )


def _number(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
        return float(value)
    message = f"{name}={shown(value)} must be a number from {low:g} to {high:g}"
    raise ConfigError(message, field=name, value=value)


def _whole(name: str, value: object, high: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= high:
        return int(value)
    message = f"{name}={shown(value)} must be a whole number from 0 to {high}"
    raise ConfigError(message, field=name, value=value)
