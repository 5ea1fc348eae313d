"""Which model is this: a digest of weights and of what in the config changes their meaning.

Device, dtype and file names are no part of it; the weights as stored are.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Final

import torch

from megacontext_hf.anatomy import rope_parameters

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from megacontext_hf.foreign import HfConfig, HfModel

__all__ = ["of_files", "of_model"]

_ESSENTIALS: Final = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "hidden_act",
)


def of_files(files: Sequence[Path], config: HfConfig) -> str:
    """Return the digest of a checkpoint's safetensors files, read as a stream."""
    digest = hashlib.sha256(_essentials(config))
    for path in sorted(files):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def of_model(model: HfModel, config: HfConfig) -> str:
    """Return the digest of a loaded model; another than that of its files."""
    digest = hashlib.sha256(_essentials(config))
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def _essentials(config: HfConfig) -> bytes:
    kept: dict[str, object] = {name: getattr(config, name, None) for name in _ESSENTIALS}
    kept["rope"] = [
        [parameters.get("rope_theta"), parameters.get("rope_type", "default")]
        for parameters in rope_parameters(config)
    ]
    return json.dumps(kept, sort_keys=True, default=str).encode()
