"""The lexical index: which messages share rare words with a query.

An inverted index in SQLite FTS5, one row per message, long ones in pieces of about 128 tokens. It
is a rebuildable view of the text, never the truth: a damaged file is thrown away (`was_reset`),
and whoever owns the text adds again what lies behind `end`. Stores no text: only which row holds
which term (contentless, `detail=none`), about one byte per token. FTS5's own `bm25()` needs the
text in such a table, so the ranking is computed here, from document frequencies.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import attrs
import numpy as np

from megacontext_sdk.contracts.focus import LexicalHits
from megacontext_sdk.memory import bm25
from megacontext_sdk.memory.lod import BLOCK_SIZE
from megacontext_sdk.memory.terms import named, query_terms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Indices
    from megacontext_sdk.memory.lod import Span
    from megacontext_sdk.memory.terms import Term

__all__ = ["LexicalIndex", "LexicalRow"]

FORMAT = 2
"""Version of the tables below; another one found on disk is discarded and built again."""

PROBE = 32
"""Postings read of every term to learn how rare it is."""

POSTINGS_PER_TURN = 4096
"""Postings read for the user's turn, rarest terms first: bounds the cost for any history."""

POSTINGS_PER_BLOCK = 1024
"""The same while decoding, when there is no new turn and a query runs every 32 tokens."""

COMMON_SHARE = 0.2
"""Terms in more than this share of all rows say nothing and are ignored ..."""

COMMON_FLOOR = 16
"""... unless they are in fewer rows than this, as every term of a short history is."""

NAME_WEIGHT = 3.0
"""Weight of a name in the turn: it says whom the question is about, other words only what about."""

TYPICAL_TOKENS = 64.0
"""Length of a row whose score is taken as it is; longer ones match more words by chance ..."""

LENGTH_SHARE = 0.25
"""... and this share of their excess length is divided out (BM25's b)."""

RECENT_WEIGHT = 0.5
"""Weight of terms that stand only in the recently generated text."""

LOCK_SECONDS = 0.25
"""How long to wait for another process that holds the file before going on without it."""

_CANDIDATES = 4
"""Rows per row asked for whose length is looked up, so that a short one can pass long ones."""

_DAMAGE = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
"""Primary error codes that mean the file itself is no good, not the disk or a lock."""

_SCHEMA = (
    """CREATE VIRTUAL TABLE terms USING fts5(
        text, content='', detail='none', columnsize=0,
        tokenize='porter unicode61 remove_diacritics 2')""",
    """CREATE TABLE spans (
        id INTEGER PRIMARY KEY, start INTEGER NOT NULL, n_tokens INTEGER NOT NULL)""",
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID",
)

_T = TypeVar("_T")


@attrs.frozen
class LexicalRow:
    """What is indexed: a message, or a piece of a long one.

    Attributes:
        start, end: token span of the row.
        text: its text.
    """

    start: int
    end: int
    text: str


@attrs.frozen(eq=False)
class _Postings:
    """Rows that hold a term, newest first, and in how many rows it stands altogether."""

    term: Term
    rows: Indices
    n_with_term: float
    is_complete: bool


class LexicalIndex:
    """Ranks messages by rare words they share with a text; see the module for what it is not.

    Rows are numbered from 1 in the order they were added. Safe to share between threads.

    Args:
        path: the SQLite file, or None to keep the index in memory.
        identity: whose text this is (the memory's root, say); a file of another one is discarded.

    Example:
        >>> index = LexicalIndex(None)
        >>> index.open()
        >>> index.add([LexicalRow(0, 9, "Anna lives in Oslo"), LexicalRow(9, 14, "I see")])
        >>> index.search("Where does Anna live?", 1).end.tolist()
        [9]
    """

    def __init__(self, path: Path | None, *, identity: bytes = b"") -> None:
        self._path = path
        self._identity = identity
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._n_rows = 0
        self._end = 0
        self._n_failures = 0
        self._is_behind = False
        self.was_reset = False

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self._n_rows

    @property
    def end(self) -> int:
        """Token index up to which text is indexed."""
        return self._end

    @property
    def n_bytes(self) -> int:
        """Size of the index in bytes."""
        return self._guarded(self._read_size, 0)

    def open(self) -> None:
        """Open or create the index; what cannot be used is discarded and `was_reset` is set."""
        with self._lock:
            if self._db is not None:
                return
            self._open_or_discard()

    def add(self, rows: Sequence[LexicalRow], *, covers: Span | None = None) -> None:
        """Index rows, in one transaction.

        If the file turns out to be damaged or the disk full, the index starts anew, and takes no
        rows that would leave a hole: while `end` is behind the history, add what is missing.

        Args:
            rows: in order of their spans, behind what is indexed already.
            covers: tokens they stand for, if not all of these have a row (forgotten ones).
        """
        if covers is None and not rows:
            return
        start, end = covers or (rows[0].start, rows[-1].end)
        with self._lock:
            self.open()
            if self._is_behind and start > self._end:
                return
            self._guarded(lambda db: self._insert(db, rows, end), None)

    def expect_rows(self) -> None:
        """Say that the history goes on behind `end`: until that is added, nothing further is."""
        self.was_reset = self._is_behind = True

    def search(self, query: str | Mapping[str, float], k: int) -> LexicalHits:
        """Return the k best rows by their own score alone.

        Args:
            query: a text, or words with weights.
            k: how many rows at most.
        """
        words = query if isinstance(query, Mapping) else {query: 1.0}
        weights = {term: weight for word, weight in words.items() for term in query_terms(word)}
        hits = self._rank(weights, k, POSTINGS_PER_TURN, n_rows=self._n_rows, is_smoothed=False)
        if len(hits):
            return hits
        # Nothing but words that most messages hold: newest first is better than no answer.
        return self._rank(
            weights, k, POSTINGS_PER_TURN, n_rows=self._n_rows, is_smoothed=False, share=1.0
        )

    def query(
        self,
        turn_text: str,
        recent_text: str,
        n_blocks: int,
        limit: int = 64,
        *,
        before: int | None = None,
    ) -> LexicalHits:
        """Return the rows that bear on a turn and on what was generated last, best first.

        A row's score is the sum of the idf of the query terms in it, 1 for terms of the turn and
        1/2 for those of the recent text alone; neighbouring rows share their scores.

        Args:
            turn_text: the pending user turn, or "".
            recent_text: the last generated text, or "".
            n_blocks: full blocks of the history; rows that begin behind them are left out.
            limit: how many rows at most.
            before: leave out rows that begin at this token or later: the pending turn itself is
                in the history already and would match itself best.
        """
        weights = dict.fromkeys(query_terms(recent_text), RECENT_WEIGHT)
        names = named(turn_text)
        weights |= {
            term: NAME_WEIGHT if names.intersection(term) else 1.0
            for term in query_terms(turn_text)
        }
        is_turn = bool(turn_text) and not recent_text
        budget = POSTINGS_PER_TURN if is_turn else POSTINGS_PER_BLOCK
        stop = n_blocks * BLOCK_SIZE if before is None else min(before, n_blocks * BLOCK_SIZE)
        n_rows = self._guarded(lambda db: self._count_rows_before(db, stop), 0)
        return self._rank(weights, limit, budget, n_rows=n_rows, is_smoothed=True)

    def clear(self) -> None:
        """Forget everything, on disk too."""
        with self._lock:
            self._discard()
            self._open_or_discard()

    def close(self) -> None:
        """Close the file; idempotent."""
        with self._lock:
            if self._db is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._trim(self._db)
                with contextlib.suppress(sqlite3.Error):
                    self._db.close()
            self._db = None

    # -- file ---------------------------------------------------------------------------------

    def _open_or_discard(self) -> None:
        try:
            self._connect()
        except sqlite3.Error as error:
            self._recover(error)

    def _connect(self) -> None:
        if self._path is not None:
            with contextlib.suppress(OSError):  # it exists, or SQLite says what is wrong
                self._path.touch(mode=0o600, exist_ok=False)
        self._db = sqlite3.connect(
            ":memory:" if self._path is None else self._path,
            isolation_level=None,
            check_same_thread=False,
            timeout=LOCK_SECONDS,
        )
        # A view that can be built again needs no fsync; the rollback journal still makes a
        # transaction whole when the process is killed in the middle of it.
        for pragma in ("synchronous=OFF", "journal_mode=TRUNCATE", "secure_delete=ON"):
            self._db.execute(f"PRAGMA {pragma}")
        found = self._read_meta(self._db)
        if found is None:
            self._create(self._db)
        elif found != (FORMAT, self._identity):
            message = "index of another format or memory"
            raise sqlite3.DatabaseError(message)
        self._n_rows, self._end = self._read_extent(self._db)

    def _create(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")  # writes, so only into a new file
        db.execute("BEGIN")
        for statement in _SCHEMA:
            db.execute(statement)
        db.executemany(
            "INSERT INTO meta VALUES (?, ?)", [("format", FORMAT), ("identity", self._identity)]
        )
        db.execute("COMMIT")

    @staticmethod
    def _read_meta(db: sqlite3.Connection) -> tuple[object, object] | None:
        if db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None:
            return None
        meta = dict(db.execute("SELECT key, value FROM meta"))
        return meta.get("format"), meta.get("identity")

    @staticmethod
    def _read_extent(db: sqlite3.Connection) -> tuple[int, int]:
        last = db.execute(
            "SELECT id, start + n_tokens FROM spans ORDER BY id DESC LIMIT 1"
        ).fetchone()
        db.execute("SELECT rowid FROM terms WHERE terms MATCH '\"a\"' LIMIT 1").fetchone()
        beyond = db.execute("SELECT value FROM meta WHERE key = 'end'").fetchone()
        n_rows, end = last or (0, 0)
        return int(n_rows), max(int(end), 0 if beyond is None else int(beyond[0]))

    @staticmethod
    def _read_size(db: sqlite3.Connection) -> int:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        return int(pages * db.execute("PRAGMA page_size").fetchone()[0])

    @staticmethod
    def _trim(db: sqlite3.Connection) -> None:
        """Give back empty pages: merging postings leaves a third of the file."""
        if db.execute("PRAGMA freelist_count").fetchone()[0]:  # else it would touch the file
            # It takes a step per page, and `execute` makes only one.
            db.executescript("PRAGMA incremental_vacuum")

    def _guarded(self, action: Callable[[sqlite3.Connection], _T], fallback: _T) -> _T:
        """Run an action; if the file is no good, start anew and return the fallback."""
        with self._lock:
            self.open()
            if self._db is None:
                return fallback
            try:
                return action(self._db)
            except sqlite3.ProgrammingError:
                raise
            except sqlite3.Error as error:
                self._recover(error)
                return fallback

    def _recover(self, error: sqlite3.Error) -> None:
        """Start empty: in a new file if the old one was bad, else in memory."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        self._n_failures += 1
        self.was_reset = self._is_behind = True
        if code in _DAMAGE and self._n_failures == 1:
            self._discard()
        else:
            self.close()
            self._path = None
        self._n_rows = self._end = 0
        self._open_or_discard()

    def _discard(self) -> None:
        self.close()
        self._n_rows = self._end = 0
        if self._path is None:
            return
        for name in (self._path, self._path.with_name(self._path.name + "-journal")):
            try:
                name.unlink(missing_ok=True)
            except OSError:
                self._path = None
                return

    # -- rows ---------------------------------------------------------------------------------

    def _insert(self, db: sqlite3.Connection, rows: Sequence[LexicalRow], end: int) -> None:
        first = self._n_rows + 1
        db.execute("BEGIN IMMEDIATE")
        try:
            db.executemany(
                "INSERT INTO spans VALUES (?, ?, ?)",
                ((i, row.start, row.end - row.start) for i, row in enumerate(rows, first)),
            )
            db.executemany(
                "INSERT INTO terms(rowid, text) VALUES (?, ?)",
                ((i, _storable(row.text)) for i, row in enumerate(rows, first)),
            )
            if not rows or end > rows[-1].end:
                db.execute("INSERT OR REPLACE INTO meta VALUES ('end', ?)", (end,))
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
        self._n_rows += len(rows)
        self._end = end

    def _count_rows_before(self, db: sqlite3.Connection, token_index: int) -> int:
        """Return how many rows begin before a token: row numbers and spans rise together."""
        low, high = 0, self._n_rows
        if token_index >= self._end:
            return high
        while low < high:
            middle = (low + high + 1) // 2
            row = db.execute("SELECT start FROM spans WHERE id = ?", (middle,)).fetchone()
            if row is not None and row[0] < token_index:
                low = middle
            else:
                high = middle - 1
        return low

    def _read_spans(self, db: sqlite3.Connection, rows: Indices) -> dict[int, tuple[int, int]]:
        marks = ",".join("?" * len(rows))
        found = db.execute(
            f"SELECT id, start, n_tokens FROM spans WHERE id IN ({marks})",  # noqa: S608 - only marks
            rows.tolist(),
        )
        return {row: (start, start + n_tokens) for row, start, n_tokens in found}

    # -- ranking ------------------------------------------------------------------------------

    def _rank(
        self,
        weights: Mapping[Term, float],
        limit: int,
        budget: int,
        *,
        n_rows: int,
        is_smoothed: bool,
        share: float = COMMON_SHARE,
    ) -> LexicalHits:
        if limit < 1 or n_rows < 1:
            return _hits(np.empty((0, 2), np.int64), np.empty(0))
        with self._lock:
            none: list[_Postings] = []
            lists = self._guarded(
                lambda db: list(self._rarest_first(db, tuple(weights), n_rows, budget, share)), none
            )
            rows, scores = bm25.sum_postings(
                [p.rows for p in lists],
                [weights[p.term] * bm25.idf(n_rows, p.n_with_term) for p in lists],
            )
            if is_smoothed and len(rows):
                rows, scores = bm25.smooth(rows, scores, n_rows)
            place = bm25.best(rows, scores, _CANDIDATES * limit)
            rows, scores = rows[place], scores[place]
            nowhere: dict[int, tuple[int, int]] = {}
            spans = self._guarded(lambda db: self._read_spans(db, rows), nowhere)
        kept = np.array([row in spans for row in rows.tolist()], np.bool_)
        found = np.array([spans[row] for row in rows[kept].tolist()], np.int64).reshape(-1, 2)
        scores = scores[kept] / bm25.length_factor(
            found[:, 1] - found[:, 0], TYPICAL_TOKENS, LENGTH_SHARE
        )
        place = bm25.best(rows[kept], scores, limit)
        return _hits(found[place], scores[place])

    def _rarest_first(
        self,
        db: sqlite3.Connection,
        terms: Sequence[Term],
        n_rows: int,
        budget: int,
        share: float,
    ) -> Iterator[_Postings]:
        """Yield the posting lists of terms in up to a share of the rows, rarest first."""
        common = max(share * n_rows, COMMON_FLOOR)
        probes = [self._postings(db, term, n_rows, PROBE) for term in terms]
        # An estimate may be off by half; what is close to the limit is read and counted.
        likely = [p for p in probes if len(p.rows) and p.n_with_term <= 2 * common]
        for probe in sorted(likely, key=lambda p: (p.n_with_term, p.term)):
            if budget <= 0:
                return
            wanted = min(budget, int(common) + 1)
            full = probe if probe.is_complete else self._postings(db, probe.term, n_rows, wanted)
            budget -= len(full.rows)
            if full.n_with_term <= common:
                yield full

    @staticmethod
    def _postings(db: sqlite3.Connection, term: Term, n_rows: int, limit: int) -> _Postings:
        """Read the newest rows of a term; of a common one, estimate in how many rows it stands."""
        found = db.execute(
            "SELECT rowid FROM terms WHERE terms MATCH ? AND rowid <= ?"
            " ORDER BY rowid DESC LIMIT ?",
            (" OR ".join(f'"{form}"' for form in term), n_rows, limit + 1),
        ).fetchall()
        rows = np.array(found[:limit], np.int64).reshape(-1)
        if len(found) <= limit:
            return _Postings(term, rows, len(rows), is_complete=True)
        share = len(rows) / (n_rows - int(rows[-1]) + 1)
        return _Postings(term, rows, max(share * n_rows, len(found)), is_complete=False)


def _storable(text: str) -> str:
    """Return a text SQLite takes: half characters and NUL become spaces."""
    if "\0" in text or not text.isprintable():
        text = text.replace("\0", " ").encode("utf-8", "replace").decode("utf-8")
    return text


def _hits(spans: Indices, scores: NDArray[np.float64]) -> LexicalHits:
    return LexicalHits(
        start=np.ascontiguousarray(spans[:, 0]),
        end=np.ascontiguousarray(spans[:, 1]),
        score=scores.astype(np.float32),
    )
