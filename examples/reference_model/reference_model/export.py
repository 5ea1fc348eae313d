"""The finished model as a folder that transformers, and so `model="hf:FOLDER"`, opens."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import torch
import transformers
from transformers.utils import logging as transformers_logging

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

__all__ = ["export_model"]


def export_model(
    model: nn.Module, tokenizer_folder: Path, folder: Path, *, shard_mb: int = 1_000
) -> None:
    """Write bfloat16 safetensors, config, generation config, tokenizer and chat template.

    The folder is replaced as a whole; the model itself stays as it is.

    Args:
        model: on any device.
        tokenizer_folder: as transformers saved it.
        folder: where to.
        shard_mb: the largest a file of weights may be.
    """
    aside = folder.with_name(folder.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(tokenizer_folder, aside)
    copy = transformers.AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
    copy.load_state_dict({name: one.bfloat16().cpu() for name, one in model.state_dict().items()})
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    copy.save_pretrained(aside, max_shard_size=f"{shard_mb}MB")
    if had_bars:
        transformers_logging.enable_progress_bar()
    for file in aside.iterdir():
        file.chmod(0o644)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
