"""The rooms of one session as a value: what a session reads and writes through.

Whoever holds it sees the new rooms when the memory is replaced under the session. How the rooms are
made is `assembly`'s.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import attrs
import msgspec

from megacontext_sdk.errors import ConfigError, DetailUnavailableError, MegaContextError, shown
from megacontext_sdk.events import SessionClosedEvent
from megacontext_sdk.memory.lod import BLOCK_SIZE, Span
from megacontext_sdk.runtime import trace

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from megacontext_sdk.assembly import Wiring
    from megacontext_sdk.contracts.runtime import RuntimeLoop
    from megacontext_sdk.focus.applied import AppliedPlan
    from megacontext_sdk.memory.directory.vault import OpenedMemory
    from megacontext_sdk.memory.journal import Journal
    from megacontext_sdk.memory.lexical import LexicalIndex
    from megacontext_sdk.memory.tree import MegaContextTree
    from megacontext_sdk.plugins import Plugins
    from megacontext_sdk.runtime.scribe import Scribe
    from megacontext_sdk.runtime.state import SessionState

    Layout = Mapping[str, object]

__all__ = ["Parts", "forgotten", "saved_layout"]

_LAYOUT_FILE = "layout.msgpack"


@attrs.define(eq=False, kw_only=True)
class Parts:
    """What a session is made of. Whoever holds it sees the new rooms after a renewal.

    Attributes:
        wiring: how they were put together.
        memory: the opened directory and its journal.
        state: tree, working context, model, pager.
        loop: the runtime loop.
        scribe: the one way into the memory.
        lexical: the lexical index.
        gist_name: the encoder, for people.
        gists_reused, gists_rebuilt: gists that were there when the memory was opened, and those
            that were missing and were made.
    """

    wiring: Wiring
    memory: OpenedMemory
    state: SessionState
    loop: RuntimeLoop
    scribe: Scribe
    lexical: LexicalIndex
    gist_name: str
    gists_reused: int
    gists_rebuilt: int

    @property
    def plugins(self) -> Plugins:
        """Hooks and catalogue."""
        return self.wiring.providers.plugins

    @property
    def read_only(self) -> bool:
        """No writes."""
        return self.wiring.read_only

    @property
    def storage_name(self) -> str:
        """The backend, for people."""
        return self.wiring.providers.storage

    @property
    def durability(self) -> str:
        """What an append waits for."""
        return self.state.config.storage.durability if self.path is not None else "none"

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
            message = (
                f"span {shown(span)} must be (start, end) with 0 <= start <= end <= {n_tokens}"
            )
            raise ConfigError(message, field="span", value=shown(span))
        return Span(*ends)

    def check_detail(self, span: object) -> Span:
        """Return a span inside the history of which a block holds something still.

        Raises:
            ConfigError: as `check_span`.
            DetailUnavailableError: all its blocks were forgotten.
        """
        checked = self.check_span(span)
        end = min(-(-checked.end // BLOCK_SIZE) * BLOCK_SIZE, self.tree.n_tokens)
        blocks = Span(checked.start // BLOCK_SIZE * BLOCK_SIZE, end)
        if checked.n_tokens and self.tree.is_forgotten(blocks):
            raise forgotten(checked)
        return checked

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
            temporary.unlink(missing_ok=True)  # a link planted here is not written through
            temporary.write_bytes(msgspec.msgpack.encode(self.state.wc.save()))
            temporary.chmod(0o600)
            temporary.replace(path)

    def renew(self, memory: OpenedMemory, *, keep_layout: bool) -> None:
        """Put the rooms together again over another generation, or for another encoder.

        Everything hot is dropped: decoded gists, keys and values, the policy's caches, the lexical
        index, which is `catch_up`'s to fill again. On an error the parts hold `memory`, so that
        closing them closes it.

        Args:
            memory: the new generation; the one before it is closed.
            keep_layout: go on with the present entries; indices did not move.
        """
        self.tree.stop()
        layout = self.state.wc.save() if keep_layout and self.state.wc.n_tokens else None
        step = self.state.step
        self.lexical.close()
        self.state.close()
        self.memory = memory
        new = self.wiring.parts(memory)
        new.state.step = step
        try:
            new.settle(layout)
        except BaseException:
            new.lexical.close()
            raise
        for field in attrs.fields(Parts):
            setattr(self, field.name, getattr(new, field.name))
        self.tree.wake()

    def settle(self, layout: Layout | None) -> None:
        """Lay out the history, take up the pins, open the lexical index.

        Args:
            layout: entries to go on with; None lays the history out anew.
        """
        self.lexical.open()
        self.state.hold_system_prompt()
        wc, n_tokens = self.state.wc, self.tree.n_tokens
        if layout is None or not _restore_layout(self, layout):
            _report(self, wc.lay_out(n_tokens))
        _report(self, wc.extend(n_tokens))
        _restore_pins(self)

    def catch_up(self) -> None:
        """Index what the lexical index lacks; interrupted, the next search goes on."""
        self.scribe.catch_up()

    def close(self, error: BaseException | None = None) -> None:
        """Save what is worth saving and close everything."""
        with ExitStack() as stack:
            stack.callback(self.abandon, error)
            stack.callback(self.tree.close)
            self.tree.stop()
            if not self.read_only:
                self.save()

    def abandon(self, error: BaseException | None) -> None:
        """Close everything and save nothing but what was accepted."""
        with ExitStack() as stack:
            stack.callback(self.wiring.lease.release)
            stack.callback(self.state.close)
            stack.callback(self.memory.close)
            stack.callback(self.lexical.close)
            stack.callback(self.tree.stop)
            stack.callback(self.state.telemetry.close)
            self.state.telemetry.emit(
                SessionClosedEvent(
                    step=self.state.step,
                    epoch=self.state.wc.epoch,
                    n_tokens=self.state.wc.n_tokens,
                    error=None if error is None else type(error).__name__,
                )
            )


def forgotten(span: Span) -> DetailUnavailableError:
    """Return the error for a span of which nothing is left."""
    return DetailUnavailableError(
        f"tokens {span.start} to {span.end} were forgotten; nothing of them is left to show",
        span=span,
        why="forgotten",
    )


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


def saved_layout(parts: Parts) -> Layout | None:
    """Return the layout of the last close, None if there is none that can be read."""
    if parts.path is None or parts.wiring.at is not None:
        return None
    # Not `cache_dir`: whoever reads only resumes the same layout, too.
    path = parts.path / "cache" / _LAYOUT_FILE
    if not path.exists():
        return None
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=dict[str, object])
    except (OSError, msgspec.MsgspecError):
        return None  # a cache: the initial layout is as good a start


def _restore_layout(parts: Parts, saved: Layout) -> bool:
    """Take up a layout; False if it does not fit."""
    try:
        applied = parts.state.wc.restore(saved)
    except MegaContextError:
        return False
    if parts.state.wc.n_tokens > parts.tree.n_tokens:
        return False
    _report(parts, applied)
    return True
