"""`megacontext train gistnet`: reads options, calls `train`, says where the weights are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from megacontext_gistnet.training.recipe import Recipe
    from megacontext_gistnet.training.run import Trained

__all__ = ["train_gistnet"]

_INTERRUPTED = 130

Model = Annotated[str, typer.Option(help="The base: reference, hf:NAME or hf:FOLDER.")]
Data = Annotated[list[Path], typer.Option(help="Folder or file with text; may be repeated.")]
Out = Annotated[Path, typer.Option(help="Folder of the run: weights, checkpoint, curves, card.")]
Kind = Annotated[str, typer.Option(help="gistnet or contextual.")]
Minutes = Annotated[float | None, typer.Option(help="Length of the run by the clock.")]
Steps = Annotated[int | None, typer.Option(help="Length of the run in steps.", min=1)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
RecipeFile = Annotated[Path | None, typer.Option(help="Recipe as JSON; the rest is default.")]
Preset = Annotated[str, typer.Option(help="cpu, or gpu: what one large GPU keeps busy.")]
Init = Annotated[Path | None, typer.Option(help="Weights to start from.")]
Batch = Annotated[int | None, typer.Option(help="Windows a step, all devices together.", min=1)]
Window = Annotated[int | None, typer.Option(help="Tokens of a window, a multiple of 32.")]
Rate = Annotated[float | None, typer.Option(help="Peak learning rate; others keep their ratio.")]
Slots = Annotated[int | None, typer.Option(help="Rows of a gist: 1, 2 or 4, nested.")]
Stages = Annotated[str | None, typer.Option(help="Only these stages, by name, comma between.")]
ValidateEvery = Annotated[int, typer.Option(help="Steps between validations.", min=1)]
LogEvery = Annotated[int, typer.Option(help="Steps between lines of metrics.", min=1)]
CheckpointEvery = Annotated[int, typer.Option(help="Steps between checkpoints; 0: by minutes.")]
CheckpointMinutes = Annotated[float, typer.Option(help="Minutes between checkpoints.")]
Precision = Annotated[str, typer.Option(help="auto, float32 or bfloat16.")]
Device = Annotated[str, typer.Option(help="auto or cpu.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the base; for long GPU runs.")]
Cache = Annotated[Path | None, typer.Option(help="Where tokens are kept; beside --out.")]


def train_gistnet(
    *,
    data: Data,
    out: Out,
    model: Model = "reference",
    kind: Kind = "gistnet",
    minutes: Minutes = None,
    steps: Steps = None,
    resume: Resume = False,
    seed: Annotated[int, typer.Option(help="Another seed, another run.")] = 0,
    recipe: RecipeFile = None,
    preset: Preset = "cpu",
    init: Init = None,
    batch: Batch = None,
    window: Window = None,
    lr: Rate = None,
    slots: Slots = None,
    stages: Stages = None,
    validate_every: ValidateEvery = 250,
    log_every: LogEvery = 25,
    checkpoint_every: CheckpointEvery = 0,
    checkpoint_minutes: CheckpointMinutes = 5.0,
    precision: Precision = "auto",
    device: Device = "auto",
    compile: Compile = False,  # noqa: A002 - the option's name
    cache: Cache = None,
) -> None:
    """Train a gist encoder for a frozen base on a folder of text."""
    _check_names(kind=kind, preset=preset, precision=precision, device=device)
    changes = {"batch": batch, "window_tokens": window}
    chosen = _recipe(recipe, preset, {name: one for name, one in changes.items() if one})
    chosen = _narrowed(chosen, lr=lr, slots=slots, stages=stages)
    from rich.console import Console

    from megacontext_gistnet.training.run import Settings, train
    from megacontext_gistnet.training.trainer import Limits

    limits = Limits(
        steps=steps,
        minutes=minutes,
        log_every=log_every,
        validate_every=validate_every,
        checkpoint_every=checkpoint_every,
        checkpoint_minutes=checkpoint_minutes,
    )
    settings = Settings(
        model=model,
        kind=kind,
        data=tuple(data),
        out=out,
        recipe=chosen,
        limits=limits,
        seed=seed,
        resume=resume,
        init=init,
        device=device,
        precision=precision,  # type: ignore[arg-type] # checked above
        is_compiled=compile,
        cache=cache,
    )
    _tell(train(settings, console=Console(stderr=True)), out)


def _tell(trained: Trained, out: Path) -> None:
    told = f"{trained.steps:,} steps, {trained.minutes:.1f} minutes"
    if not trained.is_finished:
        typer.echo(f"interrupted after {told}; go on with --resume --out {out}")
        raise typer.Exit(_INTERRUPTED)
    typer.echo(f"{told}; weights in {trained.weights}")


def _check_names(**given: str) -> None:
    allowed = {
        "kind": ("gistnet", "contextual"),
        "preset": ("cpu", "gpu"),
        "precision": ("auto", "float32", "bfloat16"),
        "device": ("auto", "cpu"),
    }
    for name, value in given.items():
        if value not in allowed[name]:
            message = f"--{name} {value} is unknown; give one of {', '.join(allowed[name])}"
            raise ConfigError(message, field=name, value=value)


def _recipe(path: Path | None, preset: str, changes: dict[str, Any]) -> Recipe:
    import attrs

    from megacontext_gistnet.training.recipe import GPU_CHANGES, Recipe, read_recipe

    base = Recipe() if path is None else read_recipe(path)
    presets = dict(GPU_CHANGES) if preset == "gpu" else {}
    return attrs.evolve(base, **{**presets, **changes})


def _narrowed(recipe: Recipe, *, lr: float | None, slots: int | None, stages: str | None) -> Recipe:
    import attrs

    if lr is not None:
        recipe = recipe.with_learning_rate(lr)
    if slots is not None:
        recipe = attrs.evolve(recipe, shape={**recipe.shape, "slots": slots})
    if stages is None:
        return recipe
    wanted = [name.strip() for name in stages.split(",")]
    known = {stage.name: stage for stage in recipe.stages}
    for name in wanted:
        if name not in known:
            message = f"--stages names {name!r}; the recipe has {', '.join(known)}"
            raise ConfigError(message, field="stages", value=name)
    return attrs.evolve(recipe, stages=tuple(known[name] for name in wanted))
