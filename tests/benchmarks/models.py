"""The models that are timed: the reference model, and a random one of its shape."""

from __future__ import annotations

from importlib.resources import as_file, files
from time import perf_counter
from typing import TYPE_CHECKING

import attrs
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

from megacontext_hf.adapter import wrap
from megacontext_sdk.plugins import default_plugins
from tests.benchmarks.timing import Stamps

if TYPE_CHECKING:
    from megacontext_hf.adapter import HfAdapter

__all__ = ["choose_threads", "generate_plain", "open_endless", "open_random", "open_reference"]


def open_reference() -> HfAdapter:
    """Return the model that `model="reference"` opens."""
    return default_plugins().model_factory("reference")()


def open_endless() -> HfAdapter:
    """Return the reference model without end tokens: it decodes as long as it is asked to."""
    return _endless(open_reference())


def open_random(window: int) -> HfAdapter:
    """Return a randomly initialised model of the reference model's shape, without end tokens."""
    with as_file(files("megacontext_reference") / "weights") as folder:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    config.max_position_embeddings = window
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return _endless(wrap(model, tokenizer, trained_window=window, name="random"))


def _endless(adapter: HfAdapter) -> HfAdapter:
    adapter._info = attrs.evolve(adapter.info, eos_ids=())
    return adapter


class _Clock(BaseStreamer):
    """Notes when transformers hands out each token; the prompt comes first and is left out."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if not self._is_prompt:
            self.times.append(perf_counter())
        self._is_prompt = False

    def end(self) -> None:
        """Nothing is left to do."""


def generate_plain(adapter: HfAdapter, prompt: torch.Tensor, n_tokens: int) -> Stamps:
    """Time transformers' own greedy `generate` after a prompt int64[1, n]."""
    clock = _Clock()
    adapter._model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=n_tokens,
        min_new_tokens=n_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        streamer=clock,
    )
    return Stamps(clock.times, list(range(prompt.shape[1], prompt.shape[1] + n_tokens)))


def choose_threads(rows: int = 832, n_tokens: int = 32) -> tuple[int, str]:
    """Set the number of threads that is fastest for transformers' `generate`, and say so."""
    adapter = open_reference()
    prompt = torch.full((1, rows), 100)
    times: dict[int, float] = {}
    for count in (1, 2, 1, 2):
        torch.set_num_threads(count)
        took = generate_plain(adapter, prompt, n_tokens).seconds_per_token
        times[count] = min(took, times.get(count, took))
    best = min(times, key=times.__getitem__)
    torch.set_num_threads(best)
    shown = ", ".join(f"{n}: {1e3 * t:.1f}" for n, t in sorted(times.items()))
    return best, f"{best} torch threads (ms per token of generate by threads: {shown})"
