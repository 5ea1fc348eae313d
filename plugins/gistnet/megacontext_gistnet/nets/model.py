"""Making, saving and loading trainable encoders; the one door to `nets`.

A weight file is safetensors: the encoder's own tensors, and in its header the shape, what base and
tokenizer it was trained for, and what training wants to say about itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

import attrs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from megacontext_gistnet.nets.config import ContextualConfig, GistNetConfig
from megacontext_gistnet.nets.contextual import Contextual
from megacontext_gistnet.nets.gist_model import GistModel
from megacontext_gistnet.nets.gistnet import GistNet
from megacontext_sdk.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

__all__ = [
    "KINDS",
    "GistModel",
    "WeightFile",
    "load_into",
    "load_weights",
    "new_model",
    "read_header",
    "save_weights",
    "weights_digest",
]

KINDS = ("contextual", "gistnet")
"""What `new_model` makes."""

_FORMAT = "megacontext-gist/1"
_NEEDED = ("base_fingerprint", "tokenizer_fingerprint")


@attrs.frozen(kw_only=True)
class WeightFile:
    """What the header of a weight file says.

    Attributes:
        kind: "gistnet" or "contextual".
        config: the shape.
        width: d of the base.
        base_fingerprint, tokenizer_fingerprint: what the encoder was trained for, as `ModelInfo`
            names them.
        facts: what training wrote besides: data, steps, minutes.
    """

    kind: str
    config: GistNetConfig | ContextualConfig
    width: int
    base_fingerprint: str
    tokenizer_fingerprint: str
    facts: Mapping[str, str]


def new_model(
    kind: str,
    base: nn.Module,
    config: GistNetConfig | ContextualConfig | None = None,
    *,
    seed: int = 0,
    trained_window: int | None = None,
) -> GistModel:
    """Make an untrained encoder: `mean`, exactly, until it is trained.

    Args:
        kind: "gistnet" or "contextual".
        base: the frozen causal language model, where it is to stay.
        config: the shape; None takes the one that fits the base.
        seed: of the parameters' start.
        trained_window: longest row count the base was trained on, for the shape; None believes its
            config.

    Raises:
        ConfigError: no such kind, or a shape that does not fit kind or base.
        ModelError: the base cannot be read layer by layer.
    """
    shape = config or _fitting(kind, base, trained_window)
    wanted = _config_class(kind)
    if not isinstance(shape, wanted):
        raise ConfigError(
            f"a {kind} takes a {wanted.__name__}, got a {type(shape).__name__}",
            field="config",
            value=type(shape).__name__,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _made(base, shape)
    return model.to(model.device)


def save_weights(model: GistModel, path: Path, facts: Mapping[str, str]) -> None:
    """Write an encoder's parameters, whole or not at all.

    Args:
        model: what `new_model` or `load_weights` returned, as it is now.
        path: the file to write or replace, by custom `<kind>.safetensors`.
        facts: "base_fingerprint" and "tokenizer_fingerprint" of the base's `ModelInfo`, and
            whatever training wants to tell.

    Raises:
        ConfigError: a fingerprint is missing.
    """
    for name in _NEEDED:
        if not facts.get(name):
            raise ConfigError(
                f"facts lack {name!r}; take it from the base's ModelInfo, so that the encoder can "
                "refuse another base",
                field="facts",
                value=name,
            )
    told = {name: value for name, value in facts.items() if name not in _NEEDED}
    header = {
        "format": _FORMAT,
        "kind": model.kind,
        "config": model.config.to_json(),
        "width": str(model.width),
        **{name: facts[name] for name in _NEEDED},
        "facts": json.dumps(told, sort_keys=True),
    }
    tensors = {
        name: one.detach().to("cpu", torch.float32).contiguous()
        for name, one in model.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    save_file(tensors, str(beside), metadata=header)
    beside.chmod(0o644)  # safetensors writes for the owner alone; weights are there to be shared
    os.replace(beside, path)  # noqa: PTH105 - the atomic one


def read_header(path: Path) -> WeightFile:
    """Read what a weight file is, and none of its tensors.

    Raises:
        ModelError: no file, or not one that `save_weights` wrote.
    """
    header = _metadata(path)
    kind = header.get("kind", "")
    if header.get("format") != _FORMAT or kind not in KINDS:
        raise ModelError(
            f"{path} holds no encoder of this plugin (format {header.get('format')!r}); give a "
            "file that `megacontext train gistnet` wrote",
            path=str(path),
        )
    facts: dict[str, str] = json.loads(header.get("facts", "{}"))
    return WeightFile(
        kind=kind,
        config=_config_class(kind).from_json(header["config"]),
        width=int(header["width"]),
        base_fingerprint=header["base_fingerprint"],
        tokenizer_fingerprint=header["tokenizer_fingerprint"],
        facts=facts,
    )


def load_weights(path: Path, base: nn.Module) -> GistModel:
    """Load an encoder for a base. Whether it is *the* base is for whoever knows fingerprints.

    Raises:
        ModelError: no file, not one of ours, or tensors of other shapes than the base asks for.
    """
    model = _made(base, read_header(path).config)
    load_into(path, model)
    return model.to(model.device)


def load_into(path: Path, module: nn.Module) -> None:
    """Load all tensors of a weight file into a module that has just these.

    Raises:
        ModelError: no such file, or tensors of other names or shapes.
    """
    _metadata(path)  # says what is wrong with the file, if anything
    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    _check_shapes(path, module, tensors)
    module.load_state_dict(tensors)


def weights_digest(path: Path) -> str:
    """Return the sha256 of a weight file, header included.

    Raises:
        ModelError: there is no such file.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _missing(path, error) from error


def _made(base: nn.Module, config: GistNetConfig | ContextualConfig) -> GistModel:
    if isinstance(config, GistNetConfig):
        return GistNet(base, config)
    return Contextual(base, config)


def _config_class(kind: str) -> type[GistNetConfig | ContextualConfig]:
    if kind not in KINDS:
        raise ConfigError(
            f"there is no encoder {kind!r}; train one of {', '.join(KINDS)}",
            field="kind",
            value=kind,
        )
    return GistNetConfig if kind == "gistnet" else ContextualConfig


def _fitting(
    kind: str,
    base: Any,  # noqa: ANN401 - transformers is not typed
    trained_window: int | None,
) -> GistNetConfig | ContextualConfig:
    if _config_class(kind) is GistNetConfig:
        return GistNetConfig.for_width(base.get_input_embeddings().weight.shape[1])
    told = base.config.get_text_config()
    window = trained_window or told.max_position_embeddings
    return ContextualConfig.for_base(told.num_hidden_layers, window)


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise ModelError(
            f"{path} is no safetensors file ({error}); give a file that "
            "`megacontext train gistnet` wrote",
            path=str(path),
        ) from error
    except OSError as error:
        raise _missing(path, error) from error


def _missing(path: Path, error: OSError) -> ModelError:
    return ModelError(
        f"{path} cannot be read ({error.strerror or type(error).__name__}); correct the path, "
        'train an encoder with `megacontext train gistnet`, or say gist="mean"',
        path=str(path),
    )


def _check_shapes(path: Path, model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    wanted = {name: tuple(one.shape) for name, one in model.state_dict().items()}
    found = {name: tuple(one.shape) for name, one in tensors.items()}
    wrong = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise ModelError(
            f"{path} does not fit this base: {name} is {found.get(name, 'missing')}, wanted "
            f"{wanted.get(name, 'nothing')} ({len(wrong)} such tensors); load it with the base it "
            "was trained for",
            path=str(path),
        )
