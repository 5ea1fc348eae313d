"""What every measurement shares: the base, the encoders, and readings that are made once.

Full context, dropping and the gists of an encoder are the same for all tables over the same
windows, so `Readings` keeps them. It decides no layout.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import attrs
import numpy as np

from megacontext_gistnet.evaluation.deployed import STORED, encode_windows
from megacontext_gistnet.evaluation.floors import FLOORS, LAST_TOKEN
from megacontext_gistnet.evaluation.recovery import Study
from megacontext_gistnet.evaluation.rows import tokens_only
from megacontext_gistnet.evaluation.tables import against

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from megacontext_gistnet.evaluation.reader import Reader
    from megacontext_gistnet.evaluation.statistics import Nats
    from megacontext_gistnet.evaluation.tables import Condition, Difference
    from megacontext_gistnet.evaluation.windows import Windows
    from megacontext_sdk.contracts.arrays import Floats, Indices
    from megacontext_sdk.contracts.gist import GistEncoder
    from megacontext_sdk.contracts.model import ModelAdapter

__all__ = ["BASELINE", "Arm", "Lab", "Progress", "Readings", "Silent"]


BASELINE = "mean"
"""The encoder that is always there: training-free, and where learned ones start."""


class Progress(Protocol):
    """Who is told how far a measurement is."""

    def stage(self, name: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Open a stage of `total` steps; what it gives is called with steps done."""


class Silent:
    """Tells nobody."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Open a stage that nobody sees."""
        del name, total
        yield lambda _: None


@attrs.frozen(eq=False)
class Arm:
    """One encoder at one number of slots: a line of the tables.

    Attributes:
        name: of the encoder, as the user gave it.
        slots: S.
        encoder: made with S slots.
    """

    name: str
    slots: int
    encoder: GistEncoder

    @property
    def label(self) -> str:
        """Name and slots, for stages of work."""
        return f"{self.name} S={self.slots}"


@attrs.frozen(eq=False, kw_only=True)
class Lab:
    """The base, as adapter and as reader, and what is to be measured.

    Attributes:
        adapter: the model as a session has it; encoders are served by it.
        reader: the same model, reading rows in float32.
        arms: encoders, `mean` and the floors first; S rising within an encoder.
        progress: who is told.
        dtype: how gist rows are stored before they are read.
    """

    adapter: ModelAdapter
    reader: Reader
    arms: tuple[Arm, ...]
    progress: Progress = attrs.field(factory=Silent)
    dtype: str = STORED

    def smallest(self) -> tuple[Arm, ...]:
        """Return every encoder once, with the fewest slots it was asked for."""
        found: dict[str, Arm] = {}
        for arm in self.arms:
            found.setdefault(arm.name, arm)
        return tuple(found.values())

    def served(self) -> tuple[Arm, ...]:
        """Return what a session can be given: all but the floors beside `mean`."""
        return tuple(arm for arm in self.arms if arm.name not in FLOORS)

    def smallest_served(self) -> tuple[Arm, ...]:
        """Return `smallest` without the floors beside `mean`."""
        return tuple(arm for arm in self.smallest() if arm.name not in FLOORS)

    def differences(
        self, study: Study, losses: Mapping[Condition, Nats], suffix: str = ""
    ) -> tuple[Difference, ...]:
        """Return every encoder against `mean` and the last token, `mean` against rows of zeros.

        Args:
            study: the windows.
            losses: condition -> float64[n, t].
            suffix: what the names of these conditions end with.
        """
        names = [one.name + suffix for one in self.smallest()]
        floor = BASELINE + suffix
        return (
            *against(study, losses, names, floor),
            *against(study, losses, [floor], "zero row" + suffix),
            *against(study, losses, set(names) - {floor}, LAST_TOKEN + suffix),
        )


class Readings:
    """One set of windows, and what was read and encoded of it so far.

    Args:
        lab: the base and the encoders.
        windows: pieces of held-out documents.
        top: highest level of gists that tables over these windows need.
    """

    def __init__(self, lab: Lab, windows: Windows, *, top: int = 1) -> None:
        self.lab = lab
        self.windows = windows
        self._top = top
        self._full: Nats | None = None
        self._gists: dict[tuple[str, int], dict[int, Floats]] = {}

    def full(self, scored: Indices) -> Nats:
        """Return the nats of tokens behind the full context, float64[n, m].

        Where windows are longer than the base was trained on, the full context is the newest
        tokens that fit: the best the base itself can do.

        Args:
            scored: int64[m], token indices.
        """
        n_tokens = self.windows.n_tokens
        room = self.lab.adapter.info.trained_window - (self.lab.reader.sink is not None)
        first = max(0, n_tokens - room)
        if self._full is None:
            behind = np.arange(first + 1, n_tokens)
            found = np.full(self.windows.token_ids.shape, np.nan)
            found[:, behind] = self.read("full context", np.arange(first, n_tokens), behind)
            self._full = found
        return self._full[:, scored]

    def gists(self, arm: Arm) -> dict[int, Floats]:
        """Return an encoder's gists of the windows as served, level -> float32[n, nodes, S, d]."""
        key = arm.name, arm.slots
        if key not in self._gists:
            with self.lab.progress.stage(f"encode, {arm.label}", len(self.windows)) as advance:
                self._gists[key] = encode_windows(
                    arm.encoder,
                    self.lab.adapter,
                    self.windows,
                    top=self._top,
                    dtype=self.lab.dtype,
                    advance=advance,
                )
        return self._gists[key]

    def zeros(self, lod: int, n_nodes: int) -> dict[int, Floats]:
        """Return rows of nothing in place of gists, S=1."""
        shape = (len(self.windows), n_nodes, 1, self.lab.adapter.info.hidden_size)
        return {lod: np.zeros(shape, np.float32)}

    def read(
        self, what: str, keys: Indices, scored: Indices, gists: dict[int, Floats] | None = None
    ) -> Nats:
        """Return the nats of scored tokens in a layout, float64[n, m].

        Args:
            what: the stage's name.
            keys: rows of the layout.
            scored: int64[m], token indices.
            gists: level -> rows, for levels that the layout names.
        """
        with self.lab.progress.stage(what, len(self.windows)) as advance:
            return self.lab.reader.losses(
                self.windows.token_ids, keys, scored, gists or {}, advance
            )

    def study(self, keys: Indices, scored: Indices) -> Study:
        """Return the study of a layout: the full context, and its raw rows alone.

        Args:
            keys: rows of the layout with gists; dropping leaves its raw rows.
            scored: int64[m], token indices.
        """
        return self.compared(self.full(scored), self.read("drop", tokens_only(keys), scored))

    def compared(self, full: Nats, drop: Nats) -> Study:
        """Return the study of two readings of these windows."""
        windows = self.windows
        return Study(full, drop, windows.documents, seeds=windows.seeds, names=windows.domains)
