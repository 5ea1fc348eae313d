"""Finding plugins and checking each alone: one broken plugin never stops the others.

Each candidate passes through: import, register, reject unknown hooks, call its catalogue hooks,
check its records; then all its records are committed, or it is unregistered whole. The result is
used through `plugins.py`.
"""

from __future__ import annotations

import logging
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, cast

import attrs
import pluggy

from megacontext_sdk import builtin, hookspecs
from megacontext_sdk.catalogue import KINDS, Catalogue, Failure, Provider
from megacontext_sdk.errors import ConfigError, PluginLoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from importlib.metadata import EntryPoint

    from pluggy import HookImpl

    from megacontext_sdk.catalogue import Kind

__all__ = ["Candidate", "Loader", "allowed_names", "call", "explicit", "installed", "switch"]

_log = logging.getLogger(__name__)
_BUILTIN = "builtin"
_MAY_WRAP = "megacontext_choose_runtime"
_SWITCH = {"": False, "0": False, "1": True}
_HOOKS = frozenset(name for name in hookspecs.__all__ if name.startswith("megacontext_"))
_HOOK_OF_KIND = {kind.hook: kind for kind in KINDS.values()}


@attrs.frozen
class Candidate:
    """A plugin before its checks; `load` imports it."""

    name: str
    load: Callable[[], object]
    distribution: str | None = None
    version: str | None = None

    @property
    def label(self) -> str:
        """The name under which it registers; two distributions may use one entry-point name."""
        return self.name if self.distribution is None else f"{self.name} ({self.distribution})"


class Loader:
    """Takes candidates one by one; each is committed whole or left out whole."""

    def __init__(self, *, trace: bool) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.providers: list[Provider] = []
        self.failures: list[Failure] = []
        self._trace = trace
        if trace:
            self.manager.add_hookcall_monitoring(_log_call, lambda *_: None)

    def add_builtin(self) -> None:
        """Register the built-in plugin; it is essential, so its errors are fatal."""
        self._commit(Candidate(_BUILTIN, lambda: builtin))

    def add(self, candidate: Candidate) -> None:
        """Register a plugin, or record why not."""
        try:
            self._commit(candidate)
        except Exception as error:  # noqa: BLE001 - the next plugin still loads
            self.failures.append(
                Failure(candidate.name, candidate.distribution, candidate.version, error)
            )

    def _commit(self, candidate: Candidate) -> None:
        plugin = candidate.load()
        label = candidate.label
        if self.manager.is_registered(plugin) or self.manager.has_plugin(label):
            raise PluginLoadError(f"{label} is registered already", provider=candidate.name)
        try:
            self.manager.register(plugin, label)
            self.providers += self._check(plugin, candidate)
        except Exception:
            if self.manager.is_registered(plugin):
                self.manager.unregister(plugin)
            raise

    def _check(self, plugin: object, candidate: Candidate) -> list[Provider]:
        callers = self.manager.get_hookcallers(plugin) or []
        _check_hooks(plugin, candidate.name, {caller.name for caller in callers})
        found: list[Provider] = []
        for caller in callers:
            mine = [one for one in caller.get_hookimpls() if one.plugin is plugin]
            _reject_wrappers(mine, caller.name, candidate.name)
            if caller.name in _HOOK_OF_KIND:
                kind = _HOOK_OF_KIND[caller.name]
                found += [p for one in mine for p in self._records(kind, one, candidate)]
        self._reject_doubles(found)
        return found

    def _records(
        self, kind: Kind, implementation: HookImpl, candidate: Candidate
    ) -> Iterator[Provider]:
        if self._trace:
            _log.info("hook %s of %s", kind.hook, candidate.name)
        offered = cast("Iterable[object] | None", call(implementation))
        if offered is None:
            raise PluginLoadError(
                f"{kind.hook} returned None; yield {kind.record.__name__} records or return a list",
                provider=candidate.name,
            )
        for record in offered:
            if type(record) is not kind.record:
                raise PluginLoadError(
                    f"{kind.hook} yielded a {type(record).__name__}; it must yield "
                    f"{kind.record.__name__} records",
                    provider=candidate.name,
                )
            yield Provider(
                kind.name,
                record,
                candidate.name,
                candidate.distribution,
                candidate.version,
            )

    def _reject_doubles(self, found: list[Provider]) -> None:
        essential = {(p.kind, p.spec.full_name) for p in self.providers if p.plugin == _BUILTIN}
        seen: set[tuple[str, str]] = set()
        for provider in found:
            key = (provider.kind, provider.spec.full_name)
            if key in seen or key in essential:
                whose = "a built-in's" if key in essential else "its own record's"
                raise PluginLoadError(
                    f"{provider.kind} {provider.spec.full_name!r} takes {whose} name; rename it",
                    provider=provider.spec.name,
                )
            seen.add(key)

    def catalogue(self) -> Catalogue:
        """Return what was loaded so far."""
        return Catalogue(tuple(self.providers), tuple(self.failures))

    def raise_failures(self) -> None:
        """Raise all failures together, if there are any."""
        if not self.failures:
            return
        for failure in self.failures:
            failure.error.add_note(f"plugin {failure.plugin} was not loaded")
        raise ExceptionGroup(
            f"{len(self.failures)} plugins failed to load", [f.error for f in self.failures]
        )

    def warn(self) -> None:
        """Log one warning line per failure, the traceback at debug."""
        for failure in self.failures:
            _log.warning("plugin left out: %s", failure)
            _log.debug("why %s was left out", failure.plugin, exc_info=failure.error)


def call(implementation: HookImpl, **arguments: object) -> object:
    """Call one implementation with the arguments it names."""
    return implementation.function(*[arguments[name] for name in implementation.argnames])


def _check_hooks(plugin: object, name: str, hooks: set[str]) -> None:
    """Refuse misspelt hooks, forgotten decorators, and plugins that implement nothing."""
    for hook in sorted(hooks - _HOOKS):
        close = get_close_matches(hook, _HOOKS, n=1)
        hint = f', did you mean "{close[0]}"?' if close else ""
        raise PluginLoadError(f"there is no hook {hook!r}{hint}", provider=name)
    for hook in sorted(_HOOKS - hooks):
        if callable(getattr(plugin, hook, None)):
            raise PluginLoadError(f"{hook} lacks the decorator @hookimpl", provider=name)
    if not hooks:
        raise PluginLoadError(f"{name} implements no hook; add one marked @hookimpl", provider=name)


def _reject_wrappers(implementations: Sequence[HookImpl], hook: str, name: str) -> None:
    if hook != _MAY_WRAP and any(one.wrapper or one.hookwrapper for one in implementations):
        raise PluginLoadError(f"{hook} cannot be wrapped; implement it plainly", provider=name)


def _log_call(hook: str, implementations: Sequence[HookImpl], _arguments: object) -> None:
    _log.info("hook %s of %s", hook, ", ".join(one.plugin_name for one in implementations))


def switch(environ: Mapping[str, str], name: str) -> bool:
    """Read a 0/1 environment variable; unset and empty mean 0.

    Raises:
        ConfigError: any other value.
    """
    value = environ.get(name, "").strip()
    if value not in _SWITCH:
        raise ConfigError(f"{name} is {value!r}; set it to 0 or 1", field=name, value=value)
    return _SWITCH[value]


def allowed_names(
    plugins: Iterable[str] | None, environ: Mapping[str, str]
) -> frozenset[str] | None:
    """Return the names to import, None for all; both filters apply when both are given."""
    listed = environ.get("MEGACONTEXT_PLUGINS")
    from_environ = None if listed is None else {n.strip() for n in listed.split(",") if n.strip()}
    if plugins is None:
        return None if from_environ is None else frozenset(from_environ)
    wanted = frozenset(plugins)
    return wanted if from_environ is None else wanted & from_environ


def explicit(modules: Iterable[object]) -> Iterator[Candidate]:
    """Make candidates of modules, objects with hook implementations, or names of modules."""
    for module in modules:
        if isinstance(module, str):
            yield Candidate(module, partial(import_module, module))
        else:
            name = getattr(module, "__name__", type(module).__name__)
            yield Candidate(name, partial(_same, module))


def installed(allowed: frozenset[str] | None) -> Iterator[Candidate]:
    """Find installed entry points, sorted by name; None allows all.

    A name that is allowed but not installed becomes a candidate that fails and says so.
    """
    if allowed is not None and not allowed:
        return  # built-ins only: spare the search through all distributions
    from importlib.metadata import entry_points

    found = sorted(
        (_candidate(point) for point in entry_points(group=hookspecs.PROJECT)),
        key=lambda candidate: (candidate.name, candidate.distribution or ""),
    )
    yield from (one for one in found if allowed is None or one.name in allowed)
    for name in sorted((allowed or frozenset()) - {one.name for one in found}):
        yield Candidate(name, partial(_missing, name))


def _same(plugin: object) -> object:
    return plugin


def _candidate(point: EntryPoint) -> Candidate:
    distribution = point.dist
    return Candidate(
        point.name,
        point.load,
        None if distribution is None else distribution.name,
        None if distribution is None else distribution.version,
    )


def _missing(name: str) -> object:
    raise PluginLoadError(
        f"no entry point {name!r} is installed in group {hookspecs.PROJECT!r}; install the plugin "
        "or take it off MEGACONTEXT_PLUGINS",
        provider=name,
    )
