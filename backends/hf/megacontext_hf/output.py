"""What a window returns: a tensor that stays on its device until somebody asks for numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megacontext_sdk.contracts.model import WindowOutput

if TYPE_CHECKING:
    from torch import Tensor

    from megacontext_sdk.contracts.arrays import Floats

__all__ = ["TensorOutput"]


class TensorOutput(WindowOutput):
    """Logits or hidden states as a torch tensor, for the adapter's own sampler."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def numpy(self) -> Floats:
        """Return float32 on the CPU; may share memory with `tensor`."""
        array: Floats = self.tensor.float().cpu().numpy()
        return array
