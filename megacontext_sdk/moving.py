"""Memories on the move: out as a bundle or as text, in from elsewhere, and out of the ruins.

A mixin of `MemorySession`. What a bundle is, how it is checked and what survives damage is written
in `memory`; here is what a session adds: its model, its settings, and a note of what left.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING, Self, cast

from megacontext_sdk.arguments import (
    check_count,
    check_flags,
    check_progress,
    check_timeout,
)
from megacontext_sdk.assembly import finish, wire
from megacontext_sdk.errors import ConfigError, SessionNotFoundError, StorageError, shown
from megacontext_sdk.memory.directory.making import make_memory, new_uuid
from megacontext_sdk.memory.directory.manifest import MemoryMeta, read_meta
from megacontext_sdk.memory.directory.opened import Fingerprints, now_us
from megacontext_sdk.memory.directory.paths import check_directory, check_location, check_parent
from megacontext_sdk.memory.directory.recovery import recover_memory
from megacontext_sdk.memory.directory.scrub import scrub_memory
from megacontext_sdk.memory.directory.vault import open_memory
from megacontext_sdk.memory.exchange.bundle import write_bundle
from megacontext_sdk.memory.exchange.loading import Loader, open_source
from megacontext_sdk.memory.exchange.retokenizing import Retokenizer, write_drafts
from megacontext_sdk.memory.exchange.transcript_file import write_transcript
from megacontext_sdk.messages import ChatFormat, load_messages
from megacontext_sdk.messages.transcript import read_transcript
from megacontext_sdk.providers import checked_plugins, storage_factory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from megacontext_sdk.assembly import Wiring
    from megacontext_sdk.config import Config
    from megacontext_sdk.contracts.storage import Storage
    from megacontext_sdk.memory.directory.vault import OpenedMemory
    from megacontext_sdk.memory.lod import Span
    from megacontext_sdk.messages import Message
    from megacontext_sdk.parts import Parts
    from megacontext_sdk.plugins import Plugins
    from megacontext_sdk.receipts import Exported, Recovery, ScrubReport

    Progress = Callable[[int, int], None]

__all__ = ["Moving"]

_EXPORTS = "exports"
_FORMATS = ("bundle", "jsonl")
_TRANSCRIPT = ".jsonl"
_MESSAGES_AT_ONCE = 256


class Moving:
    """How memories leave, arrive and are saved. See `MemorySession`, which is one of these."""

    _parts: Parts

    if TYPE_CHECKING:

        def __init__(self, parts: Parts) -> None: ...

        def _reading(self) -> AbstractContextManager[None]: ...

        def _writing(self) -> AbstractContextManager[None]: ...

        def _text(self, span: Span) -> str: ...

    # -- out ------------------------------------------------------------------------------------

    def export(
        self,
        path: str | Path,
        *,
        format: str | None = None,  # noqa: A002 - what it is called everywhere
        progress: Progress | None = None,
    ) -> Exported:
        """Write the memory into one file that did not exist before; a failure leaves none.

        The memory notes where the file went, because `forget` cannot reach it there. (A session
        opened for reading cannot note anything.)

        Args:
            path: of the new file.
            format: by default by the name: "jsonl" if that ends in `.jsonl`, else "bundle".
                A bundle is the whole memory, to be loaded again anywhere; "jsonl" its chat
                messages, one JSON object per line, for people and other tools.
            progress: called with tokens done and tokens in all.

        Raises:
            ConfigError: another format, or a path that exists or takes no file.
            StorageError: the file could not be written, or the memory not be read.

        Example:
            >>> import tempfile
            >>> from pathlib import Path
            >>> from megacontext_sdk import MemorySession
            >>> folder = tempfile.TemporaryDirectory()
            >>> with MemorySession.open(None, model="echo", storage="memory") as session:
            ...     receipt = session.append("My cat is called Turing.")
            ...     exported = session.export(Path(folder.name) / "notes.bundle")
            >>> with MemorySession.load(
            ...     exported.path, into=None, model="echo", storage="memory"
            ... ) as copy:
            ...     copy.messages()[0].text
            'My cat is called Turing.'
            >>> folder.cleanup()
        """
        check_progress(progress)
        place = check_location(path)
        form = _format_of(place, format)
        if os.path.lexists(place):
            message = f"{place} exists already; choose another path, or remove it first"
            raise ConfigError(message, field="path", value=str(place))
        check_parent(place.parent)  # before it is noted
        parts = self._parts
        if parts.read_only:
            with self._reading():
                return self._export(place, form, parts.journal.seq, progress)
        with self._writing():
            parts.journal.flush()
            return self._noted(place, form, progress)

    def _noted(self, place: Path, form: str, progress: Progress | None) -> Exported:
        """Note the export, then make it: what exists is known, whenever the process is killed."""
        journal, seq = self._parts.journal, self._parts.journal.seq
        before = cast("list[object]", journal.settings.get(_EXPORTS, []))
        ts_us = self._parts.memory.clock()
        note = {"path": str(place), "format": form, "n_tokens": journal.n_tokens, "ts_us": ts_us}
        journal.update_settings({_EXPORTS: [*before, note]}).wait()
        try:
            return self._export(place, form, seq, progress)
        except BaseException:
            with contextlib.suppress(StorageError):
                journal.update_settings({_EXPORTS: before or None}).wait()
            raise

    def _export(self, place: Path, form: str, seq: int, progress: Progress | None) -> Exported:
        memory = self._parts.memory
        if form == "bundle":
            with self._parts.tree.paused():
                return write_bundle(
                    memory.storage, memory.meta, place, upto_seq=seq, progress=progress
                )
        n_tokens = self._parts.tree.n_tokens
        return write_transcript(self._each_message(), place, n_tokens=n_tokens, progress=progress)

    def _each_message(self) -> Iterator[Message]:
        journal = self._parts.journal
        for first in range(0, journal.n_messages, _MESSAGES_AT_ONCE):
            stop = min(first + _MESSAGES_AT_ONCE, journal.n_messages)
            yield from load_messages(journal, first, stop, self._text)

    # -- in -------------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        into: str | Path | None,
        model: object = None,
        storage: str | None = None,
        focus: object = None,
        gist: object = None,
        config: Config | str | Path | None = None,
        trust: str | None = None,
        retokenize: bool = False,
        progress: Progress | None = None,
        plugins: Plugins | None = None,
        **settings: object,
    ) -> Self:
        """Make a new memory of something exported, or of another memory, and open it.

        Everything is checked before the new memory appears; a failure leaves nothing behind. What
        comes from elsewhere is trusted as such: its messages are "external" at most, its pins and
        registers stay behind, and its gists are made again from its text.

        Args:
            source: a bundle, a file of chat messages (`.jsonl`), or the directory of a memory.
            into: directory of the new memory, which does not exist yet; None only with
                `storage="memory"`.
            model, storage, focus, gist, config, plugins: as for `open`.
            trust: "keep" believes what the source says about who said what.
            retokenize: make token ids anew from the text if the source used another tokenizer.
            progress: called with tokens done and tokens in all.
            **settings: as for `open`.

        Raises:
            BundleError: the file is damaged, or no bundle.
            ConfigError: the target exists, or an argument makes no sense.
            ModelMismatchError: another tokenizer, and no `retokenize`; or messages without text.
            SessionNotFoundError: there is nothing at `source`.
            StorageError: the new memory could not be written.
        """
        check_flags(retokenize=retokenize)
        check_progress(progress)
        if trust is not None and trust != "keep":
            message = f"trust={shown(trust)} is unknown; use 'keep', or leave it out"
            raise ConfigError(message, field="trust", value=shown(trust))
        place = check_location(source)
        target = None if into is None else check_location(into)
        wiring = wire(
            model=model,
            storage=storage,
            focus=focus,
            gist=gist,
            config=config,
            plugins=plugins,
            settings=settings,
        )
        arrival = _Arrival(wiring, target, trust or "cap", progress)
        if place.suffix == _TRANSCRIPT:
            return cls(finish(wiring, lambda: arrival.of_transcript(place)))
        return cls(finish(wiring, lambda: arrival.of_memory(place, retokenize=retokenize)))

    @classmethod
    def recover(
        cls,
        path: str | Path,
        *,
        dry_run: bool = False,
        timeout: float | None = None,
        progress: Progress | None = None,
        plugins: Plugins | None = None,
    ) -> Recovery:
        """Find out what of a damaged memory survives, and cut it back to that.

        Needs no model. Ask with `dry_run=True` first. The damaged files are moved to the memory's
        `rescue/` folder, nothing is deleted. A memory that is sound is left alone.

        Args:
            path: directory of the memory, which nobody has open.
            dry_run: only report; no byte changes.
            timeout: seconds to wait for whoever has it open; None does not wait.
            progress: called with tokens read and tokens in all.
            plugins: the plugins to use instead of the installed ones.

        Raises:
            ConfigError: the path is no directory of ours.
            CorruptError: MEMORY itself cannot be read.
            SessionLockedError: somebody has it open.
            SessionNotFoundError: there is no memory.
            StorageError: what survives could not be written; the memory is as before.

        Example:
            >>> import tempfile
            >>> from pathlib import Path
            >>> from megacontext_sdk import MemorySession
            >>> folder = tempfile.TemporaryDirectory()
            >>> path = Path(folder.name) / "notes.mc"
            >>> MemorySession.open(path, model="echo").close()
            >>> MemorySession.recover(path, dry_run=True).is_damaged
            False
            >>> folder.cleanup()
        """
        check_flags(dry_run=dry_run)
        check_progress(progress)
        catalogue = checked_plugins(plugins)
        return recover_memory(
            path,
            factory_of=lambda name: storage_factory(catalogue, name),
            dry_run=dry_run,
            timeout=check_timeout(timeout),
            progress=progress,
        )

    @classmethod
    def scrub(
        cls,
        path: str | Path,
        *,
        progress: Progress | None = None,
        bytes_per_second: int | None = None,
        timeout: float | None = None,
        plugins: Plugins | None = None,
    ) -> ScrubReport:
        """Read a memory from its first byte to its last and check it; `verify` without a model.

        Changes nothing.

        Args:
            path: directory of the memory.
            progress: called with tokens read and tokens in all.
            bytes_per_second: read no faster; as fast as possible if absent.
            timeout: seconds to wait for whoever has it open; None does not wait.
            plugins: the plugins to use instead of the installed ones.

        Raises:
            CorruptError: it is damaged so that it cannot be opened; see `recover`.
            SessionLockedError: it is open for writing, and its storage has no readers beside that.
            SessionNotFoundError: there is no memory.
            StorageError: it cannot be read.
        """
        if bytes_per_second is not None:
            check_count("bytes_per_second", bytes_per_second, 2**63 - 1)
        check_progress(progress)
        catalogue = checked_plugins(plugins)
        directory = check_location(path)
        meta = read_meta(directory) if check_directory(directory) else None
        if meta is None:
            message = f"there is no memory at {directory}; check the path"
            raise SessionNotFoundError(message, path=str(directory))
        memory = open_memory(
            directory,
            backend=meta.backend,
            factory=storage_factory(catalogue, meta.backend),
            fingerprints=Fingerprints(base=meta.base_fp, tokenizer=meta.tokenizer_fp),
            vocab_size=2,  # only a new memory asks
            read_only=True,
            create=False,
            timeout=check_timeout(timeout),
        )
        try:
            return scrub_memory(memory, progress=progress, bytes_per_second=bytes_per_second)
        finally:
            memory.close()


def _format_of(place: Path, given: object) -> str:
    """Return the format of an export: the one that was asked for, or what its name says."""
    is_transcript = place.suffix == _TRANSCRIPT
    if given is None:
        return "jsonl" if is_transcript else "bundle"
    if not isinstance(given, str) or given not in _FORMATS:
        message = f"format={shown(given)} is unknown; use 'bundle' or 'jsonl'"
        raise ConfigError(message, field="format", value=shown(given))
    if given == "bundle" and is_transcript:
        message = f"{place} would be loaded as chat messages; give a bundle another ending"
        raise ConfigError(message, field="path", value=str(place))
    return given


class _Arrival:
    """A memory that is being made of something from elsewhere.

    Args:
        wiring: of the session to come.
        into: directory of the memory, None for one in this process.
        trust: "cap" or "keep".
        progress: called with tokens done and in all.
    """

    def __init__(
        self, wiring: Wiring, into: Path | None, trust: str, progress: Progress | None
    ) -> None:
        self._wiring = wiring
        self._into = into
        self._trust = trust
        self._progress = progress
        if into is None and wiring.providers.is_local:
            message = f"storage {wiring.providers.storage!r} needs a directory; give into="
            raise ConfigError(message, field="into", value=None)

    def of_memory(self, source: Path, *, retokenize: bool) -> OpenedMemory:
        """Load a bundle or another memory's directory."""
        info, providers = self._wiring.adapter.info, self._wiring.providers
        with open_source(source, providers.store_factory) as origin:
            loader = Loader(
                origin,
                backend=providers.storage,
                fingerprints=self._wiring.fingerprints,
                vocab_size=info.vocab_size,
                width=info.hidden_size,
                trust=self._trust,
                retokenizer=self._retokenizer() if retokenize else None,
                progress=self._progress,
            )
            loader.check()
            return self._make(loader.meta, loader.fill)

    def of_transcript(self, source: Path) -> OpenedMemory:
        """Load a file of chat messages."""
        for _draft in read_transcript(source, trust=self._trust):
            pass  # a line that is none is found before anything is made
        info, prints = self._wiring.adapter.info, self._wiring.fingerprints
        meta = MemoryMeta(
            uuid=new_uuid(),
            root=secrets.token_bytes(16),
            backend=self._wiring.providers.storage,
            generation=1,
            token_bytes=2 if info.vocab_size <= 65_535 else 4,
            base_fp=prints.base,
            tokenizer_fp=prints.tokenizer,
        )

        def fill(target: Storage) -> None:
            drafts = read_transcript(source, trust=self._trust)
            write_drafts(target, drafts, self._retokenizer(), meta=meta, ts_us=now_us())

        return self._make(meta, fill)

    def _make(self, meta: MemoryMeta, fill: Callable[[Storage], None]) -> OpenedMemory:
        """Make the memory, whole or not at all, and open it."""
        wiring = self._wiring
        if self._into is None or not wiring.providers.is_local:
            return wiring.open_beside(meta.root).switch(
                lambda _empty, target: fill(target), keep_old=False
            )
        make_memory(
            self._into,
            backend=meta.backend,
            factory=wiring.providers.store_factory(),
            meta=meta,
            fill=fill,
            allow_network_fs=wiring.config.storage.allow_network_fs,
        )
        return wiring.open(self._into, create=False)

    def _retokenizer(self) -> Retokenizer:
        adapter = self._wiring.adapter
        chat = ChatFormat(adapter.tokenizer, adapter.info.bos_id)
        return Retokenizer(render=chat.render, opening=chat.opening_for)
