"""A whole memory as it is served: a session with `w_max` rows over a long history.

The spec's system delta NLL, never to be mixed with the adjacent one. A real session takes the
history in, piece by piece, with its focus and its pager, and its own window reads on. What is
measured is therefore encoder, layout and kept keys and values together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_gistnet.evaluation.adjacent import HORIZONS
from megacontext_gistnet.evaluation.recovery import Study
from megacontext_gistnet.evaluation.tables import Condition, Section, tabulate
from megacontext_sdk import MemorySession
from megacontext_sdk.errors import ModelError
from megacontext_sdk.measuring import read_on

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megacontext_gistnet.evaluation.histories import History
    from megacontext_gistnet.evaluation.lab import Arm, Lab
    from megacontext_gistnet.evaluation.statistics import Nats

__all__ = ["continuation_tokens", "system"]

_PIECE = 512  # tokens of one append


def continuation_tokens() -> int:
    """Return how many tokens a history must hold behind the part that is remembered."""
    return max(HORIZONS.values()) + 1


def system(lab: Lab, found: Sequence[History], n_tokens: int, w_max: int) -> Section:
    """Measure sessions of `w_max` rows on the H tokens behind `n_tokens` of history.

    Args:
        lab: the base and the encoders.
        found: histories of `n_tokens + continuation_tokens()` tokens.
        n_tokens: length of what is remembered, a multiple of 32.
        w_max: rows of the working context.
    """
    widest = max(HORIZONS[one.domain] for one in found)
    trained = lab.adapter.info.trained_window
    is_whole = n_tokens + widest <= trained
    n_seen = n_tokens if is_whole else min(w_max, trained - widest)
    recent = 128 if w_max < 1024 else 256
    full = _raw(lab, found, n_tokens, n_seen, widest, "full" if is_whole else "recency")
    drop = _raw(lab, found, n_tokens, recent, widest, "drop")
    losses = {}
    if is_whole:
        rows = min(w_max, n_tokens)
        losses[Condition("recency", 0, rows)] = _raw(lab, found, n_tokens, rows, widest, "recency")
    for arm in lab.served():
        nll, n_rows = _served(lab, arm, found, n_tokens, w_max, widest)
        losses[Condition(arm.name, arm.slots, n_rows)] = nll
    names = [one.domain for one in found]
    study = Study(full, drop, [one.name for one in found], names=names)
    comparator = (
        f"the whole history of {n_tokens:,} tokens raw"
        if is_whole
        else f"recency, the newest {n_seen} tokens raw, since {n_tokens:,} do not fit the base"
    )
    horizons = ", ".join(f"{one} {HORIZONS[one]}" for one in dict.fromkeys(names))
    return Section(
        key=f"system-{n_tokens}",
        title=f"A session of {w_max} rows over {n_tokens:,} tokens (system)",
        about=(
            (
                f"histories taken in by a real session with w_max={w_max}; counted are the H "
                f"tokens behind them, H by domain: {horizons}"
            ),
            f"full: {comparator}; drop: the newest {recent} tokens alone",
            "rows are those of the working context, raw ones included",
        ),
        fingerprint="",
        lines=tabulate(study, losses, dict.fromkeys(names), rows_of_full=n_seen),
        differences=lab.differences(study, losses),
    )


def _raw(
    lab: Lab, found: Sequence[History], n_tokens: int, n_seen: int, widest: int, what: str
) -> Nats:
    """Return the nats of the continuations behind the newest `n_seen` tokens alone."""
    nll = np.full((len(found), widest), np.nan)
    with lab.progress.stage(f"system, {what}", len(found)) as advance:
        for row, one in enumerate(found):
            horizon = HORIZONS[one.domain]
            keys = np.arange(n_tokens - n_seen, n_tokens + horizon + 1)
            scored = np.arange(n_tokens + 1, n_tokens + horizon + 1)
            nll[row, :horizon] = lab.reader.losses(one.token_ids[None], keys, scored)
            advance(1)
    return nll


def _served(
    lab: Lab, arm: Arm, found: Sequence[History], n_tokens: int, w_max: int, widest: int
) -> tuple[Nats, float]:
    """Return the nats of the continuations as sessions serve them, and the mean number of rows."""
    nll = np.full((len(found), widest), np.nan)
    rows = []
    with lab.progress.stage(f"system, {arm.label}", len(found)) as advance:
        for row, one in enumerate(found):
            horizon = HORIZONS[one.domain]
            nll[row, :horizon], n_rows = _session(lab, arm, one, n_tokens, w_max, horizon)
            rows.append(n_rows)
            advance(1)
    return nll, float(np.mean(rows))


def _session(
    lab: Lab, arm: Arm, history: History, n_tokens: int, w_max: int, horizon: int
) -> tuple[Nats, int]:
    """Let a session remember a history, and read on in its window."""
    with MemorySession.open(
        None,
        model=lab.adapter,
        storage="memory",
        gist=arm.encoder,
        w_max=w_max,
        gist_slots=arm.slots,
        gist_dtype=lab.dtype,
        sinks=(),
    ) as session:
        ids = history.token_ids.astype(np.int32)
        for start in range(0, n_tokens, _PIECE):
            session.append(ids[start : min(n_tokens, start + _PIECE)])
        session.flush()
        nats = read_on(session, ids[n_tokens : n_tokens + horizon + 1])
        missing = session.stats().gists_provisional
        if missing:
            message = (
                f"{missing} gists of the encoder {arm.name!r} are stand-ins; a session with it "
                "cannot be measured"
            )
            raise ModelError(message, encoder=arm.name)
        return nats, session.focus.report().cost
