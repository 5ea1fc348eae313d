"""What plugins yield: one small frozen record per provider, checked when it is made.

A record names a provider and says where its code is; it never imports that code. So the module
behind an entry point stays light, each provider has an owner, and a clash of names is an error.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import attrs

from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from megacontext_sdk.contracts.model import ModelInfo, SamplingOptions

    Factory: TypeAlias = str | Callable[..., object]

__all__ = [
    "AllocatorSpec",
    "CommandSpec",
    "FocusPolicySpec",
    "GenerateRequest",
    "GistEncoderSpec",
    "ModelAdapterSpec",
    "PositionSchemeSpec",
    "ProviderSpec",
    "RuntimeContext",
    "RuntimeSpec",
    "SinkSpec",
    "StorageSpec",
]

_NAME = re.compile(r"[a-z][a-z0-9-]*")
_IMPORT_STRING = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def _check_name(record: ProviderSpec, field: attrs.Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ConfigError(
            f"{type(record).__name__} has the {field.name} {value!r}; use lower-case letters, "
            'digits and hyphens, a letter first, as in "cuda-loop"',
            field=field.name,
            value=value,
        )


def _check_factory(record: ProviderSpec, field: attrs.Attribute[Factory], value: Factory) -> None:
    fits = _IMPORT_STRING.fullmatch(value) if isinstance(value, str) else callable(value)
    if fits:
        return
    raise ConfigError(
        f"{type(record).__name__} {record.name!r} has the {field.name} {value!r}; give an import "
        'string such as "package.module:Class", or a callable',
        field=field.name,
        value=value,
    )


def _check_summary(record: ProviderSpec, field: attrs.Attribute[str], value: object) -> None:
    if isinstance(value, str) and value.strip() and "\n" not in value:
        return
    raise ConfigError(
        f"{type(record).__name__} {record.name!r} needs a summary of one line, got {value!r}",
        field=field.name,
        value=value,
    )


def _frozen_mapping(options: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType(dict(options))


@attrs.frozen
class ProviderSpec:
    """What every record has.

    Attributes:
        name: how users ask for the provider, `[a-z][a-z0-9-]*`.
        factory: import string `"package.module:Class"`, or a callable.
        summary: one line for listings.
        requires: what to install when importing the factory fails, as pip takes it.

    Raises:
        ConfigError: a name, factory or summary that is none.
    """

    name: str = attrs.field(validator=_check_name)
    factory: Factory = attrs.field(validator=_check_factory)
    summary: str = attrs.field(validator=_check_summary)
    requires: str | None = attrs.field(default=None, kw_only=True)

    @property
    def full_name(self) -> str:
        """How users write it: the name; a command's stands behind its group."""
        return self.name


@attrs.frozen
class StorageSpec(ProviderSpec):
    """A `Storage`; the factory is called with `(path, options)`."""


@attrs.frozen
class ModelAdapterSpec(ProviderSpec):
    """A `ModelAdapter`; the factory is called with `(argument, **options)`.

    `argument` is what follows the colon of `model="hf:Qwen/Qwen3-0.6B"`, or `""`.

    Attributes:
        options: keywords for the factory, so that one factory can serve several names.
        gist: the encoder trained for this model, as one says it in `gist=`. A new memory takes it
            if nobody names another and it is installed; `""` if there is none.
    """

    options: Mapping[str, str] = attrs.field(
        factory=dict, converter=_frozen_mapping, kw_only=True, hash=False
    )
    gist: str = attrs.field(default="", kw_only=True)


@attrs.frozen
class GistEncoderSpec(ProviderSpec):
    """A `GistEncoder`; the factory is called with `(argument, gist_slots=S, **options)`.

    `argument` is what follows the colon of `gist="gistnet:weights.safetensors"`, or `""`.

    Attributes:
        options: keywords for the factory, so that one factory can serve several names.
    """

    options: Mapping[str, str] = attrs.field(
        factory=dict, converter=_frozen_mapping, kw_only=True, hash=False
    )


@attrs.frozen
class FocusPolicySpec(ProviderSpec):
    """A `FocusPolicy`; the factory is called without arguments, once per session."""


@attrs.frozen
class AllocatorSpec(ProviderSpec):
    """A `FocusAllocator`; the factory is called without arguments."""


@attrs.frozen
class PositionSchemeSpec(ProviderSpec):
    """A `PositionScheme`; the factory is called without arguments."""


@attrs.frozen
class RuntimeSpec(ProviderSpec):
    """A `RuntimeLoop`; the factory is called with the session's state.

    Attributes:
        probe: import string or callable without arguments; spends real resources to tell whether
            the loop can run here. None: it always can.
        rank: among usable loops the highest rank is chosen.
    """

    probe: Factory | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(_check_factory)
    )
    rank: int = attrs.field(default=0, kw_only=True)


@attrs.frozen
class SinkSpec(ProviderSpec):
    """A `TelemetrySink`; the factory is called once per session.

    Its argument is what follows the colon of `sinks=("jsonl:trace.jsonl",)`, if there is one.
    """


@attrs.frozen
class CommandSpec(ProviderSpec):
    """A command `megacontext <name>`; the factory is a function that Typer can read.

    Attributes:
        group: the word before the name, so that `megacontext train acme` and
            `megacontext eval acme` can both exist; written like a name. Empty: no such word.
            Several plugins may add to one group. A group cannot be named like a command.

    Raises:
        ConfigError: also a group that is neither empty nor a name.
    """

    group: str = attrs.field(default="", kw_only=True)

    @group.validator
    def _check_group(self, field: attrs.Attribute[str], value: object) -> None:
        if value != "":
            _check_name(self, field, value)

    @property
    def full_name(self) -> str:
        """How users write it: `"train acme"`, or the name alone where there is no group."""
        return f"{self.group} {self.name}".strip()


@attrs.frozen(kw_only=True)
class RuntimeContext:
    """What `megacontext_choose_runtime` may look at.

    Attributes:
        info: the base model.
        runtimes: every loop that can be asked for, sorted by name.
        is_usable: runs the probe of a loop; False also when the probe raises.
    """

    info: ModelInfo
    runtimes: tuple[RuntimeSpec, ...]
    is_usable: Callable[[RuntimeSpec], bool]


@attrs.frozen(kw_only=True)
class GenerateRequest:
    """What `megacontext_around_generate` may look at; no content of the memory.

    Attributes:
        where: the memory, as its session's `repr` gives it (`"duckdb:notes.mc"`).
        max_new_tokens: upper bound on generated tokens.
        sampling: how tokens are chosen.
        remember: whether the reply becomes part of the memory.
    """

    where: str
    max_new_tokens: int
    sampling: SamplingOptions
    remember: bool
