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

    from megacontext_sdk.messages.content import Content
    from megacontext_sdk.results import (
        Appended,
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
        worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="megacontext")
        try:
            session = await _run(worker, MemorySession.open, path, **arguments)
        except BaseException:
            worker.shutdown(wait=False)
            raise
        return cls(session, worker)

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

    async def stats(self) -> Stats:
        """Return counts and sizes; see `MemorySession.stats`."""
        return await _run(self._worker, self._session.stats)

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


async def _run(
    worker: ThreadPoolExecutor, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
) -> _T:
    return await asyncio.get_running_loop().run_in_executor(worker, partial(call, *args, **kwargs))
