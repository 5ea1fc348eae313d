"""The runtime loop contract: ingest, refocus and decode for one session.

The plain built-in loop is the oracle: every other loop must give its greedy tokens exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from megacontext_sdk.contracts.arrays import Ids
    from megacontext_sdk.contracts.model import SamplingOptions

__all__ = ["DecodeRequest", "DecodedToken", "GrowingReply", "RuntimeLoop"]


class GrowingReply(Protocol):
    """The text of a reply while it is generated; tells which tokens can no longer be taken back."""

    stopped: bool

    @property
    def n_tokens(self) -> int:
        """Tokens pushed and not cut off."""

    @property
    def n_settled(self) -> int:
        """Leading tokens whose text is final."""

    @property
    def n_taken(self) -> int:
        """Tokens handed out by `take`."""

    def push(self, token_id: int) -> str:
        """Take a generated token; return text that became final."""

    def finish(self) -> str:
        """End the reply; return the rest of its text."""

    def take(self, limit: int) -> tuple[Ids, str]:
        """Hand out settled tokens not handed out before, at most `limit`, and their text."""


@attrs.frozen(eq=False, kw_only=True)
class DecodeRequest:
    """One reply to decode.

    Attributes:
        header_ids: int32[h], tokens that open the reply (the template's generation prompt; of a
            reply that is not remembered also the prompt itself).
        footer_ids: int32[f], tokens that close it in the memory.
        max_new_tokens: upper bound on generated tokens, the end token included.
        sampling: how tokens are chosen.
        reply: collects the text.
        commit: takes part of the reply into the memory: ids, their text, whether it is the last.
        remember: take the reply into the memory; else its rows vanish afterwards.
    """

    header_ids: Ids
    footer_ids: Ids
    max_new_tokens: int
    sampling: SamplingOptions
    reply: GrowingReply
    commit: Callable[[Ids, str, bool], None]
    remember: bool = True


@attrs.frozen
class DecodedToken:
    """One generated token: its id, whether it ends the reply, text that became final."""

    token_id: int
    is_eos: bool
    text: str = ""


class RuntimeLoop(ABC):
    """Drives one session. Built by its factory from the session's state."""

    name: str

    @abstractmethod
    def ingest(self, source: str = "append") -> None:
        """Take newly committed history into the working context, making room at once.

        Args:
            source: "append" or "generate", for telemetry.
        """

    @abstractmethod
    def refocus(
        self,
        turn_ids: Ids,
        turn_text: str,
        *,
        turn_start: int | None,
        max_iterations: int,
        trigger: str,
    ) -> object:
        """Score, plan and apply until nothing more is worth doing (bounded).

        Args:
            turn_ids: int32[n], the pending user turn.
            turn_text: its text.
            turn_start: its first token index, None if it is not in the history.
            max_iterations: bound on the iterations.
            trigger: "turn", "append" or "user".
        """

    @abstractmethod
    def make_room(self, reserve: int) -> None:
        """Free `reserve` rows for a reply, so that what is reported then is what the model sees.

        Raises:
            BudgetError: they do not fit beside the history.
        """

    @abstractmethod
    def decode(self, request: DecodeRequest) -> Generator[DecodedToken]:
        """Generate tokens, sealing blocks and refocusing every 32.

        A consumer may stop early: what was generated is kept and the session stays usable.
        """
