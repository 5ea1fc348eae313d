"""What learned gists cost: taking text in, against the base's own reading, and while decoding.

Needs the encoders that the reference model ships. Quality is measured by `megacontext eval gists`.
"""

from __future__ import annotations

from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk import MemorySession
from megacontext_sdk.contracts.gist import Blocks, GistEncoder
from megacontext_sdk.contracts.model import RowBatch
from megacontext_sdk.plugins import default_plugins
from tests.benchmarks.decoding import QUESTIONS
from tests.benchmarks.figures import measured
from tests.benchmarks.timing import in_turn, quiet, seconds, spread
from tests.benchmarks.workshop import W_MAX, stamp_reply, turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from megacontext_hf.adapter import HfAdapter
    from megacontext_sdk.contracts.gist import Gists, GistServices
    from megacontext_sdk.contracts.model import ModelInfo
    from tests.benchmarks.figures import Figure
    from tests.benchmarks.workshop import Workshop

__all__ = ["ENCODERS", "append_learned", "encode_vs_prefill", "no_encoders", "overhead"]

_BATCH = 64
_WINDOW_TOKENS = 1024
ENCODERS = ("gistnet", "contextual")
_NAMES = {"gistnet": "reference-gistnet", "contextual": "reference-contextual"}


def no_encoders() -> str:
    """Return why there is nothing to measure, "" if there is."""
    missing = set(_NAMES.values()) - set(default_plugins().names("gist"))
    return f"needs the encoders {', '.join(sorted(missing))}" if missing else ""


def append_learned(workshop: Workshop) -> list[Figure]:
    """Tokens per second taken in until every gist is stored, each call durable on return."""
    tokenizer = workshop.endless.tokenizer
    texts, n_tokens = [], 0
    for turn in turns():
        if len(turn.text) > 600:
            texts.append(turn.text)
            n_tokens += len(tokenizer.encode(turn.text))
        if n_tokens >= workshop.scale.append_tokens:
            break
    batches = [texts[at : at + _BATCH] for at in range(0, len(texts), _BATCH)]

    def rate(name: str) -> Callable[[], float]:
        def take_in() -> float:
            path = workshop.fresh("learned.mc")
            with MemorySession.open(
                path, model=workshop.endless, gist=_NAMES[name], w_max=W_MAX
            ) as session:
                took = seconds(lambda: _take_in(session, batches))
                stats = session.stats()
            if stats.gists_missing:
                raise RuntimeError(f"{stats.gists_missing} gists are missing after a flush")
            return stats.n_tokens / took

        return take_in

    rates = in_turn(workshop.scale.rounds, *(rate(name) for name in _NAMES))
    return [
        measured(
            f"append_tokens_per_s.{name}",
            median(found),
            f"{len(batches)} durable calls of {_BATCH} pages, then flush; {spread(found)} tokens/s",
        )
        for name, found in zip(_NAMES, rates, strict=True)
    ]


def _take_in(session: MemorySession, batches: list[list[str]]) -> None:
    for batch in batches:
        session.append([{"role": "user", "content": text} for text in batch])
    session.flush()


def encode_vs_prefill(workshop: Workshop) -> list[Figure]:
    """Rate of making gists of a long text over the rate at which the base reads it once."""
    adapter = workshop.endless
    ids = _text_ids(adapter, 32 * _WINDOW_TOKENS)
    window = adapter.open_window(_WINDOW_TOKENS)

    def prefill() -> float:
        return len(ids) / seconds(lambda: _read_through(window, ids))

    def encode(name: str) -> Callable[[], float]:
        encoder = default_plugins().gist_factory(_NAMES[name])(1)
        blocks = Blocks(token_ids=ids.reshape(-1, 32), first=0, left=ids[:0])
        return lambda: len(ids) / seconds(lambda: encoder.encode_blocks(blocks, adapter))

    read, *made = in_turn(workshop.scale.rounds, prefill, *(encode(name) for name in _NAMES))
    window.close()
    return [
        measured(
            f"encode_vs_prefill.{name}",
            median(a / b for a, b in zip(found, read, strict=True)),
            f"the base reading windows of {_WINDOW_TOKENS:,} tokens, {spread(read, ',.0f')} "
            f"tokens/s; gists at {spread(found, ',.0f')} tokens/s",
        )
        for name, found in zip(_NAMES, made, strict=True)
    ]


def _text_ids(adapter: HfAdapter, n_tokens: int) -> np.ndarray:
    """Return int32[n_tokens] of books."""
    parts, length = [], 0
    for turn in turns():
        parts.append(adapter.tokenizer.encode(turn.text))
        length += len(parts[-1])
        if length >= n_tokens:
            return np.concatenate(parts)[:n_tokens].astype(np.int32)
    raise RuntimeError("turns() never ends")


def _read_through(window: object, ids: np.ndarray) -> None:
    """Let the base read a text window by window, no logits wanted."""
    places = np.arange(_WINDOW_TOKENS)
    nothing = np.empty((0, 0), np.float32)
    for part in ids.reshape(-1, _WINDOW_TOKENS):
        window.write(RowBatch(token_ids=part, vectors=nothing), places, places)
        window.release(places)


def overhead(workshop: Workshop) -> list[Figure]:
    """Seconds an encoder computes while a session decodes, over the seconds of the decoding.

    The background builder is counted as well: what is left when the reply ends is waited for.
    """
    figures = []
    for name, provider in _NAMES.items():
        encoder = _Timed(default_plugins().gist_factory(provider)(1))
        with MemorySession.open(
            None, model=workshop.endless, storage="memory", gist=encoder, w_max=W_MAX
        ) as session:
            session.append([{"role": "user", "content": text} for text in _few_pages()])
            session.flush()
            shares = [
                _share(session, encoder, QUESTIONS[at % len(QUESTIONS)], workshop)
                for at in range(workshop.scale.rounds + 1)
            ][1:]
        figures.append(
            measured(
                f"gist_overhead.{name}",
                median(shares),
                f"decoding {workshop.scale.decode_tokens} tokens, {spread(shares)}; encoder "
                "seconds of the background included",
            )
        )
    return figures


def _few_pages() -> list[str]:
    pages = (turn.text for turn in turns() if len(turn.text) > 600)
    return [next(pages) for _ in range(_BATCH)]


def _share(session: MemorySession, encoder: _Timed, question: str, workshop: Workshop) -> float:
    encoder.seconds = 0.0
    with quiet():
        stamps = stamp_reply(session, question, workshop.scale.decode_tokens)
        session.flush()
    steps = sum(later - earlier for earlier, later in pairwise(stamps.times))
    return encoder.seconds / steps


class _Timed(GistEncoder):
    """An encoder and the seconds it took."""

    def __init__(self, encoder: GistEncoder) -> None:
        self.name, self.gist_slots, self.aux_size = "timed", encoder.gist_slots, encoder.aux_size
        self.left_tokens, self.runs_behind = encoder.left_tokens, encoder.runs_behind
        self.seconds = 0.0
        self._encoder = encoder

    def fingerprint(self, info: ModelInfo) -> str:
        """Return the encoder's own."""
        return self._encoder.fingerprint(info)

    def encode_blocks(self, blocks: Blocks, services: GistServices) -> Gists:
        """Encode and count the time."""
        start = perf_counter()
        try:
            return self._encoder.encode_blocks(blocks, services)
        finally:
            self.seconds += perf_counter() - start

    def encode_gists(self, lod: int, children: Gists, services: GistServices) -> Gists:
        """Encode and count the time."""
        start = perf_counter()
        try:
            return self._encoder.encode_gists(lod, children, services)
        finally:
            self.seconds += perf_counter() - start
