"""Exact re-rotation of cached keys: `K(p') = Rot(p' - p_base) K_base`, from the base copy.

Angles are rounded to float32 once per position, as the models round them, and only their
difference is taken in float64: a rotated key equals the key the model itself would have written.
Knows no model and no slots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Rotation"]


@attrs.frozen(eq=False)
class Rotation:
    """How the layers of one model rotate their keys.

    Attributes:
        frequencies: float32[L or 1, rotary_dim / 2] on the model's device, one row if all layers
            rotate alike; a row of zeros is a layer without rotation.
        is_interleaved: pairs are (0, 1), (2, 3), ... instead of (0, r/2), (1, r/2 + 1), ...
    """

    frequencies: Tensor
    is_interleaved: bool = False

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that are rotated; the ones behind them pass unchanged."""
        return 2 * self.frequencies.shape[-1]

    def rotate(self, base: Tensor, source: Tensor, target: Tensor, out: Tensor) -> None:
        """Write keys turned from `source` to `target` positions into `out`.

        Args:
            base: [L, H, n, d], keys as written at `source`.
            source: int64[n].
            target: int64[n].
            out: [L, H, n, d], must not overlap `base`.
        """
        cos, sin = self._turns(source, target)
        width = self.rotary_dim
        pairs = self._pairs(base[..., :width]), self._pairs(out[..., :width])
        if base.dtype == torch.float32:
            _turn(*pairs[0], cos, sin, *pairs[1])
        else:
            first, second = (half.float() for half in pairs[0])
            turned = torch.empty_like(first), torch.empty_like(second)
            _turn(first, second, cos, sin, *turned)
            for half, value in zip(pairs[1], turned, strict=True):
                half.copy_(value)
        if width < base.shape[-1]:
            out[..., width:] = base[..., width:]

    def _turns(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin of the turns, float32[L or 1, 1, n, rotary_dim / 2]."""
        frequencies = self.frequencies[:, None, None, :]
        before, after = (p.float()[None, None, :, None] * frequencies for p in (source, target))
        # The remainder is exact enough in float64, and small enough for float32 functions.
        turn = (after.double() - before.double()).remainder_(2 * torch.pi).float()
        return turn.cos(), turn.sin()

    def _pairs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return views of first and second coordinates, each [..., rotary_dim / 2]."""
        if self.is_interleaved:
            return x[..., 0::2], x[..., 1::2]
        half = x.shape[-1] // 2
        return x[..., :half], x[..., half:]


def _turn(x: Tensor, y: Tensor, cos: Tensor, sin: Tensor, new_x: Tensor, new_y: Tensor) -> None:
    """Rotate the pairs (x, y) into new_x, new_y; all [L, H, n, rotary_dim / 2]."""
    torch.mul(x, cos, out=new_x).addcmul_(y, sin, value=-1)
    torch.mul(y, cos, out=new_y).addcmul_(x, sin)
