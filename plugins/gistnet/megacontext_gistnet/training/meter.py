"""Sums of figures between two lines of the journal, kept on the device until they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

__all__ = ["Meter"]

_RATIO = ("gain", "lost")


class Meter:
    """Adds up scalars; nothing is moved off the device before `read`."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self.n_steps = 0

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """Take in the figures of one step."""
        for name, value in figures.items():
            new = value.detach().float()
            held = self._sums.get(name)
            self._sums[name] = new.clone() if held is None else held + new
        self.n_steps += 1

    def read(self, mean: Callable[[Tensor], Tensor] = lambda sums: sums) -> dict[str, float]:
        """Return means per step, and R as the ratio of its sums; one transfer for all of them.

        Args:
            mean: takes the mean of a tensor over all processes.
        """
        if not self._sums:
            return {}
        sums = mean(torch.stack(list(self._sums.values())))
        values = dict(zip(self._sums, sums.tolist(), strict=True))
        gain, lost = (values.pop(name, 0.0) for name in _RATIO)
        found = {name: value / self.n_steps for name, value in values.items()}
        return found | {"recovery": gain / lost if lost > 0 else 0.0}

    def clear(self) -> None:
        """Begin anew."""
        self._sums, self.n_steps = {}, 0

    def tensors(self) -> dict[str, Tensor]:
        """Return the sums for a checkpoint."""
        return {f"meter/{name}": value for name, value in self._sums.items()}

    def load(self, tensors: Mapping[str, Tensor], n_steps: int, device: torch.device) -> None:
        """Go on with the sums of a checkpoint."""
        self._sums = {
            name.removeprefix("meter/"): value.to(device)
            for name, value in tensors.items()
            if name.startswith("meter/")
        }
        self.n_steps = n_steps
