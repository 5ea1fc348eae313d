"""One block replaced, everything around it raw: what the tokens right behind it cost.

This is the spec's adjacent delta NLL at a horizon H that depends on the kind of text, and never to
be mixed with the one of a whole working context (`system`). How much a single block matters is
little, so the mean difference looks small for any method; R stands beside it. The other
measurement here lays raw blocks and gists in turn and compares tokens at the edges of raw blocks
with those inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_gistnet.evaluation.rows import keys_of, tokens_only
from megacontext_gistnet.evaluation.statistics import Bootstrap
from megacontext_gistnet.evaluation.tables import Condition, Section, tabulate
from megacontext_gistnet.nets.mean import BLOCK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from megacontext_gistnet.evaluation.lab import Lab, Readings
    from megacontext_gistnet.evaluation.statistics import Estimate, Nats
    from megacontext_gistnet.evaluation.windows import Windows
    from megacontext_sdk.contracts.arrays import Bools, Floats, Indices

__all__ = ["HORIZONS", "Boundary", "adjacent", "boundary"]

HORIZONS: Mapping[str, int] = {
    "story": 64,
    "dialogue": 96,
    "facts": 96,
    "code": 128,
    "text": 64,
}
"""H by kind of text."""

_EDGE = 4  # tokens counted as edge at either end of a raw block


def adjacent(readings: Readings) -> Section:
    """Measure one block replaced by its gist, on the H tokens right behind it."""
    lab, windows = readings.lab, readings.windows
    widest = max(HORIZONS[one] for one in windows.known_domains)
    losses = {Condition("zero row", 1, 1): _blank(windows, widest)}
    losses |= {Condition(a.name, a.slots, a.slots): _blank(windows, widest) for a in lab.arms}
    full, drop = _blank(windows, widest), _blank(windows, widest)
    for domain in windows.known_domains:
        chosen = np.array([one == domain for one in windows.domains])
        place = _Place(windows.n_tokens, HORIZONS[domain])
        cell = (chosen, slice(0, place.horizon))
        full[cell] = readings.full(place.scored)[chosen]
        one = _Replaced(lab, windows.of(domain), place)
        drop[cell] = one.read(f"{domain}, drop", tokens_only(place.keys(1)), {})
        n_nodes = windows.n_tokens // BLOCK
        losses[Condition("zero row", 1, 1)][cell] = one.read(
            f"{domain}, zero row", place.keys(1), one.zeros(n_nodes)
        )
        for arm in lab.arms:
            gists = {1: readings.gists(arm)[1][chosen]}
            losses[Condition(arm.name, arm.slots, arm.slots)][cell] = one.read(
                f"{domain}, {arm.label}", place.keys(arm.slots), gists
            )
    study = readings.compared(full, drop)
    horizons = ", ".join(f"{one} {HORIZONS[one]}" for one in windows.known_domains)
    return Section(
        key="adjacent",
        title="One block as a gist (adjacent)",
        about=(
            (
                "one block replaced by its LOD1 gist, all before and behind it raw; counted are "
                f"the H tokens behind it, H by domain: {horizons}"
            ),
            "drop: the block is left out; full: it is raw",
        ),
        fingerprint=windows.fingerprint,
        lines=tabulate(study, losses, windows.known_domains, rows_of_full=BLOCK),
        differences=lab.differences(study, losses),
    )


class _Place:
    """Which block is replaced in a window, so that H counted tokens just fit behind it."""

    def __init__(self, n_tokens: int, horizon: int) -> None:
        self.horizon = horizon
        self._n_blocks = n_tokens // BLOCK
        end = (n_tokens - 1 - horizon) // BLOCK * BLOCK
        self.block = end // BLOCK - 1
        self.scored: Indices = np.arange(end + 1, end + 1 + horizon)

    def keys(self, slots: int) -> Indices:
        """Return the rows of the layout."""
        entries = [(int(i == self.block), i) for i in range(self._n_blocks)]
        return keys_of(entries, slots)


@attrs.frozen(eq=False)
class _Replaced:
    """The windows of one domain, read in layouts of one place."""

    lab: Lab
    windows: Windows
    place: _Place

    def read(self, what: str, keys: Indices, gists: Mapping[int, Floats]) -> Nats:
        """Return the nats of the tokens behind the block, float64[n, H]."""
        with self.lab.progress.stage(f"adjacent, {what}", len(self.windows)) as advance:
            return self.lab.reader.losses(
                self.windows.token_ids, keys, self.place.scored, gists, advance
            )

    def zeros(self, n_nodes: int) -> dict[int, Floats]:
        """Return rows of nothing for every block."""
        width = self.lab.adapter.info.hidden_size
        return {1: np.zeros((len(self.windows), n_nodes, 1, width), np.float32)}


def _blank(windows: Windows, n: int) -> Nats:
    return np.full((len(windows), n), np.nan)


@attrs.frozen(kw_only=True)
class Boundary:
    """Delta NLL at the edges of raw blocks that stand between gists, against inside them.

    Attributes:
        encoder, slots: of the gists.
        edge: nats per token more than the full context, first and last tokens of raw blocks.
        interior: the same for tokens between.
        ratio: edge over interior; at most 2 is wanted.
    """

    encoder: str
    slots: int
    edge: Estimate
    interior: Estimate
    ratio: Estimate


def boundary(readings: Readings) -> tuple[Boundary, ...]:
    """Measure windows in which every other block is a gist, each encoder with its fewest slots."""
    windows = readings.windows
    n_blocks = windows.n_tokens // BLOCK
    raw = np.arange(1, n_blocks, 2)
    within = np.arange(1, BLOCK)
    scored = (raw[:, None] * BLOCK + within).reshape(-1)
    is_edge = np.tile((within <= _EDGE) | (within >= BLOCK - _EDGE), len(raw))
    full = readings.full(scored)
    found = []
    for arm in readings.lab.smallest():
        keys = keys_of([(1 - i % 2, i) for i in range(n_blocks)], arm.slots)
        nll = readings.read(f"boundary, {arm.label}", keys, scored, readings.gists(arm))
        found.append(_boundary(arm.name, arm.slots, nll - full, is_edge, windows))
    return tuple(found)


def _boundary(name: str, slots: int, delta: Nats, is_edge: Bools, windows: Windows) -> Boundary:
    bootstrap = Bootstrap(windows.documents)
    edge, inside = delta[:, is_edge], delta[:, ~is_edge]
    sums = edge.sum(axis=1), inside.sum(axis=1)
    sizes = np.full(len(delta), edge.shape[1]), np.full(len(delta), inside.shape[1])
    # Means per token before the ratio, since there are fewer edge tokens.
    scale = sizes[1] / sizes[0]
    return Boundary(
        encoder=name,
        slots=slots,
        edge=bootstrap.ratio(sums[0], sizes[0].astype(float)),
        interior=bootstrap.ratio(sums[1], sizes[1].astype(float)),
        ratio=bootstrap.ratio(sums[0] * scale, sums[1]),
    )
