"""The lower layers of a frozen base as an encoder's reader, with a low-rank change of their own.

The reader is a structural copy: new module objects around the *same* parameters and buffers. The
low-rank change sits in the copy, so whatever the base decodes is computed by untouched modules from
untouched numbers, bit for bit, while an encode pass runs beside it.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from torch import nn
from transformers import DynamicCache

from megacontext_sdk.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Cache

__all__ = ["LowRank", "Reader"]

_SCALE = 2.0
_START = 1e-3  # spread of `up`: next to nothing, yet gradients reach `down` at once


class LowRank(nn.Module):
    """The change of one linear map: two thin matrices, float32 whatever the base is.

    Args:
        n_in, n_out: widths of the map.
        rank: width between them.
    """

    def __init__(self, n_in: int, n_out: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, n_in) / math.sqrt(n_in))
        self.up = nn.Parameter(torch.randn(n_out, rank) * _START)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., n_out] of [..., n_in]."""
        thin = F.linear(x, self.down.to(x.dtype))
        change: Tensor = F.linear(thin, self.up.to(x.dtype) * _SCALE)
        return change

    def matrix(self) -> Tensor:
        """Return the change as one matrix, float32[n_out, n_in]."""
        whole: Tensor = (self.up @ self.down) * _SCALE
        return whole


class _Changed(nn.Module):
    """A frozen linear map and its change, in the reader's place of the map alone."""

    def __init__(self, frozen: nn.Linear, change: LowRank) -> None:
        super().__init__()
        self.frozen = frozen
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        plain: Tensor = self.frozen(x)
        change: Tensor = self.change(x)
        return plain + change.to(plain.dtype)

    def merged(self) -> nn.Linear:
        """Return both as one map with a weight of its own."""
        frozen = self.frozen
        whole = nn.Linear(1, 1, bias=False)
        weight = frozen.weight.detach().float() + self.change.matrix().detach()
        whole.weight = nn.Parameter(weight.to(frozen.weight.dtype), requires_grad=False)
        whole.bias = frozen.bias
        return whole


class Reader:
    """Reads token ids through a base's lower layers; not a module, for it owns no parameter.

    Args:
        base: a causal language model of transformers. Its modules stay as they are.
        n_layers: how many layers read.
        rank: rank of the change; 0 for none.

    Attributes:
        changes: a low-rank change per linear map of these layers, by a name of letters, digits and
            underscores; whoever trains them registers them.

    Raises:
        ConfigError: more layers than the base has.
        ModelError: the base is not built of layers as transformers builds decoders, or has no
            linear maps that could be changed.
    """

    def __init__(self, base: nn.Module, n_layers: int, rank: int) -> None:
        decoder = _decoder(base)
        name = _layers_name(decoder)
        layers = getattr(decoder, name)
        if not 1 <= n_layers <= len(layers):
            raise ConfigError(
                f"n_layers={n_layers}, but {type(base).__name__} has {len(layers)} layers",
                field="n_layers",
                value=n_layers,
            )
        self._copy = _sharing_copy(decoder, name, n_layers)
        self._dtype = next(self._copy.parameters()).dtype
        self.changes = _change(getattr(self._copy, name), rank) if rank else {}

    def states(self, embedded: Tensor, past: Cache | None = None) -> Tensor:
        """Return the residual stream after the last layer used, [B, T, d], causally.

        Args:
            embedded: [B, T, d], embedding rows of any float type, at positions that follow what
                `past` holds, or begin at 0.
            past: keys and values of the rows before, to which those of these rows are added.
        """
        states: Tensor = self._copy(
            inputs_embeds=embedded.to(self._dtype), past_key_values=past, use_cache=past is not None
        ).last_hidden_state
        return states

    def new_past(self) -> Cache:
        """Return an empty cache of keys and values for `states`."""
        return DynamicCache(config=self._copy.config)

    @property
    def can_merge(self) -> bool:
        """Tell whether a merged map would hold the sum: half precision rounds a change away."""
        return self._dtype == torch.float32

    @property
    def merge_bytes(self) -> int:
        """Memory that `merge` would take."""
        changed = (one for one in self._copy.modules() if isinstance(one, _Changed))
        return sum(one.frozen.weight.nbytes for one in changed)

    def merge(self) -> None:
        """Add the changes to own copies of the maps, for speed where nothing is trained any more.

        The base keeps its own; this reader needs memory for its lower layers a second time.
        """
        for parent in list(self._copy.modules()):
            for name, one in list(parent.named_children()):
                if isinstance(one, _Changed):
                    setattr(parent, name, one.merged())


def _decoder(base: Any) -> nn.Module:  # noqa: ANN401 - transformers is not typed
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else None
    if not isinstance(decoder, nn.Module):
        raise ModelError(
            f"{type(base).__name__} has no decoder of its own; give a causal language model of "
            "transformers"
        )
    return decoder


def _layers_name(decoder: nn.Module) -> str:
    """Return the name of the one list of layers in a decoder."""
    found = [name for name, one in decoder.named_children() if isinstance(one, nn.ModuleList)]
    if len(found) != 1:
        raise ModelError(
            f"{type(decoder).__name__} has {len(found)} lists of layers, not one; it cannot be "
            'read layer by layer, so use gist="gistnet" for this model'
        )
    return found[0]


def _sharing_copy(decoder: nn.Module, name: str, n_layers: int) -> nn.Module:
    """Copy modules, share tensors; cut the layers above and the norm that ends the decoder."""
    tensors = [*decoder.parameters(), *decoder.buffers()]
    kept = nn.ModuleList(list(getattr(decoder, name))[:n_layers])
    memo: dict[int, object] = {id(one): one for one in tensors}
    memo[id(getattr(decoder, name))] = copy.deepcopy(kept, memo)
    shared = copy.deepcopy(decoder, memo).eval()
    for child, module in list(shared.named_children()):
        if "norm" in type(module).__name__.lower():
            setattr(shared, child, nn.Identity())
    config: Any = shared.config  # a copy, too
    config.num_hidden_layers = n_layers
    return shared


def _change(layers: nn.ModuleList, rank: int) -> dict[str, LowRank]:
    """Put a change beside every linear map of the copy's layers."""
    found = [(name, one) for name, one in layers.named_modules() if type(one) is nn.Linear]
    if not found:
        raise ModelError(
            "the base's layers hold no linear maps that a low-rank change fits; set rank=0"
        )
    changes = {}
    for name, linear in found:
        change = LowRank(linear.in_features, linear.out_features, rank).to(linear.weight.device)
        parent, _, last = name.rpartition(".")
        setattr(layers.get_submodule(parent), last, _Changed(linear, change))
        changes[name.replace(".", "_")] = change
    return changes
