"""Decoding: against transformers' own `generate`, and against the length of the history."""

from __future__ import annotations

from contextlib import ExitStack
from statistics import mean, median
from typing import TYPE_CHECKING

import numpy as np
import torch

from megacontext_sdk import MemorySession, Span
from tests.benchmarks.figures import measured
from tests.benchmarks.models import generate_plain
from tests.benchmarks.timing import in_turn, quiet, spread
from tests.benchmarks.workshop import W_MAX, append_texts, stamp_reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.figures import Figure
    from tests.benchmarks.timing import Stamps
    from tests.benchmarks.workshop import Workshop

__all__ = ["decode_vs_generate", "ms_per_token", "refocus_overhead"]

QUESTIONS = (
    "What did the old man say about the sea?",
    "Where did the children go after dinner?",
    "Which train did I want to book?",
    "Who was waiting at the door of the house?",
    "How much did the room cost per night?",
    "What happened to the king at the end?",
    "When does the restaurant open on Sunday?",
)


def _asker(session: MemorySession, n_tokens: int) -> Callable[[], Stamps]:
    """Return a call that asks the next question and notes when each token of the reply came."""
    asked = 0

    def ask() -> Stamps:
        nonlocal asked
        asked += 1
        with quiet():
            return stamp_reply(session, QUESTIONS[asked % len(QUESTIONS)], n_tokens)

    return ask


def decode_vs_generate(workshop: Workshop) -> list[Figure]:
    """Tokens per second of a session with refocus every 32 tokens over plain generation.

    Both sides decode greedily with the same weights, from their first token to their last. The
    plain prompt is so long that both have as many rows in their cache on average.
    """
    scale = workshop.scale
    replies: list[Stamps] = []
    with MemorySession.open(
        workshop.memory(scale.decode_history), model=workshop.endless, w_max=W_MAX
    ) as session:
        ask = _asker(session, scale.decode_tokens)
        rows = mean(ask().rows)
        prompt = torch.from_numpy(_plain_rows(session, int(rows) - scale.decode_tokens // 2))

        def ours() -> float:
            replies.append(ask())
            return 1 / replies[-1].seconds_per_token

        def theirs() -> float:
            with quiet():
                plain = generate_plain(workshop.endless, prompt, scale.decode_tokens)
            return 1 / plain.seconds_per_token

        decoded, plain = in_turn(scale.rounds, ours, theirs)
        moves = [len(record.moves) for record in session._parts.state.records][-50:]
    workshop.notes.append(
        f"decode: {spread(decoded)} tokens/s in a session, {spread(plain)} plain; "
        f"{mean(map(mean, (r.rows for r in replies))):.0f} rows on average, "
        f"refocus and commit take {100 * median(r.overhead for r in replies):.0f} % on top of the "
        f"plain steps, {mean(moves):.1f} moves per refocus"
    )
    return [
        measured(
            "decode_vs_generate",
            median(a / b for a, b in zip(decoded, plain, strict=True)),
            f"transformers generate, {median(plain):.1f} tokens/s with as many cached rows; "
            f"ours {median(decoded):.1f}",
        )
    ]


def _plain_rows(session: MemorySession, n_rows: int) -> np.ndarray:
    """Return the newest tokens of the history as a prompt, int64[1, n_rows]."""
    tree = session._parts.tree
    return tree.token_ids(Span(tree.n_tokens - n_rows, tree.n_tokens)).astype(np.int64)[None]


def ms_per_token(workshop: Workshop) -> list[Figure]:
    """Milliseconds per token, refocus and commits included, at three lengths of history in turn."""
    scale = workshop.scale
    lengths = (scale.short, scale.middle, scale.long)
    with ExitStack() as stack:
        sides = []
        for n_tokens in lengths:
            session = stack.enter_context(
                MemorySession.open(workshop.memory(n_tokens), model=workshop.endless, w_max=W_MAX)
            )
            ask = _asker(session, scale.decode_tokens)
            sides.append(lambda ask=ask: 1e3 * ask().seconds_per_token)
        short, middle, long = in_turn(scale.rounds, *sides)
    curve = dict(zip(lengths, map(median, (short, middle, long)), strict=True))
    workshop.curves["ms per token against history"] = curve
    workshop.notes.append(
        "ms per token: "
        + ", ".join(
            f"{n:,} tokens {spread(times)}"
            for n, times in zip(lengths, (short, middle, long), strict=True)
        )
    )
    return [
        measured(
            "ms_per_token_1m_vs_10k",
            median(a / b for a, b in zip(long, short, strict=True)),
            f"{scale.short:,} tokens of history, {median(short):.2f} ms; "
            f"{scale.long:,}: {median(long):.2f} ms",
        )
    ]


def refocus_overhead(workshop: Workshop) -> list[Figure]:
    """All that is no plain decode step over plain decode steps, with block cache and without."""
    found = []
    for w_max in workshop.scale.overhead_windows:
        with ExitStack() as stack:
            sides = []
            for cache_bytes in (32 << 20, 0):
                session = stack.enter_context(
                    MemorySession.open(
                        workshop.fresh(f"overhead-{w_max}-{cache_bytes}.mc"),
                        model=workshop.random,
                        w_max=w_max,
                        kv_cache_bytes=cache_bytes,
                    )
                )
                append_texts(session, 10 * w_max)
                ask = _asker(session, workshop.scale.decode_tokens)
                sides.append(lambda ask=ask: ask().overhead)
            cached, uncached = in_turn(workshop.scale.rounds, *sides)
        for name, values in (("", cached), ("_uncached", uncached)):
            found.append(
                measured(
                    f"refocus_overhead_{w_max}{name}",
                    median(values),
                    f"plain decode steps at W {w_max}, random weights; {spread(values)}",
                )
            )
    return found
