"""`AsyncMemorySession`: the same session, awaitable. One worker thread per session does the work.

The event loop never waits for the model or the disk. Calls run one after another in the order they
were made; streaming hands over items as they come. Nothing is computed here.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from megacontext_sdk.session import MemorySession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path
    from types import TracebackType

    from megacontext_sdk.memory.lod import Span
    from megacontext_sdk.messages import Message
    from megacontext_sdk.messages.content import Content
    from megacontext_sdk.receipts import (
        Exported,
        Rebuilt,
        Receipt,
        Recovery,
        ScrubReport,
        Snapshot,
    )
    from megacontext_sdk.results import (
        Appended,
        Audit,
        Completed,
        FocusChanged,
        FocusReport,
        Hit,
        Reply,
        Stats,
        TextDelta,
    )

__all__ = ["AsyncMemorySession"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


class AsyncMemorySession:
    """A memory for asyncio programs; arguments and errors are those of `MemorySession`.

    Example:
        >>> import asyncio
        >>> from megacontext_sdk import AsyncMemorySession
        >>> async def main():
        ...     async with await AsyncMemorySession.open(
        ...         None, model="echo", storage="memory"
        ...     ) as session:
        ...         receipt = await session.append("My cat is called Turing.")
        ...         return receipt.span.n_tokens
        >>> asyncio.run(main())
        27
    """

    def __init__(self, session: MemorySession, worker: ThreadPoolExecutor) -> None:
        self._session = session
        self._worker = worker

    @classmethod
    async def open(cls, path: str | Path | None, **arguments: Any) -> AsyncMemorySession:  # noqa: ANN401 - MemorySession.open types them
        """Open a memory; see `MemorySession.open`."""
        return await _opened(MemorySession.open, path, **arguments)

    @classmethod
    async def load(cls, source: str | Path, **arguments: Any) -> AsyncMemorySession:  # noqa: ANN401 - see open
        """Make a new memory of something exported, and open it; see `MemorySession.load`."""
        return await _opened(MemorySession.load, source, **arguments)

    @classmethod
    async def recover(cls, path: str | Path, **arguments: Any) -> Recovery:  # noqa: ANN401 - see open
        """Cut a damaged memory back to what survives; see `MemorySession.recover`."""
        return await asyncio.to_thread(partial(MemorySession.recover, path, **arguments))

    @classmethod
    async def scrub(cls, path: str | Path, **arguments: Any) -> ScrubReport:  # noqa: ANN401 - see open
        """Read and check a memory without a model; see `MemorySession.scrub`."""
        return await asyncio.to_thread(partial(MemorySession.scrub, path, **arguments))

    @property
    def path(self) -> Path | None:
        """The memory's directory."""
        return self._session.path

    async def append(self, content: Content, **arguments: Any) -> Appended:  # noqa: ANN401 - see open
        """Take content into the memory; see `MemorySession.append`."""
        return await _run(self._worker, self._session.append, content, **arguments)

    async def generate(self, prompt: str | None = None, **arguments: Any) -> Reply:  # noqa: ANN401 - see open
        """Answer a prompt; see `MemorySession.generate`."""
        return await _run(self._worker, self._session.generate, prompt, **arguments)

    async def stream(
        self,
        prompt: str | None = None,
        **arguments: Any,  # noqa: ANN401 - see open
    ) -> AsyncIterator[TextDelta | FocusChanged | Completed]:
        """Answer a prompt piece by piece; see `MemorySession.stream`.

        Leaving the loop early keeps what was generated (close the iterator with `aclose`, or let
        `contextlib.aclosing` do it).
        """
        items = await _run(self._worker, self._session.stream, prompt, **arguments)
        try:
            while (item := await _run(self._worker, next, items, None)) is not None:
                yield item
        finally:
            await asyncio.shield(_run(self._worker, items.close))

    async def search(self, query: str, k: int = 8) -> list[Hit]:
        """Return the best messages; see `MemorySession.search`."""
        return await _run(self._worker, self._session.search, query, k)

    async def focus_report(self, query: str | None = None) -> FocusReport:
        """Return what the model sees; see `session.focus.report`."""
        return await _run(self._worker, self._session.focus.report, query)

    async def read(self, span: Span | tuple[int, int]) -> str:
        """Return the exact text of a span; see `MemorySession.read`."""
        return await _run(self._worker, self._session.read, span)

    async def messages(self, start: int | None = None, stop: int | None = None) -> list[Message]:
        """Return messages by number; see `MemorySession.messages`."""
        return await _run(self._worker, self._session.messages, start, stop)

    async def stats(self) -> Stats:
        """Return counts and sizes; see `MemorySession.stats`."""
        return await _run(self._worker, self._session.stats)

    async def audit(self, n_rows: int = 32) -> Audit:
        """Measure how exact the served window is; see `MemorySession.audit`."""
        return await _run(self._worker, self._session.audit, n_rows)

    async def snapshot(self, name: str) -> Snapshot:
        """Give the present end a name; see `MemorySession.snapshot`."""
        return await _run(self._worker, self._session.snapshot, name)

    async def snapshots(self) -> tuple[Snapshot, ...]:
        """Return the snapshots; see `MemorySession.snapshots`."""
        return await _run(self._worker, self._session.snapshots)

    async def restore(self, name: str) -> Snapshot:
        """Cut the history back to a snapshot; see `MemorySession.restore`."""
        return await _run(self._worker, self._session.restore, name)

    async def fork(
        self, path: str | Path | None, *, at: str | int | None = None
    ) -> AsyncMemorySession:
        """Make an independent copy and open it; see `MemorySession.fork`."""
        forked = await _run(self._worker, self._session.fork, path, at=at)
        return AsyncMemorySession(forked, _worker())

    async def forget(self, **scope: Any) -> Receipt:  # noqa: ANN401 - see open
        """Remove content for good; see `MemorySession.forget`."""
        return await _run(self._worker, self._session.forget, **scope)

    async def export(self, path: str | Path, **arguments: Any) -> Exported:  # noqa: ANN401 - see open
        """Write the memory into one file; see `MemorySession.export`."""
        return await _run(self._worker, self._session.export, path, **arguments)

    async def rebuild(self, **arguments: Any) -> Rebuilt:  # noqa: ANN401 - see open
        """Make the gists an encoder lacks; see `MemorySession.rebuild`."""
        return await _run(self._worker, self._session.rebuild, **arguments)

    async def verify(self, **arguments: Any) -> ScrubReport:  # noqa: ANN401 - see open
        """Read everything and check it; see `MemorySession.verify`."""
        return await _run(self._worker, self._session.verify, **arguments)

    async def flush(self) -> None:
        """Make caches durable too; see `MemorySession.flush`. Other calls go on meanwhile."""
        session = self._session
        wait = await _run(self._worker, session._begin_flush)  # noqa: SLF001 - one call in parts
        await asyncio.to_thread(wait)  # for gists, which may take longer than anything
        await _run(self._worker, session._end_flush)  # noqa: SLF001

    async def close(self) -> None:
        """Close the session and its worker; idempotent."""
        try:
            await _run(self._worker, self._session.close)
        except RuntimeError:  # the worker is shut down: closed before
            return
        self._worker.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        """Use as an asynchronous context manager."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()

    def __repr__(self) -> str:
        """Say where, never what."""
        return f"<Async{repr(self._session)[1:]}"


def _worker() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="megacontext")


async def _opened(
    call: Callable[..., MemorySession],
    place: object,
    **arguments: Any,  # noqa: ANN401 - see open
) -> AsyncMemorySession:
    """Return a session that was opened by its own worker."""
    worker = _worker()
    try:
        session = await _run(worker, call, place, **arguments)
    except BaseException:
        worker.shutdown(wait=False)
        raise
    return AsyncMemorySession(session, worker)


async def _run(
    worker: ThreadPoolExecutor, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
) -> _T:
    return await asyncio.get_running_loop().run_in_executor(worker, partial(call, *args, **kwargs))
