"""The learned encoders behind the `GistEncoder` contract: numpy at the door, torch inside.

They lay a trained residual on the `mean` gists. `aux` is one number per gist, the size of its raw
mean, so an untrained encoder is `mean` at every level, bit for bit. How a contextual encoder reads
is `chunk_reader`'s; what a gistnet computes is `fused_body`'s.
"""

from __future__ import annotations

from abc import abstractmethod
from threading import Lock
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import nn

from megacontext_gistnet.chunk_reader import ChunkReader
from megacontext_gistnet.fused_body import FusedBody
from megacontext_gistnet.mean_rows import MeanRows, check_children, check_ids
from megacontext_gistnet.nets.gistnet import GistNetBody, GistNetLevels
from megacontext_gistnet.nets.model import load_into, load_weights
from megacontext_gistnet.weights import find_weights
from megacontext_sdk.contracts.gist import GistEncoder, Gists
from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from megacontext_gistnet.nets.config import ContextualConfig, GistNetConfig
    from megacontext_gistnet.nets.contextual import Contextual
    from megacontext_gistnet.weights import Weights
    from megacontext_sdk.contracts.arrays import Floats
    from megacontext_sdk.contracts.gist import Blocks, GistServices
    from megacontext_sdk.contracts.model import ModelInfo

__all__ = ["ContextualEncoder", "GistNetEncoder", "open_contextual", "open_gistnet"]

_BLOCK = 32
_STEP = 16  # blocks or parents in one go: their rows stay in a core's cache
_MERGE_BYTES = 1 << 30
"""A base's lower layers up to this size are copied with their low-rank change added: a fifth faster
on a CPU. Larger ones keep it apart."""


class LearnedEncoder(GistEncoder):
    """What both have: weights, slots, the `mean` below, the checks.

    May be shared between threads, and so between a session and its fork: one encodes at a time.

    Args:
        weights: the file, opened by `find_weights`.
        gist_slots: S.
        name: as users name it, without an argument.
    """

    aux_size = 1

    def __init__(self, weights: Weights, gist_slots: int, name: str) -> None:
        self.name = name
        self.gist_slots = gist_slots
        self._weights = weights
        self._base = ""
        self._turn = Lock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._weights.path.name!r}, S={self.gist_slots})"

    @property
    def weights(self) -> Weights:
        """The weight file: where it is, its shape, what training says of itself."""
        return self._weights

    def fingerprint(self, info: ModelInfo) -> str:
        """Return the digest of weights, shape, base, tokenizer and slots.

        Raises:
            ModelMismatchError: the weights were trained for another base or tokenizer.
        """
        return self._weights.fingerprint(info, self.gist_slots)

    def encode_blocks(self, blocks: Blocks, services: GistServices) -> Gists:
        """Encode n blocks that follow each other into n LOD1 gists.

        Raises:
            ConfigError: a partial block, an id outside the vocabulary, or too few tokens left of
                the blocks.
            ModelError: the base cannot be read, or is not the one trained for.
        """
        with self._turn:
            self._open(services)
            self._check_blocks(blocks)
            rows, sizes = self._means.of_blocks(blocks.token_ids)
            if len(rows):
                with torch.inference_mode():
                    self._add(rows, self._block_residuals(blocks, rows))
        return Gists(rows=rows, aux=sizes)

    def encode_gists(self, lod: int, children: Gists, services: GistServices) -> Gists:
        """Encode groups of 32 children into parents; slot 0 of each child is read.

        Raises:
            ConfigError: no whole sibling groups, or children that are not finite.
            ModelError: as `encode_blocks`.
        """
        with self._turn:
            self._open(services)
            check_children(lod, children)
            rows, sizes = self._means.of_parents(children)
            if len(rows):
                slots = children.rows[:, 0].reshape(-1, _BLOCK, rows.shape[-1])
                with torch.inference_mode():
                    self._add(rows, self._parent_residuals(lod, slots, rows))
        return Gists(rows=rows, aux=sizes)

    @abstractmethod
    def _read_base(self, services: GistServices) -> None:
        """Take what is needed of a base: once, and again for another."""

    @abstractmethod
    def _block_residuals(self, blocks: Blocks, means: Floats) -> Iterator[Tensor]:
        """Yield residuals [k, S, d] in units of rho, block after block."""

    @abstractmethod
    def _parent_residuals(self, lod: int, rows: Floats, means: Floats) -> Iterator[Tensor]:
        """Yield residuals [k, S, d] of children float32[n, 32, d], parent after parent."""

    def _open(self, services: GistServices) -> None:
        if services.info.fingerprint == self._base:
            return
        self._weights.check_base(services.info)
        self._means = MeanRows(services.embedding_table(), self.gist_slots)
        self._read_base(services)
        self._base = services.info.fingerprint

    def _check_blocks(self, blocks: Blocks) -> None:
        ids, left = blocks.token_ids, blocks.left
        if ids.ndim != 2 or ids.shape[1] != _BLOCK:
            raise ConfigError(
                f"encode_blocks takes whole blocks, int32[n, {_BLOCK}], got shape {ids.shape}",
                field="token_ids",
                value=ids.shape,
            )
        n_left = min(self.left_tokens, blocks.first * _BLOCK)
        if len(left) < n_left:
            raise ConfigError(
                f"block {blocks.first} needs {n_left} tokens left of it, got {len(left)}",
                field="left",
                value=len(left),
            )
        check_ids("token_ids", ids, len(self._means.table))
        check_ids("left", left[len(left) - n_left :], len(self._means.table))

    def _add(self, rows: Floats, residuals: Iterator[Tensor]) -> None:
        """Add residuals, in units of rho, to float32[n, S, d] mean gists in place."""
        bound, at = self._weights.header.config.residual_bound, 0
        for part in residuals:
            residual = part.float().cpu().numpy()
            if bound:
                size = np.square(residual).mean(-1, keepdims=True)
                residual = residual / np.sqrt(1 + size / np.float32(bound * bound))
            rows[at : at + len(part)] += self._means.rho * residual
            at += len(part)


class GistNetEncoder(LearnedEncoder):
    """`gistnet`: a small network over the tokens of each block alone. Fast enough for an append."""

    def _read_base(self, services: GistServices) -> None:
        width, config = (
            services.info.hidden_size,
            cast("GistNetConfig", self._weights.header.config),
        )
        body, levels = GistNetBody(width, config), GistNetLevels(width, config)
        load_into(self._weights.path, nn.ModuleDict({"body": body, "levels": levels}))
        self._body = FusedBody(body, self.gist_slots)
        self._parent_body = FusedBody(levels.body, self.gist_slots)
        self._levels = levels.level.detach()
        # a token's way into the network depends on its id alone: [V, w]
        projected = self._means.table @ self._body.enter.numpy().T / self._means.rho
        self._entered = torch.from_numpy(projected)

    def _block_residuals(self, blocks: Blocks, means: Floats) -> Iterator[Tensor]:
        del means
        ids = torch.from_numpy(blocks.token_ids.astype(np.int64))
        for part in ids.split(_STEP):
            yield self._body(torch.nn.functional.embedding(part, self._entered))

    def _parent_residuals(self, lod: int, rows: Floats, means: Floats) -> Iterator[Tensor]:
        del means
        level = self._levels[min(lod - 2, len(self._levels) - 1)]
        scaled = torch.from_numpy(rows / self._means.rho)
        for part in scaled.split(_STEP):
            yield self._parent_body(
                torch.nn.functional.linear(part, self._parent_body.enter) + level
            )


class ContextualEncoder(LearnedEncoder):
    """`contextual`: the base's lower layers read each block after the text before it.

    Slower than the disk, so its gists follow in the background. Reads the frozen base and never
    writes to it; what it keeps between calls is the state of the chunk that was read last.
    """

    runs_behind = True

    def __init__(self, weights: Weights, gist_slots: int, name: str) -> None:
        super().__init__(weights, gist_slots, name)
        self.left_tokens = cast("ContextualConfig", weights.header.config).left_tokens

    def _read_base(self, services: GistServices) -> None:
        base = cast("nn.Module", services.torch_module())
        self._model = cast("Contextual", load_weights(self._weights.path, base))
        self._model.eval().requires_grad_(requires_grad=False)
        reader = self._model.reader
        if reader.can_merge and reader.merge_bytes <= _MERGE_BYTES:
            reader.merge()
        self._reader = ChunkReader(self._model)

    def _block_residuals(self, blocks: Blocks, means: Floats) -> Iterator[Tensor]:
        at = 0
        for states in self._reader.read(blocks):  # [k, 32, d]
            part = torch.from_numpy(means[at : at + len(states)]).to(states.device)
            yield self._model.head(states.float(), part)
            at += len(states)

    def _parent_residuals(self, lod: int, rows: Floats, means: Floats) -> Iterator[Tensor]:
        for at in range(0, len(rows), _STEP):
            part = torch.from_numpy(rows[at : at + _STEP].copy()).to(self._model.device)
            mean = torch.from_numpy(means[at : at + _STEP]).to(self._model.device)
            yield self._model.parent_residual(part, lod, mean)


def open_gistnet(
    argument: str = "", *, gist_slots: int = 1, package: str = "", name: str = "gistnet"
) -> GistNetEncoder:
    """Open `gist="gistnet:<file or folder>"`.

    Args:
        argument: a weight file, or a folder with `gistnet.safetensors`.
        gist_slots: S.
        package: instead of an argument, a package that ships weights.
        name: of the encoder.

    Raises:
        ConfigError: no weights named, or slots that were not trained.
        ModelError: weights that cannot be read.
    """
    return GistNetEncoder(find_weights("gistnet", argument, package, gist_slots), gist_slots, name)


def open_contextual(
    argument: str = "", *, gist_slots: int = 1, package: str = "", name: str = "contextual"
) -> ContextualEncoder:
    """Open `gist="contextual:<file or folder>"`; arguments and errors as `open_gistnet`."""
    weights = find_weights("contextual", argument, package, gist_slots)
    return ContextualEncoder(weights, gist_slots, name)
