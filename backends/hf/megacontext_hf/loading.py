"""Reading a model from a folder or the hub: safetensors only, and never code from the checkpoint.

Knows files, not windows.
"""

from __future__ import annotations

import json
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
import transformers
from huggingface_hub import snapshot_download
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from megacontext_sdk.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megacontext_hf.foreign import HfModel, HfTextTokenizer

__all__ = ["Checkpoint", "load", "resolve"]

_FILES: Final = ["*.json", "*.jinja", "*.model", "*.safetensors", "*.txt"]
_NOT_FILES: Final = ["*/*", "consolidated*"]  # other formats of the same weights
_DTYPES: Final = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@attrs.frozen(eq=False)
class Checkpoint:
    """A loaded model with its tokenizer, and the weight files it came from."""

    model: HfModel
    tokenizer: HfTextTokenizer
    files: tuple[Path, ...]


def resolve(name: str, *, revision: str | None, local_files_only: bool) -> Path:
    """Return the folder of a model: the one named, or the hub's snapshot of a repository.

    Raises:
        ModelError: no such folder, or the repository cannot be had.
    """
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return folder
    if not name or folder.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise ModelError(
            f"there is no model folder {name!r}; give a folder saved with save_pretrained, or a "
            'hub id such as "Qwen/Qwen3-0.6B"',
            path=name,
        )
    try:
        found = snapshot_download(
            name,
            revision=revision,
            local_files_only=local_files_only,
            allow_patterns=_FILES,
            ignore_patterns=_NOT_FILES,
        )
    except (OSError, ValueError) as error:  # the hub's errors are of both kinds
        how = "in the local cache" if local_files_only else "on the hub"
        raise ModelError(
            f"the model {name!r} (revision {revision or 'main'}) was not found {how}; check name, "
            "revision and connection, or give a local folder",
            path=name,
        ) from error
    return Path(found)


def load(folder: Path, *, device: str, dtype: str) -> Checkpoint:
    """Read config, weights and tokenizer from a folder.

    Args:
        folder: as `save_pretrained` writes it.
        device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:1".
        dtype: "auto" (float32 on the CPU, as stored elsewhere), "float32", "bfloat16", "float16".

    Raises:
        ModelError: files are missing, need code of their own, or do not fit together.
        ConfigError: an unknown device or dtype.
    """
    where = _device(device)
    config = _config(folder)
    files = _weight_files(folder)
    number = _dtype(dtype, where, config)
    with _quiet(), _named(folder):
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=number,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    missing = sorted(report.get("missing_keys") or ())
    if missing:
        raise ModelError(
            f"the weights in {folder} lack {len(missing)} tensors, {missing[0]} among them; the "
            "checkpoint is incomplete or of another model",
            path=str(folder),
            missing=tuple(missing),
        )
    model.requires_grad_(requires_grad=False)
    return Checkpoint(model.to(where).eval(), tokenizer, files)


def _config(folder: Path) -> dict[str, Any]:
    """Return config.json after checking that the model needs no code from the folder."""
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read as a model's config; give a folder saved with save_pretrained",
            path=str(path),
        ) from error
    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        why = "needs code of its own (auto_map)" if "auto_map" in config else "is unknown"
        raise ModelError(
            f"the model type {kind!r} of {folder} {why} and no code from a checkpoint is run; "
            f"use a type that transformers {transformers.__version__} knows",
            path=str(folder),
            model_type=kind,
        )
    return config


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files of a checkpoint, in order."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = tuple(sorted(folder / name for name in names))
    else:
        files = (folder / "model.safetensors",)
    for path in files:
        if not path.is_file():
            raise ModelError(
                f"there is no {path.name} in {folder}; only safetensors weights are read, so save "
                "the model again with save_pretrained",
                path=str(path),
            )
    return files


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where: torch.device | None = torch.device(device)
    except RuntimeError:
        where = None
    if where is None or where.type not in {"cpu", "cuda"}:
        raise ConfigError(
            f'device={device!r} is none we compute on; use "auto", "cpu" or "cuda"',
            field="device",
            value=device,
        )
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f'device={device!r}, but torch sees no CUDA device; use "cpu" or a CUDA build of torch',
            field="device",
            value=device,
        )
    return where


def _dtype(dtype: str, device: torch.device, config: dict[str, Any]) -> torch.dtype:
    if dtype == "auto":
        stored = config.get("dtype") or config.get("torch_dtype")
        # Half precision is slow on most CPUs, and float32 keeps "window = plain" within 1e-5.
        return torch.float32 if device.type == "cpu" else _DTYPES.get(str(stored), torch.float32)
    if dtype not in _DTYPES:
        known = ", ".join(['"auto"', *(f'"{name}"' for name in _DTYPES)])
        raise ConfigError(f"dtype={dtype!r} is none of {known}", field="dtype", value=dtype)
    return _DTYPES[dtype]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from drawing bars and repeating warnings, only while we load."""
    level = transformers_logging.get_verbosity()
    has_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if has_bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Turn what transformers raises while it loads into our type."""
    try:
        yield
    except Exception as error:  # broken files raise anything, safetensors' own error included
        raise ModelError(
            f"the model in {folder} cannot be loaded ({type(error).__name__}); save it again with "
            "save_pretrained, weights and tokenizer",
            path=str(folder),
        ) from error
