"""Copying one store into another: commits with a new chain, gists as far as they still hold.

What the next generation, a fork by replay, a bundle and a recovery have in common. It streams, so
memory stays bounded at any length, and verifies nothing: that is done before and after.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, TypeAlias

import attrs
import numpy as np

from megacontext_sdk.contracts.storage import COMMIT, MESSAGE, NO_SETTING, Batch, GistBatch
from megacontext_sdk.memory.chain import (
    FLAG_FORGOTTEN,
    NO_KEY,
    NO_SETTINGS,
    OP_SETTING,
    ROLE_SETTING,
    MessageRecord,
    Position,
    encode_ids,
    frozen,
)
from megacontext_sdk.memory.directory.stretch import Source, stretches
from megacontext_sdk.memory.inflight import Outcome, pending_commit
from megacontext_sdk.memory.lod import BLOCK_SIZE, n_nodes, width
from megacontext_sdk.memory.settings import decode_settings, encode_settings
from megacontext_sdk.memory.writer import batch_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from megacontext_sdk.contracts.arrays import Indices
    from megacontext_sdk.contracts.storage import Storage
    from megacontext_sdk.memory.directory.stretch import Stretch
    from megacontext_sdk.memory.lod import Span

__all__ = [
    "NOTHING",
    "Progress",
    "Redaction",
    "Source",
    "append_settings",
    "copy_commits",
    "copy_gists",
    "copy_level",
    "touched_nodes",
]

Progress: TypeAlias = "Callable[[int, int], None]"
"""Called with tokens done and tokens in all."""

_GIST_BYTES = 4 * 2**20
_FIRST_NODES = 256


@attrs.frozen(eq=False)
class Redaction:
    """What a copy leaves out.

    Attributes:
        spans: tokens whose ids become -1, ascending and disjoint.
        messages: numbers of the messages that lose their body, int64 ascending.
    """

    spans: tuple[Span, ...]
    messages: Indices

    def __bool__(self) -> bool:
        """Tell whether there is anything to leave out."""
        return bool(self.spans) or len(self.messages) > 0


NOTHING = Redaction((), frozen(np.empty(0, np.int64)))


def copy_commits(
    source: Source,
    target: Storage,
    *,
    root: bytes,
    token_bytes: int,
    upto_seq: int | None = None,
    redaction: Redaction = NOTHING,
    trust_cap: int | None = None,
    progress: Progress | None = None,
) -> Position:
    """Copy commits from the first on into an empty store; numbers stay, the chain is made anew.

    Nothing is durable before `target.flush()`.

    Args:
        source: a store that nobody appends to meanwhile.
        target: opened for writing, without a commit.
        root: chain value before the first commit, 16 bytes.
        token_bytes: 2 or 4, of both.
        upto_seq: last commit; all if absent.
        redaction: what to leave out.
        trust_cap: messages are trusted at most so far, settings apart.
        progress: called after each stretch.

    Returns:
        The position the copy ends at.

    Raises:
        CorruptError: the source finds damage.
        LookupError: there is no commit `upto_seq`.
        StorageError: the target cannot be written.
    """
    state = source.state()
    last = state.seq if upto_seq is None else upto_seq
    if not 0 <= last <= state.seq:
        raise LookupError(f"there is no commit {last}; they run from 1 to {state.seq}")
    total = _n_tokens_at(source, last)
    tail = np.empty(0, np.int32)
    position = Position(seq=0, chain=root, n_tokens=0, n_messages=0, tail=tail)
    for stretch in stretches(source, attrs.evolve(state, seq=last), token_bytes):
        kept = _redacted(stretch, redaction, trust_cap)
        position = _write(kept, target, position, token_bytes)
        if progress is not None:
            progress(position.n_tokens, total)
    settings = _settings(source, position.setting)
    return attrs.evolve(position, settings=settings, tail=frozen(position.tail))


def _n_tokens_at(source: Source, seq: int) -> int:
    """Return how many tokens precede the end of commit `seq`."""
    if not seq:
        return 0
    row = source.read_commits(seq, seq + 1)[0]
    return int(row["start"]) + int(row["n_tokens"])


def _settings(source: Source, number: int) -> Mapping[str, object]:
    if number == NO_SETTING:
        return NO_SETTINGS
    return decode_settings(source.read_bodies(np.array([number], np.int64))[0])


def _redacted(stretch: Stretch, redaction: Redaction, trust_cap: int | None) -> Stretch:
    """Return the stretch without what is left out."""
    if not redaction and trust_cap is None:
        return stretch
    ids, messages, bodies = stretch.ids.copy(), stretch.messages.copy(), list(stretch.bodies)
    start = int(stretch.rows["start"][0])
    at = bisect_right(redaction.spans, start, key=lambda span: span.end)
    for span in redaction.spans[at:]:
        if span.start >= start + len(ids):
            break
        ids[max(0, span.start - start) : span.end - start] = -1
    first = int(stretch.rows["first_message"][0])
    low, high = np.searchsorted(redaction.messages, [first, first + len(messages)])
    gone = redaction.messages[low:high] - first
    messages["flags"][gone] |= FLAG_FORGOTTEN
    for number in gone.tolist():
        bodies[number] = b""
    if trust_cap is not None:
        plain = messages["role"] != ROLE_SETTING
        messages["trust"][plain] = np.minimum(messages["trust"][plain], trust_cap)
    return attrs.evolve(stretch, ids=ids, messages=messages, bodies=bodies)


def _write(stretch: Stretch, target: Storage, before: Position, token_bytes: int) -> Position:
    """Commit a stretch behind `before`; return the position it leads to."""
    chains = stretch.links(before.chain)
    rows = stretch.rows.copy()
    rows["chain"] = np.frombuffer(b"".join(chains), "V16")
    ids = np.concatenate([before.tail, stretch.ids])
    full = len(ids) - len(ids) % BLOCK_SIZE
    blocks = np.frombuffer(encode_ids(ids[:full], token_bytes), np.uint8)
    batch = Batch(
        commits=rows.astype(COMMIT, copy=False),
        blocks=blocks.reshape(-1, BLOCK_SIZE * token_bytes),
        tail=encode_ids(ids[full:], token_bytes),
        messages=stretch.messages.astype(MESSAGE, copy=False),
        bodies=tuple(stretch.bodies),
    )
    target.commit(batch, sync=False)  # one flush at the end makes all of it durable
    return Position(
        seq=before.seq + len(rows),
        chain=chains[-1],
        n_tokens=before.n_tokens + len(stretch.ids),
        n_messages=before.n_messages + len(stretch.messages),
        tail=ids[full:].copy(),
        setting=int(rows["setting"][-1]),
    )


def copy_gists(
    source: Source,
    target: Storage,
    *,
    n_tokens: int,
    versions: Collection[int] | None = None,
    redaction: Redaction = NOTHING,
    trust_cap: int | None = None,
) -> int:
    """Copy, level by level, the gist rows in front of the first one that must not be copied.

    Args:
        source: a store.
        target: holds the commits already, and no gists of these versions.
        n_tokens: length of the history in the target; only its complete nodes are copied.
        versions: of the encoder table; all if absent.
        redaction: the first node it touches ends its level, as rows are stored without gaps.
        trust_cap: as it was given to `copy_commits`.

    Returns:
        How many rows were copied.

    Raises:
        CorruptError: the source finds damage.
        StorageError: the target cannot be written.
    """
    n_rows = 0
    for version, lod, count in source.state().gist_rows:
        if versions is not None and version not in versions:
            continue
        stop = min(count, n_nodes(n_tokens, lod))
        if redaction.spans:
            stop = min(stop, redaction.spans[0].start // width(lod))
        n_rows += copy_level(source, target, (version, lod), stop, trust_cap=trust_cap)
    return n_rows


def copy_level(
    source: Source,
    target: Storage,
    key: tuple[int, int],
    stop: int,
    *,
    trust_cap: int | None = None,
) -> int:
    """Copy the gist rows `[0, stop)` of a version and level; ends at the first that is missing.

    Raises:
        CorruptError: the source finds damage.
        StorageError: the target cannot be written.
    """
    at, n_chunk = 0, _FIRST_NODES
    while at < stop:
        nodes = np.arange(at, min(at + n_chunk, stop), dtype=np.int64)
        found = source.read_gists(*key, nodes)
        n = len(nodes) if found.present.all() else int(np.argmin(found.present))
        if n:
            trust = found.trust[:n]
            batch = GistBatch(
                version=key[0],
                lod=key[1],
                nodes=nodes[:n].astype(np.uint64),
                trust=trust if trust_cap is None else np.minimum(trust, np.uint8(trust_cap)),
                rows=found.rows[:n],
            )
            target.put_gists(batch)
        at += n
        if n < len(nodes):
            break
        n_chunk = max(1, _GIST_BYTES // max(1, found.rows.shape[1]))
    return at


def append_settings(
    target: Storage,
    position: Position,
    settings: Mapping[str, object],
    *,
    token_bytes: int,
    ts_us: int,
) -> Position:
    """Commit a settings map straight into a store that is being built.

    Args:
        target: at `position`.
        position: as `copy_commits` returned it.
        settings: the whole new map.
        token_bytes: 2 or 4.
        ts_us: time of the commit.

    Raises:
        ConfigError: values that cannot be stored.
        QuotaError: more than 1 MiB.
        StorageError: the target cannot be written.
    """
    body = encode_settings(settings)
    message = MessageRecord(role=ROLE_SETTING, trust=4, flags=0, ts_us=ts_us, n_tokens=0, body=body)
    pending = pending_commit(
        position,
        np.empty(0, np.int32),
        [message],
        len(body) + MESSAGE.itemsize,
        (OP_SETTING, NO_KEY, ts_us),
        settings,
        Outcome(),
    )
    target.commit(batch_of([pending], position, token_bytes), sync=False)
    return pending.after


def touched_nodes(redaction: Redaction, n_tokens: int, lod: int, reach: int = 0) -> Indices:
    """Return the complete nodes of a level that a redaction touches, int64 ascending.

    Args:
        redaction: what goes.
        n_tokens: length of the history.
        lod: the level; LOD0 are blocks.
        reach: how many tokens left of a block its gist may have seen. A token touches the gists
            above that many tokens behind it, too.
    """
    stop, size = n_nodes(n_tokens, lod), width(lod)
    runs = [
        np.arange(span.start // size, min(-(-(span.end + reach) // size), stop), dtype=np.int64)
        for span in redaction.spans
        if span.n_tokens
    ]
    touched: Indices = np.unique(np.concatenate([np.empty(0, np.int64), *runs]))
    return touched
