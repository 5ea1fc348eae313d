"""A document before it is tokens: plain text, or messages for the chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import attrs

if TYPE_CHECKING:
    from megacontext_gistnet.corpus.source import Domain

__all__ = ["Draft", "Turn"]


@attrs.frozen
class Turn:
    """One message of a chat: the role ("user", "assistant") and the text."""

    role: str
    text: str


Content: TypeAlias = "str | tuple[Turn, ...]"


@attrs.frozen
class Draft:
    """A document as it was read or made up.

    Attributes:
        doc_id: decides whether it is held out, so the same text keeps its id in every layout.
        domain: where its figures count.
        content: plain text, or messages.
        is_held_out: whether no training may see it.
    """

    doc_id: str
    domain: Domain
    content: Content
    is_held_out: bool
