"""Processes that may be killed at any time, and how a test hears from them.

One process per test class imports what is needed and opens nothing; it forks a child per scenario,
so that a real process dies each time and none pays for imports. What a child has acknowledged
travels through a pipe before it dies: the expected state is never read from the memory.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections import deque
from importlib import import_module
from select import select
from typing import TYPE_CHECKING, Self

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

__all__ = ["Victim", "Victims", "acknowledge", "main"]

_SECONDS = 30.0  # a victim that says nothing for so long hangs


@attrs.define(eq=False)
class Victim:
    """A child that runs a scenario.

    Attributes:
        victims: who started it.
        pid: its number.
        said: acknowledgements not yet heard, oldest first.
        trace: the traceback it died of, empty if it did not.
        status: exit status as `os.waitpid` gives it, None while it lives.
    """

    victims: Victims
    pid: int
    said: deque[str] = attrs.field(factory=deque)
    trace: str = ""
    status: int | None = None

    def hear(self) -> str:
        """Return the next thing it says.

        Raises:
            AssertionError: it died of an error, or says nothing for half a minute.
        """
        deadline = time.monotonic() + _SECONDS
        while not self.said:
            assert not self.trace, f"the victim died: {self.trace}"
            left = deadline - time.monotonic()
            assert left > 0, "the victim says nothing"
            self.victims.pump(left)
        return self.said.popleft()

    def linger(self, seconds: float) -> None:
        """Let it go on for a while, listening."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.victims.pump(left)

    def linger_until(self, is_reached: Callable[[], bool]) -> None:
        """Let it go on until something has happened, looking about a thousand times a second.

        Raises:
            AssertionError: it died of an error, or that never happens.
        """
        deadline = time.monotonic() + _SECONDS
        while not is_reached():
            assert not self.trace, f"the victim died: {self.trace}"
            assert time.monotonic() < deadline, "the victim does not get there"
            self.victims.pump(0.001)

    def kill(self) -> list[str]:
        """Kill it with SIGKILL; return what it had said and nobody heard."""
        return self._end(kill=True)

    def wait(self) -> list[str]:
        """Wait until it ends by itself; return what it had said and nobody heard.

        Raises:
            AssertionError: it died of an error.
        """
        rest = self._end(kill=False)
        assert not self.trace, f"the victim died: {self.trace}"
        return rest

    def wait_for_trace(self) -> None:
        """Wait until it ends, whatever it died of; `trace` says what."""
        self._end(kill=False)

    def _end(self, *, kill: bool) -> list[str]:
        self.victims.order({"do": "end", "pid": self.pid, "kill": kill})
        deadline = time.monotonic() + _SECONDS
        while self.status is None:
            assert time.monotonic() < deadline, "the victim does not end"
            self.victims.pump(1.0)
        rest = list(self.said)
        self.said.clear()
        return rest


class Victims:
    """The parent of victims of one storage class. A context manager.

    Args:
        storage: import string, "package.module:Class".
        prefix: command that starts the interpreter, such as `unshare`.
        environment: variables to add.
    """

    def __init__(
        self,
        storage: str,
        *,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        command = [*prefix, sys.executable, "-m", "megacontext_sdk.testing.victims", storage]
        path = os.pathsep.join(entry for entry in sys.path if entry)
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter, our own module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, **threads, **(environment or {})},
        )
        self._children: dict[int, Victim] = {}
        self._newest = 0
        self._rest = b""

    def is_alive(self) -> bool:
        """Tell whether the parent could be started: it answers."""
        try:
            self.order({"do": "hello"})
            deadline = time.monotonic() + _SECONDS
            while 0 not in self._children and time.monotonic() < deadline:
                self.pump(1.0)
        except (AssertionError, BrokenPipeError):
            return False
        return 0 in self._children

    def start(self, scenario: str, path: Path, **arguments: object) -> Victim:
        """Fork a victim that runs a scenario of `testing.scenarios` on a path."""
        self._newest = 0
        self.order({"do": "start", "scenario": scenario, "path": str(path), "with": arguments})
        deadline = time.monotonic() + _SECONDS
        while not self._newest:
            assert time.monotonic() < deadline, "no victim could be started"
            self.pump(1.0)
        return self._children[self._newest]

    def run(self, scenario: str, path: Path, **arguments: object) -> list[str]:
        """Run a scenario to its end and return all it said."""
        return self.start(scenario, path, **arguments).wait()

    def order(self, order: Mapping[str, object]) -> None:
        """Send one line to the parent of victims."""
        pipe = self._process.stdin
        assert pipe is not None
        pipe.write(json.dumps(order).encode() + b"\n")
        pipe.flush()

    def pump(self, seconds: float) -> None:
        """Wait at most so long for lines and hand them to the children they are from."""
        pipe = self._process.stdout
        assert pipe is not None
        if not select([pipe], [], [], seconds)[0]:
            return
        data = os.read(pipe.fileno(), 65_536)
        assert data, f"the parent of victims ended with {self._process.poll()}"
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            kind, pid, text = line.decode().split(" ", 2)
            self._hear(kind, int(pid), json.loads(text))

    def _hear(self, kind: str, pid: int, text: str) -> None:
        child = self._children.setdefault(pid, Victim(self, pid))
        if kind == "P":
            self._children[pid] = Victim(self, pid)
            self._newest = pid
        elif kind == "A":
            child.said.append(text)
        elif kind == "X":
            child.trace = text
        else:
            child.status = int(text)

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
        self.close()

    def close(self) -> None:
        """End the parent; children that still live die with it."""
        for pid, child in self._children.items():
            if pid and child.status is None:
                self.order({"do": "end", "pid": pid, "kill": True})
        pipes = (self._process.stdin, self._process.stdout)
        if pipes[0] is not None:
            pipes[0].close()
        if pipes[1] is not None:
            pipes[1].read()
            pipes[1].close()
        self._process.wait(_SECONDS)


# --- the parent of victims, in its own process ------------------------------------------------


def _say(kind: str, pid: int, text: str) -> None:
    os.write(1, f"{kind} {pid} {json.dumps(text)}\n".encode())


def acknowledge(text: object, *, pid: int | None = None) -> None:
    """Tell the test; what was said before a kill is heard after it.

    Args:
        text: what was acknowledged.
        pid: in whose name; this process's if absent.
    """
    _say("A", pid or os.getpid(), str(text))


def _start(storage: str, order: Mapping[str, object]) -> None:
    from megacontext_sdk.testing import scenarios

    pid = os.fork()
    if pid:
        return
    _say("P", os.getpid(), "")
    try:
        run = getattr(scenarios, str(order["scenario"]))
        run(storage, order["path"], **order["with"])  # type: ignore[arg-type]
    except BaseException:  # noqa: BLE001 - whatever it was, the test shall read it
        _say("X", os.getpid(), traceback.format_exc()[-3_000:])
        os._exit(1)
    os._exit(0)


def main(arguments: Sequence[str]) -> None:
    """Read orders until the pipe closes."""
    storage = arguments[0]
    import_module(storage.partition(":")[0])
    import_module("megacontext_sdk.testing.scenarios")
    for line in sys.stdin.buffer:
        order = json.loads(line)
        if order["do"] == "hello":
            _say("A", 0, "")
            continue
        if order["do"] == "start":
            _start(storage, order)
            continue
        if order["kill"]:
            os.kill(order["pid"], signal.SIGKILL)
        _say("E", order["pid"], str(os.waitpid(order["pid"], 0)[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
