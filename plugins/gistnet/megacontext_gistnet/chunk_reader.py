"""How a contextual encoder reads a history: in windows cut at fixed places, and no token twice.

The history is cut into aligned chunks. A chunk is read together with the raw tokens of its prefix,
so a block's states are a function of where it stands and of the text up to its end. A chunk that is
not complete yet is read on where reading stopped: its keys and values are kept until the next call,
and used if the text before is the very same.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import attrs
import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor
    from transformers import Cache

    from megacontext_gistnet.nets.config import ContextualConfig
    from megacontext_gistnet.nets.contextual import Contextual
    from megacontext_sdk.contracts.arrays import Ids
    from megacontext_sdk.contracts.gist import Blocks

__all__ = ["ChunkReader", "Window", "windows_of"]

_BLOCK = 32
_AT_ONCE = {"cpu": 1}  # windows per pass: a CPU's cache is full with one
_AT_ONCE_ELSEWHERE = 8


@attrs.frozen(eq=False)
class Window:
    """What is read for some blocks of one chunk.

    Attributes:
        token_ids: from the start of the prefix to the end of the last block wanted.
        skip: how many of them stand before the first block wanted.
        is_open: the chunk goes on after them.
    """

    token_ids: Ids
    skip: int
    is_open: bool


@attrs.frozen(eq=False)
class _Read:
    """An open chunk as far as it was read: its tokens, their keys and values."""

    token_ids: Ids
    past: Cache


def windows_of(blocks: Blocks, config: ContextualConfig) -> list[Window]:
    """Return the windows in which these blocks are read, in order."""
    prefix, chunk = config.prefix_tokens, config.chunk_tokens
    history = np.concatenate([blocks.left, blocks.token_ids.reshape(-1)])
    first = blocks.first * _BLOCK
    origin, end = first - len(blocks.left), first + blocks.token_ids.size
    found = []
    for start in range(first // chunk * chunk, end, chunk):
        opening = max(0, start - prefix)
        wanted, stop = max(first, start), min(end, start + chunk)
        ids = history[opening - origin : stop - origin]
        found.append(Window(ids, wanted - opening, stop < start + chunk))
    return found


class ChunkReader:
    """Reads blocks through a model's frozen layers.

    Args:
        model: the encoder, in evaluation mode.
    """

    def __init__(self, model: Contextual) -> None:
        self._model = model
        self._at_once = _AT_ONCE.get(model.device.type, _AT_ONCE_ELSEWHERE)
        self._open: _Read | None = None

    def read(self, blocks: Blocks) -> Iterator[Tensor]:
        """Yield the states [k, 32, d] of blocks in order, some at a time."""
        windows = windows_of(blocks, self._model.config)
        for (_, skip, is_open), group in groupby(windows, _shape):
            same = list(group)
            if is_open or self._goes_on(same[0]):
                for window in same:
                    yield _in_blocks(self._read_on(window))
                continue
            for at in range(0, len(same), self._at_once):
                ids = np.stack([window.token_ids for window in same[at : at + self._at_once]])
                yield _in_blocks(self._model.states(self._tensor(ids))[:, skip:])

    def _read_on(self, window: Window) -> Tensor:
        """Return the states [1, T, d] of a window, from where it was read before if it was."""
        before = self._open
        if before is not None and self._goes_on(window):
            past, n_read = before.past, len(before.token_ids)
        else:
            past, n_read = self._model.reader.new_past(), 0
        self._open = None  # until the pass is complete
        ids = self._tensor(window.token_ids[None, n_read:])
        states = self._model.states(ids, past)
        if window.is_open:
            self._open = _Read(window.token_ids.copy(), past)
        return states[:, window.skip - n_read :]

    def _goes_on(self, window: Window) -> bool:
        """Tell whether a window begins with all that was read of the open chunk."""
        if self._open is None:
            return False
        seen = self._open.token_ids
        return len(seen) <= window.skip and np.array_equal(seen, window.token_ids[: len(seen)])

    def _tensor(self, token_ids: Ids) -> Tensor:
        return torch.from_numpy(token_ids.astype(np.int64)).to(self._model.device)


def _shape(window: Window) -> tuple[int, int, bool]:
    return len(window.token_ids), window.skip, window.is_open


def _in_blocks(states: Tensor) -> Tensor:
    """Cut states [B, T, d] into blocks [B * T / 32, 32, d]."""
    return states.reshape(-1, _BLOCK, states.shape[-1])
