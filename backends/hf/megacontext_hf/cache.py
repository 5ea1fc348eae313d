"""Keys and values in addressed slots, behind the interface of transformers' cache.

`update` scatters new rows into the slots named before the forward pass and hands back what
attention may see. It decides nothing: which slots are live is the window's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CacheShape", "SlotCache"]


@attrs.frozen
class CacheShape:
    """Sizes of the keys and values of one model."""

    n_layers: int
    n_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device


class SlotCache:
    """Preallocated buffers of one window.

    Attributes:
        keys: [L, 1, H, capacity, d], turned to the rows' present positions.
        base_keys: the same as first written; filled in when a row is first turned.
        values: [L, 1, H, capacity, d].
    """

    is_compileable = False  # part of the interface: our views change length with every token

    def __init__(self, shape: CacheShape, capacity: int) -> None:
        def buffer(width: int) -> Tensor:
            size = (shape.n_layers, 1, shape.n_heads, capacity, width)
            return torch.zeros(size, dtype=shape.dtype, device=shape.device)

        self.keys = buffer(shape.key_dim)
        self.base_keys = buffer(shape.key_dim)
        self.values = buffer(shape.value_dim)
        self._layers = list(zip(self.keys, self.values, strict=True))
        self._capacity = capacity
        self._target: slice | Tensor = slice(0, 0)
        self._visible: int | Tensor = 0
        self._n_visible = 0
        self._n_new = 0

    def aim(self, target: slice | Tensor, n_new: int, visible: int | Tensor) -> None:
        """Say where the next forward pass writes and what it sees.

        Args:
            target: slots of the new rows in row order, a slice where they are consecutive.
            n_new: how many.
            visible: number of leading slots, or int64[n] slots where live ones are not packed.
        """
        self._target, self._n_new, self._visible = target, n_new, visible
        self._n_visible = visible if isinstance(visible, int) else len(visible)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Take keys and values [1, H, n, d] of a layer, return those attention sees."""
        keys, values = self._layers[layer_idx]
        keys[:, :, self._target] = key_states
        values[:, :, self._target] = value_states
        if isinstance(self._visible, int):
            return keys[:, :, : self._visible], values[:, :, : self._visible]
        return keys.index_select(2, self._visible), values.index_select(2, self._visible)

    def get_seq_length(self, _layer_idx: int = 0) -> int:
        """Return the number of rows seen before those of this pass."""
        return self._n_visible - self._n_new

    def get_query_offset(self, _layer_idx: int = 0) -> int:
        """Return where transformers would count the new rows from."""
        return self._n_visible - self._n_new

    def get_mask_sizes(self, _query_length: object, _layer_idx: int = 0) -> tuple[int, int]:
        """Return length and offset of the keys a mask would span."""
        return self._n_visible, 0

    def get_max_length(self, _layer_idx: int | None = None) -> int:
        """Return the capacity."""
        return self._capacity

    get_max_cache_shape = get_max_length  # its name in earlier releases of transformers 5
