"""Wires one session: resolves providers, opens the memory, brings caches up to date, lays out.

Everything a session needs is resolved here once, into plain objects; appending and generating never
look up a provider again. A failed open closes what it had opened.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs
import msgspec

from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.builtin.recency import RecencyFocus
from megacontext_sdk.config import Config
from megacontext_sdk.contracts.focus import FocusPolicy
from megacontext_sdk.contracts.gist import GistEncoder
from megacontext_sdk.contracts.model import ModelAdapter
from megacontext_sdk.errors import (
    ConfigError,
    MegaContextError,
    ModelError,
    StorageError,
)
from megacontext_sdk.events import SessionClosedEvent, SessionOpenedEvent, Telemetry
from megacontext_sdk.focus.refocus import Refocuser
from megacontext_sdk.focus.view import ViewBuilder
from megacontext_sdk.focus.working_context import WorkingContext
from megacontext_sdk.memory.lexical import LexicalIndex
from megacontext_sdk.memory.lod import Span
from megacontext_sdk.memory.precision import PrecisionTable
from megacontext_sdk.memory.tree import MegaContextTree
from megacontext_sdk.memory.vault import Fingerprints, open_memory
from megacontext_sdk.messages import ChatFormat
from megacontext_sdk.plugins import default_plugins
from megacontext_sdk.runtime import trace
from megacontext_sdk.runtime.scribe import Scribe
from megacontext_sdk.runtime.state import SessionState
from megacontext_sdk.runtime.tree_rows import TreeRows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from megacontext_sdk.contracts.positions import PositionScheme
    from megacontext_sdk.contracts.runtime import RuntimeLoop
    from megacontext_sdk.contracts.telemetry import TelemetrySink
    from megacontext_sdk.focus.applied import AppliedPlan
    from megacontext_sdk.memory.journal import Journal
    from megacontext_sdk.memory.vault import OpenedMemory
    from megacontext_sdk.plugins import Plugins

__all__ = ["Parts", "assemble"]

_LAYOUT_FILE = "layout.msgpack"


def _now_us() -> int:
    return time.time_ns() // 1000


@attrs.define(eq=False, kw_only=True)
class Parts:
    """What a session is made of.

    Attributes:
        plugins: hooks and catalogue.
        memory: the opened directory and its journal.
        state: tree, working context, model, pager.
        loop: the runtime loop.
        scribe: the one way into the memory.
        lexical: the lexical index.
        storage_name, model_name, focus_name, gist_name: providers, for people.
        owns_model: close the adapter with the session.
        read_only: no writes.
    """

    plugins: Plugins
    memory: OpenedMemory
    state: SessionState
    loop: RuntimeLoop
    scribe: Scribe
    lexical: LexicalIndex
    storage_name: str
    model_name: str
    focus_name: str
    gist_name: str
    durability: str
    owns_model: bool
    read_only: bool

    @property
    def journal(self) -> Journal:
        """Commits and messages."""
        return self.memory.journal

    @property
    def tree(self) -> MegaContextTree:
        """The history."""
        return self.state.tree

    @property
    def path(self) -> Path | None:
        """The memory's directory."""
        return self.memory.path

    def check_span(self, span: object) -> Span:
        """Return a span inside the history.

        Raises:
            ConfigError: no pair of whole numbers, reversed, or outside the history.
        """
        n_tokens = self.tree.n_tokens
        ends = tuple(span) if isinstance(span, Span | tuple | list) else ()
        whole = len(ends) == 2 and all(type(end) is int for end in ends)
        if not whole or not 0 <= ends[0] <= ends[1] <= n_tokens:
            message = f"span {span!r:.80} must be (start, end) with 0 <= start <= end <= {n_tokens}"
            raise ConfigError(message, field="span", value=repr(span)[:80])
        return Span(*ends)

    def save_pins(self) -> None:
        """Keep the pins with the memory."""
        self.state.save_pins().wait()

    def save(self) -> None:
        """Make gists, counts and the layout durable; losing the layout is harmless."""
        self.tree.flush()
        self.journal.flush()
        if self.memory.cache_dir is not None and self.state.wc.n_tokens:
            path = self.memory.cache_dir / _LAYOUT_FILE
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(msgspec.msgpack.encode(self.state.wc.save()))
            temporary.chmod(0o600)
            temporary.replace(path)

    def close(self, error: BaseException | None = None) -> None:
        """Save what is worth saving and close everything."""
        with ExitStack() as stack:
            if self.owns_model:
                stack.callback(self.state.adapter.close)
            stack.callback(self.state.close)
            stack.callback(self.memory.close)
            stack.callback(self.lexical.close)
            stack.callback(self.tree.close)
            stack.callback(self.state.telemetry.close)
            self.state.telemetry.emit(
                SessionClosedEvent(
                    step=self.state.step,
                    epoch=self.state.wc.epoch,
                    n_tokens=self.state.wc.n_tokens,
                    error=None if error is None else type(error).__name__,
                )
            )
            if not self.read_only:
                self.save()


def assemble(
    path: str | Path | None,
    *,
    model: object,
    storage: str | None,
    focus: object,
    gist: object,
    config: Config | str | Path | None,
    read_only: bool,
    create: bool,
    plugins: Plugins | None,
    settings: Mapping[str, object],
) -> Parts:
    """Open everything a session needs; on failure nothing stays open."""
    plugins = plugins or default_plugins()
    builder = _Builder(plugins, _settings(config, settings))
    with ExitStack() as stack:
        adapter, model_name, owned = builder.model(model)
        if owned:
            stack.callback(adapter.close)
        names = builder.names(storage, focus, gist)
        builder.check(names, path)
        memory = builder.memory(path, names["storage"], adapter, read_only=read_only, create=create)
        stack.callback(memory.close)
        parts = builder.parts(
            memory,
            adapter,
            names | {"model": model_name},
            owns_model=owned,
            read_only=read_only,
        )
        stack.callback(parts.lexical.close)
        _catch_up(parts)
        stack.pop_all()
    return parts


def _settings(config: Config | str | Path | None, settings: Mapping[str, object]) -> Config:
    if isinstance(config, Config):
        return config.replace(**settings) if settings else config
    return Config.load(config).replace(**settings)


class _Builder:
    """Resolves providers by name and puts the rooms together."""

    def __init__(self, plugins: Plugins, config: Config) -> None:
        self._plugins = plugins
        self._config = config
        self._given: dict[str, object] = {}

    def model(self, model: object) -> tuple[ModelAdapter, str, bool]:
        """Return the adapter, its name, and whether the session must close it."""
        if isinstance(model, ModelAdapter):
            return model, model.info.name, False
        if model is not None and not isinstance(model, str):
            message = (
                f"model of type {type(model).__name__} is not understood; give a name such as "
                '"reference" or "hf:<folder>", or an opened ModelAdapter'
            )
            raise ConfigError(message, field="model", value=type(model).__name__)
        name = model or "reference"
        factory = self._plugins.model_factory(name)
        with self._plugins.find("model", name.partition(":")[0]).guard(ModelError):
            return cast("ModelAdapter", factory()), name, True

    def names(self, storage: object, focus: object, gist: object) -> dict[str, str]:
        """Return the provider names of the other roles; objects are kept as given."""
        return {
            "storage": self._name("storage", storage, "duckdb", str),
            "focus": self._name("focus", focus, "heuristic", FocusPolicy),
            "gist": self._name("gist", gist, "mean", GistEncoder),
        }

    def _name(self, role: str, given: object, default: str, kind: type) -> str:
        if given is None:
            return default
        if isinstance(given, str):
            return given
        if isinstance(given, kind):
            self._given[role] = given
            return str(getattr(given, "name", type(given).__name__))
        message = (
            f"{role} of type {type(given).__name__} is not understood; give a provider's name, "
            f"one of {', '.join(self._plugins.names(role))}"
        )
        raise ConfigError(message, field=role, value=type(given).__name__)

    def check(self, names: Mapping[str, str], path: object) -> None:
        """Resolve every name now, so that a typo is found before a directory is made."""
        for role in ("storage", "focus", "gist"):
            if role not in self._given:
                self._plugins.resolve(role, names[role])
        focus = self._config.focus
        self._plugins.resolve("allocator", focus.allocator)
        self._plugins.resolve("positions", focus.positions)
        if self._config.runtime.runtime != "auto":
            self._plugins.resolve("runtime", self._config.runtime.runtime)
        if path is not None and not isinstance(path, str | Path):
            message = f"path must be text or a Path, got {type(path).__name__}"
            raise ConfigError(message, field="path", value=type(path).__name__)

    def memory(
        self,
        path: str | Path | None,
        storage: str,
        adapter: ModelAdapter,
        *,
        read_only: bool,
        create: bool,
    ) -> OpenedMemory:
        """Open the directory and its journal; the budget is checked before one is made."""
        info = adapter.info
        self._config.budget(info.trained_window)
        settings = self._config.storage
        with self._plugins.find("storage", storage).guard(StorageError):
            return open_memory(
                None if path is None else Path(path),
                backend=storage,
                factory=cast("Any", self._plugins.resolve("storage", storage)),
                fingerprints=Fingerprints(
                    base=info.fingerprint, tokenizer=info.tokenizer_fingerprint
                ),
                vocab_size=info.vocab_size,
                read_only=read_only,
                create=create,
                durability=settings.durability,
                clock=_now_us,
                timeout=settings.lock_timeout_seconds,
                allow_network_fs=settings.allow_network_fs,
            )

    def parts(
        self,
        memory: OpenedMemory,
        adapter: ModelAdapter,
        names: Mapping[str, str],
        *,
        owns_model: bool,
        read_only: bool,
    ) -> Parts:
        """Put the rooms together over an opened memory."""
        config, info = self._config, adapter.info
        budget = config.budget(info.trained_window)
        encoder = cast("GistEncoder", self._make("gist", names, gist_slots=budget.gist_slots))
        tree = MegaContextTree(
            memory.journal,
            encoder,
            adapter,
            gist_dtype=config.gist.gist_dtype,
            gist_cache_rows=config.gist.gist_cache_rows,
            access_path=_in(memory.path, "access.bin"),
            precision=PrecisionTable(adapter.tokenizer, info.vocab_size),
            provisional=MeanGistEncoder(budget.gist_slots),
            read_only=read_only,
        )
        tree.open()
        lexical = LexicalIndex(_in(memory.cache_dir, "lexical.sqlite"), identity=memory.meta.root)
        allocator = cast("Any", self._plugins.resolve("allocator", config.focus.allocator)())
        wc = WorkingContext(budget, allocator=allocator, strict=config.runtime.strict)
        rows = TreeRows(tree)
        views = ViewBuilder(tree, tree, lexical, adapter.embed, info.hidden_size)
        policy = cast("FocusPolicy", self._make("focus", names))
        state = SessionState(
            config=config,
            budget=budget,
            adapter=adapter,
            journal=memory.journal,
            tree=tree,
            rows=rows,
            wc=wc,
            refocuser=Refocuser(wc, policy, RecencyFocus(), allocator, views, rows),
            scheme=cast(
                "PositionScheme", self._plugins.resolve("positions", config.focus.positions)()
            ),
            telemetry=Telemetry(self._sinks()),
        )
        runtime = config.runtime.runtime
        if runtime == "auto":
            runtime = self._plugins.choose_runtime(info)
        chat = ChatFormat(adapter.tokenizer, info.bos_id)
        parts = Parts(
            plugins=self._plugins,
            memory=memory,
            state=state,
            loop=cast("RuntimeLoop", self._plugins.resolve("runtime", runtime)(state)),
            scribe=Scribe(memory.journal, tree, lexical, chat, adapter.tokenizer, _now_us),
            lexical=lexical,
            storage_name=names["storage"],
            model_name=names["model"],
            focus_name=names["focus"],
            gist_name=names["gist"],
            durability=config.storage.durability if memory.path is not None else "none",
            owns_model=owns_model,
            read_only=read_only,
        )
        _announce(parts, runtime)
        return parts

    def _make(self, role: str, names: Mapping[str, str], **arguments: object) -> object:
        if role in self._given:
            return self._given[role]
        factory: Callable[..., object] = self._plugins.resolve(role, names[role])
        return factory(**arguments)

    def _sinks(self) -> list[TelemetrySink]:
        sinks: list[TelemetrySink] = []
        for sink in self._config.telemetry.sinks:
            if not isinstance(sink, str):
                sinks.append(sink)
                continue
            name, _, argument = sink.partition(":")
            factory = self._plugins.resolve("sink", name)
            sinks.append(cast("TelemetrySink", factory(argument) if argument else factory()))
        return sinks


def _in(folder: Path | None, name: str) -> Path | None:
    return None if folder is None else folder / name


def _announce(parts: Parts, runtime: str) -> None:
    state = parts.state
    state.telemetry.emit(
        SessionOpenedEvent(
            step=0,
            epoch=0,
            storage=parts.storage_name,
            model=parts.model_name,
            focus=parts.focus_name,
            gist=parts.gist_name,
            runtime=runtime,
            allocator=state.config.focus.allocator,
            positions=state.config.focus.positions,
            created=parts.memory.created,
            read_only=parts.read_only,
            n_tokens=state.tree.n_tokens,
            w_max=state.budget.w_max,
        )
    )


def _catch_up(parts: Parts) -> None:
    """Bring caches in line with the history: lexical index, layout, pins."""
    parts.lexical.open()
    parts.scribe.catch_up()
    parts.state.hold_system_prompt()
    wc, n_tokens = parts.state.wc, parts.tree.n_tokens
    if not _restore_layout(parts):
        _report(parts, wc.lay_out(n_tokens))
    _report(parts, wc.extend(n_tokens))
    _restore_pins(parts)


def _report(parts: Parts, applied: AppliedPlan) -> None:
    """Count and report what opening did to the working context."""
    if applied.added or applied.moves:
        parts.state.rows.note_moves(applied.moves)
        trace.assemble(parts.state, applied, 0.0)


def _restore_pins(parts: Parts) -> None:
    """Pins are settings of the memory: the saved layout may be older than they are."""
    stored = cast("list[list[int]]", parts.journal.settings.get("pins", []))
    wanted = [Span(start, end) for start, end in stored]
    wc = parts.state.wc
    for pin in wc.pins:
        if pin not in wanted:
            parts.state.take_wish(wc.unpin(pin))
    for pin in wanted:
        if pin not in wc.pins:
            parts.state.take_wish(wc.pin(pin))


def _restore_layout(parts: Parts) -> bool:
    """Take up the layout of the last close; False if there is none that fits."""
    # Not `cache_dir`: whoever reads only resumes the same layout, too.
    path = _in(parts.path, f"cache/{_LAYOUT_FILE}")
    if path is None or not path.exists():
        return False
    try:
        saved = msgspec.msgpack.decode(path.read_bytes(), type=dict[str, object])
        applied = parts.state.wc.restore(saved)
    except (OSError, msgspec.MsgspecError, MegaContextError):
        return False  # a cache: the initial layout is as good a start
    if parts.state.wc.n_tokens > parts.tree.n_tokens:
        return False
    _report(parts, applied)
    return True
