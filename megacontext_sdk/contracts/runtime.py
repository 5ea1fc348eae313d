"""The runtime loop contract: ingest, refocus and decode for one session.

The plain built-in loop is the oracle: every other loop must give its greedy tokens exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megacontext_sdk.contracts.arrays import Ids
    from megacontext_sdk.contracts.model import SamplingOptions

__all__ = ["DecodeRequest", "DecodedToken", "RuntimeLoop"]


@attrs.frozen(eq=False, kw_only=True)
class DecodeRequest:
    """One reply to decode.

    Attributes:
        header_ids: int32[h], tokens that open the reply (the template's generation prompt).
        max_new_tokens: upper bound on generated tokens.
        sampling: how tokens are chosen.
        remember: take the reply into the memory; else its rows vanish afterwards.
    """

    header_ids: Ids
    max_new_tokens: int
    sampling: SamplingOptions
    remember: bool = True


@attrs.frozen
class DecodedToken:
    """One generated token: its id and whether it ends the reply."""

    token_id: int
    is_eos: bool


class RuntimeLoop(ABC):
    """Drives one session. Built by its factory from `runtime.state.SessionState`."""

    name: str

    @abstractmethod
    def ingest(self) -> None:
        """Take newly appended history into the working context, making room at once."""

    @abstractmethod
    def refocus(self, turn_ids: Ids, turn_text: str, *, max_iterations: int, trigger: str) -> None:
        """Score, plan and apply until nothing more is worth doing (bounded)."""

    @abstractmethod
    def decode(self, request: DecodeRequest) -> Iterator[DecodedToken]:
        """Generate tokens; every 32: seal the block, make one refocus step, sync the window."""
