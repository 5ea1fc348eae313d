"""What benchmarks share in one run: models and memories made once, and notes on the way."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import subprocess
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from megacontext_sdk import MemorySession
from megacontext_sdk.demo.texts import open_library
from tests.benchmarks import models
from tests.benchmarks.timing import Stamps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megacontext_hf.adapter import HfAdapter
    from tests.benchmarks.scale import Scale

__all__ = [
    "Workshop",
    "append_texts",
    "code_version",
    "machine_name",
    "size_by_part",
    "stamp_reply",
    "turns",
]

W_MAX = 896
_ROOT = Path(__file__).resolve().parents[2]
_BATCH_MESSAGES = 64
_PARTS = {"access.bin": "access counts", "lexical.sqlite": "lexical index"}


class Workshop:
    """Models and memories of one run.

    Args:
        scale: how big the run is.
        folder: where memories are made; emptied by `close`.
    """

    def __init__(self, scale: Scale, folder: Path) -> None:
        self.scale = scale
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.notes = [code_version()]
        self.curves: dict[str, dict[float, float]] = {}
        self._memories: dict[int, Path] = {}
        self.parts_on_disk: dict[int, dict[str, int]] = {}
        self.built_tokens: dict[int, int] = {}
        self.logical_bytes: dict[int, dict[str, float]] = {}

    @cached_property
    def endless(self) -> HfAdapter:
        """The reference model without end tokens."""
        return models.open_endless()

    @cached_property
    def random(self) -> HfAdapter:
        """A random model of the same shape that takes 4,096 rows."""
        return models.open_random(4096)

    @cached_property
    def origin(self) -> str:
        """Where the texts come from."""
        return open_library().origin

    def fresh(self, name: str) -> Path:
        """Return a path where no memory is."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    def memory(self, n_tokens: int) -> Path:
        """Return a closed memory of real text with `n_tokens`, made on first use."""
        if n_tokens not in self._memories:
            path = self.fresh(f"history-{n_tokens}.mc")
            with MemorySession.open(path, model=self.endless, w_max=W_MAX) as session:
                self.built_tokens[n_tokens] = append_texts(session, n_tokens)
                self.logical_bytes[n_tokens] = _logical_bytes(session)
            self.parts_on_disk[n_tokens] = size_by_part(path)
            self._memories[n_tokens] = path
        return self._memories[n_tokens]

    def close(self) -> None:
        """Remove the memories."""
        shutil.rmtree(self.folder, ignore_errors=True)


def append_texts(session: MemorySession, n_tokens: int) -> int:
    """Append real text, batch by batch, until the session holds `n_tokens`; return how many."""
    size = _BATCH_MESSAGES if n_tokens > 50_000 else 4
    pages = turns()
    end = 0
    while end < n_tokens:
        batch = [{"role": t.role, "content": t.text} for t in itertools.islice(pages, size)]
        end = session.append(batch).span.end
    return end


def _logical_bytes(session: MemorySession) -> dict[str, float]:
    """Return bytes per token of what the engine has to hold, before it packs anything."""
    parts = session._parts
    tree, n_tokens = parts.tree.stats(), parts.tree.n_tokens
    text = sum(len(body) for body in _bodies(parts.journal))
    return {
        "ids": tree.id_bytes_per_token,
        "text": text / n_tokens,
        "gists": tree.gist_bytes_per_token,
    }


def _bodies(journal: object) -> Iterator[bytes]:
    for first in range(0, journal.n_messages, 256):
        stop = min(first + 256, journal.n_messages)
        yield from journal.bodies(np.arange(first, stop, dtype=np.int64))


def turns() -> Iterator[object]:
    """Yield pages and dialogues, again in another order when all were told."""
    library = open_library()
    seed = 0
    while True:
        yield from library.turns(seed)
        seed += 1


def size_by_part(path: Path) -> dict[str, int]:
    """Return bytes per part of a closed memory."""
    parts: dict[str, int] = {}
    for file in sorted(path.rglob("*")):
        if file.is_file():
            default = "engine file" if "duck" in file.name else "small files"
            name = _PARTS.get(file.name.partition("-")[0], default)
            parts[name] = parts.get(name, 0) + file.stat().st_size
    return parts


def stamp_reply(session: MemorySession, prompt: str, n_tokens: int, **arguments: object) -> Stamps:
    """Generate and note when the loop hands out each token."""
    parts = session._parts
    stamps, loop = Stamps(), parts.loop
    parts.loop = _StampedLoop(loop, parts.state, stamps)
    try:
        session.generate(prompt, max_new_tokens=n_tokens, **arguments)
    finally:
        parts.loop = loop
    return stamps


class _StampedLoop:
    """The session's loop, looked at from outside."""

    def __init__(self, loop: object, state: object, stamps: Stamps) -> None:
        self._loop = loop
        self._state = state
        self._stamps = stamps

    def __getattr__(self, name: str) -> object:
        return getattr(self._loop, name)

    def decode(self, request: object) -> Iterator[object]:
        pager = self._state.pager
        times, rows = self._stamps.times, self._stamps.rows
        decoded = self._loop.decode(request)
        try:
            for token in decoded:
                times.append(perf_counter())
                rows.append(pager.n_live)
                yield token
        finally:
            decoded.close()


def code_version() -> str:
    """Return the commit that is measured, and whether the files are those of the commit."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.rstrip()

    commit = git("rev-parse", "--short", "HEAD")
    if not commit:
        return "code: not a git checkout"
    changed = [line[3:] for line in git("status", "--porcelain", "-uno").splitlines()]
    changed = [name for name in changed if name.endswith(".py")]
    return f"code: commit {commit}" + (f", changed since: {', '.join(changed)}" if changed else "")


def machine_name() -> str:
    """Return processor, cores, threads and versions in one line."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(": ")[2] if names else cpu
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "duckdb"))
    return (
        f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads, "
        f"Python {platform.python_version()}, {packages}"
    )
