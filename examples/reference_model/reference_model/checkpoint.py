"""All that training is made of, in one safetensors file: a run that stops goes on bit for bit.

Weights, both moments of AdamW, every process's place in the data and random state, step, clock and
history. The file itself is `megacontext_gistnet`'s; what goes into it is said here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import torch

from megacontext_gistnet.training.checkpoint import (
    Checkpoint,
    read_checkpoint,
    refuse_other_run,
    write_checkpoint,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

__all__ = ["Progress", "load_checkpoint", "save_checkpoint"]


@attrs.define
class Progress:
    """How far a run is.

    Attributes:
        step: steps taken.
        seconds: time spent training, earlier goes included.
        tokens: tokens read, of all processes.
        history: one row per report: step, seconds, tokens, loss, rate, and held_out where it was
            measured.
    """

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    history: list[dict[str, Any]] = attrs.field(factory=list)


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    samplers: list[dict[str, str]],
    preset: str,
) -> None:
    """Write a checkpoint; the old one stays until the new one is whole.

    Args:
        path: of the file.
        model: unwrapped.
        optimizer: its AdamW.
        progress: how far it is.
        samplers: the state of every process's sampler, by rank.
        preset: the preset's name.
    """
    tensors = {f"model.{name}": tensor.detach() for name, tensor in model.named_parameters()}
    names = [name for name, _ in model.named_parameters()]
    for parameter_name, state in zip(names, _states(model, optimizer), strict=True):
        for key, value in state.items():
            tensors[f"adamw.{key}.{parameter_name}"] = value.detach()
    tensors["random"] = torch.get_rng_state()
    state = {"progress": attrs.asdict(progress), "samplers": samplers}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(path, Checkpoint({"preset": preset}, state, tensors))


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, preset: str
) -> tuple[Progress, list[dict[str, str]]]:
    """Put a checkpoint into a model and its optimizer; return progress and samplers' states.

    Raises:
        ConfigError: there is no checkpoint, or it is of another preset.
        CorruptError: it is damaged.
    """
    found = read_checkpoint(path)
    refuse_other_run(found.identity, {"preset": preset})
    tensors = dict(found.tensors)
    _fill(model, optimizer, tensors)
    torch.set_rng_state(tensors["random"])
    return Progress(**found.state["progress"]), found.state["samplers"]


def _states(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[str, Tensor]]:
    """Return AdamW's state of each parameter, in the model's order; empty before the first step."""
    return [optimizer.state.get(parameter, {}) for parameter in model.parameters()]


def _fill(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    is_fused = bool(optimizer.param_groups[0]["fused"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
            state = {
                key: tensors[f"adamw.{key}.{name}"]
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"adamw.{key}.{name}" in tensors
            }
            if state:
                optimizer.state[parameter] = {
                    # AdamW counts steps on the CPU, unless it is fused.
                    key: value if key == "step" and not is_fused else value.to(parameter.device)
                    for key, value in state.items()
                }
