"""The devices of a run: one CPU, one GPU, or one of several processes that `accelerate` started.

The encoder is small and its gradients are few, so they are averaged in one message after the
backward pass; the base is frozen and every process has its own.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

__all__ = ["Fleet"]


class Fleet:
    """This process's device and its fellows.

    Args:
        device: "auto" takes what `accelerate` finds; "cpu" stays on the CPU.

    Attributes:
        rank: number of this process.
        size: number of processes.
    """

    def __init__(self, device: str = "auto") -> None:
        self._accelerator = Accelerator(cpu=device == "cpu")
        self.rank: int = self._accelerator.process_index
        self.size: int = self._accelerator.num_processes

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self._accelerator.device
        return device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return bool(self._accelerator.is_main_process)

    def share_of(self, batch: int) -> int:
        """Return how many windows of a batch this process takes; at least one."""
        return max(1, batch // self.size)

    def autocast(self, dtype: torch.dtype) -> AbstractContextManager[Any]:
        """Return the context in which the encoder runs."""
        if dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype)

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients by their mean over all processes."""
        if self.size == 1:
            return
        grads = [one.grad for one in parameters if one.grad is not None]
        flat = torch.cat([one.flatten() for one in grads])
        for grad, part in zip(
            grads, self.mean(flat).split([one.numel() for one in grads]), strict=True
        ):
            grad.copy_(part.view_as(grad))

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes."""
        if self.size == 1:
            return values
        found: Tensor = self._accelerator.reduce(values, reduction="mean")
        return found

    def from_main(self, value: float) -> float:
        """Return the main process's number everywhere: clocks differ, decisions must not."""
        if self.size == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64, device=self.device)
        return float(broadcast(told)[0])

    def gather(self, value: object) -> list[Any]:
        """Return what every process gave, in their order."""
        if self.size == 1:
            return [value]
        found: list[Any] = gather_object([value])
        return found

    def wait(self) -> None:
        """Wait for all processes."""
        self._accelerator.wait_for_everyone()
