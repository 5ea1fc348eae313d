"""The frozen base as training uses it: rows in, final hidden states and logits out.

Its parameters ask for no gradient, and gradients still cross it to reach the gists: no method here
switches them off. Where the device is faster in bfloat16 the passes run on a copy in bfloat16; the
model that the adapter holds is never touched.
"""

from __future__ import annotations

import copy
import hashlib
import time
from typing import TYPE_CHECKING, Final, Literal, cast

import torch

from megacontext_sdk.errors import InvariantError, ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

    Precision = Literal["auto", "float32", "bfloat16"]

__all__ = ["FrozenBase", "best_dtype", "digest_of", "freeze", "refuse_changed"]

_PROBE: Final = 512
_WORTH_WHILE: Final = 1.3
_TOLERANCE: Final = 1e-3


def freeze(module: nn.Module) -> nn.Module:
    """Take all parameters of a module out of training and return it, in evaluation mode."""
    module.eval()
    return module.requires_grad_(False)  # noqa: FBT003 - torch's own argument


def digest_of(module: nn.Module) -> str:
    """Return the sha256 of all parameters of a module, in the order of their names."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        digest.update(f"{name}:{parameter.dtype}:{tuple(parameter.shape)}".encode())
        flat = parameter.detach().contiguous().view(-1).view(torch.uint8)
        for part in flat.split(1 << 26):
            digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()


def best_dtype(device: torch.device, wanted: Precision = "auto") -> torch.dtype:
    """Return the number format to run the base in; `auto` times a matrix product on a CPU."""
    if wanted != "auto":
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type != "cpu":
        return torch.float32
    slow, fast = (_seconds(dtype) for dtype in (torch.float32, torch.bfloat16))
    return torch.bfloat16 if slow > _WORTH_WHILE * fast else torch.float32


def _seconds(dtype: torch.dtype) -> float:
    """Return the best of some timings: a busy machine only ever makes it look slower."""
    x = torch.ones(_PROBE, _PROBE, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        x @ x
        best = min(best, time.perf_counter() - start)
    return best


class FrozenBase:
    """Runs the base on rows of embeddings.

    Args:
        module: a causal language model of transformers, frozen, on its device.
        dtype: number format of the passes; another one than the module's costs a copy of it.
        is_compiled: compile the layers, which pays on a GPU in long runs.

    Attributes:
        module: as given; its embedding makes the rows.

    Raises:
        ModelError: the module has no embedding or head, or has parameters that ask for gradients.
    """

    def __init__(
        self, module: nn.Module, dtype: torch.dtype = torch.float32, *, is_compiled: bool = False
    ) -> None:
        if any(one.requires_grad for one in module.parameters()):
            raise ModelError("the base has parameters that would be trained; freeze it first")
        self.module = module
        own = next(module.parameters()).dtype
        self._run = module if own == dtype else _copy_as(module, dtype)
        self._embedding = module.get_input_embeddings()  # type: ignore[operator]
        self._layers = cast("nn.Module", self._run.base_model)
        self._head = self._run.get_output_embeddings()  # type: ignore[operator]
        if self._head is None:
            raise ModelError(f"{type(module).__name__} has no head; give a causal language model")
        config = self._run.config
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self._scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        self._examine()
        if is_compiled:
            self._layers = cast("nn.Module", torch.compile(self._layers, dynamic=True))

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the passes."""
        return next(self._run.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self._run.parameters()).device

    @property
    def width(self) -> int:
        """d, the width of rows."""
        return int(self._embedding.weight.shape[1])

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return rows float32[..., d] of int64 token ids, without gradient."""
        return cast("Tensor", self._embedding(token_ids)).detach().float()

    def hidden(self, rows: Tensor) -> Tensor:
        """Return final hidden states [B, R, d] of rows [B, R, d] at positions 0, 1, 2, ...

        Differentiable in the rows.
        """
        output = self._layers(inputs_embeds=rows.to(self.dtype), use_cache=False)
        return cast("Tensor", output.last_hidden_state)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [..., vocab] of final hidden states."""
        logits: Tensor = self._head(hidden)
        if self._scale != 1.0:
            logits = logits * self._scale
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits

    def _examine(self) -> None:
        """Compare layers and head, run apart, with the whole model.

        Raises:
            ModelError: the model does something else between its layers and its logits.
        """
        ids = torch.arange(6, device=self.device)[None]
        with torch.no_grad():
            rows = self.embed(ids)
            apart = self.logits(self.hidden(rows)).float()
            whole = self._run(inputs_embeds=rows.to(self.dtype), use_cache=False).logits.float()
        if float((apart - whole).abs().max()) > _TOLERANCE * float(whole.abs().max().clamp_min(1)):
            raise ModelError(
                f"{type(self.module).__name__} changes its logits behind the head, which training "
                "does not know; report its name, or train on another base"
            )


def _copy_as(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy in another number format; buffers, such as rotary angles, keep theirs."""
    made = copy.deepcopy(module)
    for parameter in made.parameters():
        parameter.data = parameter.data.to(dtype)
    choose = getattr(made, "set_attn_implementation", None)
    if next(made.parameters()).device.type == "cpu" and callable(choose):
        # On a CPU torch's fused attention is the slower one for windows of hundreds of rows: its
        # backward pass takes three times that of plain matrix products in bfloat16.
        choose("eager")
    return freeze(made)


def refuse_changed(before: str, module: nn.Module) -> None:
    """Refuse a base whose parameters are not what they were.

    Raises:
        InvariantError: they changed.
    """
    if digest_of(module) != before:
        raise InvariantError("training changed the frozen base; this is a bug, please report it")
