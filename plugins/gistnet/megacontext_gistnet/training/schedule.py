"""The clock of a run: which stage it is in, which learning rate holds, when a stage has ended.

It knows shares of a run, losses and validation figures as plain numbers, and no tensors.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from megacontext_gistnet.training.recipe import Recipe, Stage

__all__ = ["Plateau", "Schedule", "Verdict"]


@attrs.define
class Plateau:
    """Tells when a loss stops falling, and when validation rises.

    Attributes:
        least: share by which the loss must fall over `steps`; 0 asks for nothing.
        steps: length of the two stretches that are compared.
        rises: how many rises in a row end a stage.
        margin: a validation is a rise only if it is this far above the best: figures of few windows
            rise and fall by chance.
    """

    least: float
    steps: int
    rises: int
    margin: float = 0.0
    _before: float = math.nan
    _sum: float = 0.0
    _n: int = 0
    _is_flat: bool = False
    _last: float = math.nan
    _best: float = math.inf
    _n_rises: int = 0

    def step(self, loss: float, n_steps: int = 1) -> None:
        """Take in the mean loss of some steps."""
        self._sum += loss * n_steps
        self._n += n_steps
        if self._n < self.steps:
            return
        mean = self._sum / self._n
        self._is_flat = self.least > 0 and mean > self._before * (1 - self.least)
        self._before, self._sum, self._n = mean, 0.0, 0

    def validated(self, loss: float) -> None:
        """Take in a validation figure, lower is better."""
        is_rise = loss > self._last and loss > self._best + self.margin
        self._n_rises = self._n_rises + 1 if is_rise else 0
        self._last, self._best = loss, min(loss, self._best)

    @property
    def is_flat(self) -> bool:
        """Whether the loss fell by less than `least` from one stretch to the next."""
        return self._is_flat

    @property
    def is_rising(self) -> bool:
        """Whether validation rose `rises` times in a row."""
        return self._n_rises >= self.rises

    def state(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return attrs.asdict(self)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Self:
        """Return what `state` described."""
        return cls(**{name.removeprefix("_"): value for name, value in state.items()})


Verdict = str
"""Why a stage ended: "time", "plateau" or "rises"; "" while it goes on."""


class Schedule:
    """Where a run is.

    Args:
        recipe: the curriculum.

    Attributes:
        index: of the stage.
        begun: share of the run that was over when the stage began.
        steps_in_stage: steps since.
        plateau: what watches the stage's losses.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.index = 0
        self.begun = 0.0
        self.steps_in_stage = 0
        self.plateau = self._watch()

    @property
    def stage(self) -> Stage:
        """The stage now."""
        return self._recipe.stages[self.index]

    @property
    def is_last(self) -> bool:
        """Whether no stage follows."""
        return self.index + 1 == len(self._recipe.stages)

    def progress(self, done: float) -> float:
        """Return the share of the stage that is over, given that of the run.

        What an earlier stage left over, because it ended early, goes to the later ones by share.
        """
        ahead = [stage.share for stage in self._recipe.stages[self.index :]]
        end = self.begun + (1.0 - self.begun) * ahead[0] / sum(ahead)
        if end <= self.begun:
            return 1.0
        return min(1.0, max(0.0, (done - self.begun) / (end - self.begun)))

    def factor(self, done: float) -> float:
        """Return what peak learning rates are multiplied by: warm-up, then half a cosine."""
        stage = self.stage
        cosine = 0.5 * (1.0 + math.cos(math.pi * self.progress(done)))
        decayed = stage.lr_end + (stage.lr_start - stage.lr_end) * cosine
        return decayed * min(1.0, (self.steps_in_stage + 1) / self._recipe.warmup_steps)

    def verdict(self, done: float) -> Verdict:
        """Return why the stage is over, or nothing."""
        if self.plateau.is_rising:
            return "rises"
        if self.plateau.is_flat:
            return "plateau"
        return "time" if self.progress(done) >= 1.0 else ""

    def advance(self, done: float) -> None:
        """Go on to the next stage."""
        self.index += 1
        self.begun = done
        self.steps_in_stage = 0
        self.plateau = self._watch()

    def state(self) -> dict[str, Any]:
        """Return everything but the recipe as plain values."""
        return {
            "index": self.index,
            "begun": self.begun,
            "steps_in_stage": self.steps_in_stage,
            "plateau": self.plateau.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was."""
        self.index, self.begun = state["index"], state["begun"]
        self.steps_in_stage = state["steps_in_stage"]
        self.plateau = Plateau.of(state["plateau"])

    def _watch(self) -> Plateau:
        stage = self.stage
        return Plateau(stage.plateau, stage.plateau_steps, stage.rises, stage.margin)
