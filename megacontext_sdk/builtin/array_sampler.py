"""Choosing the next token from logits in numpy: greedy, or temperature, top-k and top-p.

The order and meaning of the options are transformers'. Knows no model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.contracts.model import Sampler, WindowOutput
from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Floats
    from megacontext_sdk.contracts.model import SamplingOptions

__all__ = ["ArrayOutput", "ArraySampler"]


class ArrayOutput(WindowOutput):
    """Logits or hidden states that are numpy already."""

    def __init__(self, array: Floats) -> None:
        self._array = array

    def numpy(self) -> Floats:
        """Return the array itself, float32."""
        return self._array


class ArraySampler(Sampler):
    """Samples with a numpy generator of its own.

    Raises:
        ConfigError: a temperature below 0, a top_k below 0 or a top_p outside (0, 1].
    """

    def __init__(self, options: SamplingOptions) -> None:
        legal = {
            "temperature": options.temperature >= 0.0,
            "top_k": options.top_k >= 0,
            "top_p": 0.0 < options.top_p <= 1.0,
        }
        for name, is_legal in legal.items():
            if not is_legal:
                value = getattr(options, name)
                raise ConfigError(f"{name}={value} is out of range", field=name, value=value)
        self._options = options
        self._random = np.random.default_rng(options.seed)

    def sample(self, output: WindowOutput) -> int:
        """Choose a token from logits float32[vocab]."""
        logits = output.numpy().astype(np.float64)
        if self._options.temperature == 0.0:
            return int(np.argmax(logits))
        logits /= self._options.temperature
        order = np.argsort(-logits, kind="stable")[: self._options.top_k or None]
        chances = np.exp(logits[order] - logits[order[0]])
        chances /= chances.sum()
        # A token stays if the ones before it do not yet fill top_p.
        chances[np.cumsum(chances) - chances >= self._options.top_p] = 0.0
        return int(self._random.choice(order, p=chances / chances.sum()))
