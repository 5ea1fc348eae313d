"""Choosing tokens with transformers' own logits processors, so the options mean what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from megacontext_hf.output import TensorOutput
from megacontext_sdk.contracts.model import Sampler
from megacontext_sdk.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from megacontext_sdk.contracts.model import SamplingOptions, WindowOutput

__all__ = ["TorchSampler"]


class TorchSampler(Sampler):
    """Greedy at temperature 0, else temperature, top-k and top-p in transformers' order.

    Args:
        options: what to do.
        device: where the logits live; the generator belongs to this sampler alone.

    Raises:
        ConfigError: an option out of range.
    """

    def __init__(self, options: SamplingOptions, device: torch.device) -> None:
        _check(options)
        self._is_greedy = options.temperature == 0.0
        self._processors = _processors(options)
        self._generator = torch.Generator(device=device)
        if options.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(options.seed)

    def sample(self, output: WindowOutput) -> int:
        """Choose a token from logits [vocab].

        Raises:
            ModelError: the logits are not numbers.
        """
        logits = _tensor(output)
        if self._is_greedy:
            token = int(logits.argmax())  # the place of a NaN, if there is one
            if bool(logits[token].isnan()):
                raise _not_a_number()
            return token
        if bool(logits.isnan().any()):
            raise _not_a_number()
        with torch.inference_mode():
            scores = self._processors(None, logits.float()[None])  # [1, vocab]
            chances = scores.softmax(dim=-1)
            return int(torch.multinomial(chances, 1, generator=self._generator))


def _processors(options: SamplingOptions) -> LogitsProcessorList:
    processors = LogitsProcessorList()
    if options.temperature not in {0.0, 1.0}:
        processors.append(TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        processors.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1.0:
        processors.append(TopPLogitsWarper(options.top_p))
    return processors


def _check(options: SamplingOptions) -> None:
    legal = {
        "temperature": options.temperature >= 0.0,
        "top_k": options.top_k >= 0,
        "top_p": 0.0 < options.top_p <= 1.0,
    }
    for name, is_legal in legal.items():
        if not is_legal:
            value = getattr(options, name)
            raise ConfigError(f"{name}={value} is out of range", field=name, value=value)


def _tensor(output: WindowOutput) -> Tensor:
    if isinstance(output, TensorOutput):
        return output.tensor
    return torch.from_numpy(output.numpy())


def _not_a_number() -> ModelError:
    return ModelError(
        "the model returned logits that are not numbers; check its weights, or use dtype='float32'"
    )
