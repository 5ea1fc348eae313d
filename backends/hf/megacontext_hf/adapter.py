"""The model adapter over transformers, and the ways to open one.

It joins tokenizer, embeddings, windows and samplers of one frozen model; each is a module of its
own. Framework tensors stay behind it.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import TYPE_CHECKING

import attrs
import numpy as np
import torch
from torch import nn

from megacontext_hf import fingerprint
from megacontext_hf.anatomy import examine
from megacontext_hf.description import describe, text_config
from megacontext_hf.forward import ModelForward
from megacontext_hf.llama_forward import choose_forward
from megacontext_hf.loading import load, resolve
from megacontext_hf.sampler import TorchSampler
from megacontext_hf.tokenizer import HfTokenizer
from megacontext_hf.window import TorchWindow
from megacontext_sdk.contracts.arrays import readonly
from megacontext_sdk.contracts.model import ModelAdapter
from megacontext_sdk.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from megacontext_hf.anatomy import Anatomy
    from megacontext_hf.foreign import HfModel, HfTextTokenizer
    from megacontext_sdk.contracts.arrays import Floats, Ids
    from megacontext_sdk.contracts.model import ModelInfo, Sampler, SamplingOptions, Window

__all__ = ["HfAdapter", "open_hf", "open_packaged", "wrap"]


class HfAdapter(ModelAdapter):
    """One frozen causal language model of transformers. May be shared between threads.

    Use `open_hf` or `wrap`. The model's parameters are never changed.
    """

    def __init__(
        self, model: HfModel, tokenizer: HfTokenizer, info: ModelInfo, *, forward: str = "auto"
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._info = info
        self._forward_kind = forward
        self._anatomy: Anatomy | None = None
        self._forward: ModelForward | None = None
        self._table: Floats | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        return f"HfAdapter({self._info.name!r}, {self._info.device}, {self._info.dtype})"

    @property
    def info(self) -> ModelInfo:
        """What core must know about the model."""
        return self._info

    @property
    def tokenizer(self) -> HfTokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    def embed(self, token_ids: Ids) -> Floats:
        """Return input-embedding rows, float32[n, d].

        Raises:
            ModelError: an id outside the vocabulary; forgotten tokens (-1) have no row.
        """
        ids = np.asarray(token_ids, np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self._info.vocab_size:
            raise ModelError(
                f"a token is outside the vocabulary of {self._info.vocab_size}; leave forgotten "
                "ones (-1) out",
                vocab_size=self._info.vocab_size,
            )
        rows: Floats = self.embedding_table()[ids]
        return rows

    def embedding_table(self) -> Floats:
        """Return the whole input-embedding table, float32[vocab, d], read-only.

        A view of the model's weights where they are float32 on the CPU, else a copy kept for the
        adapter's lifetime.
        """
        self._require_open()
        if self._table is None:
            self._table = readonly(_embedding_table(self._model))  # type: ignore[assignment]
        return self._table  # type: ignore[return-value]

    def hidden_states(self, token_ids: Ids, left_context: Ids) -> Floats:
        """Return final hidden states of `token_ids` read after `left_context`, float32[n, d].

        Raises:
            ModelError: both together are longer than the trained window.
        """
        self._require_open()
        ids = np.concatenate([left_context, token_ids]).astype(np.int64)
        if len(ids) > self._info.trained_window:
            raise ModelError(
                f"{len(ids)} tokens exceed the trained window of {self._info.trained_window}; "
                "give fewer",
                n_tokens=len(ids),
            )
        if not len(token_ids):
            return np.empty((0, self._info.hidden_size), np.float32)
        forward = ModelForward(self._model)
        with torch.inference_mode():
            x = forward.embed(torch.from_numpy(ids).to(forward.device))[None]
            positions = torch.arange(len(ids), device=forward.device)[None]
            hidden = forward.hidden(x, positions, None, None)[0, len(left_context) :]
            rows: Floats = hidden.float().cpu().numpy()
        return rows

    def torch_module(self) -> HfModel:
        """Return the transformers model, frozen: no parameter of it asks for a gradient.

        Raises:
            ModelError: the adapter is closed.
        """
        self._require_open()
        return self._model.requires_grad_(requires_grad=False)

    def open_window(self, capacity: int) -> Window:
        """Return an empty window of `capacity` slots.

        Raises:
            ModelError: the model's attention cannot be addressed by slots.
            ConfigError: a capacity below 1.
        """
        self._require_open()
        if capacity < 1:
            raise ConfigError(
                f"capacity={capacity}; a window needs a slot", field="capacity", value=capacity
            )
        anatomy, forward = self._prepared()
        return TorchWindow(
            forward,
            anatomy,
            capacity=capacity,
            trained_window=self._info.trained_window,
            vocab_size=self._info.vocab_size,
        )

    def sampler(self, options: SamplingOptions) -> Sampler:
        """Return a sampler; its random generator belongs to it alone.

        Raises:
            ConfigError: an option out of range.
        """
        return TorchSampler(options, torch.device(self._info.device))

    def close(self) -> None:
        """Let go of the model; idempotent."""
        self._is_closed = True
        self._model = self._anatomy = self._forward = self._table = None

    def _prepared(self) -> tuple[Anatomy, ModelForward]:
        """Probe the model once, on first use."""
        if self._anatomy is None or self._forward is None:
            _check_attention(self._model)
            self._anatomy = examine(self._model, text_config(self._model))
            if self._forward_kind == "plain":
                self._forward = ModelForward(self._model)
            else:
                window = self._info.trained_window
                self._forward = choose_forward(self._model, self._anatomy.shape, window)
        return self._anatomy, self._forward

    def _require_open(self) -> None:
        if self._is_closed:
            raise ModelError(f"the model {self._info.name!r} is closed; open it again")


def open_hf(
    name: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    trained_window: int | str | None = None,
    local_files_only: bool | str = False,
    forward: str = "auto",
) -> HfAdapter:
    """Open a model from a folder or the hub.

    Args:
        name: a folder as `save_pretrained` writes it, or a hub id.
        revision: branch, tag or commit on the hub; pin a commit where it matters.
        device: "auto", "cpu", "cuda" or "cuda:1".
        dtype: "auto", "float32", "bfloat16" or "float16".
        trained_window: longest row count the model was trained on, where its config says another.
        local_files_only: never ask the hub.
        forward: "auto", or "plain" for transformers' own code in every forward pass.

    Raises:
        ModelError: the model cannot be had or loaded; names the place and the fix.
        ConfigError: an option that is none.
    """
    _check_forward(forward)
    is_offline = local_files_only in {True, "true", "1"}
    folder = resolve(name, revision=revision, local_files_only=is_offline)
    checkpoint = load(folder, device=device, dtype=dtype)
    digest = fingerprint.of_files(checkpoint.files, text_config(checkpoint.model))
    tokenizer = HfTokenizer(checkpoint.tokenizer, text_config(checkpoint.model).vocab_size)
    info = describe(checkpoint.model, tokenizer, name, digest, trained_window)
    return HfAdapter(checkpoint.model, tokenizer, info, forward=forward)


def open_packaged(
    _name: str = "",
    *,
    package: str,
    device: str = "auto",
    dtype: str = "auto",
    trained_window: int | str | None = None,
    forward: str = "auto",
) -> HfAdapter:
    """Open the model that a Python package ships in its folder `weights`.

    Args:
        package: import name, such as "megacontext_reference".
        device: as for `open_hf`, like the other options.

    Raises:
        ModelError: the package or its weights are missing.
    """
    try:
        weights = files(package) / "weights"
    except ModuleNotFoundError as error:
        distribution = package.replace("_", "-")
        raise ModelError(
            f"the package {package!r} is not installed; run `pip install {distribution}`",
            package=package,
        ) from error
    with as_file(weights) as folder:
        adapter = open_hf(
            str(folder),
            device=device,
            dtype=dtype,
            trained_window=trained_window,
            forward=forward,
        )
    name = package.removeprefix("megacontext_")
    adapter._info = attrs.evolve(adapter.info, name=name)  # noqa: SLF001 - ours
    return adapter


def wrap(
    model: HfModel,
    tokenizer: HfTextTokenizer,
    *,
    trained_window: int | None = None,
    name: str | None = None,
    forward: str = "auto",
) -> HfAdapter:
    """Use a transformers model that is already loaded; it is set to evaluation mode.

    Args:
        model: a causal language model.
        tokenizer: its fast tokenizer.
        trained_window: as for `open_hf`.
        name: for messages and `info.name`.
        forward: as for `open_hf`.

    Raises:
        ModelError: the tokenizer is not a fast one.
    """
    _check_forward(forward)
    config = text_config(model)
    adopted = HfTokenizer(tokenizer, config.vocab_size)
    label = name or getattr(model.config, "name_or_path", "") or type(model).__name__
    info = describe(
        model.eval(), adopted, label, fingerprint.of_model(model, config), trained_window
    )
    return HfAdapter(model, adopted, info, forward=forward)


def _embedding_table(model: HfModel) -> Floats:
    module = model.get_input_embeddings()
    with torch.inference_mode():
        if type(module) is nn.Embedding:
            rows = module.weight.detach()
        else:  # some families scale the rows
            rows = module(torch.arange(module.weight.shape[0], device=module.weight.device))
        table: Floats = rows.float().cpu().numpy()
    return table


def _check_attention(model: HfModel) -> None:
    kind = getattr(model.config, "_attn_implementation", "eager")
    if kind not in {"sdpa", "eager"}:
        raise ModelError(
            f"attn_implementation={kind!r} takes no mask of our own; load the model with "
            'attn_implementation="sdpa"',
            attn_implementation=kind,
        )


def _check_forward(forward: str) -> None:
    if forward not in {"auto", "plain"}:
        raise ConfigError(
            f'forward={forward!r} is neither "auto" nor "plain"', field="forward", value=forward
        )
