"""Whole books: the history is everything before a cut, as a memory would hold it.

Everything but the newest 96 tokens is gists, by the fewest nodes that tile it, up to whatever level
the length has; and a second time as a session with `w_max` rows lays it out when it has taken it
in and nothing was asked yet. Each is compared with the newest raw tokens that cost as many rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_gistnet.evaluation.deployed import encode_history
from megacontext_gistnet.evaluation.recovery import Study
from megacontext_gistnet.evaluation.rows import fewest_gists, keys_of, width
from megacontext_gistnet.evaluation.substitution import RAW_TOKENS
from megacontext_gistnet.evaluation.tables import Condition, Section, against, tabulate
from megacontext_gistnet.nets.mean import BLOCK
from megacontext_sdk import MemorySession

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from megacontext_gistnet.evaluation.histories import History
    from megacontext_gistnet.evaluation.lab import Arm, Lab
    from megacontext_gistnet.evaluation.statistics import Nats
    from megacontext_gistnet.evaluation.tables import Difference
    from megacontext_sdk.contracts.arrays import Floats, Indices

__all__ = ["SHORTEST_BOOK", "fewest", "in_session", "whole_books"]

SHORTEST_BOOK = 4096
"""Tokens a text must have to count as a book here."""


@attrs.frozen(eq=False)
class _Place:
    """One book at one cut, and the rows of its history in every layout.

    Attributes:
        book: number of the book.
        cut: tokens of history, a multiple of 32.
        layouts: name of the layout -> row keys.
    """

    book: int
    cut: int
    layouts: Mapping[str, Indices]


def whole_books(lab: Lab, found: Sequence[History], n_cuts: int, w_max: int) -> Section:
    """Measure books cut at `n_cuts` places each, evenly spread, the end among them."""
    shelf = _Shelf(lab, tuple(found), n_cuts, w_max)
    places = shelf.places()
    trained = lab.adapter.info.trained_window
    full = shelf.newest("all the base can read", places, [trained] * len(places))
    drop = shelf.newest("drop", places, [RAW_TOKENS] * len(places))
    losses: dict[Condition, Nats] = {}
    for name in shelf.names:
        rows = [len(one.layouts[name]) for one in places]
        condition = Condition(f"recency{name}", shelf.slots, _spent(rows))
        losses[condition] = shelf.newest("recency", places, rows)
    for arm in (None, *lab.smallest_served()):
        for name, nll in shelf.in_gists(places, arm).items():
            rows = [len(one.layouts[name]) for one in places]
            label = "zero row" if arm is None else arm.name
            losses[Condition(label + name, shelf.slots, _spent(rows))] = nll
    study = Study(full, drop, [found[one.book].name for one in places])
    longest = max((one.cut for one in places), default=0)
    return Section(
        key="books",
        title="Whole books as gists",
        about=(
            (
                f"{len(found)} held-out books, histories of up to {longest:,} tokens, {n_cuts} "
                f"cuts each; all but the last {RAW_TOKENS} tokens before a cut as the fewest gists "
                "that tile them"
            ),
            (
                f"full: the newest {trained:,} tokens raw, all that the base can read; recency: as "
                "many raw tokens as the gists and the tail have rows"
            ),
            f"{w_max} rows: as a session with w_max={w_max} lays the history out",
        ),
        fingerprint="",
        lines=tabulate(study, losses, (), rows_of_full=trained - RAW_TOKENS),
        differences=_differences(lab, study, losses, shelf.names),
    )


def fewest(cut: int, slots: int) -> Indices:
    """Return the rows of a history whose newest 96 tokens are raw and all before them gists."""
    old = cut - RAW_TOKENS
    raw = [(0, block) for block in range(old // BLOCK, cut // BLOCK)]
    return keys_of([*fewest_gists(old), *raw], slots)


def in_session(lab: Lab, book: History, cuts: Sequence[int], w_max: int) -> list[Indices]:
    """Return the rows that a session has in view of a history after each cut.

    Args:
        lab: the base and the encoders; `mean` makes the gists, since they decide no layout.
        book: the history.
        cuts: rising lengths, multiples of 32.
        w_max: rows of the working context.
    """
    arm = lab.smallest_served()[0]
    ids = book.token_ids.astype(np.int32)
    found, start = [], 0
    with MemorySession.open(
        None,
        model=lab.adapter,
        storage="memory",
        gist=arm.encoder,
        focus="recency",
        w_max=w_max,
        gist_slots=arm.slots,
        sinks=(),
    ) as session:
        for cut in cuts:
            session.append(ids[start:cut])
            start = cut
            seen = session.focus.report().entries
            entries = [(one.lod, one.span.start // width(one.lod)) for one in seen]
            found.append(keys_of(entries, arm.slots))
    return found


@attrs.frozen(eq=False)
class _Shelf:
    """Books, where they are cut, and how each place is read."""

    lab: Lab
    books: tuple[History, ...]
    n_cuts: int
    w_max: int

    @property
    def slots(self) -> int:
        """S, the fewest there are."""
        return self.lab.smallest_served()[0].slots

    @property
    def names(self) -> tuple[str, str]:
        """What the two layouts add to the name of a condition."""
        return "", f", {self.w_max} rows"

    def places(self) -> list[_Place]:
        """Return every book with each of its cuts, in order."""
        found = []
        with self.lab.progress.stage("books, lay out", len(self.books)) as advance:
            for number, book in enumerate(self.books):
                whole = len(book.token_ids) // BLOCK
                cuts = [whole * i // self.n_cuts * BLOCK for i in range(1, self.n_cuts + 1)]
                views = in_session(self.lab, book, cuts, self.w_max)
                for cut, view in zip(cuts, views, strict=True):
                    layouts = dict(zip(self.names, (fewest(cut, self.slots), view), strict=True))
                    found.append(_Place(number, cut, layouts))
                advance(1)
        return found

    def newest(self, what: str, places: Sequence[_Place], n_rows: Sequence[int]) -> Nats:
        """Return the nats of the counted tokens behind as many raw tokens as there are rows."""
        found = []
        with self.lab.progress.stage(f"books, {what}", len(places)) as advance:
            for place, rows in zip(places, n_rows, strict=True):
                found.append(self._read(place, np.arange(max(0, place.cut - rows), place.cut), {}))
                advance(1)
        return np.concatenate(found)

    def in_gists(self, places: Sequence[_Place], arm: Arm | None) -> dict[str, Nats]:
        """Return the nats behind gists in every layout; without an encoder all rows are zeros."""
        found: dict[str, list[Nats]] = {name: [] for name in self.names}
        label = "zero rows" if arm is None else arm.label
        with self.lab.progress.stage(f"books, {label}", len(places)) as advance:
            for number, book in enumerate(self.books):
                gists = self._gists(arm, book)
                for place in (one for one in places if one.book == number):
                    for name, nll in found.items():
                        nll.append(self._read(place, place.layouts[name], gists))
                    advance(1)
        return {name: np.concatenate(nll) for name, nll in found.items()}

    def _gists(self, arm: Arm | None, book: History) -> dict[int, Floats]:
        """Return a whole book's gists, once for all its cuts: a gist knows nothing behind it."""
        n_tokens = len(book.token_ids)
        top = max(lod for lod, _ in fewest_gists(n_tokens // BLOCK * BLOCK))
        if arm is None:
            shape = (self.slots, self.lab.adapter.info.hidden_size)
            return {
                lod: np.zeros((1, n_tokens // width(lod), *shape), np.float32)
                for lod in range(1, top + 1)
            }
        ids = book.token_ids.astype(np.int32)
        made = encode_history(arm.encoder, self.lab.adapter, ids, top=top, dtype=self.lab.dtype)
        return {lod: rows[None] for lod, rows in made.items()}

    def _read(self, place: _Place, keys: Indices, gists: dict[int, Floats]) -> Nats:
        scored = np.arange(place.cut - RAW_TOKENS + 1, place.cut)
        ids = self.books[place.book].token_ids[None, : place.cut]
        return self.lab.reader.losses(ids, keys, scored, gists)


def _spent(rows: Sequence[int]) -> float:
    return float(np.mean(rows)) - RAW_TOKENS


def _differences(
    lab: Lab, study: Study, losses: Mapping[Condition, Nats], names: Sequence[str]
) -> tuple[Difference, ...]:
    """Return every encoder against `mean` and against recency, in each layout."""
    found: list[Difference] = []
    for name in names:
        encoders = [one.name + name for one in lab.smallest_served()]
        found += lab.differences(study, losses, name)
        found += against(study, losses, encoders, f"recency{name}")
    return tuple(found)
