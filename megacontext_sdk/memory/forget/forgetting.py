"""Forgetting: the next generation of a memory without some content, and the proof that it is gone.

All or nothing: until the next generation is in force nothing has changed, afterwards nothing of the
content is left in any file of the memory. Indices and message numbers never move. What a scope
means is decided in `memory.forget.plan`.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.errors import ConfigError, MegaContextError, shown
from megacontext_sdk.memory.directory.durable import remove_tree
from megacontext_sdk.memory.directory.generations import data_folder
from megacontext_sdk.memory.directory.replay import append_settings, copy_commits
from megacontext_sdk.memory.forget.forks import (
    blocked,
    check_forks,
    exports_with,
    forks_with,
)
from megacontext_sdk.memory.forget.gist_remake import GistRemake
from megacontext_sdk.memory.forget.needles import Survivors, take_needles
from megacontext_sdk.memory.forget.plan import heads_of, plan_forget, plan_shared
from megacontext_sdk.memory.forget.scan import files_below, scan_files
from megacontext_sdk.memory.lod import MAX_LOD, Span
from megacontext_sdk.receipts import Receipt

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from megacontext_sdk.contracts.arrays import Bools
    from megacontext_sdk.contracts.storage import Storage
    from megacontext_sdk.memory.directory.opened import OpenedMemory
    from megacontext_sdk.memory.directory.replay import Redaction
    from megacontext_sdk.memory.forget.forks import Fork, OpenFork
    from megacontext_sdk.memory.forget.needles import Needles
    from megacontext_sdk.memory.reading import JournalReader
    from megacontext_sdk.memory.tree import MegaContextTree

__all__ = ["finish_forget", "forget", "plan_forget"]

_RECEIPTS = "receipts"
_RECEIPTS_KEPT = 100
_SPANS_KEPT = 100  # of each receipt
_PAGE_TOKENS = 2**18
_PAGE_MESSAGES = 4_096

_log = logging.getLogger(__name__)


def forget(
    opened: OpenedMemory,
    tree: MegaContextTree,
    redaction: Redaction,
    *,
    dry_run: bool,
    cascade: str | None,
    open_fork: OpenFork,
    readers_timeout: float | None = None,
) -> tuple[OpenedMemory, Receipt]:
    """Forget what was planned, or with `dry_run` say what that would take.

    Args:
        opened: the memory. Its lexical index must be closed: the file is deleted.
        tree: over its journal; its encoder makes the gists anew.
        redaction: from `plan_forget`.
        dry_run: change nothing.
        cascade: "forks" lets the forks that hold the content forget it first; None refuses.
        open_fork: opens the memory of a path for writing.
        readers_timeout: seconds to wait for readers to leave.

    Returns:
        The handle to go on with (the same one if nothing changed), and what was done.

    Raises:
        ConfigError: another `cascade`.
        CorruptError: damage was found on the way; nothing changed.
        ForgetBlockedError: forks hold it, or cannot be opened; nothing changed here.
        ReadOnlyError: opened for reading.
        SessionLockedError: readers did not leave; nothing changed here.
        StorageError: something could not be written.
    """
    if cascade is not None and not (isinstance(cascade, str) and cascade == "forks"):
        message = f'cascade={shown(cascade)} is unknown; use "forks" or leave it out'
        raise ConfigError(message, field="cascade", value=shown(cascade))
    run = _Forgetting(opened, tree, redaction, open_fork, readers_timeout)
    if dry_run or not redaction:
        return opened, run.planned(dry_run=dry_run)
    return run.do(cascade=cascade is not None, seen=frozenset({opened.meta.uuid}))


def finish_forget(opened: OpenedMemory) -> None:
    """Delete what a forget that was cut short had still to delete: older generations in rescue/.

    Args:
        opened: a memory that was just opened for writing. The newest receipt in its settings says
            from which generation on there is nothing of what was forgotten.

    Raises:
        OSError: something cannot be deleted.
    """
    receipts = opened.journal.settings.get(_RECEIPTS)
    newest = receipts[-1] if isinstance(receipts, list | tuple) and receipts else {}
    if opened.path is None or not isinstance(newest, dict):
        return
    generation = newest.get("generation", 0) if newest.get("uuid") == opened.meta.uuid else 0
    for folder in (opened.path / "rescue").glob("data-*"):
        number = folder.name.partition("-")[2]
        if number.isdigit() and int(number) < generation:
            remove_tree(opened.disk, folder)


@attrs.define(eq=False)
class _Forgetting:
    """One forget under way."""

    opened: OpenedMemory
    tree: MegaContextTree
    redaction: Redaction
    open_fork: OpenFork
    readers_timeout: float | None
    forks: tuple[str, ...] = ()
    remake: GistRemake = attrs.field(init=False)
    seq: int = 0
    n_files: int = 0
    n_left: int = 0  # files that should be gone
    n_bytes: int = 0
    found: Bools | None = None  # needles seen in the files; None if the files were not read

    @remake.default
    def _remake(self) -> GistRemake:
        n_tokens, token_bytes = self.opened.journal.n_tokens, self.opened.meta.token_bytes
        return GistRemake(self.tree.gist_store, self.redaction, n_tokens, token_bytes)

    def planned(self, *, dry_run: bool) -> Receipt:
        """Return what would be done; of nothing, that nothing had to be."""
        journal, spans = self.opened.journal, self.redaction.spans
        forks = forks_with(journal, self.redaction)
        return Receipt(
            dry_run=dry_run,
            seq=None,
            spans=spans,
            messages=tuple(heads_of(journal, self.redaction.messages).tolist()),
            tokens=sum(span.n_tokens for span in spans),
            gists_dropped=self._n_dropped(),
            forks=tuple(str(fork.path) for fork in forks),
            exports=exports_with(journal, self.redaction),
            verified=None if dry_run else True,
        )

    def _n_dropped(self) -> int:
        return sum(len(self.remake.touched(lod)) for lod in _LODS)

    # --- doing it ----------------------------------------------------------------------------

    def do(self, *, cascade: bool, seen: frozenset[str]) -> tuple[OpenedMemory, Receipt]:
        """Forget, forks first; `seen` are memories that are being told already."""
        opened, meta = self.opened, self.opened.meta
        with opened.journal.paused():
            pass  # refuses a reader, and brings everything into the store
        plan = self.planned(dry_run=False)
        holders = forks_with(opened.journal, self.redaction)
        holders = [fork for fork in holders if fork.uuid not in seen]
        if holders and not cascade:
            what = "messages"
            if self.redaction.spans:
                what = f"tokens {self.redaction.spans[0].start} to {self.redaction.spans[-1].end}"
            why = f'still holds {what} or a part of them; repeat with cascade="forks", or delete it'
            raise blocked(holders, opened.path, why)
        check_forks(holders, self.open_fork, opened.path)
        needles = take_needles(
            opened.journal,
            opened.storage,
            self.redaction,
            meta.token_bytes,
            reach=self.remake.reach,
        )
        for fork in holders:
            self._tell(fork, seen | {fork.uuid for fork in holders})
        new = opened.switch(
            self._build,
            keep_old=False,
            readers_timeout=self.readers_timeout,
            settle=lambda directory: self._settle(directory, needles),
        )
        try:
            return new, self._proven(new, plan, needles)
        except BaseException:
            new.close()  # whoever holds the old handle cannot: its lock went over
            raise

    def _tell(self, fork: Fork, seen: frozenset[str]) -> None:
        """Let a fork forget its share."""
        journal = self.opened.journal
        try:
            copy = self.open_fork(fork.path)
        except (OSError, MegaContextError) as error:
            why = f"cannot be opened any more ({type(error).__name__})"
            raise blocked([fork], self.opened.path, why) from error
        try:
            share = plan_shared(copy.journal, journal, self.redaction, self._cut(fork))
            if share:
                tree = self.tree.over(copy.journal)
                tree.open()
                run = _Forgetting(copy, tree, share, self.open_fork, self.readers_timeout)
                copy, receipt = run.do(cascade=True, seen=seen)
                self.forks += (str(fork.path), *receipt.forks)
        finally:
            copy.close()

    def _cut(self, fork: Fork) -> int:
        """Return how many messages a fork began with."""
        if not 0 < fork.seq <= self.opened.journal.seq:
            return self.opened.journal.n_messages if fork.seq else 0
        row = self.opened.storage.read_commits(fork.seq, fork.seq + 1)[0]
        return int(row["first_message"]) + int(row["n_messages"])

    def _build(self, source: Storage, target: Storage) -> None:
        """Fill the next generation."""
        meta = self.opened.meta
        position = copy_commits(
            source, target, root=meta.root, token_bytes=meta.token_bytes, redaction=self.redaction
        )
        noted = _with_receipt(
            position.settings,
            {
                "seq": position.seq + 1,
                "ts_us": self.opened.clock(),
                "uuid": meta.uuid,  # forks inherit receipts, but not what was kept in rescue/
                "generation": meta.generation + 1,
                "spans": [[span.start, span.end] for span in self.redaction.spans[:_SPANS_KEPT]],
                "n_spans": len(self.redaction.spans),
                "messages": len(self.redaction.messages),
                "tokens": sum(span.n_tokens for span in self.redaction.spans),
                "gists_dropped": self._n_dropped(),
            },
        )
        ts_us = self.opened.clock()
        after = append_settings(target, position, noted, token_bytes=meta.token_bytes, ts_us=ts_us)
        self.remake.fill(source, target)
        self.seq = after.seq
        if self.opened.path is not None:
            self.n_files = _n_files(self.opened.path, meta.generation)

    # --- the proof ---------------------------------------------------------------------------

    def _settle(self, directory: Path, needles: Needles) -> None:
        """Delete what else may hold it, then read every byte. The forget is in force already."""
        try:
            remove_tree(self.opened.disk, directory / "rescue")
        except OSError as error:
            _log.warning("%s/rescue could not be deleted (%s)", directory, type(error).__name__)
        # An index holds single words, in which no needle can be found: it must not be there at all.
        self.n_left = _n_files(directory, self.opened.meta.generation)
        try:
            self.found, self.n_bytes = scan_files(files_below(directory), needles.all)
        except OSError as error:
            _log.warning("%s could not be read whole (%s)", directory, type(error).__name__)
            self.found = np.ones(len(needles.all), np.bool_)

    def _proven(self, new: OpenedMemory, plan: Receipt, needles: Needles) -> Receipt:
        """Return the receipt: needles that were found must stand in rows that were kept."""
        journal, token_bytes = new.journal, new.meta.token_bytes
        survivors = Survivors(
            journal, new.storage, token_bytes, partial(self.remake.anew, new.storage)
        )
        n_hits = 0
        if self.found is None:
            survivors.explain(needles)
            n_hits = survivors.n_stale
        elif self.found.any():
            n_hits = int((~survivors.explain(needles.only(self.found))).sum())
        echoes = heads_of(journal, np.array(sorted(survivors.echoes), np.int64))
        return attrs.evolve(
            plan,
            seq=self.seq,
            gists_rebuilt=self.remake.n_made,
            files_removed=self.n_files,
            bytes_scanned=self.n_bytes,
            needles=len(needles.all),
            unscannable=needles.unscannable,
            hits=n_hits,
            echoes=tuple(echoes.tolist()),
            forks=self.forks,
            verified=n_hits + self.n_left == 0 and _reads_as_forgotten(journal, self.redaction),
        )


_LODS = range(1, MAX_LOD + 1)


def _with_receipt(settings: Mapping[str, object], receipt: dict[str, object]) -> dict[str, object]:
    """Return settings with one receipt more; only the newest are kept."""
    stored = settings.get(_RECEIPTS, [])
    earlier = list(stored) if isinstance(stored, list | tuple) else []
    return {**settings, _RECEIPTS: [*earlier, receipt][-_RECEIPTS_KEPT:]}


def _n_files(directory: Path, generation: int) -> int:
    """Return how many files there are that a forget of this generation deletes."""
    folders = (directory / "cache", directory / "rescue", data_folder(directory, generation))
    return sum(1 for folder in folders for _file in files_below(folder))


def _reads_as_forgotten(journal: JournalReader, redaction: Redaction) -> bool:
    """Tell whether the memory gives nothing of it any more."""
    for span in redaction.spans:
        for at in range(span.start, span.end, _PAGE_TOKENS):
            if (journal.token_ids(Span(at, min(at + _PAGE_TOKENS, span.end))) >= 0).any():
                return False
    for first in range(0, len(redaction.messages), _PAGE_MESSAGES):
        if any(journal.bodies(redaction.messages[first : first + _PAGE_MESSAGES])):
            return False
    return True
