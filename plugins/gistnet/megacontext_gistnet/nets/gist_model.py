"""What both trainable encoders are: `mean` plus a learned residual, for blocks and for parents.

A model borrows the frozen base's embedding and registers none of its parameters: what
`state_dict`, an optimiser or `to` see is the encoder's own. Move the base before making one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import nn

from megacontext_gistnet.nets.mean import BLOCK, mean_row_rms, mean_rows, rms
from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from megacontext_gistnet.nets.config import ContextualConfig, GistNetConfig

__all__ = ["GistModel", "Group"]

Group = Literal["head", "lora", "levels"]
"""What a parameter belongs to: the block head, the base's low-rank change, or LOD2 and above."""


class GistModel(nn.Module, ABC):
    """One trainable encoder over a frozen base.

    Args:
        base: a causal language model of transformers; read, never changed.
        config: the shape.

    Attributes:
        kind: "gistnet" or "contextual".
        config: the shape.
        slots: S trained; the first S' of them are a gist of S' slots.
        width: d, the base's embedding width.
        rho: mean RMS of the rows of its embedding table.
    """

    kind: ClassVar[str]
    config: GistNetConfig | ContextualConfig

    def __init__(self, base: nn.Module, config: GistNetConfig | ContextualConfig) -> None:
        super().__init__()
        embedding = base.get_input_embeddings()  # type: ignore[operator]
        self.config = config
        self.slots = config.slots
        self.width: int = embedding.weight.shape[1]
        self._frozen = (embedding,)  # in a tuple, so that it is no part of this module
        self.rho = self._mean_rms(embedding)

    @abstractmethod
    def block_residual(self, embedded: Tensor, means: Tensor) -> Tensor:
        """Return what is added to the mean gists of blocks, in units of `rho`.

        Args:
            embedded: float32[B, T, d].
            means: [B, T / 32, S, d].

        Returns:
            [B, T / 32, S, d].
        """

    @abstractmethod
    def parent_residual(self, rows: Tensor, lod: int, means: Tensor) -> Tensor:
        """Return what is added to the mean gists of parents, in units of `rho`.

        Args:
            rows: [n, 32, d], slot 0 of the children.
            lod: the parents' level.
            means: [n, S, d].

        Returns:
            [n, S, d].
        """

    def blocks(self, token_ids: Tensor, *, slots: int | None = None) -> Tensor:
        """Return the LOD1 gists of windows, each a history of its own.

        Args:
            token_ids: int64[B, T], T a multiple of 32.
            slots: S', all that were trained by default.

        Returns:
            float32[B, T / 32, S', d], differentiable in every parameter of the encoder.

        Raises:
            ConfigError: a partial block, or slots that were not trained.
        """
        embedded = self._embedded(token_ids)
        means, _ = self._block_means(embedded, self._checked_slots(slots))
        return self._added(means, self.block_residual(embedded, means))

    def parents(
        self, children: Tensor, lod: int, sizes: Tensor | None = None, *, slots: int | None = None
    ) -> Tensor:
        """Return the gists of parents.

        Slot 0 of each child is read, so any number of slots gives the same parent.

        Args:
            children: float32[n, 32, S, d].
            lod: the parents' level, at least 2.
            sizes: float32[n, 32] of `block_sizes` or `parent_sizes`; None: all the same.
            slots: S' of the parents, all that were trained by default.

        Returns:
            float32[n, S', d].

        Raises:
            ConfigError: a level below 2, no whole groups of siblings, or slots that were not
                trained.
        """
        if lod < 2:
            raise ConfigError(
                f"parents are at LOD2 and above, got lod={lod}", field="lod", value=lod
            )
        if children.ndim != 4 or children.shape[1] != BLOCK:
            shape = tuple(children.shape)
            raise ConfigError(
                f"children are float32[n, {BLOCK}, S, d], got shape {shape}",
                field="children",
                value=shape,
            )
        rows = children[:, :, 0]
        means, _ = self._parent_means(rows, sizes, self._checked_slots(slots))
        return self._added(means, self.parent_residual(rows, lod, means))

    # -- the warm start -------------------------------------------------------------------------

    def mean_blocks(self, token_ids: Tensor, *, slots: int | None = None) -> Tensor:
        """Return what `blocks` gives before training: the built-in `mean`."""
        return self._block_means(self._embedded(token_ids), self._checked_slots(slots))[0]

    def mean_parents(
        self, children: Tensor, sizes: Tensor | None = None, *, slots: int | None = None
    ) -> Tensor:
        """Return what `parents` gives before training: the mean of the children's gists."""
        return self._parent_means(children[:, :, 0], sizes, self._checked_slots(slots))[0]

    def block_sizes(self, token_ids: Tensor) -> Tensor:
        """Return the RMS of each block's raw mean, float32[B, T / 32]."""
        return self._block_means(self._embedded(token_ids), 1)[1]

    def parent_sizes(self, children: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Return the RMS of each parent's raw mean, float32[n]."""
        return self._parent_means(children[:, :, 0], sizes, 1)[1]

    # -- training -------------------------------------------------------------------------------

    def trainable(self) -> list[tuple[str, nn.Parameter, Group]]:
        """Return every parameter with its name and the group it is trained in."""
        return [(name, one, _group(name)) for name, one in self.named_parameters()]

    @property
    def device(self) -> torch.device:
        """Where the frozen base is."""
        device: torch.device = self._frozen[0].weight.device
        return device

    # -- inside ---------------------------------------------------------------------------------

    def _mean_rms(self, embedding: nn.Embedding) -> float:
        if type(embedding) is nn.Embedding:
            return mean_row_rms(embedding.weight)
        import torch  # some families scale the rows

        ids = torch.arange(len(embedding.weight), device=embedding.weight.device)
        with torch.no_grad():
            parts = [mean_row_rms(embedding(part)) * len(part) for part in ids.split(4096)]
        return sum(parts) / len(ids)

    def _embedded(self, token_ids: Tensor) -> Tensor:
        """Return float32[B, T, d], detached from the base."""
        if token_ids.ndim != 2 or token_ids.shape[1] % BLOCK:
            shape = tuple(token_ids.shape)
            raise ConfigError(
                f"windows are int64[B, T] with T a multiple of {BLOCK}, got shape {shape}",
                field="token_ids",
                value=shape,
            )
        rows: Tensor = self._frozen[0](token_ids)
        return rows.detach().float()

    def _block_means(self, embedded: Tensor, slots: int) -> tuple[Tensor, Tensor]:
        n, length, width = embedded.shape
        rows, sizes = mean_rows(embedded.reshape(-1, BLOCK, width), self.rho, slots)
        shape = (n, length // BLOCK)
        return rows.view(*shape, slots, width), sizes.view(shape)

    def _parent_means(
        self, rows: Tensor, sizes: Tensor | None, slots: int
    ) -> tuple[Tensor, Tensor]:
        raw = rows if sizes is None else rows * (sizes / self.rho)[..., None]
        parents, own = mean_rows(raw, self.rho, slots)
        return parents, own[:, 0]

    def _added(self, means: Tensor, residual: Tensor) -> Tensor:
        """Add a residual, in units of `rho`, to mean gists."""
        residual = residual.float()
        bound = self.config.residual_bound
        if bound:
            residual = residual / (1 + (rms(residual) / bound).square()).sqrt()
        return means + self.rho * residual

    def _checked_slots(self, slots: int | None) -> int:
        if slots is None:
            return self.slots
        if slots not in {1, 2, 4} or slots > self.slots:
            raise ConfigError(
                f"slots={slots!r}, but the encoder was trained for {self.slots}; ask for 1, 2 or 4 "
                "up to that",
                field="slots",
                value=slots,
            )
        return slots


def _group(name: str) -> Group:
    first = name.partition(".")[0]
    if first == "lora":
        return "lora"
    return "levels" if first == "levels" else "head"
