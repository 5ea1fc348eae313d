"""A training run from names to weights: open model and data, train, check, save.

This is what `megacontext train gistnet` calls, and what a program may call instead.
"""

from __future__ import annotations

import copy
import json
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import attrs
import torch

from megacontext_gistnet.evaluation.reader import frozen_base
from megacontext_gistnet.nets.model import load_weights, new_model, save_weights
from megacontext_gistnet.training.base import (
    FrozenBase,
    best_dtype,
    digest_of,
    freeze,
    refuse_changed,
)
from megacontext_gistnet.training.card import card_text
from megacontext_gistnet.training.checkpoint import read_checkpoint, refuse_other_run
from megacontext_gistnet.training.data import open_data
from megacontext_gistnet.training.fleet import Fleet
from megacontext_gistnet.training.journal import Journal
from megacontext_gistnet.training.objective import Extras, Objective
from megacontext_gistnet.training.optimizer import Optimizer
from megacontext_gistnet.training.progress import Display
from megacontext_gistnet.training.recipe import parse_recipe, recipe_bytes, refuse_other_recipe
from megacontext_gistnet.training.trainer import Trainer
from megacontext_gistnet.training.validation import Validation, refuse_without_context, window_of
from megacontext_sdk.errors import ConfigError, MegaContextError, ModelError
from megacontext_sdk.plugins import default_plugins
from megacontext_sdk.providers import open_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from rich.console import Console
    from torch import nn

    from megacontext_gistnet.nets.model import GistModel
    from megacontext_gistnet.training.base import Precision
    from megacontext_gistnet.training.checkpoint import Checkpoint
    from megacontext_gistnet.training.recipe import Recipe
    from megacontext_gistnet.training.trainer import Limits
    from megacontext_gistnet.training.validation import Found
    from megacontext_sdk.contracts.model import ModelAdapter
    from megacontext_sdk.plugins import Plugins

__all__ = ["Settings", "Trained", "train"]


@attrs.frozen(kw_only=True)
class Settings:
    """What a run is asked for.

    Attributes:
        model: name of the base, or an open adapter.
        kind: "gistnet" or "contextual".
        data: folders and files with text.
        out: folder of the run: weights, checkpoint, curves, card.
        recipe: everything that decides what is learned.
        limits: how long, and how often it logs, validates, writes checkpoints.
        seed: of the parameters' start, windows and layouts.
        resume: go on with the run in `out`.
        init: weights to start from.
        device: "auto" or "cpu".
        precision: number format of the passes; "auto" measures a CPU.
        is_compiled: compile the base's layers.
        cache: where tokens are kept; beside `out` by default.
    """

    model: str | ModelAdapter
    kind: str
    data: tuple[Path, ...]
    out: Path
    recipe: Recipe
    limits: Limits
    seed: int = 0
    resume: bool = False
    init: Path | None = None
    device: str = "auto"
    precision: Precision = "auto"
    is_compiled: bool = False
    cache: Path | None = None

    @property
    def weights(self) -> Path:
        """Where the weights go."""
        return self.out / f"{self.kind}.safetensors"


@attrs.frozen(kw_only=True)
class Trained:
    """What a run came to.

    Attributes:
        is_finished: False if it was interrupted; resume it.
        weights: the file, once it is finished.
        steps, minutes: of training, resumed runs together.
        found: validation of the weights that were kept, by level.
    """

    is_finished: bool
    weights: Path | None
    steps: int
    minutes: float
    found: Mapping[int, Found]


def train(
    settings: Settings, *, console: Console | None = None, plugins: Plugins | None = None
) -> Trained:
    """Train an encoder for a base.

    Args:
        settings: what to do.
        console: where progress is shown; None shows nothing.
        plugins: whose models can be named; by default the installed ones.

    Raises:
        ConfigError: no data, texts too short, a run that cannot be resumed as asked.
        ModelError: the base cannot be trained on, does not use its context, or does not fit.
        InvariantError: a bug: the base changed, or a parameter never learned.
    """
    _check(settings)
    fleet = Fleet(settings.device)
    lease = open_model(plugins or default_plugins(), settings.model)
    try:
        with (
            Display(console if fleet.is_main else None) as display,
            _own_randomness(settings.seed, fleet.device),
            _hints(settings.recipe),
        ):
            return _Run(settings, lease.adapter, fleet, display).go()
    finally:
        lease.release()


def _check(settings: Settings) -> None:
    is_there = (settings.out / "checkpoint.safetensors").exists()
    if is_there and not settings.resume:
        raise ConfigError(
            f"{settings.out} holds a run already; go on with it by --resume, or name another "
            "folder",
            field="out",
            value=str(settings.out),
        )
    if (settings.limits.steps is None) == (settings.limits.minutes is None):
        raise ConfigError(
            "give the length of the run either as --steps or as --minutes",
            field="steps",
            value=settings.limits.steps,
        )


class _Run:
    """The parts of one run."""

    def __init__(
        self, settings: Settings, adapter: ModelAdapter, fleet: Fleet, display: Display
    ) -> None:
        self.settings, self.adapter = settings, adapter
        self.fleet, self.display = fleet, display
        self.module = _on(freeze(frozen_base(adapter)), fleet.device)
        self.digest = digest_of(self.module)
        settings.out.mkdir(parents=True, exist_ok=True)
        display.say(f"base {adapter.info.name}, {fleet.size} x {fleet.device}")
        self.data = open_data(
            settings.data,
            adapter,
            settings.recipe,
            settings.cache or settings.out.parent / "tokens",
            lambda name, n: display.say(f"tokenised {n:,} of {name}"),
        )
        self.model = self._model()
        self.checkpoint = self._checkpoint()
        self.trainer = self._trainer()

    def go(self) -> Trained:
        """Train, and save when it is finished."""
        settings, trainer = self.settings, self.trainer
        if self.checkpoint is not None:
            trainer.load(self.checkpoint)
            self.display.say(f"resumed at step {trainer.step:,}")
        elif self.fleet.is_main:
            self._first_look()
        self.fleet.wait()
        with _stopping_gently(trainer):
            is_finished = trainer.run()
        refuse_changed(self.digest, self.module)
        if is_finished and self.fleet.is_main:
            self._save()
        return Trained(
            is_finished=is_finished,
            weights=settings.weights if is_finished else None,
            steps=trainer.step,
            minutes=trainer.seconds / 60.0,
            found=trainer.found,
        )

    @property
    def identity(self) -> dict[str, str]:
        """What makes it this run and no other."""
        settings = self.settings
        return {
            "kind": settings.kind,
            "shape": self.model.config.to_json(),
            "base": self.adapter.info.fingerprint,
            "tokenizer": self.adapter.info.tokenizer_fingerprint,
            "data": self.data.store.fingerprint,
            "seed": str(settings.seed),
            "processes": str(self.fleet.size),
        }

    def _checkpoint(self) -> Checkpoint | None:
        """Return what to go on from; nothing of the run is touched before it fits."""
        if not self.settings.resume:
            return None
        found = read_checkpoint(self.settings.out / "checkpoint.safetensors")
        refuse_other_run(found.identity, self.identity)
        # Parsed, not compared as text: fields that came later have their defaults in both.
        refuse_other_recipe(parse_recipe(found.state["recipe"].encode()), self.settings.recipe)
        return found

    def _model(self) -> GistModel:
        settings, info = self.settings, self.adapter.info
        if settings.init is not None:
            model = load_weights(settings.init, self.module)
            if model.kind != settings.kind:
                raise ConfigError(
                    f"{settings.init} is a {model.kind}, not a {settings.kind}; correct --kind",
                    field="init",
                    value=str(settings.init),
                )
            return model
        model = new_model(
            settings.kind, self.module, seed=settings.seed, trained_window=info.trained_window
        )
        if not settings.recipe.shape:
            return model
        changes: dict[str, Any] = dict(settings.recipe.shape)
        try:
            config = attrs.evolve(model.config, **changes)
        except TypeError as error:
            raise ConfigError(
                f"the recipe's shape has a name that a {settings.kind} does not know: {error}",
                field="shape",
                value=changes,
            ) from error
        return new_model(settings.kind, self.module, config, seed=settings.seed)

    def _trainer(self) -> Trainer:
        settings, recipe, fleet = self.settings, self.settings.recipe, self.fleet
        dtype = best_dtype(fleet.device, settings.precision)
        rounds = FrozenBase(self.module, dtype, is_compiled=settings.is_compiled)
        extras = Extras(self.model.width, recipe, self.model.rho).to(fleet.device)
        self.display.say(
            f"{settings.kind}: {sum(one.numel() for one in self.model.parameters()):,} parameters, "
            f"passes in {str(dtype).removeprefix('torch.')}"
        )
        return Trainer(
            recipe=recipe,
            limits=settings.limits,
            objective=self._objective(rounds, extras),
            optimizer=Optimizer(self.model, extras, recipe),
            sampler=self.data.sampler(settings.seed, fleet.rank),
            validations=self._validations(),
            fleet=fleet,
            journal=self._journal(),
            folder=settings.out,
            identity=self.identity,
            seed=settings.seed,
            watcher=self.display,
        )

    def _objective(self, base: FrozenBase, extras: Extras) -> Objective:
        info = self.adapter.info
        return Objective(
            base,
            self.model,
            extras,
            trained_window=info.trained_window,
            bos_id=info.bos_id,
            autocast=lambda: self.fleet.autocast(base.dtype),
        )

    def _validations(self) -> dict[int, Validation]:
        recipe = self.settings.recipe
        slots = tuple(one for one in recipe.validation_slots if one <= self.model.slots)
        found = {}
        for lod in sorted({stage.lod for stage in recipe.stages}):
            windows = self.data.held_out(window_of(lod, recipe.window_tokens))
            found[lod] = Validation(
                self.module,
                self.model,
                windows,
                slots=slots,
                lod=lod,
                trained_window=self.adapter.info.trained_window,
            )
        return found

    def _journal(self) -> Journal | None:
        if not self.fleet.is_main:
            return None
        last_step = 0 if self.checkpoint is None else self.checkpoint.state["step"]
        return Journal(self.settings.out, last_step)

    def _first_look(self) -> None:
        """Measure before training: is there anything to learn, and what is the warm start worth?"""
        settings = self.settings
        (settings.out / "recipe.json").write_bytes(recipe_bytes(settings.recipe))
        found = self.trainer.look()
        refuse_without_context(found, settings.recipe.least_recall_share, self.adapter.info.name)

    def _save(self) -> None:
        facts = self._facts()
        save_weights(self.model, self.settings.weights, facts)
        card = card_text(self.model, facts, self.trainer.found)
        (self.settings.out / "card.md").write_text(card, encoding="utf-8")
        self.display.say(f"weights: {self.settings.weights}")

    def _facts(self) -> dict[str, str]:
        from megacontext_gistnet.evaluation import trained_on

        info, trainer, recipe = self.adapter.info, self.trainer, self.settings.recipe
        return {
            "base": info.name,
            "base_fingerprint": info.fingerprint,
            "tokenizer_fingerprint": info.tokenizer_fingerprint,
            "base_digest": self.digest,
            "sources": trained_on(self.data.sources),
            "data_fingerprint": self.data.store.fingerprint,
            "tokens": json.dumps(self.data.store.counts("train")),
            "recipe": recipe_bytes(recipe).decode(),
            "seed": str(self.settings.seed),
            "steps": str(trainer.step),
            "minutes": f"{trainer.seconds / 60.0:.1f}",
            "device": f"{self.fleet.size} x {self.fleet.device}",
            "torch": str(torch.__version__),
            "init": "" if self.settings.init is None else self.settings.init.name,
            "validation": json.dumps(
                {name: r for one in trainer.found.values() for name, r in one.row().items()}
            ),
        }


def _on(module: nn.Module, device: torch.device) -> nn.Module:
    """Return the module on a device; a copy where the adapter's own is elsewhere."""
    own = next(module.parameters()).device
    if own.type == device.type and (own.index or 0) == (device.index or 0):
        return module
    return freeze(copy.deepcopy(module).to(device))


@contextmanager
def _own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators for a run, and leave the caller's as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def _stopping_gently(trainer: Trainer) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM end the run after its step, with a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: object) -> None:
        trainer.wants_stop = True
        signal.signal(number, before[number])

    wanted = (signal.SIGINT, signal.SIGTERM)
    before: Mapping[int, Any] = {one: signal.signal(one, stop) for one in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, cast("Any", handler))


@contextmanager
def _hints(recipe: Recipe) -> Iterator[None]:
    """Say what to do when memory runs out."""
    try:
        yield
    except MegaContextError:
        raise
    except (MemoryError, RuntimeError) as error:
        is_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not is_memory and "can't allocate memory" not in str(error):
            raise
        raise ModelError(
            f"memory ran out with {recipe.batch} windows of {recipe.window_tokens} tokens a step; "
            "halve --batch, then --window"
        ) from error
