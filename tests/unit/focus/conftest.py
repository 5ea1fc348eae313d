"""Working contexts in stated layouts, for the focus tests."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from megacontext_sdk.builtin.greedy import GreedyAllocator
from megacontext_sdk.contracts.focus import Budget
from megacontext_sdk.focus.entries import entries_from_nodes
from megacontext_sdk.focus.saved_layout import pack
from megacontext_sdk.focus.working_context import WorkingContext

# The budget of the golden examples: no sinks, no pins, S = 1.
GOLDEN = Budget(w_max=8192, headroom=64, sink_blocks=0)


def make_context(budget=GOLDEN, *, strict=True, allocator=None, kind=WorkingContext):
    return kind(budget, allocator=allocator or GreedyAllocator(), strict=strict)


def from_runs(runs, n_tokens, budget=GOLDEN, *, strict=True, allocator=None, kind=WorkingContext):
    """A working context from (lod, first index, end index) runs."""
    lods = np.concatenate([np.full(end - first, lod) for lod, first, end in runs])
    indices = np.concatenate([np.arange(first, end) for _, first, end in runs])
    entries = entries_from_nodes(lods, indices, n_tokens, budget.gist_slots)
    wc = make_context(budget, strict=strict, allocator=allocator, kind=kind)
    wc.restore(pack(entries, n_tokens, (), 0))
    return wc


@pytest.fixture
def context():
    return make_context


@pytest.fixture
def tiled():
    return from_runs


@pytest.fixture
def golden_budget():
    return GOLDEN


@pytest.fixture
def lod_counts():
    """Entries per level of a working context, as a plain list."""
    return lambda wc: np.bincount(wc.entries.lod).tolist()


@pytest.fixture
def nodes():
    """The (lod, index) pairs of a working context, in order."""
    return lambda wc: list(zip(wc.entries.lod.tolist(), wc.entries.index.tolist(), strict=True))


@pytest.fixture
def scored():
    """Scores for a working context from a mapping of (lod, index) to score; all others are 0."""

    def make(wc, scores):
        pairs = zip(wc.entries.lod.tolist(), wc.entries.index.tolist(), strict=True)
        return np.array([scores.get(pair, 0.0) for pair in pairs], dtype=np.float32)

    return make


@pytest.fixture
def refocus(scored):
    """Run a refocus with injected scores; return the moves of each iteration that acted."""

    def run(wc, scores, reveals=(), allocator=None, max_iterations=16):
        allocator = allocator or GreedyAllocator()
        done = []
        for _ in range(max_iterations):
            values = scored(wc, scores)
            plan = allocator.plan(wc.entries, values, reveals, wc.budget)
            wc.tick(values)
            if not plan.moves:
                break
            done.append(wc.apply(plan))
        return done

    return run


@pytest.fixture
def fields_of():
    """All entry arrays as bytes, for comparisons that see through NaN."""
    return lambda entries: {
        name: getattr(entries, name).tobytes() for name in attrs.fields_dict(type(entries))
    }
