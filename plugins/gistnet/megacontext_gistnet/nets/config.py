"""The shapes of the learned encoders: what can be varied, checked when it is set.

A configuration travels inside the weight file as JSON; together with the base it determines every
tensor's shape.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Self

import attrs

from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ContextualConfig", "GistNetConfig", "NetConfig"]

_SLOTS = (1, 2, 4)
_BLOCK = 32


def _at_least(least: int) -> Callable[[object, attrs.Attribute[int], int], None]:
    def check(_config: object, field: attrs.Attribute[int], value: int) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(
                f"{field.name} must be a whole number of at least {least}, got {value!r}",
                field=field.name,
                value=value,
            )

    return check


def _whole_blocks(_config: object, field: attrs.Attribute[int], value: int) -> None:
    if not isinstance(value, int) or value < 0 or value % _BLOCK:
        raise ConfigError(
            f"{field.name} must be a multiple of {_BLOCK} tokens, got {value!r}",
            field=field.name,
            value=value,
        )


@attrs.frozen(kw_only=True)
class NetConfig:
    """What both kinds have.

    Attributes:
        heads: attention heads; they divide the width they attend in.
        slots: S, how many nested gists are trained: 1, 2 or 4.
        n_levels: how many levels from LOD2 up have an embedding of their own; higher ones share
            the last.
        residual_bound: largest RMS of what is added to `mean`, in units of a token row's; 0.0
            leaves it free, which is how encoders are trained. Nothing is bounded at the start, for
            nothing is added then.

    Raises:
        ConfigError: a value that fits no network.
    """

    heads: int = attrs.field(default=4, validator=_at_least(1))
    slots: int = attrs.field(default=4)
    n_levels: int = attrs.field(default=6, validator=_at_least(1))
    residual_bound: float = attrs.field(default=0.0, converter=float)

    @slots.validator
    def _check_slots(self, _field: object, value: int) -> None:
        if value not in _SLOTS or isinstance(value, bool):
            raise ConfigError(f"slots must be 1, 2 or 4, got {value!r}", field="slots", value=value)

    @residual_bound.validator
    def _check_bound(self, _field: object, value: float) -> None:
        if not 0.0 <= value < float("inf"):
            raise ConfigError(
                f"residual_bound must be at least 0, got {value!r}",
                field="residual_bound",
                value=value,
            )

    def to_json(self) -> str:
        """Return the configuration as one JSON object."""
        return json.dumps(attrs.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: no JSON object, a name this version does not know, or a bad value.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            return cls(**values)
        except (TypeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"the configuration of an encoder is none this version reads ({error}); install "
                "the version of megacontext-gistnet that made it",
                field="config",
                value=text[:200],
            ) from error

    def _check_width(self, name: str, width: int) -> None:
        if width % self.heads:
            raise ConfigError(
                f"{name}={width} cannot be divided among {self.heads} heads; give a multiple",
                field=name,
                value=width,
            )


@attrs.frozen(kw_only=True)
class GistNetConfig(NetConfig):
    """The shape of a `gistnet`.

    Attributes:
        hidden: d_i, the width it works in: 128; 96 for a base of width at most 256 or at least
            2,048 (`for_width`). The feed-forward width is twice that.
        memory_slots: M, rows of the first compression. At least 2: one key has the softmax 1.
    """

    hidden: int = attrs.field(default=128, validator=_at_least(2))
    memory_slots: int = attrs.field(default=4, validator=_at_least(2))

    def __attrs_post_init__(self) -> None:
        self._check_width("hidden", self.hidden)
        if self.hidden // self.heads % 2:
            raise ConfigError(
                f"hidden={self.hidden} over {self.heads} heads is an odd width, which rotary "
                "positions cannot turn; give an even one",
                field="hidden",
                value=self.hidden,
            )

    @classmethod
    def for_width(cls, width: int) -> GistNetConfig:
        """Return the shape for a base of this width."""
        return cls(hidden=96 if width <= 256 or width >= 2048 else 128)


@attrs.frozen(kw_only=True)
class ContextualConfig(NetConfig):
    """The shape of a `contextual`.

    Attributes:
        n_layers: how many of the base's lower layers read; 4 of a small base's 6.
        rank: rank of the conditional LoRA on their linear maps, 0 for none; 16 at most.
        pool: width of the pooled values and keys.
        hidden: width of the head for blocks.
        level_hidden: width of the head for parents.
        prefix_tokens: raw tokens read before a chunk.
        chunk_tokens: length of the aligned stretches that are read in one pass.
    """

    heads: int = attrs.field(default=8, validator=_at_least(1))
    n_layers: int = attrs.field(default=4, validator=_at_least(1))
    rank: int = attrs.field(default=16, validator=_at_least(0))
    pool: int = attrs.field(default=256, validator=_at_least(1))
    hidden: int = attrs.field(default=1024, validator=_at_least(1))
    level_hidden: int = attrs.field(default=512, validator=_at_least(1))
    prefix_tokens: int = attrs.field(default=224, validator=_whole_blocks)
    chunk_tokens: int = attrs.field(default=256, validator=_whole_blocks)

    def __attrs_post_init__(self) -> None:
        self._check_width("pool", self.pool)
        if self.chunk_tokens < _BLOCK:
            raise ConfigError(
                f"chunk_tokens={self.chunk_tokens}; a chunk holds at least one block",
                field="chunk_tokens",
                value=self.chunk_tokens,
            )

    @property
    def left_tokens(self) -> int:
        """How far left of a block its gist may look."""
        return self.prefix_tokens + self.chunk_tokens - _BLOCK

    @classmethod
    def for_base(cls, n_layers: int, trained_window: int) -> ContextualConfig:
        """Return the shape for a base: two thirds of its layers, the longest chunks it can read.

        Args:
            n_layers: layers of the base.
            trained_window: longest row count the base was trained on.
        """
        prefix, chunk = _window(trained_window)
        used = max(1, -(-2 * n_layers // 3))
        return cls(n_layers=used, prefix_tokens=prefix, chunk_tokens=chunk)


def _window(trained: int) -> tuple[int, int]:
    """Return prefix and chunk: 224 and 1,024, 768 or 256, less of both for tiny windows."""
    for chunk, needed in ((1024, 1280), (768, 992), (256, 480)):
        if trained >= needed:
            return 224, chunk
    blocks = max(1, trained // _BLOCK)
    return (blocks // 2) * _BLOCK, (blocks - blocks // 2) * _BLOCK
