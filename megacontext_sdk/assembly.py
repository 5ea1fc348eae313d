"""Wires one session: opens the memory, puts the rooms together, brings caches up to date, lays out.

Everything a session needs is resolved here once, into plain objects; appending and generating never
look up a provider again. A failed open closes what it had opened. When the memory is replaced under
a session (restore, forget), the same wiring puts the rooms together again over the new one.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from megacontext_sdk.arguments import check_flags
from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.builtin.recency import RecencyFocus
from megacontext_sdk.config import Config
from megacontext_sdk.errors import ConfigError, MegaContextError, shown
from megacontext_sdk.events import SessionOpenedEvent
from megacontext_sdk.focus.refocus import Refocuser
from megacontext_sdk.focus.view import ViewBuilder
from megacontext_sdk.focus.working_context import WorkingContext
from megacontext_sdk.memory.directory.manifest import read_meta
from megacontext_sdk.memory.directory.vault import Fingerprints, open_memory
from megacontext_sdk.memory.forget.forgetting import finish_forget
from megacontext_sdk.memory.lexical import LexicalIndex
from megacontext_sdk.memory.precision import PrecisionTable
from megacontext_sdk.memory.tree import MegaContextTree
from megacontext_sdk.messages import ChatFormat
from megacontext_sdk.parts import Parts, saved_layout
from megacontext_sdk.providers import Providers, checked_plugins, open_model
from megacontext_sdk.runtime.scribe import Scribe
from megacontext_sdk.runtime.state import SessionState
from megacontext_sdk.runtime.tree_rows import TreeRows
from megacontext_sdk.snapshots import resolve_at

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from megacontext_sdk.contracts.model import ModelAdapter
    from megacontext_sdk.events import Telemetry
    from megacontext_sdk.memory.directory.vault import OpenedMemory
    from megacontext_sdk.plugins import Plugins
    from megacontext_sdk.providers import ModelLease

__all__ = ["Wiring", "assemble", "assemble_over", "finish", "wire"]


def _now_us() -> int:
    return time.time_ns() // 1000


def wire(
    *,
    model: object,
    storage: object,
    focus: object,
    gist: object,
    config: Config | str | Path | None,
    plugins: Plugins | None,
    settings: Mapping[str, object],
    read_only: bool = False,
) -> Wiring:
    """Resolve providers and open the model; whoever asked releases the lease."""
    catalogue = checked_plugins(plugins)
    resolved = _settings(config, settings)
    lease = open_model(catalogue, model)
    try:
        providers = Providers.take(
            catalogue,
            resolved,
            storage=storage,
            focus=focus,
            gist=gist,
            trained_gist=lease.gist,
        )
        providers.check()
    except BaseException:
        lease.release()
        raise
    return Wiring(providers=providers, lease=lease, read_only=read_only)


def assemble(
    path: str | Path | None,
    *,
    model: object = None,
    storage: object = None,
    focus: object = None,
    gist: object = None,
    config: Config | str | Path | None = None,
    read_only: bool = False,
    create: bool = True,
    plugins: Plugins | None = None,
    settings: Mapping[str, object],
    at: str | int | None = None,
    name: str = "",
) -> Parts:
    """Open everything a session needs; on failure nothing stays open."""
    check_flags(read_only=read_only, create=create)
    place = _checked_path(path)
    wiring = wire(
        model=model,
        storage=_own_storage(place) if storage is None else storage,
        focus=focus,
        gist=gist,
        config=config,
        plugins=plugins,
        settings=settings,
        read_only=read_only,
    )
    return finish(wiring, lambda: wiring.open(place, create=create, at=at, name=name))


def _own_storage(path: Path | None) -> str | None:
    """Return what a memory was made with; opening it will say what is wrong with it otherwise."""
    try:
        meta = None if path is None or not path.is_dir() else read_meta(path)
    except (MegaContextError, OSError, ValueError):
        return None
    return None if meta is None else meta.backend


def assemble_over(wiring: Wiring, open_it: Callable[[Wiring], OpenedMemory]) -> Parts:
    """Open a memory beside the one of another session, with the same model and settings.

    Args:
        wiring: of the other session.
        open_it: opens the memory, or gives one that is open.
    """
    own = Wiring(
        providers=wiring.providers.for_a_fork(), lease=wiring.lease.share(), read_only=False
    )
    return finish(own, lambda: open_it(own))


def finish(wiring: Wiring, open_it: Callable[[], OpenedMemory]) -> Parts:
    """Open a memory and put the rooms over it; on failure nothing stays open, nor the model."""
    with ExitStack() as stack:
        stack.callback(wiring.lease.release)
        memory = open_it()
        stack.callback(memory.close)
        parts = _opened(wiring, memory, stack)
        stack.pop_all()
    return parts


def _opened(wiring: Wiring, memory: OpenedMemory, stack: ExitStack) -> Parts:
    parts = wiring.parts(memory)
    stack.callback(parts.lexical.close)
    _announce(parts)
    parts.settle(saved_layout(parts))
    parts.catch_up()
    parts.tree.wake()
    return parts


def _settings(config: Config | str | Path | None, settings: Mapping[str, object]) -> Config:
    if isinstance(config, Config):
        return config.replace(**settings) if settings else config
    if config is not None and not isinstance(config, str | Path):
        message = f"config is a {type(config).__name__}; give a Config or the path of a TOML file"
        raise ConfigError(message, field="config", value=type(config).__name__)
    return Config.load(config).replace(**settings)


def _checked_path(path: object) -> Path | None:
    if path is not None and (not isinstance(path, str | Path) or path == ""):
        message = f"path must be a Path or text that is not empty, got {shown(path)}"
        raise ConfigError(message, field="path", value=type(path).__name__)
    return None if path is None else Path(path)


@attrs.define(eq=False, kw_only=True)
class Wiring:
    """How the rooms of a session are put together, as often as needed, with one model.

    Attributes:
        providers: what fills the roles.
        lease: the model.
        read_only: no writes.
        at: a view that ends at this commit; None sees everything.
    """

    providers: Providers
    lease: ModelLease
    read_only: bool
    at: int | None = None
    _telemetry: Telemetry | None = None

    @property
    def adapter(self) -> ModelAdapter:
        """The base model."""
        return self.lease.adapter

    @property
    def config(self) -> Config:
        """The settings."""
        return self.providers.config

    @property
    def fingerprints(self) -> Fingerprints:
        """What a memory must have been made with."""
        info = self.adapter.info
        return Fingerprints(base=info.fingerprint, tokenizer=info.tokenizer_fingerprint)

    def open(
        self, path: Path | None, *, create: bool, at: str | int | None = None, name: str = ""
    ) -> OpenedMemory:
        """Open the directory and its journal; the budget is checked before one is made.

        Args:
            path: the directory.
            create: make a memory if there is none.
            at: end at a snapshot or a commit; for reading only.
            name: noted in a new memory.
        """
        self.config.budget(self.adapter.info.trained_window)
        if at is not None:
            self.at = self._commit_at(path, at)
        return self._open(path, create=create, at_seq=self.at, name=name)

    def open_beside(self, root: bytes) -> OpenedMemory:
        """Open an empty memory in this process whose chain begins as another one's."""
        return self._open(None, create=True, root=root)

    def _commit_at(self, path: Path | None, at: str | int) -> int:
        """Look up what `at` means: names are settings of the present, not of that time."""
        if not self.read_only:
            message = "at= shows the memory as it was, for reading: add read_only=True, or restore"
            raise ConfigError(message, field="at", value=shown(at))
        memory = self._open(path, create=False)
        try:
            return resolve_at(at, memory.journal.settings, memory.journal.seq)
        finally:
            memory.close()

    def _open(
        self,
        path: Path | None,
        *,
        create: bool,
        at_seq: int | None = None,
        root: bytes | None = None,
        name: str = "",
    ) -> OpenedMemory:
        info, settings = self.adapter.info, self.config.storage
        memory = open_memory(
            path,
            backend=self.providers.storage,
            factory=self.providers.store_factory(),
            fingerprints=self.fingerprints,
            vocab_size=info.vocab_size,
            read_only=self.read_only,
            create=create,
            durability=settings.durability,
            clock=_now_us,
            timeout=settings.lock_timeout_seconds,
            allow_network_fs=settings.allow_network_fs,
            adopt_base=settings.adopt_model,
            at_seq=at_seq,
            root=root,
            name=name,
        )
        if not self.read_only:
            _finish(memory)
        return memory

    def parts(self, memory: OpenedMemory) -> Parts:
        """Put the rooms together over an opened memory."""
        config, info = self.config, self.adapter.info
        budget = config.budget(info.trained_window)
        if not self.read_only:
            first = self.providers.first_gist(memory.journal.settings, info, budget.gist_slots)
            if first:
                memory.journal.update_settings(first).wait()
        tree = MegaContextTree(
            memory.journal,
            self.providers.make_gist(memory.journal.settings, budget.gist_slots),
            self.adapter,
            gist_dtype=config.gist.gist_dtype,
            gist_cache_rows=config.gist.gist_cache_rows,
            access_path=_in(memory.path, "access.bin"),
            precision=PrecisionTable(self.adapter.tokenizer, info.vocab_size),
            provisional=MeanGistEncoder(budget.gist_slots),
            read_only=self.read_only,
            filler_id=self._filler_id(),
            background=config.gist.gist_background,
        )
        tree.open(strict_encoder=config.gist.strict_encoder)
        lexical = LexicalIndex(_in(memory.cache_dir, "lexical.sqlite"), identity=memory.meta.root)
        allocator = self.providers.make_allocator()
        wc = WorkingContext(budget, allocator=allocator, strict=config.runtime.strict)
        rows = TreeRows(tree)
        views = ViewBuilder(tree, tree, lexical, self.adapter.embed, info.hidden_size)
        policy = self.providers.make_focus()
        if self._telemetry is None:
            self._telemetry = self.providers.make_telemetry()
        state = SessionState(
            config=config,
            budget=budget,
            adapter=self.adapter,
            journal=memory.journal,
            tree=tree,
            rows=rows,
            wc=wc,
            refocuser=Refocuser(wc, policy, RecencyFocus(), allocator, views, rows),
            scheme=self.providers.make_positions(),
            telemetry=self._telemetry,
        )
        n_made = sum(tree.encode_calls.values())
        stored = tree.stats()
        chat = ChatFormat(self.adapter.tokenizer, info.bos_id)
        tokenizer = self.adapter.tokenizer
        return Parts(
            wiring=self,
            memory=memory,
            state=state,
            loop=self.providers.make_loop(self.providers.runtime(info), state),
            scribe=Scribe(memory.journal, tree, lexical, chat, tokenizer, _now_us),
            lexical=lexical,
            gist_name=self.providers.gist_name(memory.journal.settings),
            gists_reused=sum(stored.nodes.values()) - stored.n_missing_gists - n_made,
            gists_rebuilt=n_made,
        )

    def _filler_id(self) -> int:
        """Return what a model is shown in place of a forgotten token: a line break, if it can."""
        ids = self.adapter.tokenizer.encode("\n")
        return int(ids[-1]) if len(ids) else 0


def _finish(memory: OpenedMemory) -> None:
    """Finish what a forget began that was killed; on failure nothing stays open."""
    try:
        finish_forget(memory)
    except BaseException:
        memory.close()
        raise


def _in(folder: Path | None, name: str) -> Path | None:
    return None if folder is None else folder / name


def _announce(parts: Parts) -> None:
    state, providers = parts.state, parts.wiring.providers
    state.telemetry.emit(
        SessionOpenedEvent(
            step=0,
            epoch=0,
            storage=providers.storage,
            model=parts.wiring.lease.name,
            focus=providers.focus,
            gist=parts.gist_name,
            runtime=providers.runtime(state.adapter.info),
            allocator=state.config.focus.allocator,
            positions=state.config.focus.positions,
            created=parts.memory.created,
            read_only=parts.read_only,
            n_tokens=state.tree.n_tokens,
            w_max=state.budget.w_max,
        )
    )
