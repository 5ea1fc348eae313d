"""The price of a swap: against recomputing the window, and in distance from an exact window."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk import MemorySession
from megacontext_sdk.runtime.pager import Pager
from megacontext_sdk.runtime.state import SPARE_ROWS
from tests.benchmarks.figures import measured
from tests.benchmarks.timing import in_turn, seconds, spread
from tests.benchmarks.workshop import W_MAX, append_texts

if TYPE_CHECKING:
    from megacontext_sdk.contracts.positions import Layout
    from megacontext_sdk.runtime.state import SessionState
    from tests.benchmarks.figures import Figure
    from tests.benchmarks.workshop import Workshop

__all__ = ["audit_kl", "swap_vs_recompute"]


def swap_vs_recompute(workshop: Workshop) -> list[Figure]:
    """Time to recompute a window of W rows over time to expand one block in it, nothing cached."""
    return [_swap_at(workshop, rows) for rows in workshop.scale.windows]


def _swap_at(workshop: Workshop, rows: int) -> Figure:
    # A fresh layout leaves the headroom of 64 rows free; the swap takes 31 of them.
    with MemorySession.open(
        None, model=workshop.random, storage="memory", w_max=rows + 33
    ) as session:
        append_texts(session, 12 * rows)
        state = session._parts.state
        state.wc.lay_out(state.wc.n_tokens)
        layout = state.wc.layout()
        bench = _SwapBench(state, layout)
        swaps, recomputes = in_turn(max(3 * workshop.scale.rounds, 1), bench.swap, bench.recompute)
    workshop.notes.append(
        f"swap at {bench.n_rows} rows: {spread([1e3 * t for t in swaps])} ms with "
        f"{bench.n_computed} rows computed; recompute {spread([1e3 * t for t in recomputes])} ms"
    )
    return measured(
        f"swap_vs_recompute_{rows}",
        median(b / a for a, b in zip(swaps, recomputes, strict=True)),
        f"recompute of {bench.n_rows} rows, {1e3 * median(recomputes):.1f} ms; "
        f"swap {1e3 * median(swaps):.2f} ms",
    )


class _SwapBench:
    """A window over a layout, and layouts with one LOD1 entry more in full.

    Args:
        state: of a session; its own pager is not used.
        layout: has LOD1 entries.
    """

    def __init__(self, state: SessionState, layout: Layout) -> None:
        self._base = layout
        self._places = np.flatnonzero(layout.lod == 1)
        self._turn = 0
        self._pager = Pager(
            state.adapter.open_window(layout.n_rows + 32 + SPARE_ROWS),
            state.rows,
            state.scheme,
            state.adapter.info,
            mode="seam",
            cache_bytes=0,
        )
        self.n_rows = layout.n_rows + 31
        self.n_computed = 0

    def _next(self) -> Layout:
        """Return the layout with the next entry expanded; places spread over the window."""
        self._turn += 1
        share = (0.5 + self._turn * 0.6180339887) % 1
        return expanded(self._base, int(self._places[int(share * len(self._places))]))

    def swap(self) -> float:
        """Expand one block in a window that is in line."""
        self._pager.sync(self._base, rebuild=True)
        layout = self._next()
        took = seconds(lambda: self._pager.sync(layout))
        self._pager.sync(self._base)
        report, _ = self._pager.sync(layout)
        self.n_computed = report.rows_recomputed
        return took

    def recompute(self) -> float:
        """Compute the same number of rows from nothing."""
        layout = self._next()
        return seconds(lambda: self._pager.sync(layout, rebuild=True))


def expanded(layout: Layout, at: int) -> Layout:
    """Return a layout with one LOD1 entry shown in full."""
    lod, cost = layout.lod.copy(), layout.cost.copy()
    lod[at], cost[at] = 0, 32
    return attrs.evolve(layout, lod=lod, cost=cost, epoch=layout.epoch + 1)


def audit_kl(workshop: Workshop) -> list[Figure]:
    """Distance of the served window from an exact one, after so many swaps without any rebuild."""
    worst = 0.0
    curve: dict[float, float] = {}
    with MemorySession.open(
        None,
        model=workshop.endless,
        storage="memory",
        w_max=W_MAX,
        rebuild_after_swaps=1000,
        rebuild_stale_ratio=1.0,
    ) as session:
        append_texts(session, workshop.scale.decode_history)
        state = session._parts.state
        state.sync(np.zeros(0, np.int32), want_logits=False, rebuild=True)
        rng = np.random.default_rng(0)
        for n_swaps in workshop.scale.audit_swaps:
            while state.pager.swaps_since_rebuild < n_swaps:
                _swap_at_random(session, rng)
            found = session.audit(64)
            curve[found.swaps_since_rebuild] = found.kl_mean_nats
            worst = max(worst, found.kl_mean_nats)
    workshop.curves["audit KL against swaps"] = curve
    workshop.notes.append(
        "audit KL by swaps since rebuild (seam): "
        + ", ".join(f"{n}: {kl:.5f}" for n, kl in curve.items())
    )
    return [
        measured(
            "audit_kl",
            worst,
            f"an exact window; mean over 64 newest rows after up to {max(curve)} swaps",
        )
    ]


def _swap_at_random(session: MemorySession, rng: np.random.Generator) -> None:
    """Show one block in full and another one as a gist, and bring the window in line."""
    state = session._parts.state
    entries = state.wc.entries
    raw = np.flatnonzero((entries.lod == 0) & ~entries.protected)
    if len(raw):
        at = int(rng.choice(raw))
        start = int(entries.start[at])
        session.focus.collapse((start, start + 32))
    entries = state.wc.entries
    gists = np.flatnonzero(entries.lod == 1)
    start = int(entries.start[rng.choice(gists)])
    session.focus.expand((start, start + 32))
    state.sync(np.zeros(0, np.int32), want_logits=False)
