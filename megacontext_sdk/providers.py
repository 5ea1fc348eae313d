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
from megacontext_sdk.errors import (
    ConfigError,
    MegaContextError,
    ModelError,
    PluginError,
    StorageError,
)
from megacontext_sdk.events import Telemetry
from megacontext_sdk.memory.directory.guarded import guarded
from megacontext_sdk.plugins import Plugins, default_plugins
from megacontext_sdk.records import ModelAdapterSpec

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
"""Key of a memory's settings: the gist encoder it was made with or that `rebuild` chose for it."""

_TABLE_SETTING = "encoders"  # the version table: a memory that has one has been written

_DEFAULT_GIST = "mean"

_log = logging.getLogger(__name__)


@attrs.define(eq=False)
class ModelLease:
    """An adapter and how many sessions use it; the last one out closes it, if it is ours.

    Attributes:
        adapter: the base model.
        name: as the user gave it.
        is_owned: we opened it; one that the caller opened is the caller's to close.
        gist: the encoder that was trained for it, as its record names it; "" if there is none.
    """

    adapter: ModelAdapter
    name: str
    is_owned: bool
    gist: str = ""
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
        name = model.info.name
        return ModelLease(model, name, is_owned=False, gist=_trained_gist(plugins, name))
    if model is not None and not isinstance(model, str):
        message = (
            f"model of type {type(model).__name__} is not understood; give a name such as "
            '"reference" or "hf:<folder>", or an opened ModelAdapter'
        )
        raise ConfigError(message, field="model", value=type(model).__name__)
    name = model or "reference"
    factory = plugins.model_factory(name)
    with plugins.find("model", name.partition(":")[0]).guard(ModelError):
        adapter = cast("ModelAdapter", factory())
    return ModelLease(adapter, name, is_owned=True, gist=_trained_gist(plugins, name))


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
        gist: the encoder's name, with its argument if it has one; None if nobody asked for one.
        trained_gist: the encoder trained for the model; "" if there is none.
        given: role -> object, where one was given.
    """

    plugins: Plugins
    config: Config
    storage: str
    focus: str
    gist: str | None
    given: Mapping[str, object]
    trained_gist: str = ""

    @classmethod
    def take(
        cls,
        plugins: Plugins,
        config: Config,
        *,
        storage: object,
        focus: object,
        gist: object,
        trained_gist: str = "",
    ) -> Providers:
        """Take a name, an object where the role takes one, or None for the default.

        Args:
            plugins: who offers what.
            config: the settings.
            storage, focus, gist: what was given for the roles.
            trained_gist: of the model's lease.

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
            trained_gist=trained_gist,
        )

    def check(self) -> None:
        """Resolve every name now, so that a typo is found before a directory is made.

        Raises:
            UnknownProviderError: nobody offers a name.
            PluginLoadError: somebody does, but it cannot be loaded.
        """
        gist, _, _ = (self.gist or _DEFAULT_GIST).partition(":")
        names = {"storage": self.storage, "focus": self.focus, "gist": gist}
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
            self.plugins.resolve("gist", gist.partition(":")[0])
            return attrs.evolve(self, gist=name, given=others)
        return attrs.evolve(self, gist=name, given={**others, "gist": gist})

    def gist_name(self, settings: Mapping[str, object]) -> str:
        """Return the encoder in use: the one given, else the memory's own if it is installed.

        A memory that names none has gists of `mean`.
        """
        own = settings.get(ENCODER_SETTING)
        if self.gist is not None or not isinstance(own, str):
            return self.gist or _DEFAULT_GIST
        if own.partition(":")[0] in self.plugins.names("gist"):
            return own
        _log.warning(
            "the memory's own gist encoder %r is not installed; %r makes its gists meanwhile",
            own,
            _DEFAULT_GIST,
        )
        return _DEFAULT_GIST

    def first_gist(
        self, settings: Mapping[str, object], info: ModelInfo, gist_slots: int
    ) -> dict[str, object]:
        """Return what a memory without any gists is to remember of its encoder, as settings.

        It is the encoder asked for by name, else the one trained for the model, so that the memory
        opens with it ever after. A memory that has gists, or has chosen, keeps what it has.

        Args:
            settings: the memory's, as they are.
            info: of the model.
            gist_slots: S.

        Raises:
            ConfigError, ModelError, PluginError: the encoder asked for cannot be made. One that is
                only a default gives way to `mean`.
        """
        if settings.get(_TABLE_SETTING) or ENCODER_SETTING in settings or "gist" in self.given:
            return {}
        if self.gist is not None:
            return {} if self.gist == _DEFAULT_GIST else {ENCODER_SETTING: self.gist}
        if self.trained_gist and self._can_make(self.trained_gist, info, gist_slots):
            return {ENCODER_SETTING: self.trained_gist}
        return {}

    def _can_make(self, gist: str, info: ModelInfo, gist_slots: int) -> bool:
        """Tell whether the encoder trained for the model is installed, and for this very model."""
        try:
            encoder = cast("GistEncoder", self.plugins.gist_factory(gist)(gist_slots))
            encoder.fingerprint(info)
        except PluginError:
            _log.info("the gist encoder %r of the model is not installed", gist)
            return False
        except MegaContextError as error:
            _log.warning("the gist encoder %r of the model cannot be used: %s", gist, error)
            return False
        return True

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
        make = self.plugins.gist_factory(self.gist_name(settings))
        return cast("GistEncoder", make(gist_slots))

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


def _trained_gist(plugins: Plugins, model: str) -> str:
    """Return the encoder that a model's record names; "" for a model without, or without record."""
    name = model.partition(":")[0]
    found = [provider.spec for provider in plugins.providers("model") if provider.spec.name == name]
    spec = found[0] if len(found) == 1 else None
    return spec.gist if isinstance(spec, ModelAdapterSpec) else ""


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
