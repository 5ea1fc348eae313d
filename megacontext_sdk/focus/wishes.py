"""What users ask of a working context, checked and refused in their own terms.

Every refusal names the span or node and the rule that stands against it. It reads lengths only and
changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from megacontext_sdk.errors import BudgetError, ConfigError, ProtectionError
from megacontext_sdk.focus.protection import pinned_rows
from megacontext_sdk.memory.lod import BLOCK_SIZE, NodeId, minimal_cover, width

if TYPE_CHECKING:
    from collections.abc import Callable

    from megacontext_sdk.contracts.focus import Budget
    from megacontext_sdk.memory.lod import Span

__all__ = ["check_length", "check_pins", "check_span", "legal", "nodes_to_collapse", "say"]

_T = TypeVar("_T")
_MAX_TOKENS = 2**48


def say(target: Span | NodeId) -> str:
    """Return how messages name a span or node."""
    return str(target) if isinstance(target, NodeId) else f"[{target.start}, {target.end})"


def check_length(n_tokens: int) -> None:
    """Refuse a length no history can have.

    Raises:
        ConfigError: negative, or above 2**48.
    """
    if not 0 <= n_tokens <= _MAX_TOKENS:
        raise ConfigError(
            f"a history has 0 to {_MAX_TOKENS} tokens, got n_tokens={n_tokens}",
            field="n_tokens",
            value=n_tokens,
        )


def check_span(verb: str, span: Span, n_tokens: int) -> None:
    """Refuse a span that is empty or not inside the history.

    Raises:
        ConfigError: it is.
    """
    if not 0 <= span.start < span.end <= n_tokens:
        raise ConfigError(
            f"cannot {verb} {say(span)}: a span lies inside [0, {n_tokens}) and is not empty",
            field="span",
            value=span,
        )


def check_pins(span: Span, pins: tuple[Span, ...], n_tokens: int, budget: Budget) -> None:
    """Refuse pins, the last of them new, that take more than their share.

    Raises:
        BudgetError: they do.
    """
    rows = pinned_rows(pins, n_tokens)
    limit = int(budget.pin_share * budget.w_max)
    if rows > limit:
        raise BudgetError(
            f"cannot pin {say(span)}: that makes {rows} pinned rows, and pin_share allows "
            f"{limit} of w_max {budget.w_max}; unpin spans or raise w_max",
            needed=rows,
            available=limit,
        )


def nodes_to_collapse(target: Span | NodeId, n_tokens: int) -> list[NodeId]:
    """Return the complete nodes that a collapse of a span or node ends in.

    Raises:
        ConfigError: there is none.
    """
    if isinstance(target, NodeId):
        is_complete = target.index >= 0 and (target.index + 1) * width(target.lod) <= n_tokens
        nodes = [target] if target.lod > 0 and is_complete else []
    else:
        check_span("collapse", target, n_tokens)
        start = -(-target.start // BLOCK_SIZE) * BLOCK_SIZE
        nodes = minimal_cover(start, max(start, target.end // BLOCK_SIZE * BLOCK_SIZE))
    if not nodes:
        raise ConfigError(
            f"cannot collapse {say(target)}: it holds no complete gist of {n_tokens} tokens (I5)",
            field="target",
            value=target,
        )
    return nodes


def legal(edit: Callable[[], _T], wish: str) -> _T:
    """Make an edit, or refuse it in the user's terms.

    Raises:
        ConfigError: the edit is illegal (I9).
    """
    try:
        return edit()
    except ProtectionError as error:
        raise ConfigError(
            f"cannot {wish}: {error.detail} (I9)", field="target", value=wish
        ) from error
