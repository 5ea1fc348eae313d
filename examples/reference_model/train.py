"""Train the reference language model itself, from text, in one command.

::

    python examples/reference_model/train.py --preset laptop            # one CPU hour
    python examples/reference_model/train.py --preset gpu               # ten minutes on one H200
    accelerate launch --num_processes 4 examples/reference_model/train.py --preset gpu
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import attrs
import torch
import typer
from accelerate import Accelerator
from reference_model.presets import preset_named
from reference_model.run import finish, measure, prepare, train
from reference_model.trainer import Limit
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from megacontext_sdk.errors import MegaContextError

if TYPE_CHECKING:
    from reference_model.presets import Preset

_DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "train"


class Screen:
    """A bar on a terminal; a line now and then where the output is a file.

    Args:
        console: where to.
        preset: for the number of tokens.
    """

    def __init__(self, console: Console, preset: Preset) -> None:
        self._console, self._preset = console, preset
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>5.1f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("preparing", total=1.0)
        self._lines = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def preparing(self, what: str, n_tokens: int) -> None:
        """Show how far the data is."""
        said = f"preparing {what}: {n_tokens / 1e6:.1f} M tokens"
        self._bar.update(self._task, description=said)
        if not self._console.is_terminal:
            self._console.print(said)

    def row(self, row: dict[str, Any], used: float) -> None:
        """Show a row of the history."""
        speed = row["tokens"] / max(row["seconds"], 1e-9)
        said = f"step {row['step']}  loss {row['loss']:.3f}  {speed:,.0f} tokens/s"
        self._bar.update(self._task, description=said, completed=used)
        if "held_out" in row:
            losses = ", ".join(f"{name} {loss:.3f}" for name, loss in row["held_out"].items())
            self._console.print(f"{used:4.0%}  {said}  held out: {losses}", soft_wrap=True)
        elif not self._console.is_terminal and int(used * 50) > self._lines:
            self._lines = int(used * 50)
            self._console.print(f"{used:4.0%}  {said}", soft_wrap=True)


def main(
    preset: Annotated[str, typer.Option(help="laptop, gpu, or smoke for a look.")] = "laptop",
    data: Annotated[list[Path] | None, typer.Option(help="Folders or files of text.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Train as long.")] = None,
    steps: Annotated[int | None, typer.Option(help="Train as many steps.")] = None,
    batch: Annotated[int | None, typer.Option(help="Windows of one forward pass.")] = None,
    pause_after: Annotated[
        float | None, typer.Option(help="Stop after so many minutes, to go on with --resume.")
    ] = None,
    *,
    seed: Annotated[int, typer.Option(help="Of weights and order.")] = 0,
    shard_mb: Annotated[int, typer.Option(help="Largest file of weights, in MB.")] = 1_000,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    only_prepare: Annotated[
        bool, typer.Option("--prepare", help="Make tokenizer and tokens, then stop.")
    ] = False,
    compiled: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile.")
    ] = None,
) -> None:
    """Train the reference language model from text."""
    console = Console()
    try:
        chosen = _chosen(preset, batch, is_compiled=compiled)
        limit = Limit(
            steps=steps, minutes=chosen.minutes if minutes is None and steps is None else minutes
        )
        pause = None if pause_after is None else Limit(minutes=pause_after)
        job = Job(
            preset=chosen,
            data=tuple(path.resolve() for path in data or [_DATA]),
            folder=out or Path("build") / f"reference-{preset}",
            limit=limit,
            pause=pause,
            seed=seed,
            shard_mb=shard_mb,
            is_resumed=resume,
            is_only_prepared=only_prepare,
        )
        _run(job, console)
    except MegaContextError as error:
        console.print(f"error: {error}", style="red", highlight=False)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        console.print("stopped; the same command with --resume goes on from here")
        raise typer.Exit(130) from None


def _chosen(name: str, batch: int | None, *, is_compiled: bool | None) -> Preset:
    preset = preset_named(name)
    changes: dict[str, Any] = {"batch_windows": batch, "is_compiled": is_compiled}
    return attrs.evolve(preset, **{key: one for key, one in changes.items() if one is not None})


@attrs.frozen(kw_only=True)
class Job:
    """What the command line asked for."""

    preset: Preset
    data: tuple[Path, ...]
    folder: Path
    limit: Limit
    pause: Limit | None
    seed: int
    shard_mb: int
    is_resumed: bool
    is_only_prepared: bool


def _run(job: Job, console: Console) -> None:
    accelerator = Accelerator()
    torch.set_float32_matmul_precision("high")
    is_main = accelerator.is_main_process
    with Screen(console if is_main else Console(quiet=True), job.preset) as screen:
        with accelerator.main_process_first():  # the others find everything made
            prepared = prepare(job.data, job.preset, job.folder, screen)
        if job.is_only_prepared:
            return
        trainer = train(
            prepared,
            job.preset,
            job.folder,
            limit=job.limit,
            accelerator=accelerator,
            watcher=screen,
            seed=job.seed,
            is_resumed=job.is_resumed,
            pause=job.pause,
        )
    if not trainer.is_done:
        if is_main:
            console.print("paused; the same command with --resume goes on from here")
    elif is_main:
        figures = measure(trainer.model, prepared, job.preset, job.data)
        model = finish(trainer, job.preset, figures, job.folder, shard_mb=job.shard_mb)
        card = (model / "README.md").read_text(encoding="utf-8")
        console.print(card, markup=False, highlight=False, soft_wrap=True)
        console.print(f"the model is in {model}; use it with model={f'hf:{model}'!r}")
    accelerator.end_training()


if __name__ == "__main__":
    typer.run(main)
