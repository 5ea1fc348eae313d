"""The loop: draw windows and a layout, descend, log, validate, write checkpoints, change stages.

Everything random comes from two generators whose states are in every checkpoint, so a run that was
killed and resumed ends at the same bits as one that was not (given a number of steps). It opens no
model and reads no text; `run.py` puts the parts together.
"""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs
import numpy as np
import torch

from megacontext_gistnet.training.checkpoint import Checkpoint, write_checkpoint
from megacontext_gistnet.training.layouts import Layout, draw_lods
from megacontext_gistnet.training.meter import Meter
from megacontext_gistnet.training.recipe import recipe_bytes
from megacontext_gistnet.training.schedule import Schedule
from megacontext_gistnet.training.validation import Found
from megacontext_sdk.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from megacontext_gistnet.training.fleet import Fleet
    from megacontext_gistnet.training.journal import Journal
    from megacontext_gistnet.training.objective import Objective
    from megacontext_gistnet.training.optimizer import Optimizer
    from megacontext_gistnet.training.recipe import Recipe
    from megacontext_sdk.contracts.arrays import Indices

__all__ = ["Limits", "Sampler", "Trainer"]

_IN_ROW: Final = {"nll": "train/loss_at_h", **{
    name: f"quality/{name}" for name in ("gist_norm_ratio", "gist_diversity")
}}  # fmt: skip


class Sampler(Protocol):
    """What draws windows."""

    def next(self, n: int, length: int) -> Indices:
        """Return int64[n, length]."""

    def state_dict(self) -> dict[str, str]:
        """Return what `load_state_dict` needs."""

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Go on from a state."""


class Watcher(Protocol):
    """Whom the loop tells how far it is."""

    def advance(self, done: float, row: Mapping[str, Any]) -> None:
        """Take in the share of the run that is over and a line of metrics."""


@attrs.frozen(kw_only=True)
class Limits:
    """How long a run is, and how often it does what besides learning.

    Attributes:
        steps, minutes: length; exactly one is given.
        log_every, validate_every: in steps.
        checkpoint_every: in steps; 0: by the clock, every `checkpoint_minutes`.
    """

    steps: int | None = None
    minutes: float | None = None
    log_every: int = 25
    validate_every: int = 250
    checkpoint_every: int = 0
    checkpoint_minutes: float = 5.0


class Trainer:
    """One run.

    Args:
        recipe: what decides the numbers.
        limits: how long.
        objective: the loss, with the encoder in it.
        optimizer: over the encoder.
        sampler: of training windows, this process's own.
        validations: by level, what measures the encoder.
        fleet: this process and its fellows.
        journal: where metrics go; None in processes other than the main one.
        folder: of the run.
        identity: of the run, for its checkpoints.
        seed: of the layouts.
        watcher: told about progress.
    """

    def __init__(
        self,
        *,
        recipe: Recipe,
        limits: Limits,
        objective: Objective,
        optimizer: Optimizer,
        sampler: Sampler,
        validations: Mapping[int, Callable[[], Found]],
        fleet: Fleet,
        journal: Journal | None,
        folder: Path,
        identity: Mapping[str, str],
        seed: int,
        watcher: Watcher,
    ) -> None:
        self.recipe, self.limits = recipe, limits
        self._objective, self._optimizer, self._sampler = objective, optimizer, sampler
        self._validations, self._fleet, self._journal = validations, fleet, journal
        self._path = folder / "checkpoint.safetensors"
        self._identity, self._watcher = identity, watcher
        self._rng = np.random.Generator(np.random.PCG64([seed, fleet.rank, 1]))
        self.schedule = Schedule(recipe)
        self._meter = Meter()
        self.step = 0
        self._seconds_before = 0.0
        self._begun = time.monotonic()
        self._learned_seconds, self._learned_tokens = 0.0, 0
        self._best: _Best | None = None
        self.found: dict[int, Found] = {}
        self._validated_step = 0
        self.wants_stop = False
        self._optimizer.enter(self.schedule.stage)

    def look(self) -> Found:
        """Validate before training, note it, and return what was found."""
        self._begun = time.monotonic()
        found = self._validations[self.schedule.stage.lod]()
        self._write(found.row())
        return found

    # -- the loop -------------------------------------------------------------------------------

    def run(self) -> bool:
        """Train to the end; False if `wants_stop` was set before.

        Raises:
            ModelError: the loss is no number any more.
        """
        self._begun = time.monotonic()
        saved = self._seconds_before
        while not self._fleet.from_main(float(self.wants_stop)):
            done = self.done
            if done >= 1.0 or self.schedule.verdict(done):
                self._end_stage()
                if done >= 1.0 or self.schedule.is_last:
                    self.save(is_finished=True)
                    return True
                self._next_stage(done)
                continue
            self._learn(done)
            self._by_the_way()
            if self._is_checkpoint_due(saved):
                self.save()
                saved = self.seconds
        self.save()
        return False

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before a resumption included."""
        return self._seconds_before + time.monotonic() - self._begun

    @property
    def done(self) -> float:
        """Share of the run that is over."""
        if self.limits.steps is not None:
            return self.step / self.limits.steps
        return self._fleet.from_main(self.seconds / 60.0 / (self.limits.minutes or math.inf))

    def _learn(self, done: float) -> None:
        begun = time.monotonic()
        stage = self.schedule.stage
        n = self._fleet.share_of(self.recipe.batch_of(stage))
        ids, layout = self._drawn(n)
        outcome = self._objective(ids, layout, stage.losses)
        outcome.loss.backward()
        self._fleet.average(self._optimizer.learning)
        norm = self._optimizer.step(stage, self.schedule.factor(done))
        self._meter.add({**outcome.figures, "loss": outcome.loss.detach(), "grad_norm": norm})
        self._learned_tokens += ids.numel() * self._fleet.size
        self._learned_seconds += time.monotonic() - begun
        self.step += 1
        self.schedule.steps_in_stage += 1

    def _drawn(self, n: int) -> tuple[Tensor, Layout]:
        """Draw windows and what stands in their working contexts."""
        stage, rules = self.schedule.stage, self.schedule.stage.layouts
        length = self.recipe.window_of(stage)
        ids = torch.from_numpy(np.array(self._sampler.next(n, length)))
        bos = self._objective.bos_id
        is_start = self._rng.random() < rules.bos_token
        if bos is not None and is_start:
            ids[:, 0] = bos
        lods = draw_lods(self._rng, n, length // 32, rules, lod=stage.lod)
        drawn = self._rng.random()
        slots = self._objective.model.slots if self._optimizer.is_watching else self._slots(drawn)
        has_row = bool(self._rng.random() < rules.bos_row) and bos is not None
        return ids.to(self._fleet.device), Layout(lods, slots, has_row)

    def _slots(self, drawn: float) -> int:
        most = self._objective.model.slots
        shares = {int(name): share for name, share in self.recipe.slots.items()}
        shares = {slots: share for slots, share in shares.items() if slots <= most} or {most: 1.0}
        edge = drawn * sum(shares.values())
        for slots, share in sorted(shares.items()):
            edge -= share
            if edge < 0:
                return slots
        return max(shares)

    # -- stages ---------------------------------------------------------------------------------

    def _end_stage(self) -> None:
        """Validate once more and keep the better weights, the last or the best."""
        if self._validated_step != self.step:
            self._validate()
        best = self._best
        if best is not None and best.step != self.step:
            self._restore(best.weights)
            self.found[best.found.lod] = best.found

    def _next_stage(self, done: float) -> None:
        self.schedule.advance(done)
        self._best = None
        self._optimizer.enter(self.schedule.stage)

    def _validate(self) -> None:
        found = self._validations[self.schedule.stage.lod]()
        self.found[found.lod], self._validated_step = found, self.step
        score = self._fleet.from_main(found.score)
        self.schedule.plateau.validated(-score)
        if self._best is None or score > self._best.score:
            weights = {name: one.clone() for name, one in self._weights().items()}
            self._best = _Best(score, self.step, found, weights)
        self._write(found.row())

    def _weights(self) -> dict[str, Tensor]:
        names = self._optimizer.tensors()
        return {name: one for name, one in names.items() if not name.startswith("moments/")}

    def _restore(self, weights: Mapping[str, Tensor]) -> None:
        own = self._weights()
        with torch.no_grad():
            for name, value in weights.items():
                own[name].copy_(value)

    # -- lines ----------------------------------------------------------------------------------

    def _by_the_way(self) -> None:
        if self.step % self.limits.log_every == 0:
            self._log()
        if self.step % self.limits.validate_every == 0:
            self._validate()

    def _log(self) -> None:
        figures = self._meter.read(self._fleet.mean)
        n_steps = self._meter.n_steps
        self._meter.clear()
        self._require_finite(figures)
        self.schedule.plateau.step(figures["loss"], n_steps)
        rate = self._learned_tokens / max(1e-9, self._learned_seconds)
        self._learned_seconds, self._learned_tokens = 0.0, 0
        row = {_IN_ROW.get(name, f"train/{name}"): value for name, value in figures.items()}
        row["train/lr"] = self._optimizer.rate(self.schedule.stage, self.schedule.factor(self.done))
        self._write(row | {"train/tokens_per_s": rate})

    def _write(self, figures: Mapping[str, float]) -> None:
        row: dict[str, Any] = {"step": self.step, "seconds": round(self.seconds, 1)}
        row["stage"] = self.schedule.stage.name
        row |= {name: float(f"{value:.6g}") for name, value in figures.items()}
        if self._journal is not None:
            self._journal.add(row)
            if any(name.startswith("validation/") for name in row):
                self._journal.draw()
        self._watcher.advance(min(1.0, self.done), row)

    def _require_finite(self, figures: Mapping[str, float]) -> None:
        if not math.isfinite(figures.get("loss", 0.0)):
            raise ModelError(
                f"the loss is {figures['loss']} at step {self.step}; resume the last checkpoint's "
                "recipe with a lower --lr, or in float32"
            )

    # -- checkpoints ----------------------------------------------------------------------------

    def _is_checkpoint_due(self, saved: float) -> bool:
        every = self.limits.checkpoint_every
        if every:
            return self.step % every == 0
        waited = self._fleet.from_main(self.seconds - saved)
        return waited > 60.0 * self.limits.checkpoint_minutes

    def save(self, *, is_finished: bool = False) -> None:
        """Write a checkpoint; all processes take part, the main one writes."""
        ranks = self._fleet.gather(
            {
                "sampler": self._sampler.state_dict(),
                "layouts": json.dumps(self._rng.bit_generator.state),
            }
        )
        if not self._fleet.is_main:
            return
        self._require_finite(self._meter.read())
        tensors = {**self._optimizer.tensors(), **self._meter.tensors()}
        tensors |= self._generators()
        state: dict[str, Any] = {
            "recipe": recipe_bytes(self.recipe).decode(),
            "step": self.step,
            "seconds": self.seconds,
            "schedule": self.schedule.state(),
            "meter_steps": self._meter.n_steps,
            "validated_step": self._validated_step,
            "found": [attrs.asdict(one) for one in self.found.values()],
            "watched": self._optimizer.watched(),
            "ranks": ranks,
            "is_finished": is_finished,
        }
        if self._best is not None:
            state["best"] = {
                "score": self._best.score,
                "step": self._best.step,
                "found": attrs.asdict(self._best.found),
            }
            tensors |= {f"best/{name}": one for name, one in self._best.weights.items()}
        write_checkpoint(self._path, Checkpoint(self._identity, state, tensors))

    def _generators(self) -> dict[str, Tensor]:
        """Return torch's generators; nothing draws from them while no layer drops out."""
        found = {"rng/torch": torch.get_rng_state()}
        if self._fleet.device.type == "cuda":
            found["rng/cuda"] = torch.cuda.get_rng_state(self._fleet.device)
        return found

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on where a checkpoint was."""
        state, tensors = checkpoint.state, checkpoint.tensors
        self.schedule.load(state["schedule"])
        self._optimizer.enter(self.schedule.stage)
        self._optimizer.watch_on(**state["watched"])
        self._optimizer.load(tensors)
        self._meter.load(tensors, state["meter_steps"], self._fleet.device)
        torch.set_rng_state(tensors["rng/torch"])
        if "rng/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng/cuda"], self._fleet.device)
        own = state["ranks"][self._fleet.rank % len(state["ranks"])]
        self._sampler.load_state_dict(own["sampler"])
        self._rng.bit_generator.state = json.loads(own["layouts"])
        self.step, self._validated_step = state["step"], state["validated_step"]
        self._seconds_before = state["seconds"]
        self.found = {one["lod"]: _found(one) for one in state["found"]}
        if "best" in state:
            weights = {
                name.removeprefix("best/"): one.to(self._fleet.device)
                for name, one in tensors.items()
                if name.startswith("best/")
            }
            best = state["best"]
            self._best = _Best(best["score"], best["step"], _found(best["found"]), weights)


@attrs.frozen(eq=False)
class _Best:
    """The best weights of a stage by validation, and what was found for them."""

    score: float
    step: int
    found: Found
    weights: Mapping[str, Tensor]


def _found(state: Mapping[str, Any]) -> Found:
    """Return what `attrs.asdict` took apart; JSON made texts of the slots."""
    by_slots = {
        name: {int(slots): value for slots, value in state[name].items()}
        for name in ("all", "recall")
    }
    return Found(**{**state, **by_slots})
