"""The providers of one session: names and objects as given, resolved once, made when needed.

It knows roles and how to make what fills them; how the rooms hang together is `assembly`'s. A model
may serve several sessions (a memory and its forks), so whoever opened it counts who still uses it.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import attrs

from megacontext_sdk.contracts.focus import FocusPolicy
from megacontext_sdk.contracts.gist import GistEncoder
from megacontext_sdk.contracts.model import ModelAdapter
from megacontext_sdk.contracts.storage import NO_OPTIONS
from megacontext_sdk.contracts.telemetry import TelemetrySink
from megacontext_sdk.errors import ConfigError, ModelError, StorageError
from megacontext_sdk.events import Telemetry
from megacontext_sdk.memory.directory.guarded import guarded
from megacontext_sdk.plugins import Plugins, default_plugins

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from megacontext_sdk.config import Config
    from megacontext_sdk.contracts.focus import FocusAllocator
    from megacontext_sdk.contracts.model import ModelInfo
    from megacontext_sdk.contracts.positions import PositionScheme
    from megacontext_sdk.contracts.runtime import RuntimeLoop
    from megacontext_sdk.contracts.storage import Storage
    from megacontext_sdk.events import Event
    from megacontext_sdk.runtime.state import SessionState

__all__ = [
    "ENCODER_SETTING",
    "ModelLease",
    "Providers",
    "checked_plugins",
    "open_model",
    "storage_factory",
]

ENCODER_SETTING = "encoder"
"""Key of a memory's settings: name of the gist encoder that `rebuild` chose for it."""

_DEFAULT_GIST = "mean"

_log = logging.getLogger(__name__)


@attrs.define(eq=False)
class ModelLease:
    """An adapter and how many sessions use it; the last one out closes it, if it is ours.

    Attributes:
        adapter: the base model.
        name: as the user gave it.
        is_owned: we opened it; one that the caller opened is the caller's to close.
    """

    adapter: ModelAdapter
    name: str
    is_owned: bool
    _n_users: int = 1
    _counting: Lock = attrs.field(factory=Lock, init=False)

    def share(self) -> ModelLease:
        """Count one more session."""
        with self._counting:
            self._n_users += 1
        return self

    def release(self) -> None:
        """Count one session less; close the model after the last."""
        with self._counting:
            self._n_users -= 1
            is_last = self._n_users == 0
        if is_last and self.is_owned:
            self.adapter.close()


def checked_plugins(plugins: object) -> Plugins:
    """Return the plugins to use, the installed ones if none were given.

    Raises:
        ConfigError: something else than plugins.
    """
    if plugins is None:
        return default_plugins()
    if isinstance(plugins, Plugins):
        return plugins
    message = f"plugins is a {type(plugins).__name__}; give Plugins.load(...), or nothing"
    raise ConfigError(message, field="plugins", value=type(plugins).__name__)


def storage_factory(plugins: Plugins, name: str) -> Callable[..., Any]:
    """Return the factory of a backend's stores: each is guarded, since they are foreign code.

    Raises:
        UnknownProviderError: nobody offers the name.
    """
    provider = plugins.find("storage", name)
    return guarded(cast("Any", provider.load()), lambda: provider.guard(StorageError))


def open_model(plugins: Plugins, model: object) -> ModelLease:
    """Open a model by name, or take one that is open.

    Raises:
        ConfigError: neither a name nor an adapter.
        ModelError: its adapter cannot open it.
        UnknownProviderError: nobody offers the name.
    """
    if isinstance(model, ModelAdapter):
        return ModelLease(model, model.info.name, is_owned=False)
    if model is not None and not isinstance(model, str):
        message = (
            f"model of type {type(model).__name__} is not understood; give a name such as "
            '"reference" or "hf:<folder>", or an opened ModelAdapter'
        )
        raise ConfigError(message, field="model", value=type(model).__name__)
    name = model or "reference"
    factory = plugins.model_factory(name)
    with plugins.find("model", name.partition(":")[0]).guard(ModelError):
        return ModelLease(cast("ModelAdapter", factory()), name, is_owned=True)


class _LentSink(TelemetrySink):
    """A sink that belongs to another session: it receives events and is not closed."""

    def __init__(self, sink: TelemetrySink) -> None:
        self.name = sink.name
        self._sink = sink

    def emit(self, event: Event) -> None:
        """Hand the event on."""
        self._sink.emit(event)


@attrs.frozen(eq=False, kw_only=True)
class Providers:
    """What fills the roles of a session.

    Attributes:
        plugins: who offers what.
        config: names of allocator, positions, runtime and sinks.
        storage, focus: names, for people; the policy may have been given as an object.
        gist: the encoder's name, None if nobody asked for one.
        given: role -> object, where one was given.
    """

    plugins: Plugins
    config: Config
    storage: str
    focus: str
    gist: str | None
    given: Mapping[str, object]

    @classmethod
    def take(
        cls, plugins: Plugins, config: Config, *, storage: object, focus: object, gist: object
    ) -> Providers:
        """Take a name, an object where the role takes one, or None for the default.

        Raises:
            ConfigError: something that is neither.
        """
        kinds = (
            ("storage", storage, str),
            ("focus", focus, FocusPolicy),
            ("gist", gist, GistEncoder),
        )
        names = {role: _name(plugins, role, one, kind) for role, one, kind in kinds}
        return cls(
            plugins=plugins,
            config=config,
            storage=names["storage"] or "duckdb",
            focus=names["focus"] or "heuristic",
            gist=names["gist"],
            given={r: one for r, one, _ in kinds if one is not None and not isinstance(one, str)},
        )

    def check(self) -> None:
        """Resolve every name now, so that a typo is found before a directory is made.

        Raises:
            UnknownProviderError: nobody offers a name.
            PluginLoadError: somebody does, but it cannot be loaded.
        """
        names = {"storage": self.storage, "focus": self.focus, "gist": self.gist or _DEFAULT_GIST}
        for role, name in names.items():
            if role not in self.given:
                self.plugins.resolve(role, name)
        focus = self.config.focus
        self.plugins.resolve("allocator", focus.allocator)
        self.plugins.resolve("positions", focus.positions)
        if self.config.runtime.runtime != "auto":
            self.plugins.resolve("runtime", self.config.runtime.runtime)

    def with_gist(self, gist: object) -> Providers:
        """Return the same providers with another gist encoder; None leaves it as it is.

        Raises:
            ConfigError: neither a name nor an encoder.
            UnknownProviderError: nobody offers the name.
        """
        if gist is None:
            return self
        name = _name(self.plugins, "gist", gist, GistEncoder)
        others = {role: one for role, one in self.given.items() if role != "gist"}
        if isinstance(gist, str):
            self.plugins.resolve("gist", gist)
            return attrs.evolve(self, gist=name, given=others)
        return attrs.evolve(self, gist=name, given={**others, "gist": gist})

    def gist_name(self, settings: Mapping[str, object]) -> str:
        """Return the encoder in use: the one given, else the memory's own if it is installed."""
        own = settings.get(ENCODER_SETTING)
        if self.gist is not None or not isinstance(own, str):
            return self.gist or _DEFAULT_GIST
        if own in self.plugins.names("gist"):
            return own
        _log.warning(
            "the memory's own gist encoder %r is not installed; %r makes its gists meanwhile",
            own,
            _DEFAULT_GIST,
        )
        return _DEFAULT_GIST

    # -- what is made ---------------------------------------------------------------------------

    def store_factory(self, name: str | None = None) -> Callable[..., Any]:
        """Return the factory of the stores of a backend, by default of the one in use."""
        return storage_factory(self.plugins, name or self.storage)

    @property
    def is_local(self) -> bool:
        """Tell whether the backend keeps its data in a directory."""
        sample: Storage = self.store_factory()(Path("data"), NO_OPTIONS)
        return sample.capabilities.local

    def make_gist(self, settings: Mapping[str, object], gist_slots: int) -> GistEncoder:
        """Make the encoder in use, or return it if it was given as an object."""
        if "gist" in self.given:
            return cast("GistEncoder", self.given["gist"])
        factory = self.plugins.resolve("gist", self.gist_name(settings))
        return cast("GistEncoder", factory(gist_slots=gist_slots))

    def make_focus(self) -> FocusPolicy:
        """Make the focus policy; one given as an object forgets what it computed before."""
        if "focus" in self.given:
            policy = cast("FocusPolicy", self.given["focus"])
            policy.drop_caches()
            return policy
        return cast("FocusPolicy", self.plugins.resolve("focus", self.focus)())

    def make_allocator(self) -> FocusAllocator:
        """Make the allocator."""
        name = self.config.focus.allocator
        return cast("FocusAllocator", self.plugins.resolve("allocator", name)())

    def make_positions(self) -> PositionScheme:
        """Make the position scheme."""
        name = self.config.focus.positions
        return cast("PositionScheme", self.plugins.resolve("positions", name)())

    def runtime(self, info: ModelInfo) -> str:
        """Return the name of the loop; "auto" takes the best one usable here."""
        name = self.config.runtime.runtime
        return self.plugins.choose_runtime(info) if name == "auto" else name

    def make_loop(self, name: str, state: SessionState) -> RuntimeLoop:
        """Make a runtime loop over a session's state."""
        return cast("RuntimeLoop", self.plugins.resolve("runtime", name)(state))

    def make_telemetry(self) -> Telemetry:
        """Open the sinks."""
        sinks: list[TelemetrySink] = []
        for sink in self.config.telemetry.sinks:
            if not isinstance(sink, str):
                sinks.append(sink)
                continue
            name, _, argument = sink.partition(":")
            factory = self.plugins.resolve("sink", name)
            sinks.append(cast("TelemetrySink", factory(argument) if argument else factory()))
        return Telemetry(sinks)

    def for_a_fork(self) -> Providers:
        """Return providers for another session beside this one: its own policy, lent sinks."""
        given = dict(self.given)
        if "focus" in given:
            policy = copy.copy(cast("FocusPolicy", given["focus"]))
            policy.drop_caches()
            given["focus"] = policy
        sinks = tuple(
            sink if isinstance(sink, str) else _LentSink(sink)
            for sink in self.config.telemetry.sinks
        )
        return attrs.evolve(self, given=given, config=self.config.replace(sinks=sinks))


def _name(plugins: Plugins, role: str, given: object, kind: type) -> str | None:
    """Return the name of what was given, None if nothing was."""
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, kind):
        return str(getattr(given, "name", type(given).__name__))
    message = (
        f"{role} of type {type(given).__name__} is not understood; give a provider's name, "
        f"one of {', '.join(plugins.names(role))}"
    )
    raise ConfigError(message, field=role, value=type(given).__name__)
