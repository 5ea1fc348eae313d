"""One evaluation from beginning to end: every table in turn, as it is ready.

It decides which windows are read for which table, and nothing about how one is measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import attrs

from megacontext_gistnet.evaluation.adjacent import Boundary, adjacent, boundary
from megacontext_gistnet.evaluation.ceiling import CeilingSettings, ceiling
from megacontext_gistnet.evaluation.histories import books, histories
from megacontext_gistnet.evaluation.lab import Readings
from megacontext_gistnet.evaluation.shape import GistShape, gist_shapes
from megacontext_gistnet.evaluation.substitution import (
    LOD2_TOKENS,
    RAW_TOKENS,
    WINDOW_TOKENS,
    far_tokens,
    lod1,
    lod2,
    reach,
)
from megacontext_gistnet.evaluation.system import continuation_tokens, system
from megacontext_gistnet.evaluation.tables import Section
from megacontext_gistnet.evaluation.wholebooks import SHORTEST_BOOK, whole_books
from megacontext_gistnet.evaluation.windows import sample_windows
from megacontext_gistnet.nets.mean import BLOCK
from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from megacontext_gistnet.corpus.documents import Document
    from megacontext_gistnet.evaluation.lab import Lab
    from megacontext_gistnet.evaluation.windows import Windows

__all__ = ["TABLES", "Item", "Settings", "Skipped", "evaluate"]

TABLES = ("lod1", "shape", "adjacent", "reach", "lod2", "books", "system", "ceiling")
"""What can be measured, in this order."""

_LONG_TOKENS = 8192


@attrs.frozen
class Skipped:
    """A table that cannot be measured here.

    Attributes:
        key: which.
        why: what is missing.
    """

    key: str
    why: str


Item: TypeAlias = Section | tuple[GistShape, ...] | tuple[Boundary, ...] | Skipped
"""What an evaluation yields."""


@attrs.frozen(kw_only=True)
class Settings:
    """How much is measured.

    Attributes:
        windows: windows of each domain and seed.
        seeds: sampling seeds, 0, 1, 2, ...
        slots: S of the encoders, of 1, 2 and 4.
        ceiling_blocks: blocks whose best vectors are searched; 0 searches none.
        ceiling: how they are.
        books: whole books at most.
        cuts: places where each is cut.
        histories: histories of each domain for sessions.
        w_max: rows of those sessions.
        tables: which tables.
    """

    windows: int = 32
    seeds: int = 3
    slots: tuple[int, ...] = (1, 2, 4)
    ceiling_blocks: int = 100
    ceiling: CeilingSettings = attrs.field(factory=CeilingSettings)
    books: int = 10
    cuts: int = 8
    histories: int = 6
    w_max: int = 512
    tables: tuple[str, ...] = TABLES

    def __attrs_post_init__(self) -> None:
        unknown = [one for one in self.tables if one not in TABLES]
        if unknown:
            message = f"there is no table {unknown[0]!r}; there are {', '.join(TABLES)}"
            raise ConfigError(message, field="tables", value=unknown[0])
        for name in ("windows", "seeds", "cuts"):
            if getattr(self, name) < 1:
                message = f"{name}={getattr(self, name)}; give at least 1"
                raise ConfigError(message, field=name, value=getattr(self, name))


def evaluate(lab: Lab, documents: Sequence[Document], settings: Settings) -> Iterator[Item]:
    """Yield every table as soon as it is measured.

    Args:
        lab: the base and the encoders.
        documents: held-out ones.
        settings: how much.

    Raises:
        ConfigError: no document is long enough for a window.
    """
    run = _Run(lab, documents, settings)
    for table in TABLES:
        if table in settings.tables:
            yield from getattr(run, table)()


class _Run:
    """The tables, over windows that several of them share."""

    def __init__(self, lab: Lab, documents: Sequence[Document], settings: Settings) -> None:
        self._lab, self._documents, self._settings = lab, documents, settings
        self._seeds = range(settings.seeds)
        self._main: Readings | None = None

    def lod1(self) -> Iterator[Item]:
        """Everything old as LOD1 gists."""
        yield lod1(self._readings())

    def shape(self) -> Iterator[Item]:
        """What gists look like, and what happens at their edges."""
        yield gist_shapes(self._readings())
        yield boundary(self._readings())

    def adjacent(self) -> Iterator[Item]:
        """One block as a gist."""
        yield adjacent(self._readings())

    def reach(self) -> Iterator[Item]:
        """Right behind gists, and far behind."""
        length = far_tokens(self._lab.adapter.info.trained_window)
        if not length:
            yield Skipped("reach", "the base reads too few tokens for a distance of 512")
            return
        yield from self._long_windows("reach", length)

    def lod2(self) -> Iterator[Item]:
        """Everything old as one LOD2 gist."""
        yield from self._long_windows("lod2", LOD2_TOKENS)

    def books(self) -> Iterator[Item]:
        """Whole books as gists."""
        found = books(self._documents, self._settings.books, SHORTEST_BOOK)
        if not found:
            yield Skipped("books", f"no held-out story has {SHORTEST_BOOK:,} tokens")
            return
        yield whole_books(self._lab, found, self._settings.cuts, self._settings.w_max)

    def system(self) -> Iterator[Item]:
        """Sessions, once where the full context fits the base, once where it does not."""
        trained, more = self._lab.adapter.info.trained_window, continuation_tokens()
        fits = (trained - more) // BLOCK * BLOCK
        for n_tokens in (fits, _LONG_TOKENS):
            wanted = self._settings.histories
            found = histories(self._documents, wanted, n_tokens + more)
            if n_tokens <= self._settings.w_max or not found:
                why = f"no held-out history of {n_tokens:,} tokens is longer than the window"
                yield Skipped(f"system-{n_tokens}", why)
                continue
            yield system(self._lab, found, n_tokens, self._settings.w_max)

    def ceiling(self) -> Iterator[Item]:
        """Vectors optimised one by one."""
        per_window = (WINDOW_TOKENS - RAW_TOKENS) // BLOCK
        n_windows = -(-self._settings.ceiling_blocks // per_window)
        if n_windows:
            few = self._readings().windows.first(n_windows)
            yield ceiling(Readings(self._lab, few), self._settings.slots, self._settings.ceiling)

    def _readings(self) -> Readings:
        """Return the windows most tables share."""
        if self._main is None:
            self._main = Readings(self._lab, self._sampled(WINDOW_TOKENS))
        return self._main

    def _long_windows(self, table: str, length: int) -> Iterator[Item]:
        if all(len(one.token_ids) < length for one in self._documents):
            yield Skipped(table, f"no held-out document has {length:,} tokens")
            return
        windows = self._sampled(length)
        if table == "lod2":
            yield lod2(Readings(self._lab, windows, top=2))
        else:
            yield from reach(Readings(self._lab, windows))

    def _sampled(self, length: int) -> Windows:
        settings = self._settings
        return sample_windows(self._documents, settings.windows, length=length, seeds=self._seeds)
