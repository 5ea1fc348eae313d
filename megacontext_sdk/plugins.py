"""The plugins of one load, as a value: what they offer, what failed, their lifecycle hooks.

`loader.py` finds and checks them; what providers do is no business of this module.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, cast

from megacontext_sdk import builtin
from megacontext_sdk.errors import ModelError, PluginLoadError
from megacontext_sdk.loader import Loader, allowed_names, call, explicit, installed, switch
from megacontext_sdk.records import (
    GistEncoderSpec,
    ModelAdapterSpec,
    RuntimeContext,
    RuntimeSpec,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from types import TracebackType

    from pluggy import HookImpl, PluginManager

    from megacontext_sdk.catalogue import Catalogue, Failure, Provider
    from megacontext_sdk.contracts.model import ModelInfo
    from megacontext_sdk.contracts.telemetry import TelemetrySink
    from megacontext_sdk.events import Telemetry
    from megacontext_sdk.records import GenerateRequest
    from megacontext_sdk.session import MemorySession

__all__ = ["Plugins", "default_plugins"]

_log = logging.getLogger(__name__)


class Plugins:
    """The plugins of one load: what they offer, what failed, and their lifecycle hooks.

    Build it with `Plugins.load`. May be shared between threads; loading has no side effects, so
    loading twice in one process is harmless.
    """

    def __init__(self, manager: PluginManager, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self._manager = manager
        # Resolved once: opening a session or generating never walks the plugin manager.
        self._opened = _implementations(manager, "megacontext_session_opened")
        self._closed = _implementations(manager, "megacontext_session_closed")
        self._around = _implementations(manager, "megacontext_around_generate")

    @classmethod
    def load(
        cls,
        *,
        plugins: Iterable[str] | None = None,
        modules: Iterable[object] = (),
        strict: bool | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Plugins:
        """Load the built-ins, the explicit modules, then the installed entry points by name.

        Args:
            plugins: entry points to import, by name; None means all that MEGACONTEXT_PLUGINS
                allows.
            modules: plugins that need no installation: modules, objects with hook
                implementations, or names of modules.
            strict: raise all failures together; None reads MEGACONTEXT_STRICT_PLUGINS.
            environ: the environment, `os.environ` unless given.

        Raises:
            ExceptionGroup: in strict mode, the errors of all plugins that failed.
            PluginError: a built-in is broken, which no setting can repair.
            ConfigError: an environment variable that is neither 0 nor 1.
        """
        env = os.environ if environ is None else environ
        loader = Loader(trace=switch(env, "MEGACONTEXT_TRACE_PLUGINS"))
        loader.add_builtin()
        for candidate in (*explicit(modules), *installed(allowed_names(plugins, env))):
            loader.add(candidate)
        if switch(env, "MEGACONTEXT_STRICT_PLUGINS") if strict is None else strict:
            loader.raise_failures()
        loader.warn()
        return cls(loader.manager, loader.catalogue())

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Plugins that were left out, and why."""
        return self.catalogue.failures

    @property
    def labels(self) -> tuple[str, ...]:
        """Registered plugins, the built-in one included: name, with distribution if it has one."""
        return tuple(name for name, _ in self._manager.list_name_plugin())

    def names(self, kind: str) -> tuple[str, ...]:
        """Return the names of a role's providers, sorted."""
        return self.catalogue.names(kind)

    def providers(self, kind: str) -> tuple[Provider, ...]:
        """Return a role's providers, sorted by name."""
        return self.catalogue.of_kind(kind)

    def find(self, kind: str, name: str) -> Provider:
        """Return a provider: its record and owner.

        Raises:
            UnknownProviderError: nobody offers it; lists what exists and what failed to load.
            DuplicateProviderError: two plugins offer it.
        """
        return self.catalogue.find(kind, name)

    def resolve(self, kind: str, name: str) -> Callable[..., object]:
        """Return the imported factory of a provider.

        Raises:
            UnknownProviderError, DuplicateProviderError: as `find`.
            PluginLoadError: its code cannot be imported or fills another role.
        """
        return self.find(kind, name).load()

    def model_factory(self, model: str) -> Callable[[], object]:
        """Return what opens a model string, `"provider"` or `"provider:argument"`.

        Raises:
            UnknownProviderError, DuplicateProviderError, PluginLoadError: as `resolve`.
        """
        name, _, argument = model.partition(":")
        provider = self.find("model", name)
        factory = provider.load()
        options = provider.spec.options if isinstance(provider.spec, ModelAdapterSpec) else {}
        return lambda: factory(argument, **options)

    def gist_factory(self, gist: str) -> Callable[[int], object]:
        """Return what makes an encoder of S slots of `"provider"` or `"provider:argument"`.

        Raises:
            UnknownProviderError, DuplicateProviderError, PluginLoadError: as `resolve`.
        """
        name, _, argument = gist.partition(":")
        provider = self.find("gist", name)
        factory = provider.load()
        options = provider.spec.options if isinstance(provider.spec, GistEncoderSpec) else {}

        def make(gist_slots: int) -> object:
            with provider.guard(ModelError):
                return factory(argument, gist_slots=gist_slots, **options)

        return make

    def telemetry(self, sinks: Iterable[str | TelemetrySink]) -> Telemetry:
        """Open sinks, given as objects, `"name"` or `"name:argument"`, and fan out to them.

        Raises:
            UnknownProviderError, DuplicateProviderError, PluginLoadError: as `resolve`.
        """
        from megacontext_sdk.events import Telemetry

        opened = [self._sink(sink) if isinstance(sink, str) else sink for sink in sinks]
        return Telemetry(opened)

    def _sink(self, text: str) -> TelemetrySink:
        name, colon, argument = text.partition(":")
        provider = self.find("sink", name)
        factory = provider.load()
        with provider.guard(PluginLoadError):
            return cast("TelemetrySink", factory(argument) if colon else factory())

    def choose_runtime(self, info: ModelInfo) -> str:
        """Return the name of the loop for `runtime="auto"`.

        Raises:
            UnknownProviderError: a plugin chose a loop that does not exist.
            DuplicateProviderError: two usable loops share the highest rank.
            PluginError: no loop is usable.
        """
        found = self.providers("runtime")
        specs = tuple(p.spec for p in found if isinstance(p.spec, RuntimeSpec))
        owners = {p.spec.name: p for p in found}
        context = RuntimeContext(
            info=info, runtimes=specs, is_usable=lambda spec: _is_usable(owners[spec.name], spec)
        )
        try:
            name = self._manager.hook.megacontext_choose_runtime(context=context)
        except Exception as error:  # noqa: BLE001 - a raising chooser hides the built-in behind it
            _log.warning("choosing a runtime gave %s; the built-in decides", type(error).__name__)
            name = builtin.megacontext_choose_runtime(context)
        return self.find("runtime", str(name)).spec.name

    def session_opened(self, session: MemorySession) -> None:
        """Notify plugins; what they raise is logged."""
        _notify(self._opened, session=session)

    def session_closed(self, session: MemorySession, error: BaseException | None) -> None:
        """Notify plugins; what they raise is logged."""
        _notify(self._closed, session=session, error=error)

    @contextmanager
    def around_generate(self, request: GenerateRequest) -> Iterator[None]:
        """Surround one reply with what plugins offer; left also when the caller stops early.

        Raises:
            Exception: whatever a plugin raises on entry; earlier ones are left properly.
        """
        with ExitStack() as stack:
            for implementation in self._around:
                surround = call(implementation, request=request)
                if surround is not None:
                    _enter(stack, cast("AbstractContextManager[None]", surround))
            yield


@cache
def default_plugins() -> Plugins:
    """Return the installed plugins, loaded once per process. Tests build their own `Plugins`."""
    return Plugins.load()


def _implementations(manager: PluginManager, hook: str) -> tuple[HookImpl, ...]:
    return tuple(reversed(getattr(manager.hook, hook).get_hookimpls()))


def _is_usable(provider: Provider, spec: RuntimeSpec) -> bool:
    if spec.probe is None:
        return True
    try:
        return bool(provider.load_attribute(spec.probe)())
    except Exception as error:  # noqa: BLE001 - a probe that raises has answered: not here
        _log.debug("probe of runtime %s raised", spec.name, exc_info=error)
        return False


def _notify(implementations: tuple[HookImpl, ...], **arguments: object) -> None:
    for one in implementations:
        try:
            call(one, **arguments)
        except Exception as error:  # noqa: BLE001 - who only listens may not disturb
            _log.warning("plugin %s: %s in a hook", one.plugin_name, type(error).__name__)
            _log.debug("traceback of plugin %s", one.plugin_name, exc_info=error)


def _enter(stack: ExitStack, surround: AbstractContextManager[None]) -> None:
    """Enter a plugin's context so that it is left properly but cannot swallow an exception."""
    surround.__enter__()

    def leave(
        kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        surround.__exit__(kind, error, trace)
        return False

    stack.push(leave)
