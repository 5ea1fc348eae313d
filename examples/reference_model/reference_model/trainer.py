"""The training loop: windows in, AdamW steps out, on a CPU, a GPU or several.

It measures nothing itself and draws nothing: whoever watches is called with each report.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import attrs
import torch
from accelerate.utils import broadcast, gather_object

from megacontext_gistnet.corpus import WindowSampler
from megacontext_sdk.errors import ConfigError
from reference_model.checkpoint import Progress, load_checkpoint, save_checkpoint
from reference_model.model import next_token_losses

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from accelerate import Accelerator
    from torch import Tensor, nn

    from megacontext_gistnet.corpus import TokenStore
    from reference_model.presets import Preset

__all__ = ["Limit", "Trainer"]

_REPORTS = 400  # points of a learning curve
_FLOOR = 0.02
_LONGEST_WARMUP = 0.05  # of a run too short for the preset's warm-up


@attrs.frozen(kw_only=True)
class Limit:
    """When to stop: after so many steps, or so many minutes of training, whichever comes first.

    The learning rate falls with what is used up of it, so a run that is slower than expected ends
    as well cooled as a fast one. Only with steps alone are two runs equal bit for bit.
    """

    steps: int | None = None
    minutes: float | None = None

    def __attrs_post_init__(self) -> None:
        given = [one for one in (self.steps, self.minutes) if one is not None]
        if not given or min(given) <= 0:
            raise ConfigError(
                f"steps={self.steps} and minutes={self.minutes}; give one above zero",
                field="steps",
                value=self.steps,
            )

    def used(self, step: int, seconds: float) -> float:
        """Return what share is used up; 1.0 and more is the end."""
        by_steps = step / self.steps if self.steps else 0.0
        return max(by_steps, seconds / 60 / self.minutes if self.minutes else 0.0)


class Trainer:
    """Trains one model.

    Args:
        preset: sizes and rates.
        model: fresh, or to be filled by `load`.
        store: the tokens.
        limit: when to stop.
        path: of the checkpoint.
        accelerator: the devices.
        seed: of the order of windows.

    Attributes:
        model: the model itself, on its device.
        progress: how far it is.
    """

    def __init__(
        self,
        preset: Preset,
        model: nn.Module,
        store: TokenStore,
        *,
        limit: Limit,
        path: Path,
        accelerator: Accelerator,
        seed: int = 0,
    ) -> None:
        self._preset, self._limit, self._path, self._accelerator = preset, limit, path, accelerator
        self.model = model.to(accelerator.device)
        self._optimizer = _adamw(self.model, preset, is_fused=accelerator.device.type == "cuda")
        self._wrapped: nn.Module = accelerator.prepare(self.model)
        self._losses = next_token_losses
        if preset.is_compiled:
            self._losses = torch.compile(next_token_losses)
        self._sampler = WindowSampler(
            store,
            {domain: weight for domain, weight in preset.mix.items() if domain in store.counts()},
            seed=seed * 1_000 + accelerator.process_index,
            packed=True,
            at_start=preset.at_start,
        )
        self.progress = Progress()
        self._sum: Tensor | None = None
        self._n_summed = 0

    @property
    def is_done(self) -> bool:
        """Whether the limit is used up."""
        return self._used() >= 1.0

    def load(self) -> None:
        """Go on from the checkpoint.

        Raises:
            ConfigError: it is missing, of other data, of another preset or number of processes.
        """
        self.progress, samplers = load_checkpoint(
            self._path, self.model, self._optimizer, self._preset.name
        )
        n_processes = self._accelerator.num_processes
        if len(samplers) != n_processes:
            raise ConfigError(
                f"the checkpoint is of {len(samplers)} processes, and these are {n_processes}; "
                "resume with as many",
                field="num_processes",
                value=n_processes,
            )
        self._sampler.load_state_dict(samplers[self._accelerator.process_index])

    def save(self) -> None:
        """Write the checkpoint; every process must call it."""
        samplers: list[dict[str, str]] = gather_object([self._sampler.state_dict()])
        if self._accelerator.is_main_process:
            save_checkpoint(
                self._path,
                self.model,
                self._optimizer,
                self.progress,
                samplers,
                self._preset.name,
            )
        self._accelerator.wait_for_everyone()

    def train(
        self,
        watch: Callable[[dict[str, Any], float], None] | None = None,
        measure: Callable[[nn.Module], dict[str, float]] | None = None,
        pause: Limit | None = None,
    ) -> None:
        """Train to the limit, with a checkpoint every few minutes and one at the end.

        Args:
            watch: called by the main process with each row of the history and the share used up.
            measure: gives held-out losses by their names; called a few times on the way.
            pause: leave earlier, as if somebody had stopped the run; counted from now on.
        """
        self.model.train()
        started, before, first = time.monotonic(), self.progress.seconds, self.progress.step
        saved = before
        used = self._used()
        measured = int(used * self._preset.evaluations)
        while used < 1.0 and not self._is_over(pause, first, before):
            self._step(used)
            self.progress.seconds = before + time.monotonic() - started
            used = self._used()
            is_due = int(used * self._preset.evaluations) > measured or used >= 1.0
            if is_due or self._is_report_due(used):
                row = self._report(used)
                if is_due and measure is not None:
                    row["held_out"] = self._measured(measure)
                    measured = int(used * self._preset.evaluations)
                if watch is not None and self._accelerator.is_main_process:
                    watch(row, min(used, 1.0))
            if self.progress.seconds - saved > 60 * self._preset.checkpoint_minutes:
                self.save()
                saved = self.progress.seconds
        self.save()

    def _step(self, used: float) -> None:
        """Take one step of the optimizer."""
        preset = self._preset
        rate = preset.learning_rate * _share_of_rate(used, self.progress.step, preset.warmup_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        for at in range(preset.accumulation):
            is_last = at + 1 == preset.accumulation
            quiet = nullcontext() if is_last else self._accelerator.no_sync(self._wrapped)
            with quiet:
                loss = self._losses(self._wrapped, self._windows()).mean() / preset.accumulation
                self._accelerator.backward(loss)
            part = loss.detach()
            self._sum = part if self._sum is None else self._sum + part
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), preset.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self._n_summed += 1
        n_windows = preset.batch_windows * preset.accumulation * self._accelerator.num_processes
        self.progress.tokens += n_windows * preset.window

    def _windows(self) -> Tensor:
        """Return the next windows with one token more, int64[B, window + 1], on the device."""
        windows = self._sampler.next(self._preset.batch_windows, self._preset.window + 1)
        batch = torch.from_numpy(windows)
        if self._accelerator.device.type != "cuda":
            return batch
        return batch.pin_memory().to(self._accelerator.device, non_blocking=True)

    def _is_over(self, pause: Limit | None, first: int, before: float) -> bool:
        return pause is not None and self._used(pause, first, before) >= 1.0

    def _used(self, limit: Limit | None = None, first: int = 0, before: float = 0.0) -> float:
        """Return what is used up of a limit, the same for all processes."""
        step, seconds = self.progress.step - first, self.progress.seconds - before
        used = (limit or self._limit).used(step, seconds)
        if self._accelerator.num_processes == 1:
            return used
        shared: Tensor = broadcast(torch.tensor(used, device=self._accelerator.device))
        return float(shared)

    def _is_report_due(self, used: float) -> bool:
        last = self.progress.history[-1]["used"] if self.progress.history else -1.0
        return used - last >= 1 / _REPORTS

    def _report(self, used: float) -> dict[str, Any]:
        """Add a row to the history: the mean loss since the last one."""
        total = 0.0 if self._sum is None else float(self._sum)
        progress = self.progress
        row = {
            "step": progress.step,
            "seconds": round(progress.seconds, 3),
            "tokens": progress.tokens,
            "loss": total / max(1, self._n_summed),
            "rate": self._optimizer.param_groups[0]["lr"],
            "used": used,
        }
        self._sum, self._n_summed = None, 0
        progress.history.append(row)
        return row

    def _measured(self, measure: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
        """Measure on the main process; the others wait."""
        found: dict[str, float] = {}
        if self._accelerator.is_main_process:
            self.model.eval()
            found = measure(self.model)
            self.model.train()
        self._accelerator.wait_for_everyone()
        return found


def _adamw(model: nn.Module, preset: Preset, *, is_fused: bool) -> torch.optim.AdamW:
    """Return AdamW; matrices decay, norms do not."""
    matrices = [one for one in model.parameters() if one.ndim >= 2]
    vectors = [one for one in model.parameters() if one.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": preset.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=preset.learning_rate, betas=preset.betas, eps=1e-8, fused=is_fused
    )


def _share_of_rate(used: float, step: int, warmup_steps: int) -> float:
    """Return the share of the full learning rate: a linear warm-up, then a cosine to the floor."""
    warm = min(1.0, max((step + 1) / max(1, warmup_steps), used / _LONGEST_WARMUP))
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, used)))
    return warm * (_FLOOR + (1 - _FLOOR) * cosine)
