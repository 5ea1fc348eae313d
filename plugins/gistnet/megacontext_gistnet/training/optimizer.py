"""The optimiser over named parameters, one group for each name of a stage's learning rates.

Matrices descend by Muon (Jordan et al. 2024), whose update has the same size in every direction of
a matrix; vectors, queries and embeddings by AdamW. Updates of both have the same RMS for the same
learning rate ("Muon is scalable for LLM training", Liu et al. 2025, section 2.2), so one rate per
group is enough. It knows which parameter learns when, clips, and gives its moments as tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from megacontext_sdk.errors import CorruptError, InvariantError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from megacontext_gistnet.nets.model import GistModel
    from megacontext_gistnet.training.objective import Extras
    from megacontext_gistnet.training.recipe import Recipe, Stage

__all__ = ["Optimizer"]

_MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
_MATRICES = ("weight", "down", "up")
"""Last names of what maps vectors to vectors; other 2-D parameters are lists of vectors."""

_WATCHED_STEPS = 4  # low-rank factors learn one after the other: the last moves in the third step


class Optimizer:
    """Muon and AdamW over an encoder and what trains with it.

    Args:
        model: the encoder.
        extras: parameters of auxiliary losses; group "extra".
        recipe: which of the two matrices descend by, betas, decay, clip.

    Raises:
        InvariantError: a parameter of the encoder is not in the optimiser.
    """

    def __init__(self, model: GistModel, extras: Extras, recipe: Recipe) -> None:
        self._extras = extras
        self._parameters: dict[str, nn.Parameter] = {}
        self._group_of: dict[str, str] = {}
        named = [(f"model/{name}", one, str(group)) for name, one, group in model.trainable()]
        named += [(f"extras/{name}", one, "extra") for name, one in extras.named_parameters()]
        vectors: dict[str, list[nn.Parameter]] = {}
        matrices: dict[str, list[nn.Parameter]] = {}
        for name, parameter, group in named:
            self._parameters[name] = parameter
            self._group_of[name] = group
            is_matrix = recipe.matrices == "muon" and _is_matrix(name, parameter)
            (matrices if is_matrix else vectors).setdefault(group, []).append(parameter)
        self._inner: list[torch.optim.Optimizer] = []
        if vectors:
            self._inner.append(
                torch.optim.AdamW(
                    _groups(vectors), betas=recipe.betas, weight_decay=recipe.weight_decay
                )
            )
        if matrices:
            self._inner.append(
                torch.optim.Muon(
                    _groups(matrices),
                    weight_decay=recipe.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        self._inner_of = {
            id(one): inner
            for inner in self._inner
            for group in inner.param_groups
            for one in group["params"]
        }
        self._clip = recipe.clip
        self._seen: set[str] = set()
        self._watched = 0
        self._wanted: frozenset[str] = frozenset()
        self._require_all(model)

    @property
    def learning(self) -> list[nn.Parameter]:
        """The parameters that learn in this stage."""
        return [one for one in self._parameters.values() if one.requires_grad]

    @property
    def is_watching(self) -> bool:
        """Whether the first steps of a stage are not over yet."""
        return self._watched < _WATCHED_STEPS

    def enter(self, stage: Stage) -> None:
        """Let a stage's groups learn, and no others."""
        used = {f"extras/{name}" for name, _ in self._extras.parameters_for(stage.losses)}
        for name, parameter in self._parameters.items():
            learns = self._group_of[name] in stage.lr
            learns &= not name.startswith("extras/") or name in used
            parameter.requires_grad_(learns)
            parameter.grad = None
        self._watched, self._seen = 0, set()
        self._wanted = frozenset(n for n, one in self._parameters.items() if one.requires_grad)

    def step(self, stage: Stage, factor: float) -> Tensor:
        """Clip, descend, forget the gradients; return the norm before clipping, a scalar.

        Raises:
            InvariantError: after the first steps of a stage a parameter that should learn never
                had a gradient.
        """
        self._watch(stage)
        norm = torch.nn.utils.clip_grad_norm_(self.learning, self._clip)
        for inner in self._inner:
            for group in inner.param_groups:
                group["lr"] = stage.lr.get(group["name"], 0.0) * factor
            inner.step()
            inner.zero_grad(set_to_none=True)
        return norm.detach()

    def rate(self, stage: Stage, factor: float) -> float:
        """Return the highest learning rate now."""
        return factor * max(stage.lr.values())

    # -- checkpoints ----------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and moments by name."""
        found = {name: one.detach() for name, one in self._parameters.items()}
        for name, parameter in self._parameters.items():
            state = self._state_of(parameter)
            found |= {f"moments/{name}/{key}": state[key] for key in _MOMENTS if key in state}
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take parameters and moments of a checkpoint.

        Raises:
            CorruptError: one is missing or has another shape.
        """
        for name, parameter in self._parameters.items():
            saved = tensors.get(name)
            if saved is None or saved.shape != parameter.shape:
                raise CorruptError(f"the checkpoint lacks {name}, or has it in another shape")
            with torch.no_grad():
                parameter.copy_(saved)
            device = parameter.device
            self._state_of(parameter).update(
                {
                    key: tensors[f"moments/{name}/{key}"].to("cpu" if key == "step" else device)
                    for key in _MOMENTS
                    if f"moments/{name}/{key}" in tensors
                }
            )

    def watched(self) -> dict[str, object]:
        """Return what the watch of the first steps has seen, as plain values."""
        return {"steps": self._watched, "seen": sorted(self._seen)}

    def watch_on(self, steps: int, seen: list[str]) -> None:
        """Go on watching where `watched` was."""
        self._watched, self._seen = steps, set(seen)

    def _watch(self, stage: Stage) -> None:
        if not self.is_watching:
            return
        self._watched += 1
        for name in self._wanted - self._seen:
            grad = self._parameters[name].grad
            if grad is not None and bool((grad != 0).any()):
                self._seen.add(name)
        missing = sorted(self._wanted - self._seen)
        if missing and not self.is_watching:
            raise InvariantError(
                f"{len(missing)} parameters had no gradient in the first {_WATCHED_STEPS} steps of "
                f"stage {stage.name!r}, the first is {missing[0]}; take their group out of the "
                "stage's lr if they are not meant to learn"
            )

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return the moments of a parameter, to read or to fill."""
        inner = self._inner_of[id(parameter)]
        state: dict[str, Tensor] = inner.state[parameter]
        return state

    def _require_all(self, model: GistModel) -> None:
        held = self._inner_of
        missing = [name for name, one in model.named_parameters() if id(one) not in held]
        if missing:
            raise InvariantError(
                f"{missing[0]} of the encoder is not in the optimiser and would never learn; "
                "`trainable` of the model must list every parameter"
            )


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and name.rpartition(".")[2] in _MATRICES


def _groups(members: Mapping[str, list[nn.Parameter]]) -> list[dict[str, object]]:
    return [{"params": ones, "name": group} for group, ones in members.items()]
