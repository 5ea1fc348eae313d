"""`MemorySession`: the only door for applications. Composes rooms, holds no algorithm.

A session may be shared between threads: calls take turns. It is a context manager; `close` is
idempotent. Everything returned is frozen and has `to_dict()`.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self

from megacontext_sdk.arguments import (
    check_bounds,
    check_count,
    check_flags,
    check_messages,
    check_sampling,
)
from megacontext_sdk.assembly import assemble
from megacontext_sdk.errors import (
    ConfigError,
    ReadOnlyError,
    SessionClosedError,
    StorageError,
    shown,
)
from megacontext_sdk.focus_handle import FocusHandle
from megacontext_sdk.generation import Generation
from megacontext_sdk.keeping import Keeping
from megacontext_sdk.memory.forgotten import remaining
from megacontext_sdk.memory.lod import Span
from megacontext_sdk.messages import load_messages, parse_content
from megacontext_sdk.moving import Moving
from megacontext_sdk.parts import forgotten
from megacontext_sdk.records import GenerateRequest
from megacontext_sdk.results import (
    Appended,
    Completed,
    Hit,
)
from megacontext_sdk.runtime.audit import audit_window
from megacontext_sdk.runtime.reply import check_stop
from megacontext_sdk.statistics import collect_stats

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path
    from types import TracebackType

    from megacontext_sdk.config import Config
    from megacontext_sdk.messages import Message
    from megacontext_sdk.messages.content import Content
    from megacontext_sdk.parts import Parts
    from megacontext_sdk.plugins import Plugins
    from megacontext_sdk.results import (
        Audit,
        FocusChanged,
        Reply,
        Stats,
        TextDelta,
    )
    from megacontext_sdk.runtime.scribe import Written

__all__ = ["MemorySession"]

_MAX_HITS = 1000


class MemorySession(Keeping, Moving):
    """One memory, open: append to it, generate from it, look at its focus.

    Open one with `MemorySession.open`.

    Example:
        >>> from megacontext_sdk import MemorySession
        >>> with MemorySession.open(None, model="echo", storage="memory") as session:
        ...     receipt = session.append("My cat is called Turing.")
        ...     session.search("What is my cat called?")[0].text
        'My cat is called Turing.'
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._lock = threading.RLock()
        self._closed: str | None = None
        self._pid = os.getpid()
        self._stream_open: Generator[TextDelta | FocusChanged | Completed] | None = None
        self.focus = FocusHandle(parts, self._reading, self._writing)
        parts.plugins.session_opened(self)

    @classmethod
    def open(
        cls,
        path: str | Path | None,
        *,
        model: object = None,
        storage: str | None = None,
        focus: object = None,
        gist: object = None,
        config: Config | str | Path | None = None,
        read_only: bool = False,
        create: bool = True,
        at: str | int | None = None,
        plugins: Plugins | None = None,
        **settings: object,
    ) -> Self:
        """Open a memory, creating it if it does not exist.

        Args:
            path: the memory's directory; None only with `storage="memory"`.
            model: "reference", "echo", "hf:<name or folder>", or an opened `ModelAdapter`
                (which the caller closes). None means "reference".
            storage: "duckdb" (default) or another installed backend.
            focus: focus policy by name or as an object.
            gist: gist encoder by name or as an object.
            config: a `Config`, or a TOML file.
            read_only: refuse every write; nothing on disk changes.
            create: False raises if there is no memory yet.
            at: show the memory as it was at a snapshot (by name) or a commit (by number); with
                `read_only=True`.
            plugins: the plugins to use instead of the installed ones.
            **settings: any setting of the configuration, such as `w_max=896`.

        Raises:
            ConfigError: an unknown setting or a value out of range.
            UnknownProviderError: no such model, storage, focus or gist provider.
            ModelMismatchError: the memory was made with another model or tokenizer.
            SessionNotFoundError: no memory, and `create=False` or `read_only=True`.
            SessionLockedError: another writer has it open.
            StorageError: damage, permissions, formats.
        """
        parts = assemble(
            path,
            model=model,
            storage=storage,
            focus=focus,
            gist=gist,
            config=config,
            read_only=read_only,
            create=create,
            at=at,
            plugins=plugins,
            settings=settings,
        )
        return cls(parts)

    # -- writing --------------------------------------------------------------------------------

    def append(
        self,
        content: Content,
        *,
        role: str = "user",
        source: str | None = None,
        trust: str | int | None = None,
        metadata: Mapping[str, object] | None = None,
        timestamp: datetime | None = None,
        idempotency_key: str | None = None,
    ) -> Appended:
        """Take content into the memory; durable when this returns. The model does not run.

        Args:
            content: text, a chat message `{"role", "content"}`, a list of them, or token ids.
            role: role of plain text: "user", "assistant", "system" or "tool".
            source: where it came from, in your words.
            trust: 0 (unknown) to 4 (system), by number or name; by default the role's.
            metadata: your own JSON-like map, at most 64 KiB.
            timestamp: when it was said (with a time zone); by default now.
            idempotency_key: makes a retry after a lost answer safe.

        Raises:
            ConfigError: content, role, metadata or timestamp that cannot be used.
            StorageError: it could not be written; nothing of it was kept.
        """
        with self._writing():
            drafts = parse_content(
                content,
                role=role,
                source=source,
                trust=trust,
                metadata=metadata,
                timestamp=timestamp,
                vocab_size=self._parts.state.adapter.info.vocab_size,
            )
            if not drafts:
                return self._nothing_appended()
            written = self._parts.scribe.write(drafts, idempotency_key=idempotency_key)
            if written.duplicate is None:
                self._parts.loop.ingest()
            return self._receipt(written)

    def _nothing_appended(self) -> Appended:
        """An empty list of ids or messages is no commit."""
        cursor = self._parts.tree.n_tokens
        return Appended(
            span=Span(cursor, cursor),
            message_ids=(),
            seq=self._parts.journal.seq,
            durability=self._parts.durability,
        )

    def _receipt(self, written: Written) -> Appended:
        known = written.duplicate
        if known is None and written.ticket is not None:
            known = written.ticket.wait()
        return Appended(
            span=written.span,
            message_ids=tuple(
                range(written.first_message, written.first_message + written.n_messages)
            ),
            seq=known.seq if known is not None else self._parts.journal.seq,
            durability=self._parts.durability,
            duplicate=written.duplicate is not None,
        )

    # -- generating -----------------------------------------------------------------------------

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, object]] | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        remember: bool = True,
    ) -> Reply:
        """Answer a prompt from the whole memory; the reply is durable when this returns.

        Args:
            prompt: the user's message; None continues after what is there.
            messages: chat messages to append instead of a prompt; the last one is answered.
            max_new_tokens: bound on generated tokens, the end token included.
            temperature, top_p, top_k, seed: as in transformers; temperature 0 is greedy.
            stop: texts that end the reply and are left out of it.
            remember: False leaves no trace of prompt and reply.

        Raises:
            ConfigError: an argument out of range, or both `prompt` and `messages`.
            BudgetError: with `remember=False`, prompt and reply do not fit the window.
        """
        completed: Reply | None = None
        for item in self.stream(
            prompt,
            messages=messages,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=stop,
            remember=remember,
        ):
            if isinstance(item, Completed):
                completed = item.reply
        if completed is None:
            raise SessionClosedError(
                "the reply was cancelled before it was complete",
                path=self._where(),
                reason="closed",
            )
        return completed

    def stream(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, object]] | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        remember: bool = True,
    ) -> Generator[TextDelta | FocusChanged | Completed]:
        """Answer a prompt piece by piece; arguments and errors as `generate`.

        Yields `FocusChanged` when the layout changed, `TextDelta` as text becomes final, and
        `Completed` last. Closing the iterator early keeps what was generated.
        """
        check_flags(remember=remember)
        request = GenerateRequest(
            where=self._where(),
            max_new_tokens=check_count("max_new_tokens", max_new_tokens),
            sampling=check_sampling(temperature, top_p, top_k, seed),
            remember=remember,
        )
        stops = check_stop(stop)
        content = check_messages(prompt, messages)
        with self._writing():
            self._stream_open = self._stream(Generation(self._parts, content, request, stops))
            return self._stream_open

    def _stream(self, run: Generation) -> Generator[TextDelta | FocusChanged | Completed]:
        with self._reading(), self._parts.plugins.around_generate(run.request):
            try:
                yield from run.items(self.focus.report)
            finally:
                self._stream_open = None

    # -- reading --------------------------------------------------------------------------------

    def search(self, query: str, k: int = 8) -> list[Hit]:
        """Return the `k` messages (or pieces of long ones) that match best by rare words.

        Raises:
            ConfigError: no text, or k outside 1 to 1,000.
        """
        if not isinstance(query, str):
            message = f"query must be text, got {type(query).__name__}"
            raise ConfigError(message, field="query", value=type(query).__name__)
        check_count("k", k, most=_MAX_HITS)
        with self._reading():
            self._parts.scribe.repair_index()
            hits = self._parts.lexical.search(query, k)
            spans = [Span(int(a), int(b)) for a, b in zip(hits.start, hits.end, strict=True)]
            return [
                Hit(
                    text=self._text(span),
                    span=span,
                    score=float(score),
                    message_id=self._parts.journal.message_at(span.start),
                )
                for span, score in zip(spans, hits.score, strict=True)
            ]

    def read(self, span: Span | tuple[int, int]) -> str:
        """Return the exact text of a span of tokens, chat markers and forgotten tokens left out.

        Raises:
            ConfigError: a span that is reversed or outside the history.
            DetailUnavailableError: all of it was forgotten.
        """
        with self._reading():
            checked = self._parts.check_span(span)
            if self._parts.tree.is_forgotten(checked):
                raise forgotten(checked)
            return self._text(checked)

    def __getitem__(self, key: slice) -> str:
        """Return the text of tokens `start:stop`, without what was forgotten."""
        if not isinstance(key, slice) or key.step not in {None, 1}:
            message = "index a session with a slice of token indices, session[start:stop]"
            raise ConfigError(message, field="span", value=shown(key))
        bounds = check_bounds(key.start, key.stop, "span")
        with self._reading():
            start, stop, _ = bounds.indices(self._parts.tree.n_tokens)
            return self._text(Span(start, max(start, stop)))

    def messages(self, start: int | None = None, stop: int | None = None) -> list[Message]:
        """Return messages by number, `start` to `stop`; negative numbers count from the end.

        Raises:
            ConfigError: bounds that are no whole numbers.
        """
        bounds = check_bounds(start, stop, "messages")
        with self._reading():
            first, last, _ = bounds.indices(self._parts.journal.n_messages)
            return load_messages(self._parts.journal, first, max(first, last), self._text)

    def stats(self) -> Stats:
        """Return counts and sizes."""
        with self._reading():
            return collect_stats(self._parts)

    def audit(self, n_rows: int = 32) -> Audit:
        """Measure how far the served window is from an exact recomputation of its layout.

        Args:
            n_rows: newest rows whose next-token distributions are compared.
        """
        with self._reading():
            return audit_window(self._parts.state, check_count("n_rows", n_rows))

    def _text(self, span: Span) -> str:
        ids = remaining(self._parts.tree.token_ids(span))
        return self._parts.state.tokenizer.decode(ids, special=False)

    # -- life -----------------------------------------------------------------------------------

    @property
    def path(self) -> Path | None:
        """The memory's directory; this is what to send to another process."""
        return self._parts.path

    def flush(self) -> None:
        """Make caches durable too: gists, access counts, the layout.

        Waits for gists that are made in the background; those the encoder fails to make stay
        missing, as `stats` says, and are tried again later. Other threads may use the session
        meanwhile.

        Raises:
            StorageError: something could not be written.
        """
        wait = self._begin_flush()
        wait()
        self._end_flush()

    def _begin_flush(self) -> Callable[[], None]:
        """Return what waits for gists; it needs no lock."""
        with self._writing():
            return self._parts.tree.wait_for_gists

    def _end_flush(self) -> None:
        with self._writing():
            self._parts.save()

    def close(self) -> None:
        """Save the layout, close everything; idempotent."""
        self._close(None)

    def _close(self, error: BaseException | None) -> None:
        if os.getpid() != self._pid:
            return  # a forked child has nothing to save: all of it is its parent's
        with self._lock:
            if self._closed is not None:
                return
            self._end_stream()
            self._closed = "closed"
            self._parts.plugins.session_closed(self, error)
            self._parts.close(error)

    def _fail(self, error: BaseException) -> None:
        """Give up this handle after its rooms could not be put together again; save nothing."""
        self._closed = "failed"
        self._parts.plugins.session_closed(self, error)
        with suppress(StorageError):  # the first error is the one that tells
            self._parts.abandon(error)

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self._close(error)

    def __repr__(self) -> str:
        """Say where, never what."""
        return f"<MemorySession {self._where()}{' (closed)' if self._closed else ''}>"

    def __reduce__(self) -> tuple[object, ...]:
        """Refuse pickling: a session owns a lock and a window."""
        message = "a MemorySession cannot be pickled; send session.path and open it there"
        raise TypeError(message)

    def _where(self) -> str:
        return f"{self._parts.storage_name}:{self._parts.path or 'in this process'}"

    @contextmanager
    def _reading(self) -> Iterator[None]:
        if os.getpid() != self._pid:  # before the lock: a fork may have copied it locked
            message = f"{self._where()} was opened before a fork; open it again in this process"
            raise SessionClosedError(message, path=self._where(), reason="forked")
        with self._lock:
            if self._closed is not None:
                message = f"the session on {self._where()} is closed; open it again"
                raise SessionClosedError(message, path=self._where(), reason=self._closed)
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._reading():
            if self._parts.read_only:
                message = f"{self._where()} was opened with read_only=True; open it for writing"
                raise ReadOnlyError(message, path=self._where(), why="read_only=True")
            self._end_stream()
            yield

    def _end_stream(self) -> None:
        """End a reply whose consumer went on to something else: what it was shown is kept."""
        stream, self._stream_open = self._stream_open, None
        if stream is not None:
            stream.close()
