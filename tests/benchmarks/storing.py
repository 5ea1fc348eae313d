"""Appending, reopening, bytes on disk, memory of the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from megacontext_sdk import MemorySession
from tests.benchmarks import rss
from tests.benchmarks.figures import measured
from tests.benchmarks.timing import in_turn, seconds, spread
from tests.benchmarks.workshop import W_MAX, turns

if TYPE_CHECKING:
    from tests.benchmarks.figures import Figure
    from tests.benchmarks.workshop import Workshop

__all__ = ["append", "bytes_per_token", "reopen", "rss_growth"]

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


def bytes_per_token(workshop: Workshop) -> list[Figure]:
    """Bytes of the directory of a long closed memory, per token, part by part."""
    n_tokens = workshop.scale.long
    workshop.memory(n_tokens)
    held = workshop.built_tokens[n_tokens]  # later benchmarks append to it
    files = workshop.parts_on_disk[n_tokens]
    logical = workshop.logical_bytes[n_tokens]
    rows = [f"{name} {size / held:.2f}" for name, size in files.items()]
    inside = [f"{name} {size:.2f}" for name, size in logical.items()]
    workshop.notes.append(
        f"bytes per token on disk at {held:,} tokens: {', '.join(rows)}; "
        f"the engine file holds {', '.join(inside)} before packing"
    )
    return [
        measured(
            "bytes_per_token",
            sum(files.values()) / held,
            "; ".join((*rows, "engine holds " + ", ".join(inside))),
        )
    ]


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
