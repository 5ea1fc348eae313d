"""The catalogue: which providers exist, who offers them, and the code behind a name.

It imports provider code only when a provider is asked for. It registers nothing and knows no hook
calls; `plugins.py` fills it.
"""

from __future__ import annotations

from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING

import attrs

from megacontext_sdk import records
from megacontext_sdk.errors import (
    DuplicateProviderError,
    MegaContextError,
    PluginLoadError,
    UnknownProviderError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["KINDS", "Catalogue", "Failure", "Kind", "Provider"]


@attrs.frozen
class Kind:
    """One role: its short name, its catalogue hook, its record type, its contract class."""

    name: str
    hook: str
    record: type[records.ProviderSpec]
    contract: str | None


KINDS = {
    kind.name: kind
    for kind in (
        Kind("storage", "megacontext_storages", records.StorageSpec, "storage:Storage"),
        Kind("model", "megacontext_model_adapters", records.ModelAdapterSpec, "model:ModelAdapter"),
        Kind("gist", "megacontext_gist_encoders", records.GistEncoderSpec, "gist:GistEncoder"),
        Kind("focus", "megacontext_focus_policies", records.FocusPolicySpec, "focus:FocusPolicy"),
        Kind("allocator", "megacontext_allocators", records.AllocatorSpec, "focus:FocusAllocator"),
        Kind(
            "positions",
            "megacontext_position_schemes",
            records.PositionSchemeSpec,
            "positions:PositionScheme",
        ),
        Kind("runtime", "megacontext_runtimes", records.RuntimeSpec, "runtime:RuntimeLoop"),
        Kind("sink", "megacontext_telemetry_sinks", records.SinkSpec, "telemetry:TelemetrySink"),
        Kind("command", "megacontext_commands", records.CommandSpec, None),
    )
}
"""Every role a plugin can fill, by its short name."""

_MEMBERS = {
    "contextual": "gistnet",
    "duckdb": "duckdb",
    "filesystem": "filesystem",
    "gistnet": "gistnet",
    "hf": "hf",
    "reference": "reference",
    "reference-contextual": "gistnet",
    "reference-gistnet": "gistnet",
}
"""Providers of this repository's members, for a better hint when one is not installed."""


@attrs.frozen
class Failure:
    """A plugin that was left out whole: which one, from where, and why."""

    plugin: str
    distribution: str | None
    version: str | None
    error: Exception

    def __str__(self) -> str:
        """Return one line for listings."""
        return f"{self.plugin} ({type(self.error).__name__}: {self.error})"


@attrs.frozen
class Provider:
    """A record and its owner."""

    kind: str
    spec: records.ProviderSpec
    plugin: str
    distribution: str | None = None
    version: str | None = None

    @property
    def owner(self) -> str:
        """The plugin, with distribution and version where it has them."""
        if self.distribution is None:
            return self.plugin
        return f"{self.plugin} ({self.distribution} {self.version})"

    def load(self) -> Callable[..., object]:
        """Import and return the factory.

        Raises:
            PluginLoadError: it cannot be imported, is not callable, or is a class of the wrong
                contract; the message says what to install or to correct.
        """
        factory = self.load_attribute(self.spec.factory)
        contract = KINDS[self.kind].contract
        if contract is None or not isinstance(factory, type):
            return factory
        wanted = _import(f"megacontext_sdk.contracts.{contract}")
        if not (isinstance(wanted, type) and issubclass(factory, wanted)):
            raise self._error(f"{factory.__name__} does not implement {contract.partition(':')[2]}")
        return factory

    def load_attribute(self, factory: str | Callable[..., object]) -> Callable[..., object]:
        """Import a factory or probe of this provider.

        Raises:
            PluginLoadError: it cannot be imported or called.
        """
        if not isinstance(factory, str):
            return factory
        try:
            value = _import(factory)
        except Exception as error:  # third-party code may raise anything while it is imported
            why = f"importing {factory} gave {type(error).__name__}: {error}"
            raise self._error(why) from error
        if not callable(value):
            raise self._error(f"{factory} is a {type(value).__name__} and cannot be called")
        found: Callable[..., object] = value
        return found

    @contextmanager
    def guard(self, wrapper: type[MegaContextError]) -> Iterator[None]:
        """Turn foreign exceptions of this provider's code into our type, `from` theirs.

        Errors of our own tree pass unchanged; both get a note that names plugin and version.
        Their text stays in the cause and out of our message: it may quote the memory.
        """
        note = f"raised by {self.kind} {self.spec.name!r} of plugin {self.owner}"
        try:
            yield
        except MegaContextError as error:
            error.add_note(note)
            raise
        except Exception as error:
            wrapped = wrapper(
                f"{self.kind} {self.spec.name!r} failed with {type(error).__name__}; "
                f"report it to the author of plugin {self.owner}"
            )
            wrapped.add_note(note)
            raise wrapped from error

    def _error(self, why: str) -> PluginLoadError:
        install = f"; run `pip install {self.spec.requires}`" if self.spec.requires else ""
        return PluginLoadError(
            f"{self.kind} {self.spec.name!r} of plugin {self.owner} cannot be loaded: {why}"
            f"{install or '; reinstall that plugin or choose another provider'}",
            provider=self.spec.name,
        )


@attrs.frozen
class Catalogue:
    """All providers of one load, and the plugins that failed."""

    providers: tuple[Provider, ...]
    failures: tuple[Failure, ...]

    def of_kind(self, kind: str) -> tuple[Provider, ...]:
        """Return the providers of a role, sorted by name; contested names appear twice.

        Raises:
            KeyError: for a role that does not exist.
        """
        wanted = KINDS[kind].name
        found = (provider for provider in self.providers if provider.kind == wanted)
        return tuple(sorted(found, key=lambda provider: (provider.spec.name, provider.owner)))

    def names(self, kind: str) -> tuple[str, ...]:
        """Return the names of a role, sorted, each once."""
        return tuple(sorted({provider.spec.full_name for provider in self.of_kind(kind)}))

    def find(self, kind: str, name: str) -> Provider:
        """Return the one provider of this name.

        Raises:
            UnknownProviderError: nobody offers it; lists what exists and what failed to load.
            DuplicateProviderError: two plugins offer it; names both.
        """
        found = [provider for provider in self.of_kind(kind) if provider.spec.full_name == name]
        if not found:
            raise self._unknown(kind, name)
        if len(found) > 1:
            owners = tuple(provider.owner for provider in found)
            raise DuplicateProviderError(
                f"{kind} {name!r} is offered by {' and by '.join(owners)}; uninstall one of "
                "them or name the plugins you trust in MEGACONTEXT_PLUGINS",
                kind=kind,
                name=name,
                owners=owners,
            )
        return found[0]

    def _unknown(self, kind: str, name: str) -> UnknownProviderError:
        available = self.names(kind)
        failures = tuple(str(failure) for failure in self.failures)
        parts = [
            f"no {kind} provider is named {name!r}{_near_miss(name, available)}",
            f"available: {', '.join(available) or 'none'}",
        ]
        if failures:
            parts.append(f"failed to load: {', '.join(failures)}")
        parts.append(_install_hint(name))
        return UnknownProviderError(
            "; ".join(parts), kind=kind, name=name, available=available, failures=failures
        )


def _near_miss(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1)
    return f', did you mean "{close[0]}"?' if close else ""


def _install_hint(name: str) -> str:
    if name in _MEMBERS:
        return f"install it with `pip install megacontext-{_MEMBERS[name]}`"
    return "correct the name or install the plugin that offers it"


def _import(path: str) -> object:
    module, _, names = path.partition(":")
    value: object = import_module(module)
    for name in names.split("."):
        value = getattr(value, name)
    return value
