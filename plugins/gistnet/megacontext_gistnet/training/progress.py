"""What a person sees of a run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from rich.console import Console

__all__ = ["Display"]

_SHOWN = (
    ("train/loss", "loss {:.3f}"),
    ("train/recovery", "R {:.3f}"),
    ("train/tokens_per_s", "{:,.0f} tokens/s"),
)


class Display:
    """Shows progress, loss, R, speed and what is left.

    Args:
        console: where; None shows nothing, as in processes other than the main one.
    """

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._is_live = console is not None and console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not self._is_live,
        )
        self._task = self._progress.add_task("start", total=1.0, said="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print one line above the bar."""
        if self._console is not None:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def advance(self, done: float, row: Mapping[str, Any]) -> None:
        """Take in the share of the run that is over and a line of metrics."""
        stage = str(row["stage"])
        if any(name.startswith("validation/") for name in row):
            self.say(f"step {row['step']:,}  {stage}  {_validated(row)}")
            return
        said = "  ".join(form.format(row[name]) for name, form in _SHOWN if name in row)
        self._progress.update(self._task, completed=done, description=stage, said=said)
        if not self._is_live:
            self.say(f"{done:6.1%}  step {row['step']:,}  {stage}  {said}")


def _validated(row: Mapping[str, Any]) -> str:
    told = {
        name.removeprefix("validation/").replace("recovery_", ""): value
        for name, value in row.items()
        if name.startswith("validation/") and "recovery_" in name
    }
    return "  ".join(("held-out R", *(f"{name} {value:.3f}" for name, value in told.items())))
