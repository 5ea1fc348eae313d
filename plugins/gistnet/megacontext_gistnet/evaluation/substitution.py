"""Everything older than the newest tokens replaced: LOD1, LOD2, and how far the loss reaches.

Each function measures one table over one set of windows. The newest 96 tokens stay raw; the first
of them stands behind a gist row and is not counted, which leaves 95 predictions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_gistnet.evaluation.rows import gists_then_raw, width
from megacontext_gistnet.evaluation.tables import Condition, Section, tabulate
from megacontext_gistnet.nets.mean import BLOCK
from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from megacontext_gistnet.evaluation.lab import Arm, Readings
    from megacontext_gistnet.evaluation.recovery import Study
    from megacontext_gistnet.evaluation.statistics import Nats
    from megacontext_sdk.contracts.arrays import Floats, Indices

__all__ = ["RAW_TOKENS", "WINDOW_TOKENS", "counted_tail", "far_tokens", "lod1", "lod2", "reach"]

WINDOW_TOKENS = 512
"""Length of the windows of most tables."""

RAW_TOKENS = 96
"""Newest tokens that stay raw."""

LOD2_TOKENS = width(2) + RAW_TOKENS
"""Length of the windows of the LOD2 table: one LOD2 node, then the raw tokens."""

NEAR_TOKENS = 32
FAR_TOKENS = 128
FAR_DISTANCE = 512
MEAN_OF_GISTS = "mean of 32 gists"
CHILDREN = "32 LOD1 gists"


def counted_tail(n_tokens: int) -> Indices:
    """Return the indices of the counted tokens at the end of a window."""
    return np.arange(n_tokens - RAW_TOKENS + 1, n_tokens)


def lod1(readings: Readings) -> Section:
    """Measure every block but the last three replaced by its gist."""
    n_tokens = readings.windows.n_tokens
    scored, old = counted_tail(n_tokens), n_tokens - RAW_TOKENS
    n_blocks = old // BLOCK

    def laid(slots: int) -> Indices:
        return gists_then_raw(n_tokens, RAW_TOKENS, gist_slots=slots)

    study = readings.study(laid(1), scored)
    zeros = readings.zeros(1, n_blocks)
    losses = {
        Condition("zero row", 1, n_blocks): readings.read("zero rows", laid(1), scored, zeros)
    }
    for arm in readings.lab.arms:
        gists = readings.gists(arm)
        condition = Condition(arm.name, arm.slots, n_blocks * arm.slots)
        losses[condition] = readings.read(f"read, {arm.label}", laid(arm.slots), scored, gists)
    about = (
        (
            f"windows of {n_tokens} tokens, each a history of its own; all but the last "
            f"{RAW_TOKENS} replaced by their LOD1 gists; {len(scored)} tokens counted per window"
        ),
        (
            "full: all tokens raw; drop: only the last "
            f"{RAW_TOKENS}; zero row: a row of zeros for every gist"
        ),
    )
    return _section(
        readings, study, losses, "lod1", "Everything old as LOD1 gists", about, rows_of_full=old
    )


def lod2(readings: Readings) -> Section:
    """Measure 1,024 tokens replaced by one LOD2 gist, against their LOD1 gists and mean ones.

    Raises:
        ConfigError: windows of another length than 1,120 tokens.
    """
    n_tokens, old = readings.windows.n_tokens, width(2)
    if n_tokens != LOD2_TOKENS:
        message = f"windows of {n_tokens} tokens; LOD2 is measured on {LOD2_TOKENS}"
        raise ConfigError(message, field="windows", value=n_tokens)
    scored = counted_tail(n_tokens)
    one = gists_then_raw(n_tokens, RAW_TOKENS, lod=2)
    study = readings.study(one, scored)
    zeros = readings.zeros(2, 1)
    losses = {Condition("zero row", 1, 1): readings.read("zero row", one, scored, zeros)}
    for arm in readings.lab.arms:
        losses |= _parents(readings, arm, scored)
    seen = min(n_tokens, readings.lab.adapter.info.trained_window)
    about = (
        f"{old:,} tokens replaced by one LOD2 gist of S rows, then {RAW_TOKENS} raw tokens",
        f"full: the newest {seen:,} of {n_tokens:,} tokens raw"
        + ("" if seen == n_tokens else ", all that the base was trained to read at once"),
        f"{MEAN_OF_GISTS}: the mean of the encoder's own LOD1 gists, scaled to a token row",
    )
    return _section(
        readings,
        study,
        losses,
        "lod2",
        "Everything old as one LOD2 gist",
        about,
        rows_of_full=seen - RAW_TOKENS,
    )


def _parents(readings: Readings, arm: Arm, scored: Indices) -> dict[Condition, Nats]:
    """Read a LOD2 gist, the mean of its children in its place, and the children themselves."""
    n_tokens, slots = readings.windows.n_tokens, arm.slots
    one = gists_then_raw(n_tokens, RAW_TOKENS, lod=2, gist_slots=slots)
    children = gists_then_raw(n_tokens, RAW_TOKENS, gist_slots=slots)
    gists = readings.gists(arm)
    table = readings.lab.adapter.embedding_table()
    mean = {2: mean_of_gists(gists[1][:, :BLOCK], table)}
    read, label = readings.read, arm.label
    return {
        Condition(arm.name, slots, slots): read(f"LOD2, {label}", one, scored, gists),
        Condition(f"{arm.name}: {MEAN_OF_GISTS}", slots, slots): read(
            f"mean of gists, {label}", one, scored, mean
        ),
        Condition(f"{arm.name}: {CHILDREN}", slots, slots * BLOCK): read(
            f"LOD1, {label}", children, scored, gists
        ),
    }


def mean_of_gists(children: Floats, table: Floats) -> Floats:
    """Return the mean of 32 gists, slot by slot, scaled to the RMS of a token row.

    Args:
        children: float32[n, 32, S, d].
        table: embedding table, float32[vocab, d].

    Returns:
        float32[n, 1, S, d].
    """
    mean = children.mean(axis=1, keepdims=True)
    size = np.sqrt(np.square(mean).mean(axis=-1, keepdims=True))
    rho = np.sqrt(np.square(table).mean(axis=1)).mean()
    result: Floats = (mean * (rho / np.maximum(size, 1e-12))).astype(np.float32)
    return result


def far_tokens(trained_window: int) -> int:
    """Return the window length for `reach`, 0 if the base reads too few tokens for it."""
    length = min(1024, trained_window) // BLOCK * BLOCK
    return length if length >= FAR_DISTANCE + FAR_TOKENS + BLOCK else 0


def reach(readings: Readings) -> tuple[Section, Section]:
    """Measure an opening span as gists, right behind it and 512 raw tokens later."""
    n_tokens = readings.windows.n_tokens
    span = n_tokens - FAR_DISTANCE - FAR_TOKENS
    near = np.arange(span + 1, span + 1 + NEAR_TOKENS)
    far = np.arange(n_tokens - FAR_TOKENS, n_tokens)
    about = f"the first {span} tokens of windows of {n_tokens:,} as LOD1 gists, the rest raw; "
    return (
        _behind(readings, span, near, "near", about + f"the {NEAR_TOKENS} tokens right behind"),
        _behind(
            readings,
            span,
            far,
            "far",
            about + f"the {FAR_TOKENS} tokens that stand {FAR_DISTANCE} raw tokens behind",
        ),
    )


def _behind(readings: Readings, span: int, scored: Indices, key: str, about: str) -> Section:
    n_blocks = span // BLOCK
    n_read = -(-(int(scored[-1]) + 1) // BLOCK) * BLOCK  # nothing behind is fed

    def laid(slots: int) -> Indices:
        return gists_then_raw(n_read, n_read - span, gist_slots=slots)

    study = readings.study(laid(1), scored)
    zeros = readings.zeros(1, n_blocks)
    losses = {
        Condition("zero row", 1, n_blocks): readings.read(f"{key}, zero", laid(1), scored, zeros)
    }
    for arm in readings.lab.arms:
        gists, name = readings.gists(arm), f"{key}, {arm.label}"
        condition = Condition(arm.name, arm.slots, n_blocks * arm.slots)
        losses[condition] = readings.read(name, laid(arm.slots), scored, gists)
    title = "Right behind the gists" if key == "near" else "Far behind the gists"
    return _section(readings, study, losses, key, title, (about,), rows_of_full=span)


def _section(
    readings: Readings,
    study: Study,
    losses: dict[Condition, Nats],
    key: str,
    title: str,
    about: tuple[str, ...],
    *,
    rows_of_full: int,
) -> Section:
    return Section(
        key=key,
        title=title,
        about=about,
        fingerprint=readings.windows.fingerprint,
        lines=tabulate(study, losses, readings.windows.known_domains, rows_of_full=rows_of_full),
        differences=readings.lab.differences(study, losses),
    )
