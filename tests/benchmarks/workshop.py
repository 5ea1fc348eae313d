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

import attrs
import numpy as np
import torch

from megacontext_sdk import MemorySession
from megacontext_sdk.demo.texts import open_library
from tests.benchmarks import models
from tests.benchmarks.timing import Stamps

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from megacontext_hf.adapter import HfAdapter
    from tests.benchmarks.scale import Scale

__all__ = [
    "Built",
    "Workshop",
    "append_texts",
    "bytes_by_part",
    "code_version",
    "machine_name",
    "stamp_reply",
    "turns",
]

W_MAX = 896
_ROOT = Path(__file__).resolve().parents[2]
_BATCH_MESSAGES = 64
_PARTS = {"access.bin": "access counts", "lexical.sqlite": "lexical index"}
_ENGINE = "engine"


@attrs.frozen
class Built:
    """A memory of real text as it was when it was closed first; later benchmarks append to it.

    Attributes:
        path: its directory.
        n_tokens: how many tokens it held.
        parts: bytes by part.
    """

    path: Path
    n_tokens: int
    parts: Mapping[str, float]


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
        self._built: dict[tuple[int, str, str], Built] = {}

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
        return self.built(n_tokens).path

    def built(self, n_tokens: int, storage: str = "duckdb", gist_dtype: str = "i1") -> Built:
        """Return the same with another storage or type of gists, and what it took on disk."""
        key = (n_tokens, storage, gist_dtype)
        if key not in self._built:
            path = self.fresh(f"history-{n_tokens}-{storage}-{gist_dtype}.mc")
            with MemorySession.open(
                path, model=self.endless, storage=storage, w_max=W_MAX, gist_dtype=gist_dtype
            ) as session:
                held = append_texts(session, n_tokens)
                content = _content_bytes(session)
            self._built[key] = Built(path, held, bytes_by_part(path, content))
        return self._built[key]

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


def _content_bytes(session: MemorySession) -> dict[str, float]:
    """Return the bytes that a storage has to hold, whatever it is."""
    parts = session._parts
    tree = parts.tree.stats()
    content = {
        "ids": tree.id_bytes_per_token * parts.tree.n_tokens,
        "text": sum(len(body) for body in _bodies(parts.journal)),
    }
    for lod, n_nodes in sorted(tree.nodes.items()):
        if lod and n_nodes:
            content[f"gists LOD{lod}"] = n_nodes * tree.gist_row_bytes
    return content


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


def bytes_by_part(path: Path, content: Mapping[str, float]) -> dict[str, float]:
    """Return the bytes of a closed memory by part; "engine" is what its storage adds."""
    parts: dict[str, float] = dict(content) | {_ENGINE: -sum(content.values())}
    for file in sorted(path.rglob("*")):
        if file.is_file():
            is_data = file.relative_to(path).parts[0].startswith("data-")
            name = _PARTS.get(file.name.partition("-")[0], _ENGINE if is_data else "small files")
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
