"""The life of a memory, as a session offers it: snapshots, forks, forgetting, moving, repair.

A mixin of `MemorySession`. It decides in which order things happen and puts the session's rooms
together again afterwards; how stores are copied, checked and scanned is written in `memory`.
"""

from __future__ import annotations

import contextlib
import os
from time import perf_counter
from typing import TYPE_CHECKING, Self, cast

from megacontext_sdk.arguments import check_flags, check_progress
from megacontext_sdk.assembly import assemble_over
from megacontext_sdk.errors import ConfigError, StorageError, shown
from megacontext_sdk.memory.directory.forking import fork_memory
from megacontext_sdk.memory.directory.making import new_uuid
from megacontext_sdk.memory.directory.paths import check_location
from megacontext_sdk.memory.directory.replay import append_settings, copy_commits, copy_gists
from megacontext_sdk.memory.directory.scrub import scrub_memory
from megacontext_sdk.memory.forget.forgetting import forget, plan_forget
from megacontext_sdk.memory.gist_rebuild import GistRebuild, encoder_store
from megacontext_sdk.providers import ENCODER_SETTING
from megacontext_sdk.receipts import Rebuilt, Snapshot
from megacontext_sdk.snapshots import (
    SNAPSHOTS,
    check_name,
    find_snapshot,
    list_snapshots,
    packed,
    resolve_at,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from datetime import datetime, timedelta
    from pathlib import Path

    from megacontext_sdk.contracts.storage import Storage
    from megacontext_sdk.memory.directory.vault import OpenedMemory
    from megacontext_sdk.parts import Parts
    from megacontext_sdk.receipts import Receipt, ScrubReport

    Progress = Callable[[int, int], None]

__all__ = ["Keeping"]

_FORKS = "forks"
_EXPORTS = "exports"
_CARRIED = ("encoders", ENCODER_SETTING, _FORKS, _EXPORTS, "receipts")
"""Settings that outlive a restore: what was done since cannot be undone, or still serves."""


class Keeping:
    """What can be done with a whole memory. See `MemorySession`, which is one of these."""

    _parts: Parts

    if TYPE_CHECKING:

        def __init__(self, parts: Parts) -> None: ...

        def _reading(self) -> AbstractContextManager[None]: ...

        def _writing(self) -> AbstractContextManager[None]: ...

        def _fail(self, error: BaseException) -> None: ...

    # -- going back -----------------------------------------------------------------------------

    def snapshot(self, name: str) -> Snapshot:
        """Give the present end of the history a name, to come back to; costs one small commit.

        Args:
            name: 1 to 128 ASCII letters, digits, "_" or "-".

        Raises:
            ConfigError: no such name, or there is a snapshot of that name.
            StorageError: it could not be written.

        Example:
            >>> from megacontext_sdk import MemorySession
            >>> with MemorySession.open(None, model="echo", storage="memory") as session:
            ...     receipt = session.append("My cat is called Turing.")
            ...     before = session.snapshot("before")
            ...     receipt = session.append("My cat is called Alan.")
            ...     restored = session.restore("before")
            ...     "Alan" in session[:]
            False
        """
        checked = check_name(name, "name")
        with self._writing():
            journal = self._parts.journal
            known = list_snapshots(journal.settings)
            if any(one.name == checked for one in known):
                message = f"there is a snapshot {checked!r} already; choose another name"
                raise ConfigError(message, field="name", value=checked)
            made = Snapshot(
                name=checked,
                seq=journal.seq,
                n_tokens=journal.n_tokens,
                n_messages=journal.n_messages,
                ts_us=self._parts.scribe.clock(),
            )
            journal.update_settings({SNAPSHOTS: packed((*known, made))}).wait()
        return made

    def snapshots(self) -> tuple[Snapshot, ...]:
        """Return the snapshots of this memory, oldest place first."""
        with self._reading():
            return list_snapshots(self._parts.journal.settings)

    def restore(self, name: str) -> Snapshot:
        """Cut the history back to a snapshot; what came after is kept aside, on disk in `rescue/`.

        Later snapshots go with the history they named. Receipts and the registers of forks and
        exports stay: those things happened.

        Raises:
            ConfigError: no snapshot of that name; the message lists those there are.
            SessionLockedError: other processes read it and did not leave in time.
            StorageError: it could not be written; the session goes on where it was.

        Returns:
            The snapshot.
        """
        with self._writing():
            memory = self._parts.memory
            settings = memory.journal.settings
            found = find_snapshot(settings, name)
            carried = {key: settings[key] for key in _CARRIED if key in settings}
            kept = [one for one in list_snapshots(settings) if one.seq <= found.seq]
            carried[SNAPSHOTS] = packed(tuple(kept))
            for key in (_FORKS, _EXPORTS):
                carried[key] = _cut_back(carried.get(key), found)

            def build(source: Storage, target: Storage) -> None:
                token_bytes = memory.meta.token_bytes
                position = copy_commits(
                    source,
                    target,
                    root=memory.meta.root,
                    token_bytes=token_bytes,
                    upto_seq=found.seq,
                )
                copy_gists(source, target, n_tokens=found.n_tokens)
                append_settings(
                    target,
                    position,
                    {k: v for k, v in {**position.settings, **carried}.items() if v},
                    token_bytes=token_bytes,
                    ts_us=memory.clock(),
                )

            timeout = self._parts.state.config.storage.lock_timeout_seconds
            with self._parts.tree.paused():
                new = memory.switch(build, keep_old=True, readers_timeout=timeout)
            self._parts.memory = new
            if new.path is not None:  # counts of nodes that are no more
                (new.path / "access.bin").unlink(missing_ok=True)
            self._renew(new, keep_layout=False)
        return found

    # -- branching off --------------------------------------------------------------------------

    def fork(self, path: str | Path | None, *, at: str | int | None = None) -> Self:
        """Make an independent copy of this memory, or of a part from its beginning, and open it.

        The copy shares bytes where the storage can, and the model; appends to one are never seen
        in the other. A memory on disk remembers that there is a fork, so that `forget` can name it.

        Args:
            path: a directory that does not exist yet; None for a memory in this process.
            at: where to branch off: the name of a snapshot or the number of a commit; by default
                here.

        Raises:
            ConfigError: a path that exists, an unknown snapshot or commit.
            StorageError: the copy could not be written; nothing of it is left.

        Returns:
            The session on the fork; close it as any other.
        """
        with self._writing():
            parts = self._parts
            if (path is None) != (parts.path is None):
                kind = "in this process" if parts.path is None else "on disk"
                message = f"a memory {kind} forks into another one {kind}; path is {shown(path)}"
                raise ConfigError(message, field="path", value=shown(path))
            journal = parts.journal
            seq = journal.seq if at is None else resolve_at(at, journal.settings, journal.seq)
            if path is None:
                with parts.tree.paused():
                    copy = self._forked_here(seq)
                return type(self)(assemble_over(parts.wiring, lambda _: copy))
            place = check_location(path)
            with parts.tree.paused():
                self._fork_to(place, seq)
            return type(self)(
                assemble_over(parts.wiring, lambda wiring: wiring.open(place, create=False))
            )

    def _fork_to(self, path: Path, seq: int) -> None:
        """Note the fork, then make it: what exists is known, whenever the process is killed."""
        if os.path.lexists(path):
            message = f"{path} exists already; choose another path for the fork, or remove it first"
            raise ConfigError(message, field="path", value=str(path))
        memory, journal = self._parts.memory, self._parts.journal
        journal.flush()
        uuid, before = new_uuid(), cast("list[object]", journal.settings.get(_FORKS, []))
        n_tokens = 0
        if seq:
            row = memory.storage.read_commits(seq, seq + 1)[0]
            n_tokens = int(row["start"]) + int(row["n_tokens"])
        note = {"uuid": uuid, "path": str(path), "seq": seq, "n_tokens": n_tokens}
        journal.update_settings({_FORKS: [*before, note]}).wait()
        try:
            fork_memory(memory, path, at_seq=seq, uuid=uuid)
        except BaseException:
            with contextlib.suppress(StorageError):
                journal.update_settings({_FORKS: before or None}).wait()
            raise

    def _forked_here(self, seq: int) -> OpenedMemory:
        """Return another memory in this process that holds this one up to a commit."""
        memory = self._parts.memory
        memory.journal.flush()
        source = memory.storage

        def build(_empty: Storage, target: Storage) -> None:
            position = copy_commits(
                source,
                target,
                root=memory.meta.root,
                token_bytes=memory.meta.token_bytes,
                upto_seq=seq,
            )
            copy_gists(source, target, n_tokens=position.n_tokens)

        fresh = self._parts.wiring.open_beside(memory.meta.root)
        return fresh.switch(build, keep_old=False)

    # -- forgetting -----------------------------------------------------------------------------

    def forget(
        self,
        *,
        message_ids: Sequence[int] | None = None,
        span: tuple[int, int] | None = None,
        where: Mapping[str, object] | None = None,
        before: datetime | timedelta | None = None,
        everything: bool = False,
        dry_run: bool = False,
        cascade: str | None = None,
    ) -> Receipt:
        """Remove content for good: text, tokens, the gists above them, index and caches.

        All or nothing. Afterwards every byte of the memory's files is read and searched for pieces
        of what was forgotten; the receipt says what was found. Indices never move: a forgotten
        token keeps its place and reads as nothing. Give exactly one scope.

        Args:
            message_ids: these messages.
            span: these tokens; a message that loses some loses its stored text.
            where: messages that agree in all given fields: role, source, actor, trust, origin,
                metadata.
            before: messages older than this time, or than this age, counted from the newest
                message.
            everything: all that was said so far.
            dry_run: change nothing; the receipt says what would go.
            cascade: "forks" forgets in the forks of this memory, too.

        Raises:
            ConfigError: no scope, two scopes, an unknown field, message or span.
            ForgetBlockedError: forks hold some of it, and `cascade` was not given.
            SessionLockedError: other processes read it and did not leave in time.
            StorageError: it could not be written; nothing was forgotten.

        Example:
            >>> from megacontext_sdk import MemorySession
            >>> with MemorySession.open(None, model="echo", storage="memory") as session:
            ...     receipt = session.append("The gate code is 4711.", source="mail")
            ...     receipt = session.forget(where={"source": "mail"})
            ...     receipt.tokens, receipt.verified, session.search("gate code")
            (25, True, [])
        """
        check_flags(dry_run=dry_run, everything=everything)
        with self._reading() if dry_run else self._writing():
            parts = self._parts
            redaction = plan_forget(
                parts.journal,
                message_ids=message_ids,
                span=span,
                where=where,
                before=before,
                everything=everything,
            )
            if not dry_run and parts.memory.cache_dir is not None:
                parts.lexical.close()  # its file is deleted; it opens again when it is asked
            with parts.tree.paused(idle=not dry_run):
                new, receipt = forget(
                    parts.memory,
                    parts.tree,
                    redaction,
                    dry_run=dry_run,
                    cascade=cascade,
                    open_fork=lambda path: parts.wiring.open(path, create=False),
                    readers_timeout=parts.state.config.storage.lock_timeout_seconds,
                )
            if new is not parts.memory:
                parts.tree.close()
                self._renew(new, keep_layout=True)
        return receipt

    # -- gists and checks -----------------------------------------------------------------------

    def rebuild(self, *, gist: object = None, progress: Progress | None = None) -> Rebuilt:
        """Make all gists that an encoder lacks, then go on with that encoder.

        Only missing gists are made, bottom-up, so a rebuild that was interrupted (by an exception
        of `progress`, Ctrl-C or the end of the process) goes on where it stopped. Until it is
        complete, the gists of the encoder before serve. Where the new encoder gives numbers that
        are not finite, the gist before serves on.

        Args:
            gist: another encoder, by name or as an object; the memory remembers its name and
                opens with it from now on. None completes the one in use.
            progress: called with nodes done and nodes in all, now and then.

        Raises:
            ConfigError: no encoder, or one with another number of slots than `gist_slots`.
            ModelError: the encoder failed; the one before goes on serving.
            StorageError: gists could not be written.

        Example:
            >>> from megacontext_sdk import MemorySession
            >>> with MemorySession.open(None, model="echo", storage="memory") as session:
            ...     receipt = session.append("Rain in Oslo. " * 40)
            ...     session.rebuild().encoded
            0
        """
        check_progress(progress)
        start = perf_counter()
        with self._writing():
            parts = self._parts
            providers = parts.wiring.providers.with_gist(gist)
            slots = parts.state.budget.gist_slots
            encoder = providers.make_gist(parts.journal.settings, slots)
            if encoder.gist_slots != slots:
                message = (
                    f"gist encoder {encoder.name!r} makes {encoder.gist_slots} slots, the session "
                    f"has gist_slots={slots}; open it with gist_slots={encoder.gist_slots}"
                )
                raise ConfigError(message, field="gist", value=encoder.name)
            store = encoder_store(parts.journal, parts.tree, encoder, parts.state.adapter)
            run = GistRebuild(parts.journal, store, parts.tree.gists, progress or _quiet)
            with parts.tree.paused(idle=True):
                run.run()
            if gist is not None:
                chosen = providers.gist_name(parts.journal.settings)
                parts.journal.update_settings({ENCODER_SETTING: chosen}).wait()
            parts.wiring.providers = providers
            parts.tree.close()
            self._renew(parts.memory, keep_layout=True)
        return Rebuilt(
            gist=encoder.name,
            version=store.version or 0,
            encoded=run.encoded,
            reused=run.reused,
            kept_old=run.kept_old,
            seconds=perf_counter() - start,
        )

    def verify(self, *, progress: Progress | None = None) -> ScrubReport:
        """Read everything and check it: chain, checksums, tiling, gists. Changes nothing.

        Args:
            progress: called with what was read and what there is to read.

        Raises:
            StorageError: the storage could not be read at all.

        Example:
            >>> from megacontext_sdk import MemorySession
            >>> with MemorySession.open(None, model="echo", storage="memory") as session:
            ...     receipt = session.append("My cat is called Turing.")
            ...     session.verify().is_sound
            True
        """
        check_progress(progress)
        with self._reading(), self._parts.tree.paused():
            return scrub_memory(self._parts.memory, progress=progress)

    # -- behind it ------------------------------------------------------------------------------

    def _renew(self, memory: OpenedMemory, *, keep_layout: bool) -> None:
        """Go on over another generation; if that fails, the memory is whole but this handle not."""
        try:
            self._parts.renew(memory, keep_layout=keep_layout)
        except BaseException as error:
            self._fail(error)
            raise
        self._parts.catch_up()


def _cut_back(register: object, to: Snapshot) -> list[dict[str, object]]:
    """Return forks or exports with what they still share with a memory that is cut back."""
    limits = {"seq": to.seq, "n_tokens": to.n_tokens}
    notes = cast("list[dict[str, int]]", register or [])
    return [
        {key: min(value, limits[key]) if key in limits else value for key, value in note.items()}
        for note in notes
    ]


def _quiet(_done: int, _total: int) -> None:
    """Nobody watches."""
