"""A small memory of words: one word is one token, embeddings are drawn by lot per word."""

from __future__ import annotations

import zlib

import attrs
import numpy as np
import pytest

from megacontext_sdk.builtin.greedy import GreedyAllocator
from megacontext_sdk.builtin.heuristic import HeuristicFocus
from megacontext_sdk.builtin.recency import RecencyFocus
from megacontext_sdk.contracts.focus import Budget, FocusQuery
from megacontext_sdk.focus.refocus import Refocuser
from megacontext_sdk.focus.view import EMPTY_QUERY, ViewBuilder
from megacontext_sdk.focus.working_context import WorkingContext
from megacontext_sdk.memory.lexical import LexicalIndex, LexicalRow
from megacontext_sdk.memory.lod import BLOCK_SIZE, Span, width

VOCAB, WIDTH = 4096, 24
TABLE = np.random.default_rng(0).normal(size=(VOCAB, WIDTH)).astype(np.float32)


def ids_of(text):
    return np.array([zlib.crc32(word.encode()) % VOCAB for word in text.split()], np.int32)


class WordMemory:
    """History, index, working context and refocus loop over plain words.

    `horizon` hides everything behind a token index from all reads, as if it were not there yet.
    """

    def __init__(self, w_max=600, policy=None, **rules):
        self.words = []
        self.spans = []
        self.horizon = None
        self.index = LexicalIndex(None)
        self.index.open()
        rules = {"recent_tokens": 64, "headroom": 32} | rules
        self.wc = WorkingContext(
            Budget(w_max=w_max, **rules), allocator=GreedyAllocator(), strict=True
        )
        self.policy = policy or HeuristicFocus()
        self.views = ViewBuilder(self, self, self.index, lambda ids: TABLE[ids], WIDTH)
        self.loop = Refocuser(
            self.wc, self.policy, RecencyFocus(), GreedyAllocator(), self.views, self
        )
        self.moves = []

    @property
    def n_tokens(self):
        return len(self.words) if self.horizon is None else self.horizon

    @property
    def n_blocks(self):
        return self.n_tokens // BLOCK_SIZE

    def tell(self, text):
        """Append a message; return its span."""
        words = text.split()
        span = Span(len(self.words), len(self.words) + len(words))
        self.words += words
        self.index.add([LexicalRow(span.start, span.end, text)])
        self.spans.append(span)
        return span

    def lay_out(self):
        self.wc.lay_out(self.n_tokens)

    def query(self, text, start=None):
        return FocusQuery(
            turn_ids=ids_of(text),
            turn_text=text,
            recent_ids=np.empty(0, np.int32),
            recent_text="",
            turn_start=start,
        )

    def view(self, query=EMPTY_QUERY):
        return self.views.view(self.views.scope(query), self.wc.entries, self.wc.budget, 0)

    def ask(self, text, max_iterations=16):
        """Append a turn and refocus on it."""
        span = self.tell(text)
        self.wc.extend(self.n_tokens)
        return self.loop.run(
            self.query(text, span.start), max_iterations=max_iterations, trigger="turn"
        )

    def go_on(self, text):
        """Append generated text and refocus once per block, as steady decode does."""
        for word in text.split():
            self.words.append(word)
            self.wc.extend(self.n_tokens)
            if len(self.words) % BLOCK_SIZE == 0:
                recent = " ".join(self.words[-64:])
                query = attrs.evolve(EMPTY_QUERY, recent_text=recent, recent_ids=ids_of(recent))
                self.loop.run(query, max_iterations=1, trigger="block")

    def is_raw(self, span):
        """Tell whether every block of a span is at LOD0."""
        entries = self.wc.entries
        at = np.searchsorted(entries.start, [b * BLOCK_SIZE for b in span.blocks()], "right") - 1
        return bool((entries.lod[at] == 0).all())

    # -- reads of a tree

    def gists(self, lod, indices):
        size = width(lod)
        assert all((i + 1) * size <= self.n_tokens for i in indices)
        return np.stack(
            [
                TABLE[ids_of(" ".join(self.words[i * size : (i + 1) * size]))].mean(0)
                for i in indices
            ]
        )[:, None]

    def precision(self, blocks):
        assert all((b + 1) * BLOCK_SIZE <= self.n_tokens for b in blocks)
        return np.array(
            [
                sum(w.isdigit() for w in self.words[b * BLOCK_SIZE : (b + 1) * BLOCK_SIZE])
                for b in blocks
            ],
            np.float32,
        )

    def token_ids_of_blocks(self, blocks):
        return np.stack(
            [ids_of(" ".join(self.words[b * BLOCK_SIZE : (b + 1) * BLOCK_SIZE])) for b in blocks]
        )

    def serving(self, lods, indices):
        return np.zeros(len(indices), np.int16), np.zeros(len(indices), bool)

    def tail_gists(self):
        return np.full((6, WIDTH), np.nan, np.float32)

    def note_moves(self, moves):
        self.moves += moves


def filler(seed, n_words, vocabulary=300, prefix="f"):
    rng = np.random.default_rng(seed)
    return " ".join(f"{prefix}{i}" for i in rng.integers(0, vocabulary, n_words))


@pytest.fixture
def memory():
    return WordMemory


@pytest.fixture
def chatter():
    return filler
