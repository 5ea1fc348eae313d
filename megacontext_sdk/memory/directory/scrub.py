"""Scrub: reads every row of a memory and says what does not hold. It repairs nothing.

The chain from the root, density and tiling, what bodies and flags say, keys, and of each gist row
that it is there, as wide as the others, and trusted as far as the messages below it. Whether a gist
says the right thing only its encoder could tell.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.contracts.storage import NO_SETTING
from megacontext_sdk.errors import CorruptError
from megacontext_sdk.memory.chain import (
    FLAG_CONTINUES,
    FLAG_FORGOTTEN,
    NO_KEY,
    ROLE_SETTING,
    ROLES,
)
from megacontext_sdk.memory.directory.head import SLOT_BYTES, unpack_slot
from megacontext_sdk.memory.directory.probe import counts_problem
from megacontext_sdk.memory.directory.stretch import Place, read_stretch, stretches
from megacontext_sdk.memory.keys import KEPT_COMMITS
from megacontext_sdk.memory.lod import BLOCK_SIZE, n_nodes
from megacontext_sdk.memory.settings import decode_settings
from megacontext_sdk.messages.body import decode_body
from megacontext_sdk.receipts import ScrubReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.storage import Storage, StoreState
    from megacontext_sdk.memory.directory.manifest import MemoryMeta
    from megacontext_sdk.memory.directory.opened import OpenedMemory
    from megacontext_sdk.memory.directory.replay import Progress
    from megacontext_sdk.memory.directory.stretch import Stretch

__all__ = ["scrub_memory"]

_MAX_PROBLEMS = 100
_MAX_TRUST = 4
_GIST_BYTES = 4 * 2**20
_FIRST_NODES = 256


def scrub_memory(
    opened: OpenedMemory,
    *,
    progress: Progress | None = None,
    bytes_per_second: int | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> ScrubReport:
    """Read and check everything a memory holds.

    Others may append meanwhile; what they append is not part of the report.

    Args:
        opened: the memory; what it has accepted is flushed first unless it is read-only.
        progress: called with tokens read and tokens in all.
        bytes_per_second: read no faster; as fast as possible if absent.
        clock: seconds, for the report and the rate.
        sleep: waits some seconds.

    Raises:
        StorageError: closed, or what was accepted could not be written. Damage raises nothing.
    """
    opened.journal.flush()
    pace = _Pace(bytes_per_second, clock, sleep)
    scrub = _Scrub(opened.storage, opened.meta, pace, progress)
    if opened.path is not None:
        scrub.head((opened.path / "HEAD").read_bytes())
    scrub.commits()
    for level in scrub.state.gist_rows:
        scrub.level(level)
    more = scrub.n_problems - len(scrub.problems)
    return ScrubReport(
        path=None if opened.path is None else str(opened.path),
        commits=scrub.n_commits,
        blocks=scrub.state.n_blocks,
        messages=scrub.n_messages,
        gists=scrub.n_gists,
        bytes_read=pace.n_bytes,
        problems=(*scrub.problems, *([f"and {more} more"] if more else [])),
        seconds=clock() - pace.started,
    )


class _Pace:
    """Counts bytes and waits where they come faster than allowed."""

    def __init__(
        self, rate: int | None, clock: Callable[[], float], sleep: Callable[[float], None]
    ) -> None:
        self.n_bytes = 0
        self.started = clock()
        self._rate, self._clock, self._sleep = rate, clock, sleep

    def note(self, n_bytes: int) -> None:
        self.n_bytes += n_bytes
        if self._rate is None:
            return
        ahead = self.started + self.n_bytes / self._rate - self._clock()
        if ahead > 0:
            self._sleep(ahead)


class _Scrub:
    """One run over one store; holds a byte per block and the newest keys, and no content."""

    def __init__(
        self, storage: Storage, meta: MemoryMeta, pace: _Pace, progress: Progress | None
    ) -> None:
        self.state: StoreState = storage.state()
        self.problems: list[str] = []
        self.n_problems = self.n_commits = self.n_messages = self.n_gists = 0
        self._storage, self._meta, self._pace, self._progress = storage, meta, pace, progress
        self._keys: dict[bytes, int] = {}
        self._setting = NO_SETTING
        self._n_sure = self.state.n_tokens  # tokens in front of the first damage
        self._trust = np.full(self.state.n_blocks, 255, np.uint8)

    def say(self, what: str) -> None:
        """Note a problem; only the first hundred keep their text."""
        self.n_problems += 1
        if what and len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(what)

    def head(self, both: bytes) -> None:
        """Check the two slots of HEAD."""
        slots = [unpack_slot(both[:SLOT_BYTES]), unpack_slot(both[SLOT_BYTES:])]
        n_bad = sum(slot is None for slot in slots)
        if n_bad:
            self.say(f"{n_bad} of 2 slots of HEAD are damaged")

    # --- commits -----------------------------------------------------------------------------

    def commits(self) -> None:
        """Check all commits with what they hold, going on behind those that do not hold."""
        wrong = counts_problem(self.state, self._meta.token_bytes)
        if wrong:
            self.say(wrong)
        place: Place | None = Place(0, self._meta.root, 0, 0)
        while place is not None and place.seq < self.state.seq:
            place = self._run(place)
        if place is not None and not wrong:
            ends = (place.n_tokens, place.n_messages)
            if ends != (self.state.n_tokens, self.state.n_messages):
                self.say("the commits hold another number of tokens or messages than the store")

    def _run(self, place: Place) -> Place | None:
        """Check from a place on; return where to go on, None if nobody can say."""
        try:
            for stretch in stretches(
                self._storage, self.state, self._meta.token_bytes, first=place.seq + 1
            ):
                after, what = stretch.check(place)
                self._content(stretch, after.seq - place.seq)
                place = after
                if what:
                    self.say(what)
                    return self._behind(place)
                if self._progress is not None:
                    self._progress(place.n_tokens, self.state.n_tokens)
        except Exception:  # noqa: BLE001 - garbled bytes may make a store raise anything
            return self._single(place)
        return place

    def _single(self, place: Place) -> Place | None:
        """Check the commits behind a place one by one, up to the first that cannot be read."""
        while place.seq < self.state.seq:
            seq = place.seq + 1
            try:
                rows = self._storage.read_commits(seq, seq + 1)
                stretch = read_stretch(self._storage, self.state, rows, self._meta.token_bytes)
                place, what = stretch.check(place)
            except Exception as error:  # noqa: BLE001 - see above
                self.say(f"commit {seq} cannot be read ({type(error).__name__})")
                return self._behind(place)
            if what:
                self.say(what)
                return self._behind(place)
            self._content(stretch, 1)
        return place

    def _behind(self, place: Place) -> Place | None:
        """Return the place behind the commit after a place, as its own row says it."""
        seq = place.seq + 1
        self._n_sure = min(self._n_sure, place.n_tokens)
        try:
            row = self._storage.read_commits(seq, seq + 1)[0]
        except Exception as error:  # noqa: BLE001 - see above
            what = f"row {seq} is unreadable ({type(error).__name__})"
            self.say(f"{what}, so the commits behind it were not checked")
            return None
        if int(row["setting"]) != NO_SETTING:
            self._setting = int(row["setting"])
        return Place(
            seq,
            row["chain"].tobytes(),
            int(row["start"]) + int(row["n_tokens"]),
            int(row["first_message"]) + int(row["n_messages"]),
        )

    # --- what commits hold ---------------------------------------------------------------------

    def _content(self, stretch: Stretch, n_good: int) -> None:
        """Check the rows and bodies of the leading commits of a stretch, whose chain holds."""
        self._pace.note(stretch.n_bytes)
        rows = stretch.rows[:n_good]
        self.n_commits += n_good
        first = int(stretch.rows["first_message"][0])
        n_messages = int(rows["n_messages"].sum())
        messages, bodies = stretch.messages[:n_messages], stretch.bodies[:n_messages]
        self.n_messages += n_messages
        for row in rows:
            self._commit(row, messages, first)
        for at, (message, body) in enumerate(zip(messages, bodies, strict=True)):
            what = _body_problem(message, body)
            if what:
                self.say(f"message {first + at} {what}")
        self._forgotten(stretch, messages, first)
        self._note_trust(messages)

    def _commit(self, row: np.void, messages: NDArray[np.void], first: int) -> None:
        """Check the key of a commit, and which settings message it names."""
        seq, key = int(row["seq"]), row["key"].tobytes()
        if key != NO_KEY:
            other = self._keys.pop(key, None)
            if other is not None and other > seq - KEPT_COMMITS:
                self.say(f"commits {other} and {seq} carry the same key")
            self._keys[key] = seq
            while next(iter(self._keys.values())) <= seq - KEPT_COMMITS:
                del self._keys[next(iter(self._keys))]
        begin = int(row["first_message"]) - first
        roles = messages["role"][begin : begin + int(row["n_messages"])]
        settings = np.flatnonzero(roles == ROLE_SETTING)
        if len(settings):
            self._setting = int(row["first_message"]) + int(settings[-1])
        if int(row["setting"]) != self._setting:
            self.say(f"commit {seq} does not name the newest settings message")
            self._setting = int(row["setting"])

    def _forgotten(self, stretch: Stretch, messages: NDArray[np.void], first: int) -> None:
        """Check that ids are missing only in messages that say so."""
        start = int(stretch.rows["start"][0])
        holes = np.flatnonzero(stretch.ids < 0) + start
        if not len(holes) or not len(messages):
            return
        owner = np.searchsorted(messages["start"].astype(np.int64), holes, side="right") - 1
        plain = (messages["flags"][owner] & FLAG_FORGOTTEN) == 0
        if plain.any():
            number = first + int(owner[np.argmax(plain)])
            self.say(f"message {number} lacks token ids, but was not forgotten")

    def _note_trust(self, messages: NDArray[np.void]) -> None:
        """Lower the trust of the blocks that messages touch."""
        held = messages[messages["n_tokens"] > 0]
        starts = held["start"].astype(np.int64)
        begin = starts // BLOCK_SIZE
        end = np.minimum((starts + held["n_tokens"] - 1) // BLOCK_SIZE + 1, len(self._trust))
        for low, high, trust in zip(
            begin.tolist(), end.tolist(), held["trust"].tolist(), strict=True
        ):
            if low < high:
                np.minimum(self._trust[low:high], trust, out=self._trust[low:high])

    # --- gists -------------------------------------------------------------------------------

    def level(self, level: tuple[int, int, int]) -> None:
        """Check the gist rows of one version and level; says only the first thing wrong."""
        version, lod, count = level
        name = f"gists of version {version}, LOD{lod}"
        if count > n_nodes(self.state.n_tokens, lod):
            self.say(f"{name}: {count} rows, more than there are nodes")
            count = n_nodes(self.state.n_tokens, lod)
        least, n_sure = self._least(lod), n_nodes(self._n_sure, lod)
        at, n_chunk, width = 0, _FIRST_NODES, 0
        while at < count:
            nodes = np.arange(at, min(at + n_chunk, count), dtype=np.int64)
            try:
                found = self._storage.read_gists(version, lod, nodes)
            except Exception as error:  # noqa: BLE001 - see above
                stop = int(nodes[-1]) + 1
                self.say(f"{name}: nodes [{at}, {stop}) cannot be read ({type(error).__name__})")
                return
            width = width or found.rows.shape[1]
            wrong = (
                (~found.present, "is missing"),
                (np.full(len(nodes), found.rows.shape[1] != width), "has another width"),
                (
                    (found.trust != least[nodes]) & (nodes < n_sure),
                    "is not trusted as its messages are",
                ),
            )
            for hits, what in wrong:
                if hits.any():
                    self.say(f"{name}: node {at + int(np.argmax(hits))} {what}")
                    return
            at += len(nodes)
            self.n_gists += len(nodes)
            self._pace.note(found.rows.nbytes + found.trust.nbytes)
            n_chunk = max(1, _GIST_BYTES // max(1, width))

    def _least(self, lod: int) -> NDArray[np.uint8]:
        """Return the trust of the complete nodes of a level, uint8[n]."""
        size = BLOCK_SIZE ** (lod - 1)
        n = n_nodes(self.state.n_tokens, lod)
        least: NDArray[np.uint8] = self._trust[: n * size].reshape(n, size).min(axis=1)
        return least


def _body_problem(message: np.void, body: bytes) -> str:
    """Return what is wrong with a message and its body; empty if nothing is."""
    role, flags = int(message["role"]), int(message["flags"])
    if role >= len(ROLES) or int(message["trust"]) > _MAX_TRUST:
        return "has a role or trust that does not exist"
    if flags & FLAG_FORGOTTEN:
        return "has a body where there can be none" if body else ""
    if flags & FLAG_CONTINUES and not body:
        return ""  # of a message cut at the size of a commit; the parts of a reply have theirs
    try:
        if role == ROLE_SETTING:
            decode_settings(body)
        else:
            decode_body(body)
    except CorruptError:
        return "has a body that cannot be decoded"
    return ""
