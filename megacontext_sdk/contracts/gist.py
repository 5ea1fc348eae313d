"""The gist encoder contract: 32 children become S vectors in the model's embedding space.

A gist is a pure function of (text, encoder fingerprint), never of the working context in force
when it was made; so it can be rebuilt, shared by forks, and does not depend on how appends were
cut. Its text is that of its span and of `left_tokens` tokens before it, never what comes later.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Floats, Ids
    from megacontext_sdk.contracts.model import ModelInfo

__all__ = ["Blocks", "GistEncoder", "GistServices", "Gists"]


@attrs.frozen(eq=False)
class Blocks:
    """Full blocks that follow each other, and what stands left of them.

    Attributes:
        token_ids: int32[n, 32]. A forgotten token is a filler here, never -1.
        first: number of the first block in the history.
        left: int32[m], the tokens right before that block: as many as the encoder's `left_tokens`,
            or all there are near the beginning of the history.
    """

    token_ids: Ids
    first: int
    left: Ids

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.token_ids)


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

    def torch_module(self) -> object:
        """The frozen base itself, in torch; a `ModelError` where there is none."""


class GistEncoder(ABC):
    """Turns full blocks into LOD1 gists and 32 sibling gists into their parent.

    Deterministic. Never sees a partial or padded block. A session calls it from one thread at a
    time, which need not be its own; an object given to several sessions hears from several.

    Attributes:
        name: for people and for the table of encoders.
        gist_slots: S, vectors per gist.
        aux_size: A, further numbers per gist.
        left_tokens: how many tokens left of a block its gist may depend on; 0 for none. Forgetting
            a token makes all gists anew that may have seen it.
        runs_behind: True for an encoder that is slower than the disk: an append does not wait for
            it, its gists follow in the background.
    """

    name: str
    gist_slots: int
    aux_size: int
    left_tokens: int = 0
    runs_behind: bool = False

    @abstractmethod
    def fingerprint(self, info: ModelInfo) -> str:
        """Return the hex digest of all a gist depends on, the base included."""

    @abstractmethod
    def encode_blocks(self, blocks: Blocks, services: GistServices) -> Gists:
        """Encode n blocks that follow each other into n LOD1 gists.

        The gist of a block depends on its tokens and the `left_tokens` before it only: on no later
        token, and not on which other blocks are encoded with it.
        """

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
