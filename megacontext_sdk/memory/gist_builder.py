"""The one thread that makes the gists of a session behind its back.

What is to be made is never queued: it is the suffix behind the stored counts, so a crash loses
nothing of it. The thread holds one chunk at a time, touches the journal only in turns that others
can hold off, and runs the encoder outside of them; so an encoder that is slow, hangs or fails keeps
nobody waiting. It knows no session, no cache and no telemetry.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from threading import Condition, Thread
from typing import TYPE_CHECKING

import attrs

from megacontext_sdk.errors import MegaContextError, ModelError
from megacontext_sdk.memory.directory.locks import watch_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from megacontext_sdk.contracts.arrays import Floats, Indices
    from megacontext_sdk.memory.gist_levels import GistLevels
    from megacontext_sdk.memory.journal import Journal

__all__ = ["GistBuilder", "Made"]

_CHUNK_BLOCKS = 128  # 4,096 tokens: enough for a matrix product, soon done, aligned with any parent
_FEW_BLOCKS = 16
_QUEUED = 2  # batches of gists on their way to the disk; more would only wait there
_ROOM_SECONDS = 0.01  # between two looks at whether they have left
_LEAVE_SECONDS = 5.0
"""How long a close or a pause waits for a call of the encoder: several chunks of a sane one."""

_log = logging.getLogger(__name__)

Made = tuple[int, "Indices", "Floats"]
"""Level, nodes int64[n] and their rows float32[n, S, d]."""


class _ClosedError(Exception):
    """The builder was closed; its thread ends here."""


@attrs.define(eq=False)
class _Request:
    """Gists somebody waits for."""

    wanted: Sequence[tuple[int, Indices]]
    made: list[Made] = attrs.field(factory=list)
    is_done: bool = False


class GistBuilder:
    """Builds what is missing, in the background. Any thread may call its methods.

    The thread starts when there is something to do and ends with `close`.

    Args:
        journal: the memory.
        levels: its gists.
        stores: False makes only what is asked for, and stores nothing.

    Attributes:
        error: why the builder stopped before everything was made; None while all is well. It tries
            again whenever it is woken.
    """

    def __init__(self, journal: Journal, levels: GistLevels, *, stores: bool = True) -> None:
        self.error: MegaContextError | None = None
        self._journal = journal
        self._levels = levels.taking_turns(self._turn)
        self._stores = stores
        self._changed = Condition()
        self._thread: Thread | None = None
        self._requests: list[_Request] = []
        self._is_woken = False  # there may be something to do
        self._is_busy = False  # the thread is at it
        self._is_inside = False  # and touches the journal
        self._is_parked = False  # or waits for a pause to end
        self._has_nudged = False  # the writer has tried again since the thread was woken
        self._is_late = False  # and somebody has waited in vain for the present call
        self._n_pauses = 0
        self._is_closed = False

    # --- called by others --------------------------------------------------------------------

    def wake(self) -> None:
        """Let the thread look for something to do; returns at once."""
        with self._changed:
            if self._stores and not self._is_closed:
                self._is_woken, self._has_nudged = True, False
                self._start()

    def make(self, wanted: Sequence[tuple[int, Indices]], seconds: float) -> Sequence[Made]:
        """Return gists that are needed now; of those not made within `seconds`, none.

        After having waited in vain, nobody waits again before the encoder has returned.

        Args:
            wanted: level and ascending nodes.
            seconds: how long to wait.
        """
        request = _Request(wanted)
        with self._changed:
            if self._is_closed or self._is_late:
                return ()
            self._requests.append(request)
            self._start()
            self._changed.wait_for(lambda: request.is_done or self._is_closed, seconds)
            if not request.is_done:
                self._is_late = True
                if request in self._requests:
                    self._requests.remove(request)
                return ()
        return request.made

    def wait(self) -> None:
        """Return when everything is made, or the builder has given up on it for now."""
        self.wake()
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or not self._has_work())

    @property
    def is_idle(self) -> bool:
        """Tell whether the thread has nothing to do, or has given up for now."""
        with self._changed:
            return not self._has_work()

    @contextmanager
    def paused(self, *, idle: bool = False) -> Iterator[None]:
        """Keep the builder away from the journal; what it has in hand is stored afterwards.

        Args:
            idle: wait for the present call of the encoder too, because others are about to call
                it; not for ever: one that hangs is left alone.
        """
        with self._changed:
            self._n_pauses += 1
            self._changed.wait_for(lambda: not self._is_inside)
            if idle:
                self._changed.wait_for(lambda: not self._is_busy or self._is_parked, _LEAVE_SECONDS)
        try:
            yield
        finally:
            with self._changed:
                self._n_pauses -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """End the thread; what it has not made yet stays missing. Idempotent.

        A call of the encoder that does not return is left behind: its thread touches nothing any
        more and ends with it.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._is_inside)
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(_LEAVE_SECONDS)
            if thread.is_alive():
                _log.warning("a call of the gist encoder does not return; it was left behind")

    def after_fork_in_child(self) -> object:
        """Be of no use in a forked child: threads are not copied."""
        self._is_closed = True
        return self

    def at_exit(self) -> None:
        """Let go of the thread: an encoder must not run while the interpreter is taken apart."""
        self.close()

    def _has_work(self) -> bool:
        return self._is_woken or self._is_busy or bool(self._requests)

    def _start(self) -> None:
        if self._thread is None:
            watch_process(self)
            self._thread = Thread(target=self._run, name="megacontext-gists", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    # --- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                self._step()
        except _ClosedError:
            pass
        except BaseException as error:  # whatever it was, nobody may wait for ever
            self.error = _failed(error)
            raise
        finally:
            with self._changed:
                self._is_closed, self._is_busy, self._is_woken = True, False, False
                self._requests.clear()
                self._changed.notify_all()

    def _step(self) -> None:
        """Do the most urgent thing; waits until there is something."""
        with self._changed:
            self._changed.wait_for(self._may_go)
            if self._is_closed:
                raise _ClosedError
            request = self._requests.pop(0) if self._requests else None
            if request is None:
                self._is_woken = False
            self._is_busy = True
        try:
            self._try(lambda: self._advance() if request is None else self._serve(request))
        finally:
            with self._changed:
                self._is_busy = self._is_late = False
                self._changed.notify_all()

    def _may_go(self) -> bool:
        return self._is_closed or (self._n_pauses == 0 and (self._is_woken or bool(self._requests)))

    def _try(self, act: Callable[[], None]) -> None:
        """Act, and note what goes wrong: nobody else would hear of it."""
        rollbacks = self._journal.n_rollbacks
        try:
            act()
        except (MegaContextError, LookupError, OSError) as error:
            if self._journal.n_rollbacks != rollbacks:
                self._again()  # a full disk took blocks back under our eyes
                return
            self.error = error if isinstance(error, MegaContextError) else _failed(error)
            _log.warning("gists are missing and will be tried again: %s", self.error)

    def _again(self) -> None:
        with self._changed:
            self._is_woken = True

    def _advance(self) -> None:
        """Make one chunk of what is missing."""
        if self._journal.n_queued_gists >= _QUEUED:
            self._let_them_leave()
            return
        chunk = self._levels.next_chunk(_CHUNK_BLOCKS)
        if chunk is not None:
            self._levels.put(chunk, self._levels.encode(chunk))
            self._again()
        self.error = None

    def _let_them_leave(self) -> None:
        """Wait a moment for room; with a full disk give up until somebody wakes us."""
        if self._journal.is_full:
            if self._has_nudged:
                return
            self._has_nudged = True
            self._journal.nudge()
        with self._changed:
            self._changed.wait(_ROOM_SECONDS)
        self._again()

    def _serve(self, request: _Request) -> None:
        """Make what somebody waits for, and wake them whatever comes of it."""
        try:
            self._make_few()
            for lod, nodes in request.wanted:
                request.made.append((lod, nodes, self._levels.load(lod, nodes).gists.rows))
        finally:
            with self._changed:
                request.is_done = True
                self._changed.notify_all()

    def _make_few(self) -> None:
        """Make all that is missing if it is little: who needs one block soon needs the next."""
        if not self._stores or self._journal.n_queued_gists >= _QUEUED:
            return
        chunk = self._levels.next_chunk(_CHUNK_BLOCKS)
        if chunk is not None and len(chunk.trust) <= _FEW_BLOCKS:
            self._levels.put(chunk, self._levels.encode(chunk))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Touch the journal, unless others hold us off."""
        with self._changed:
            self._is_parked = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_closed or self._n_pauses == 0)
            self._is_parked = False
            if self._is_closed:
                raise _ClosedError
            self._is_inside = True
        try:
            yield
        finally:
            with self._changed:
                self._is_inside = False
                self._changed.notify_all()


def _failed(error: BaseException) -> ModelError:
    """Return a foreign error as one of ours; its text may quote what the memory holds."""
    message = f"gists could not be made: {type(error).__name__}"
    made = ModelError(message)
    made.__cause__ = error
    return made
