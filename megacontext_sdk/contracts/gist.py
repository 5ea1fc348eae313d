"""The gist encoder contract: 32 children become S vectors in the model's embedding space.

A gist is a pure function of (text, encoder fingerprint), never of the working context in force
when it was made; so it can be rebuilt, shared by forks, and does not depend on how appends were
cut.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Floats, Ids
    from megacontext_sdk.contracts.model import ModelInfo

__all__ = ["GistEncoder", "GistServices", "Gists"]


@attrs.frozen(eq=False)
class Gists:
    """Encoder output.

    Attributes:
        rows: float32[n, S, d], finite, in input-embedding space.
        aux: float32[n, A], what the parent level needs besides the rows (A may be 0).
    """

    rows: Floats
    aux: Floats


class GistServices(Protocol):
    """What an encoder may ask of the session; it owns no model of its own."""

    @property
    def info(self) -> ModelInfo:
        """The base model's facts."""

    def embedding_table(self) -> Floats:
        """Input-embedding table, float32[vocab, d]."""

    def hidden_states(self, token_ids: Ids, left_context: Ids) -> Floats:
        """Final hidden states of the frozen base, float32[n, d]."""


class GistEncoder(ABC):
    """Turns full blocks into LOD1 gists and 32 sibling gists into their parent.

    Deterministic. Never sees a partial or padded block.
    """

    name: str
    gist_slots: int
    aux_size: int

    @abstractmethod
    def fingerprint(self, info: ModelInfo) -> str:
        """Return the hex digest of all a gist depends on, the base included."""

    @abstractmethod
    def encode_blocks(self, token_ids: Ids, services: GistServices) -> Gists:
        """Encode int32[n, 32] token ids into n LOD1 gists."""

    @abstractmethod
    def encode_gists(self, lod: int, children: Gists, services: GistServices) -> Gists:
        """Encode groups of 32 children into parents.

        Args:
            lod: the parents' level, at least 2.
            children: rows float32[n * 32, S, d] and aux float32[n * 32, A], sibling groups in
                order, as storage gives them back (rounded to the stored type), so that a parent
                does not depend on whether its children came from memory or from disk.
            services: the session's services.
        """
