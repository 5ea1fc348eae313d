"""Pieces of what is about to be forgotten, few and evenly spread, and who may still hold them.

Taken before a forget and kept in memory only, so that afterwards every byte on disk can be searched
for them. A piece that turns up is innocent if a row that was kept says the same: a quotation.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.memory.chain import FLAG_CONTINUES, encode_ids
from megacontext_sdk.memory.directory.replay import touched_nodes
from megacontext_sdk.memory.forget.scan import MIN_NEEDLE_BYTES, NeedleFinder
from megacontext_sdk.memory.lod import BLOCK_SIZE
from megacontext_sdk.messages.body import decode_body

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bools, Ids, Indices
    from megacontext_sdk.contracts.storage import Storage
    from megacontext_sdk.memory.directory.replay import Redaction
    from megacontext_sdk.memory.reading import JournalReader

    Anew = Callable[[int, int, Indices], dict[int, bytes]]
    """Takes version, level and nodes; returns the rows of those that had to be made anew."""

__all__ = ["Needles", "Survivors", "take_needles"]

TEXT_BYTES = 24
N_IDS = 8
ROW_BYTES = 32
MAX_TEXTS, MAX_RUNS, MAX_ROWS = 800, 800, 400
"""Needles of each kind; 2,000 together."""

_PER_MESSAGE = 8
_PER_BLOCK = 2
_MIN_DISTINCT = 4  # a row of equal bytes is found everywhere and proves nothing
_PAGE_BYTES = 2**20
_FIRST_BODIES = 64
_PAGE_ROWS = 4_096
_MAX_ECHOES = 1_000
_COMMON = 16  # found more often, a piece is a phrase and no quotation; no further place is noted


@attrs.frozen(eq=False)
class Needles:
    """What to search for.

    Attributes:
        texts: pieces of the UTF-8 text of bodies.
        runs: eight ids in a row, as they are stored.
        rows: pieces of gist rows.
        unscannable: messages of which no piece could be taken; they are too short.
    """

    texts: tuple[bytes, ...]
    runs: tuple[bytes, ...]
    rows: tuple[bytes, ...]
    unscannable: int

    @property
    def all(self) -> tuple[bytes, ...]:
        """Every needle: texts, runs, rows."""
        return (*self.texts, *self.runs, *self.rows)

    def only(self, chosen: Bools) -> Needles:
        """Return the chosen ones, bool[n] in the order of `all`."""
        kept = iter(chosen.tolist())
        return Needles(
            tuple(needle for needle in self.texts if next(kept)),
            tuple(needle for needle in self.runs if next(kept)),
            tuple(needle for needle in self.rows if next(kept)),
            self.unscannable,
        )


def take_needles(
    journal: JournalReader,
    storage: Storage,
    redaction: Redaction,
    token_bytes: int,
    *,
    reach: int = 0,
) -> Needles:
    """Return pieces of what a redaction takes away.

    Args:
        journal: the memory, flushed.
        storage: its store.
        redaction: what will be taken away.
        token_bytes: 2 or 4.
        reach: how many tokens left of a block its gist may have seen.

    Raises:
        CorruptError: a damaged body.
    """
    texts, unscannable = _texts(journal, redaction)
    return Needles(
        _sharp(texts),
        _sharp(_runs(journal, redaction, token_bytes)),
        _sharp(_rows(storage, redaction, journal.n_tokens, reach)),
        unscannable,
    )


def _sharp(pieces: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return distinct pieces that say something."""
    distinct = dict.fromkeys(pieces)
    return tuple(
        piece
        for piece in distinct
        if len(piece) >= MIN_NEEDLE_BYTES and len(set(piece)) >= _MIN_DISTINCT
    )


def _even(n: int, at_most: int) -> Indices:
    """Return up to so many of `[0, n)`, evenly spread, ascending."""
    spread = np.linspace(0, n - 1, min(n, at_most)) if n else np.empty(0)
    return spread.astype(np.int64)


# --- taking ------------------------------------------------------------------------------------


def _texts(journal: JournalReader, redaction: Redaction) -> tuple[list[bytes], int]:
    """Return pieces of texts, and how many messages are too short to give any."""
    numbers = redaction.messages
    wanted = set(_even(len(numbers), MAX_TEXTS).tolist())
    each = min(_PER_MESSAGE, MAX_TEXTS // max(1, len(numbers))) or 1
    pieces: list[bytes] = []
    scannable: dict[int, bool] = {}
    for at, row, raw in _rows_and_bodies(journal, numbers):
        text = (decode_body(raw).text or "").encode(errors="replace")
        if text:
            is_long = len(text) >= TEXT_BYTES
        else:
            is_long = _longest_run(int(row["start"]), int(row["n_tokens"])) >= N_IDS
        number = int(numbers[at])
        head = next(reversed(scannable)) if row["flags"] & FLAG_CONTINUES and scannable else number
        scannable[head] = scannable.get(head, False) or is_long
        if text and is_long and at in wanted:
            begins = _even(len(text) - TEXT_BYTES + 1, min(each, len(text) // TEXT_BYTES))
            pieces += [text[begin : begin + TEXT_BYTES] for begin in begins.tolist()]
    return pieces, sum(not is_long for is_long in scannable.values())


def _longest_run(start: int, n_tokens: int) -> int:
    """Return how many ids of a message lie in one block at most."""
    first = min(n_tokens, BLOCK_SIZE - start % BLOCK_SIZE)
    return max(first, min(n_tokens - first, BLOCK_SIZE))


def _runs(journal: JournalReader, redaction: Redaction, token_bytes: int) -> list[bytes]:
    """Return runs of ids, each within one block: whole blocks are what a backend keeps together."""
    blocks = touched_nodes(redaction, journal.n_tokens, 0)
    n_tail = len(journal.tail)
    picked = blocks[_even(len(blocks), MAX_RUNS - 1)]
    ids = list(journal.blocks(picked)) if len(picked) else []
    if n_tail:
        picked, ids = np.append(picked, journal.n_blocks), [*ids, journal.tail]
    return [
        encode_ids(run, token_bytes)
        for block, row in zip(picked.tolist(), ids, strict=True)
        for run in _runs_of(row, _is_taken(redaction, block * BLOCK_SIZE, len(row)))
    ]


def _runs_of(ids: Ids, taken: Bools) -> Iterator[Ids]:
    n_taken = np.concatenate([[0], np.cumsum(taken)])
    whole = np.flatnonzero(n_taken[N_IDS:] - n_taken[:-N_IDS] == N_IDS)
    for begin in whole[_even(len(whole), _PER_BLOCK)].tolist():
        yield ids[begin : begin + N_IDS]


def _is_taken(redaction: Redaction, start: int, n: int) -> Bools:
    """Return bool[n]: tokens from `start` on that the redaction takes."""
    starts = np.array([span.start for span in redaction.spans], np.int64)
    ends = np.array([span.end for span in redaction.spans], np.int64)
    tokens = np.arange(start, start + n)
    at = np.searchsorted(starts, tokens, side="right") - 1
    taken: Bools = (at >= 0) & (tokens < ends[np.maximum(at, 0)])
    return taken


def _rows(storage: Storage, redaction: Redaction, n_tokens: int, reach: int) -> list[bytes]:
    """Return pieces of the gist rows that will be dropped, of every encoder and level."""
    levels = [
        (version, lod, nodes[nodes < count])
        for version, lod, count in storage.state().gist_rows
        for nodes in [touched_nodes(redaction, n_tokens, lod, reach)]
    ]
    edges = np.cumsum([0, *(len(nodes) for _version, _lod, nodes in levels)])
    wanted = _even(int(edges[-1]), MAX_ROWS)
    pieces: list[bytes] = []
    for (version, lod, nodes), (low, high) in zip(levels, pairwise(edges.tolist()), strict=True):
        picked = nodes[wanted[(wanted >= low) & (wanted < high)] - low]
        if len(picked):
            raw = storage.read_gists(version, lod, picked).rows
            at = max(0, raw.shape[1] - ROW_BYTES) // 2
            pieces += [row.tobytes() for row in raw[:, at : at + ROW_BYTES]]
    return pieces


def _rows_and_bodies(
    journal: JournalReader, numbers: Indices
) -> Iterator[tuple[int, np.void, bytes]]:
    """Yield the place in `numbers`, the row and the body of messages; reads what fits in memory."""
    at, n_page = 0, _FIRST_BODIES
    while at < len(numbers):
        page = numbers[at : at + n_page]
        first = int(page[0])
        page = page[page < first + _PAGE_ROWS]
        rows = journal.messages(first, int(page[-1]) + 1)[page - first]
        bodies = journal.bodies(page)
        yield from zip(range(at, at + len(page)), rows, bodies, strict=True)
        at += len(page)
        n_page = _page_length(bodies)


def _page_length(bodies: Sequence[bytes]) -> int:
    """Return how many bodies to read next, judging by the last ones."""
    mean = sum(map(len, bodies)) // max(1, len(bodies)) + 1
    return max(1, min(_PAGE_BYTES // mean, _PAGE_ROWS))


# --- explaining --------------------------------------------------------------------------------


class _Search:
    """A search for needles in one page after the other, until each was found often enough."""

    def __init__(self, needles: Sequence[bytes]) -> None:
        self._lengths = np.array([len(needle) for needle in needles], np.int64)
        self._finder = NeedleFinder(needles)
        self._counts = np.zeros(len(needles), np.int64)
        self.refused = np.zeros(len(needles), np.bool_)

    @property
    def found(self) -> Bools:
        """Needles that were found, bool[n]."""
        return self._counts > 0

    @property
    def goes_on(self) -> bool:
        """Some needle is still looked for."""
        return bool((self._counts < _COMMON).any())

    def find(
        self,
        page: NDArray[np.uint8],
        ends: Indices | None = None,
        allowed: Callable[[Indices], Bools] | None = None,
    ) -> Indices:
        """Return where needles begin in a page; not across the ends of its pieces, if given.

        What begins where it is not allowed is not counted: the needle is refused.
        """
        owners, begins = self._finder.find(page)
        if allowed is not None and len(begins):
            may = allowed(begins)
            self.refused[owners[~may]] = True
            owners, begins = owners[may], begins[may]
        if ends is not None and len(begins):
            whole = begins + self._lengths[owners] <= ends[np.searchsorted(ends, begins, "right")]
            owners, begins = owners[whole], begins[whole]
        before = self._counts < _COMMON
        np.add.at(self._counts, owners, 1)
        after = self._counts < _COMMON
        if (before != after).any():
            self._finder.restrict(after)
        return begins


class Survivors:
    """Looks for needles in the rows a memory still has.

    Args:
        journal: the memory after the forget.
        storage: its store.
        token_bytes: 2 or 4.
        anew: what gist rows must be; None takes them as they are.

    Attributes:
        echoes: numbers of the rows of messages that quote a needle.
        n_stale: needles that stand in gist rows which had to be made anew, and were not.
    """

    def __init__(
        self,
        journal: JournalReader,
        storage: Storage,
        token_bytes: int,
        anew: Anew = lambda _version, _lod, _nodes: {},
    ) -> None:
        self._journal = journal
        self._storage = storage
        self._token_bytes = token_bytes
        self._anew = anew
        self.echoes: set[int] = set()
        self.n_stale = 0

    def explain(self, needles: Needles) -> Bools:
        """Return which needles stand in a row that was kept, bool[n] in the order of `all`."""
        return np.concatenate(
            [
                self._in_bodies(needles.texts),
                self._in_blocks(needles.runs),
                self._in_gists(needles.rows),
            ]
        )

    def _in_bodies(self, needles: Sequence[bytes]) -> Bools:
        search = _Search(needles)
        at, n_page = 0, _FIRST_BODIES
        while search.goes_on and at < self._journal.n_messages:
            numbers = np.arange(at, min(at + n_page, self._journal.n_messages))
            bodies = self._journal.bodies(numbers)
            ends = np.cumsum([len(body) for body in bodies])
            begins = search.find(np.frombuffer(b"".join(bodies), np.uint8), ends)
            self._note(numbers[np.searchsorted(ends, begins, side="right")])
            at, n_page = at + len(numbers), _page_length(bodies)
        return search.found

    def _in_blocks(self, needles: Sequence[bytes]) -> Bools:
        search = _Search(needles)
        n_blocks = self._journal.n_blocks
        step = _PAGE_BYTES // (BLOCK_SIZE * self._token_bytes)
        for at in range(0, n_blocks + 1, step):
            if not search.goes_on:
                break
            # One block more than the step: runs may lie across.
            ids = self._journal.blocks(np.arange(at, min(at + step + 1, n_blocks))).reshape(-1)
            if at + step >= n_blocks:
                ids = np.concatenate([ids, self._journal.tail])
            raw = np.frombuffer(encode_ids(ids, self._token_bytes), np.uint8)
            tokens = np.unique(at * BLOCK_SIZE + search.find(raw) // self._token_bytes)
            if len(tokens):
                self._note(self._owners(tokens))
        found = search.found
        for number in np.flatnonzero(~found).tolist():
            found[number] = self._stands_across(needles[number], step)
        return found

    def _stands_across(self, run: bytes, step: int) -> bool:
        """Tell whether one block that was kept ends as a run begins, and another begins as it ends.

        A backend may lay blocks side by side in any order. No run was cut that way: each comes from
        one block, so a block that was left behind shows runs that nothing explains.
        """
        cuts = range(self._token_bytes, len(run), self._token_bytes)
        ends, begins = dict.fromkeys(cuts, False), dict.fromkeys(cuts, False)
        tail = encode_ids(self._journal.tail, self._token_bytes)
        for at in range(0, self._journal.n_blocks + 1, step):
            ids = self._journal.blocks(np.arange(at, min(at + step, self._journal.n_blocks)))
            rows = np.frombuffer(encode_ids(ids, self._token_bytes), np.uint8)
            rows = rows.reshape(len(ids), BLOCK_SIZE * self._token_bytes)
            for cut in cuts:
                head, rest = (np.frombuffer(part, np.uint8) for part in (run[:cut], run[cut:]))
                ends[cut] |= bool((rows[:, -cut:] == head).all(axis=1).any())
                begins[cut] |= bool((rows[:, : len(rest)] == rest).all(axis=1).any())
        return any(
            (ends[cut] or tail.endswith(run[:cut])) and (begins[cut] or tail.startswith(run[cut:]))
            for cut in cuts
        )

    def _owners(self, tokens: Indices) -> Indices:
        """Return the rows of messages that own tokens, which ascend."""
        first, last = (self._journal.message_at(int(token)) for token in tokens[[0, -1]])
        starts = self._journal.messages(first, last + 1)["start"].astype(np.int64)
        return first + np.searchsorted(starts, tokens, side="right") - 1

    def _in_gists(self, needles: Sequence[bytes]) -> Bools:
        search = _Search(needles)
        step = 256
        for version, lod, count in self._storage.state().gist_rows:
            at = 0
            while search.goes_on and at < count:
                nodes = np.arange(at, min(at + step, count))
                rows: NDArray[np.uint8] = self._storage.read_gists(version, lod, nodes).rows
                allowed = partial(self._is_due, version, lod, at, rows)
                search.find(np.ascontiguousarray(rows).reshape(-1), allowed=allowed)
                at += len(nodes)
                step = max(1, _PAGE_BYTES // max(1, rows.shape[1]))
        self.n_stale += int(search.refused.sum())
        return search.found & ~search.refused

    def _is_due(
        self, version: int, lod: int, first: int, rows: NDArray[np.uint8], begins: Indices
    ) -> Bools:
        """Tell of places in rows from node `first` on whether a row made anew says the same there.

        It often does: far above a short message, rounding leaves most numbers as they were.
        """
        numbers, places = np.divmod(begins, rows.shape[1])
        anew = self._anew(version, lod, np.unique(first + numbers))
        due = np.ones(len(begins), np.bool_)
        for i, (number, place) in enumerate(zip(numbers.tolist(), places.tolist(), strict=True)):
            if (row := anew.get(first + number)) is not None:
                piece = slice(place, place + ROW_BYTES)
                due[i] = row[piece] == rows[number, piece].tobytes()
        return due

    def _note(self, numbers: Indices) -> None:
        """Note rows that quote, as the messages they belong to; a thousand are enough."""
        for number in np.unique(numbers).tolist():
            if len(self.echoes) >= _MAX_ECHOES:
                return
            self.echoes.add(int(number))
