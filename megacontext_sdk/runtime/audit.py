"""The audit: how far the served window is from an exact recomputation of the same layout.

Compares next-token distributions on the newest rows, teacher-forced: once as the window serves
them, once in a fresh window computed from scratch. The served window is left as it was.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.results import Audit
from megacontext_sdk.runtime import trace
from megacontext_sdk.runtime.pager import Pager

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Floats
    from megacontext_sdk.runtime.state import SessionState

__all__ = ["audit_window", "kl_nats"]


def audit_window(state: SessionState, n_rows: int) -> Audit:
    """Return the distance over the newest `n_rows` raw tokens of the working context.

    The window is synced with the working context first. An empty history has distance 0.
    """
    start = perf_counter()
    layout = state.wc.layout()
    if not layout.n_rows:
        return Audit(
            kl_mean_nats=0.0,
            kl_p95_nats=0.0,
            top1_agreement=1.0,
            n_rows=0,
            stale_rows=0,
            swaps_since_rebuild=0,
        )
    served = _served(state, layout.end, n_rows)
    exact_pager = Pager(
        state.adapter.open_window(state.pager.window.capacity),
        state.rows,
        state.scheme,
        state.adapter.info,
        mode="exact",
        cache_bytes=0,
    )
    try:
        exact_pager.sync(layout)
        exact = exact_pager.newest_logits(n_rows)
    finally:
        exact_pager.window.close()
    distance = kl_nats(served, exact)
    result = Audit(
        kl_mean_nats=float(distance.mean()),
        kl_p95_nats=float(np.quantile(distance, 0.95)),
        top1_agreement=float((served.argmax(axis=1) == exact.argmax(axis=1)).mean()),
        n_rows=len(distance),
        stale_rows=state.pager.stale_rows,
        swaps_since_rebuild=state.pager.swaps_since_rebuild,
    )
    state.last_audit_nats = result.kl_mean_nats
    trace.audit(state, result, perf_counter() - start)
    return result


def _served(state: SessionState, end: int, n_rows: int) -> Floats:
    """Return logits as served; tokens of a reply under way keep their rows."""
    aside = state.pager.set_aside(end)
    state.sync(np.zeros(0, dtype=np.int32), want_logits=False)
    served = state.pager.newest_logits(n_rows)
    state.pager.put_back(aside)
    return served


def kl_nats(served: Floats, exact: Floats) -> Floats:
    """Return KL(served || exact) of each row of logits, float64[n], in nats."""
    log_served, log_exact = _log_softmax(served), _log_softmax(exact)
    kl: Floats = (np.exp(log_served) * (log_served - log_exact)).sum(axis=1)
    return np.maximum(kl, 0.0)


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
