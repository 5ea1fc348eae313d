"""Checkpoints: one safetensors file with tensors, and everything else as JSON in its header.

A file is written beside and moved over the old one, so that there is always a whole one, whenever
the process dies.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import attrs
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from megacontext_sdk.errors import ConfigError, CorruptError, ModelMismatchError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

__all__ = ["Checkpoint", "read_checkpoint", "refuse_other_run", "write_checkpoint"]

_FORMAT = "megacontext-training/1"


@attrs.frozen(eq=False)
class Checkpoint:
    """A run at the end of one step.

    Attributes:
        identity: what run it is: seed, kind, base and data as short texts.
        state: recipe, counters, generators and stage, as plain values.
        tensors: parameters, moments and sums by name.
    """

    identity: Mapping[str, str]
    state: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in place of an older one, whole or not at all."""
    tensors = {name: one.detach().cpu().contiguous() for name, one in checkpoint.tensors.items()}
    header = {
        "format": _FORMAT,
        "identity": json.dumps(dict(checkpoint.identity), sort_keys=True),
        "state": json.dumps(dict(checkpoint.state), sort_keys=True),
    }
    beside = path.with_name(path.name + ".new")
    save_file(tensors, str(beside), metadata=header)
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(beside, path)  # noqa: PTH105 - the atomic one


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ConfigError: there is none.
        CorruptError: it is damaged, or no checkpoint of training.
    """
    if not path.is_file():
        raise ConfigError(
            f"there is nothing to resume at {path}; start without --resume",
            field="resume",
            value=str(path),
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CorruptError(f"{path} is damaged ({error}); start anew in another folder") from error
    if header.get("format") != _FORMAT:
        raise CorruptError(f"{path} is no checkpoint of training; start anew in another folder")
    return Checkpoint(json.loads(header["identity"]), json.loads(header["state"]), tensors)


def refuse_other_run(found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Refuse to go on with a run of another base, kind or seed, or other data.

    Raises:
        ModelMismatchError: the base is another one.
        ConfigError: something else differs; names it.
    """
    for name, value in wanted.items():
        if found.get(name) == value:
            continue
        message = (
            f"the run to resume has another {name} ({_short(found.get(name))} instead of "
            f"{_short(value)}); resume with what it was started with, or train in another folder"
        )
        if name == "base":
            raise ModelMismatchError(message)
        raise ConfigError(message, field=name, value=value)


def _short(value: str | None) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:16] + "…"
