"""The storages themselves: bulk writing, random reads, chat turns, many writers, reopening.

Below the session, so that nothing else is measured. Both storages and a bare loop run in turn in
one process: a loop of `write`, CRC32 and `fdatasync` of the same bytes for writing, a gather over
`numpy.memmap` for reading.
"""

from __future__ import annotations

import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib.util import find_spec
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.contracts.storage import (
    COMMIT,
    MESSAGE,
    NO_SETTING,
    Batch,
    GistBatch,
    Header,
)
from megacontext_sdk.memory.directory.vault import Fingerprints, open_memory
from megacontext_sdk.memory.journal import MessageRecord
from megacontext_sdk.plugins import default_plugins
from tests.benchmarks.figures import measured
from tests.benchmarks.timing import in_turn, quiet, seconds, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from megacontext_sdk.contracts.storage import Storage
    from megacontext_sdk.memory.directory.vault import OpenedMemory
    from tests.benchmarks.figures import Figure
    from tests.benchmarks.workshop import Workshop

__all__ = [
    "BACKENDS",
    "bulk_write",
    "chat_turns",
    "many_writers",
    "no_filesystem",
    "random_gists",
    "reopen_long",
]

BACKENDS = ("duckdb", "filesystem")

_WIDTH = 256
_ROW_BYTES = _WIDTH + 8  # int8 numbers, their scale, one aux number
_BATCH_BLOCKS = 4096
_WANTED = 256
_HEADER = Header(block_bytes=64)
_PRINTS = Fingerprints("a" * 64, "b" * 64)
_VOCABULARY = 16_384
_MESSAGE_TOKENS = 80
_BODY_BYTES = 280


def no_filesystem() -> str:
    """Return why the second storage cannot be measured, "" if it can."""
    if find_spec("megacontext_filesystem") is None:
        return "needs megacontext-filesystem, backends/filesystem of this repository"
    return ""


def _store(backend: str, path: Path) -> Storage:
    return default_plugins().find("storage", backend).load()(path)


# --- bulk writing ----------------------------------------------------------------------------


@attrs.frozen(eq=False)
class _Group:
    """What becomes durable together: 4,096 blocks and their gists, as rows and as bytes."""

    batch: Batch
    gists: tuple[GistBatch, ...]
    payload: bytes


def _groups(n_groups: int) -> list[_Group]:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (_BATCH_BLOCKS, _ROW_BYTES), np.uint8)
    blocks = rng.integers(0, 256, (_BATCH_BLOCKS, _HEADER.block_bytes), np.uint8)
    return [_group(number, blocks, rows) for number in range(n_groups)]


def _group(number: int, blocks: np.ndarray, rows: np.ndarray) -> _Group:
    n_tokens = _BATCH_BLOCKS * 32
    commit, message = np.zeros(1, COMMIT), np.zeros(1, MESSAGE)
    commit["seq"], commit["start"], commit["n_tokens"] = number + 1, number * n_tokens, n_tokens
    commit["first_message"], commit["n_messages"], commit["setting"] = number, 1, NO_SETTING
    message["start"], message["n_tokens"] = number * n_tokens, n_tokens
    gists = []
    for lod, n in ((1, _BATCH_BLOCKS), (2, _BATCH_BLOCKS // 32), (3, _BATCH_BLOCKS // 1024)):
        nodes = np.arange(number * n, (number + 1) * n, dtype=np.uint64)
        gists.append(
            GistBatch(version=0, lod=lod, nodes=nodes, trust=np.full(n, 3, np.uint8), rows=rows[:n])
        )
    batch = Batch(commits=commit, blocks=blocks, tail=b"", messages=message, bodies=(b"",))
    parts = (commit, message, blocks, *(g.rows for g in gists), *(g.trust for g in gists))
    return _Group(batch, tuple(gists), b"".join(part.tobytes() for part in parts))


def bulk_write(workshop: Workshop) -> list[Figure]:
    """Tokens per second of blocks and gists, durable every 4,096 blocks."""
    scale = workshop.scale
    groups = _groups(scale.write_groups)
    n_tokens = scale.write_groups * _BATCH_BLOCKS * 32
    folds: dict[str, list[float]] = {backend: [] for backend in BACKENDS}

    def write(backend: str) -> float:
        store = _store(backend, workshop.fresh(f"write-{backend}"))
        store.open("create", _HEADER)
        took = seconds(lambda: _write_groups(store, groups))
        folds[backend].append(took + seconds(store.flush))
        store.close()
        return took

    def write_bare() -> float:
        path = workshop.fresh("write-bare")
        path.mkdir()
        return seconds(lambda: _write_payloads(path / "bytes", groups))

    sides = [lambda b=backend: write(b) for backend in BACKENDS]
    duckdb, filesystem, bare = in_turn(scale.rounds, *sides, write_bare)
    rates = {
        name: n_tokens / median(times) / 1e6
        for name, times in (("duckdb", duckdb), ("filesystem", filesystem), ("bare", bare))
    }
    folded = ", ".join(
        f"{backend} {n_tokens / median(times) / 1e6:.2f}" for backend, times in folds.items()
    )
    shown = ", ".join(f"{name} {rate:.2f}" for name, rate in rates.items())
    workshop.notes.append(
        f"bulk write of {n_tokens:,} tokens with gists, durable every {_BATCH_BLOCKS:,} blocks: "
        f"{shown} M tokens/s; the final checkpoint or seal included: {folded}"
    )
    return [
        measured("fs_write_vs_duckdb", _ratio(duckdb, filesystem), f"M tokens/s: {shown}"),
        measured("fs_write_vs_bare", _ratio(bare, filesystem), _BARE),
        measured("duckdb_write_vs_bare", _ratio(bare, duckdb), _BARE),
    ]


_BARE = "a loop of write, CRC32 and fdatasync of the same bytes"


def _ratio(above: list[float], below: list[float]) -> float:
    return median(a / b for a, b in zip(above, below, strict=True))


def _write_groups(store: Storage, groups: list[_Group]) -> None:
    for group in groups:
        for gists in group.gists:
            store.put_gists(gists)
        store.commit(group.batch)


def _write_payloads(path: Path, groups: list[_Group]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        for group in groups:
            zlib.crc32(group.payload)
            os.write(descriptor, group.payload)
            os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


# --- random reads ----------------------------------------------------------------------------


def random_gists(workshop: Workshop) -> list[Figure]:
    """Milliseconds to read 256 random gists, warm, from a store of millions of tokens."""
    scale = workshop.scale
    groups = _groups(scale.write_groups)
    n_nodes = len(groups) * _BATCH_BLOCKS
    stores = {backend: _filled(workshop, backend, groups) for backend in BACKENDS}
    rows = _rows_file(workshop, groups)
    rng = np.random.default_rng(1)

    def read(backend: str) -> float:
        nodes = rng.choice(n_nodes, _WANTED, replace=False).astype(np.uint64)
        return seconds(lambda: stores[backend].read_gists(0, 1, nodes))

    def gather() -> float:
        nodes = rng.choice(n_nodes, _WANTED, replace=False)
        return seconds(lambda: np.take(rows, nodes, axis=0))

    try:
        for backend in BACKENDS:  # warm: every page was read once
            for at in range(0, n_nodes, _BATCH_BLOCKS):
                stores[backend].read_gists(0, 1, np.arange(at, at + _BATCH_BLOCKS, dtype=np.uint64))
        rows.sum()
        sides = [lambda b=backend: read(b) for backend in BACKENDS]
        *times, bare = in_turn(scale.random_reads, *sides, gather)
    finally:
        for store in stores.values():
            store.close()
    bare_ms = 1e3 * median(bare)
    figures = []
    for backend, took in zip(BACKENDS, times, strict=True):
        milliseconds = 1e3 * median(took)
        against = f"a gather over numpy.memmap, {bare_ms:.3f} ms; {32 * n_nodes:,} tokens"
        figures += [
            measured(f"random_gists_256_ms.{backend}", milliseconds, against),
            measured(f"random_gists_256_vs_memmap.{backend}", milliseconds / bare_ms, against),
        ]
    return figures


def _filled(workshop: Workshop, backend: str, groups: list[_Group]) -> Storage:
    """Return a store with all groups, opened anew for reading."""
    path = workshop.fresh(f"read-{backend}")
    store = _store(backend, path)
    store.open("create", _HEADER)
    _write_groups(store, groups)
    store.flush()
    store.close()
    store = _store(backend, path)
    store.open("read", _HEADER)
    return store


def _rows_file(workshop: Workshop, groups: list[_Group]) -> np.ndarray:
    path = workshop.fresh("rows")
    path.mkdir()
    with (path / "rows").open("wb") as stream:
        for group in groups:
            stream.write(group.gists[0].rows.tobytes())
    return np.memmap(path / "rows", np.uint8, "r").reshape(-1, _ROW_BYTES)


# --- through the journal ---------------------------------------------------------------------


def _memory(workshop: Workshop, backend: str, name: str, *, create: bool = True) -> OpenedMemory:
    path = workshop.folder / f"{name}-{backend}.mc"
    if create:
        workshop.fresh(path.name)
    return open_memory(
        path,
        backend=backend,
        factory=default_plugins().find("storage", backend).load(),
        fingerprints=_PRINTS,
        vocab_size=_VOCABULARY,
        create=create,
    )


def _record(n_tokens: int) -> MessageRecord:
    return MessageRecord(
        role=0, trust=3, flags=0, ts_us=1, n_tokens=n_tokens, body=bytes(_BODY_BYTES)
    )


def _ids(n_tokens: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, _VOCABULARY, n_tokens, np.int32)


def chat_turns(workshop: Workshop) -> list[Figure]:
    """Time of one turn, 3 blocks and 1 message, durable, over one bare write and flush."""
    memories = {backend: _memory(workshop, backend, "turns") for backend in BACKENDS}
    ids, record = _ids(96), [_record(96)]
    payload = bytes(ids.nbytes // 2 + _BODY_BYTES + COMMIT.itemsize + MESSAGE.itemsize)
    bare = workshop.fresh("turns-bare")
    bare.mkdir()
    descriptor = os.open(bare / "bytes", os.O_WRONLY | os.O_CREAT)

    def flush_bare() -> None:
        os.write(descriptor, payload)
        os.fdatasync(descriptor)

    def turn(backend: str) -> float:
        return _clocked(lambda: memories[backend].journal.append(ids, record).wait())

    try:
        with quiet():
            sides = [lambda b=backend: turn(b) for backend in BACKENDS]
            *times, alone = _each_in_turn(
                workshop.scale.turns, *sides, lambda: _clocked(flush_bare)
            )
    finally:
        os.close(descriptor)
        for memory in memories.values():
            memory.close()
    return [
        measured(
            f"chat_turn_vs_bare.{backend}",
            median(took) / median(alone),
            f"write and fdatasync of the same bytes, p50 {1e3 * median(alone):.2f} ms; "
            f"{backend} p50 {1e3 * median(took):.2f} ms",
        )
        for backend, took in zip(BACKENDS, times, strict=True)
    ]


def _clocked(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def _each_in_turn(rounds: int, *sides: Callable[[], float]) -> list[list[float]]:
    """Run short sides in turn; the collector is the caller's business."""
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for at, side in enumerate(sides):
            times[at].append(side())
    return times


def many_writers(workshop: Workshop) -> list[Figure]:
    """Commits per second of eight threads over those of one: waiting commits share a flush."""
    return [_many_writers(workshop, backend) for backend in BACKENDS]


def _many_writers(workshop: Workshop, backend: str) -> Figure:
    ids, record, n = _ids(32), [_record(32)], workshop.scale.turns
    with closing(_memory(workshop, backend, "writers")) as memory:

        def commits_per_second(n_threads: int) -> float:
            def work(_number: int) -> None:
                for _ in range(n):
                    memory.journal.append(ids, record).wait()

            with ThreadPoolExecutor(n_threads) as pool:
                took = seconds(lambda: list(pool.map(work, range(n_threads))))
            return n_threads * n / took

        rounds = min(3, workshop.scale.rounds)
        alone, together = in_turn(
            rounds, lambda: commits_per_second(1), lambda: commits_per_second(8)
        )
    return measured(
        f"commits_8_threads_vs_1.{backend}",
        _ratio(together, alone),
        f"one thread, {median(alone):,.0f} commits/s; eight {median(together):,.0f}",
    )


def reopen_long(workshop: Workshop) -> list[Figure]:
    """Seconds to open ten million tokens with gists, the check of the newest commits included."""
    scale = workshop.scale
    for backend in BACKENDS:
        with closing(_memory(workshop, backend, "long")) as memory:
            for ids, records, gists in _long_history(scale.reopen_tokens):
                memory.journal.append(ids, records).wait()
                for batch in gists:
                    memory.journal.put_gists(batch)

    def reopen(backend: str) -> float:
        opened: list[OpenedMemory] = []
        took = seconds(lambda: opened.append(_memory(workshop, backend, "long", create=False)))
        opened[0].close()
        return took

    results = in_turn(scale.rounds, *[lambda b=backend: reopen(b) for backend in BACKENDS])
    return [
        measured(
            f"reopen_s_10m.{backend}",
            median(took),
            f"{scale.reopen_tokens:,} tokens with gists, locks, probe and check of 64 commits "
            f"included, no model; {spread(took)} s",
        )
        for backend, took in zip(BACKENDS, results, strict=True)
    ]


def _long_history(
    n_tokens: int,
) -> Iterator[tuple[np.ndarray, list[MessageRecord], list[GistBatch]]]:
    """Yield commits of up to 1,024 blocks and the gists they complete."""
    step = min(32 * 1024, n_tokens // 32 * 32)
    ids, rows = _ids(step), np.random.default_rng(3).integers(0, 256, (1024, _ROW_BYTES), np.uint8)
    done = {1: 0, 2: 0, 3: 0}
    for at in range(0, n_tokens // step * step, step):
        n_whole, rest = divmod(step, _MESSAGE_TOKENS)
        records = [_record(_MESSAGE_TOKENS)] * n_whole + ([_record(rest)] if rest else [])
        gists = []
        for lod, first in done.items():
            stop = (at + step) // 32**lod
            if stop > first:
                nodes = np.arange(first, stop, dtype=np.uint64)
                trust = np.full(len(nodes), 3, np.uint8)
                gists.append(
                    GistBatch(version=0, lod=lod, nodes=nodes, trust=trust, rows=rows[: len(nodes)])
                )
                done[lod] = stop
        yield ids, records, gists
