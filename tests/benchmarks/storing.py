"""Sessions on disk: appending, reopening, bytes, forgetting, memory of the process."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk import MemorySession
from tests.benchmarks import rss, stores
from tests.benchmarks.figures import measured
from tests.benchmarks.timing import in_turn, seconds, spread
from tests.benchmarks.workshop import W_MAX, turns

if TYPE_CHECKING:
    from megacontext_sdk.receipts import Receipt
    from tests.benchmarks.figures import Figure
    from tests.benchmarks.workshop import Workshop

__all__ = [
    "append",
    "bytes_per_token_duckdb",
    "bytes_per_token_filesystem",
    "forget",
    "reopen",
    "rss_growth",
]

_BATCH = 64
_ROOT = Path(__file__).resolve().parents[2]


def append(workshop: Workshop) -> list[Figure]:
    """Tokens per second taken in, each call durable on return, and against tokenising alone."""
    tokenizer = workshop.endless.tokenizer
    texts, n_tokens = [], 0
    for turn in turns():
        if len(turn.text) > 600:  # pages of books; dialogues are left out
            texts.append(turn.text)
            n_tokens += len(tokenizer.encode(turn.text))
        if n_tokens >= workshop.scale.append_tokens:
            break
    batches = [texts[at : at + _BATCH] for at in range(0, len(texts), _BATCH)]
    counts: list[int] = []

    def take_in() -> float:
        with MemorySession.open(
            workshop.fresh("append.mc"), model=workshop.endless, w_max=W_MAX
        ) as session:
            took = seconds(
                lambda: [
                    session.append([{"role": "user", "content": text} for text in batch])
                    for batch in batches
                ]
            )
            counts.append(session.stats().n_tokens)
        return took

    def tokenise() -> float:
        return seconds(lambda: [tokenizer.encode(text) for text in texts])

    taken, tokenised = in_turn(workshop.scale.rounds, take_in, tokenise)
    rate = counts[-1] / median(taken)
    workshop.notes.append(
        f"append: {counts[-1]:,} tokens of books in {len(texts)} messages, {spread(taken)} s; "
        f"tokenising alone {spread(tokenised)} s"
    )
    return [
        measured("append_tokens_per_s", rate, f"{len(batches)} durable calls of {_BATCH} pages"),
        measured(
            "append_vs_tokenise",
            median(a / b for a, b in zip(taken, tokenised, strict=True)),
            f"tokenising the same text, {counts[-1] / median(tokenised):,.0f} tokens/s",
        ),
    ]


def reopen(workshop: Workshop) -> list[Figure]:
    """Seconds to open a long memory with a model that is loaded, and a short one beside it."""
    scale = workshop.scale
    workshop.endless.open_window(1).close()  # the model is probed once per process

    def opener(n_tokens: int) -> float:
        path = workshop.memory(n_tokens)
        sessions: list[MemorySession] = []
        took = seconds(
            lambda: sessions.append(
                MemorySession.open(path, model=workshop.endless, w_max=W_MAX, create=False)
            )
        )
        sessions[0].close()
        return took

    long, short = in_turn(scale.rounds, lambda: opener(scale.long), lambda: opener(scale.short))
    return [
        measured(
            "reopen_s_1m",
            median(long),
            f"{scale.short:,} tokens open in {median(short):.3f} s; {scale.long:,}: "
            f"{spread(long)} s",
        )
    ]


def bytes_per_token_duckdb(workshop: Workshop) -> list[Figure]:
    """Bytes of the directory of a long closed memory, per token, part by part."""
    figures = _bytes_per_token(workshop, "duckdb")
    return [attrs.evolve(figures[0], name="bytes_per_token"), *figures]  # the default settings


def bytes_per_token_filesystem(workshop: Workshop) -> list[Figure]:
    """Bytes per token with the other storage."""
    return _bytes_per_token(workshop, "filesystem")


def _bytes_per_token(workshop: Workshop, storage: str) -> list[Figure]:
    figures = []
    for dtype in ("i1", "f2"):
        built = workshop.built(workshop.scale.long, storage, dtype)
        parts = {name: size / built.n_tokens for name, size in built.parts.items()}
        shown = ", ".join(f"{name} {size:.3g}" for name, size in parts.items())
        figure = measured(
            f"bytes_per_token.{storage}.{dtype}",
            sum(parts.values()),
            f"{built.n_tokens:,} tokens of text, width 256, {dtype} gists: {shown}",
        )
        figures.append(attrs.evolve(figure, parts=parts))
    return figures


def forget(workshop: Workshop) -> list[Figure]:
    """Seconds to forget 50 messages of a long memory, the scan of every byte included."""
    notes: list[str] = []
    figures = []
    for storage in stores.BACKENDS:
        source = workshop.built(workshop.scale.long, storage)
        rounds = range(workshop.scale.forget_rounds)
        took = [_forget_once(workshop, source.path, storage, notes) for _ in rounds]
        figures.append(
            measured(
                f"forget_s_1m.{storage}",
                median(took),
                f"50 messages of {source.n_tokens:,} tokens, scan included; {spread(took)} s; "
                f"{notes[-1]}",
            )
        )
    return figures


def _forget_once(workshop: Workshop, source: Path, storage: str, notes: list[str]) -> float:
    """Forget in a copy, for the memory is used again."""
    path = workshop.fresh("forget.mc")
    shutil.copytree(source, path)
    with MemorySession.open(path, model=workshop.endless, storage=storage, w_max=W_MAX) as session:
        messages = [message.message_id for message in session.messages()]
        numbers = sorted({messages[int(at)] for at in np.linspace(0, len(messages) - 1, 50)})
        receipts: list[Receipt] = []
        took = seconds(lambda: receipts.append(session.forget(message_ids=numbers)))
    receipt = receipts[0]
    if not receipt.verified:
        raise RuntimeError(f"forgetting left {receipt.hits} pieces on disk")
    notes.append(
        f"{receipt.needles:,} pieces looked for in {receipt.bytes_scanned / 1e6:,.1f} MB, "
        f"{receipt.hits} found"
    )
    return took


def rss_growth(workshop: Workshop) -> list[Figure]:
    """Resident memory after opening and generating, long history over short, fresh processes."""
    scale = workshop.scale
    run = _isolated if scale.is_isolated else rss.probe

    def resident(n_tokens: int) -> float:
        return run(workshop.memory(n_tokens), W_MAX)["rss"]

    workshop.memory(scale.long), workshop.memory(scale.short)
    long, short = in_turn(
        scale.rss_runs, lambda: resident(scale.long), lambda: resident(scale.short)
    )
    return [
        measured(
            "rss_growth_mb",
            median(long) - median(short),
            f"{scale.short:,} tokens of history, {spread(short, '.0f')} MiB; "
            f"{scale.long:,}: {spread(long, '.0f')} MiB",
        )
    ]


def _isolated(path: Path, w_max: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.rss", str(path), str(w_max)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return rss.parse(done.stdout)
