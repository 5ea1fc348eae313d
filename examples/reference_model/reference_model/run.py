"""One run in one folder, from texts to a finished model: prepare, train, measure, write.

::

    RUN/tokenizer/       as transformers saves it; kept when it is there
    RUN/tokens/          the token store; made anew when data or tokenizer changed
    RUN/checkpoint.safetensors
    RUN/curve.png, figures.json
    RUN/model/           the result, with its card

It prints nothing; `Watcher` is told.
"""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import torch

from megacontext_sdk.errors import ConfigError
from reference_model.card import Figures, write_card
from reference_model.curve import draw_curve
from reference_model.data import open_tokens, texts_of
from reference_model.export import export_model
from reference_model.heldout import context_gains, held_out_losses, held_out_texts
from reference_model.model import build_model, n_parameters
from reference_model.probes import make_probes, run_probes
from reference_model.samples import write_samples
from reference_model.tokenizer import describe, learn_tokenizer, open_tokenizer
from reference_model.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from accelerate import Accelerator
    from torch import nn

    from megacontext_gistnet.corpus import TokenStore
    from megacontext_hf.tokenizer import HfTokenizer
    from megacontext_sdk.contracts.model import ModelInfo
    from reference_model.presets import Preset
    from reference_model.trainer import Limit

__all__ = ["Prepared", "Watcher", "finish", "measure", "prepare", "train"]

_ON_THE_WAY = 8  # held-out documents of each group, while training
_AT_THE_END = 30
_PROBES = 400


class Watcher(Protocol):
    """Whoever shows what happens."""

    def preparing(self, what: str, n_tokens: int) -> None:
        """Tell that a source has given so many tokens."""

    def row(self, row: dict[str, Any], used: float) -> None:
        """Show a row of the history and the share of the run that is over."""


@attrs.frozen(eq=False)
class Prepared:
    """What training needs besides a model."""

    tokenizer: HfTokenizer
    info: ModelInfo
    store: TokenStore


def prepare(data: Sequence[Path], preset: Preset, folder: Path, watcher: Watcher) -> Prepared:
    """Learn the tokenizer and make the tokens, or open what is there.

    Raises:
        ConfigError: there is no data, a row is not what it should be, or the tokenizer that is
            there is of another size.
    """
    saved = folder / "tokenizer"
    if not (saved / "tokenizer.json").is_file():
        watcher.preparing("tokenizer", 0)
        learn_tokenizer(texts_of(data), preset.vocab_size, saved)
    tokenizer = open_tokenizer(saved)
    info = describe(tokenizer, preset)
    store = open_tokens(data, preset, tokenizer, folder / "tokens", watcher.preparing)
    largest = int(store.ids.max())
    if largest >= preset.vocab_size:
        raise ConfigError(
            f"the tokenizer in {saved} has more entries than the {preset.vocab_size} of the preset "
            f"{preset.name!r}; delete it, or name another --out",
            field="out",
            value=str(folder),
        )
    return Prepared(tokenizer, info, store)


def train(
    prepared: Prepared,
    preset: Preset,
    folder: Path,
    *,
    limit: Limit,
    accelerator: Accelerator,
    watcher: Watcher,
    seed: int = 0,
    is_resumed: bool = False,
    pause: Limit | None = None,
) -> Trainer:
    """Train to the limit, or to a pause; the checkpoint in the folder is one to go on from.

    Raises:
        ConfigError: there is a checkpoint and nobody said `--resume`, or the other way round.
    """
    path = folder / "checkpoint.safetensors"
    if path.exists() and not is_resumed:
        raise ConfigError(
            f"{path} is there already; go on with --resume, or name another --out",
            field="out",
            value=str(folder),
        )
    trainer = Trainer(
        preset,
        build_model(preset, seed),
        prepared.store,
        limit=limit,
        path=path,
        accelerator=accelerator,
        seed=seed,
    )
    if is_resumed:
        trainer.load()
    texts = held_out_texts(prepared.store, _chat_ids(prepared.tokenizer), _ON_THE_WAY)
    try:
        trainer.train(
            watcher.row,
            lambda model: held_out_losses(model, texts, preset.window),
            pause,
        )
    except KeyboardInterrupt:
        trainer.save()
        raise
    return trainer


def measure(
    model: nn.Module,
    prepared: Prepared,
    preset: Preset,
    data: Sequence[Path],
    *,
    n_probes: int = _PROBES,
) -> Figures:
    """Measure a finished model on what it never saw."""
    model.eval()
    tokenizer, info, store = prepared.tokenizer, prepared.info, prepared.store
    texts = held_out_texts(store, _chat_ids(tokenizer), _AT_THE_END)
    probes = make_probes(n_probes, data, tokenizer, info)
    strangers = make_probes(max(1, n_probes // 4), data, tokenizer, info, are_names_unseen=True)
    return Figures(
        n_parameters=n_parameters(model),
        corpus={str(name): n for name, n in store.counts("train").items()},
        held_out=held_out_losses(model, texts, preset.window),
        gains=context_gains(model, texts),
        probes=run_probes(model, probes),
        unseen=run_probes(model, strangers),
        samples=write_samples(model, tokenizer, info),
    )


def finish(
    trainer: Trainer, preset: Preset, figures: Figures, folder: Path, *, shard_mb: int = 1_000
) -> Path:
    """Write model, card, figures and curve; return the model's folder."""
    export_model(trainer.model, folder / "tokenizer", folder / "model", shard_mb=shard_mb)
    card = write_card(preset, trainer.progress, figures, machine())
    (folder / "model" / "README.md").write_text(card, encoding="utf-8")
    found = {"progress": attrs.asdict(trainer.progress), "figures": figures.to_dict()}
    (folder / "figures.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    draw_curve(trainer.progress.history, folder / "curve.png", f"reference model, {preset.name}")
    return folder / "model"


def machine() -> str:
    """Return what computes, in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    return f"{torch.get_num_threads()} CPU thread(s), {platform.machine()}"


def _chat_ids(tokenizer: HfTokenizer) -> list[int]:
    markers = ("<|system|>", "<|user|>", "<|assistant|>")
    return [int(tokenizer.encode(marker, special=True)[0]) for marker in markers]
