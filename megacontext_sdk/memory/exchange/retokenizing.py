"""Writing a history again with the ids of another tokenizer, message by message, from its text.

Roles, trust, times and metadata stay; spans and everything that speaks of them do not. It is given
what turns text into ids, and knows no model itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.contracts.storage import MESSAGE
from megacontext_sdk.errors import ModelMismatchError
from megacontext_sdk.memory.chain import (
    FLAG_CONTINUES,
    FLAG_FORGOTTEN,
    NO_KEY,
    OP_APPEND,
    ROLE_SETTING,
    ROLES,
    MessageRecord,
    Position,
    split,
)
from megacontext_sdk.memory.directory.stretch import stretches
from megacontext_sdk.memory.inflight import Outcome, pending_commit
from megacontext_sdk.memory.writer import batch_of
from megacontext_sdk.messages.body import MessageBody, decode_body, encode_body

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from megacontext_sdk.contracts.arrays import Ids
    from megacontext_sdk.contracts.storage import Storage
    from megacontext_sdk.memory.directory.manifest import MemoryMeta
    from megacontext_sdk.memory.directory.replay import Progress
    from megacontext_sdk.memory.directory.stretch import Source
    from megacontext_sdk.messages.content import MessageDraft

__all__ = ["Retokenizer", "rewrite", "write_drafts"]

_GROUP_BYTES = 4 * 2**20
_GROUP_MESSAGES = 256


@attrs.frozen
class Retokenizer:
    """Turns text into the ids of a model.

    Attributes:
        render: ids int32[n] of one message, of its role and text.
        opening: ids int32[n] that open a history whose first message has this role.
    """

    render: Callable[[str, str], Ids]
    opening: Callable[[str], Ids]


@attrs.frozen(eq=False)
class _Parts:
    """The rows of one message: `(row, body)` in order, the first one numbered `number`."""

    number: int
    rows: list[tuple[np.void, bytes]] = attrs.field(factory=list)


def rewrite(
    source: Source,
    target: Storage,
    retokenizer: Retokenizer,
    *,
    path: str,
    from_bytes: int,
    meta: MemoryMeta,
    trust_cap: int | None,
    ts_us: int,
    progress: Progress | None = None,
) -> Position:
    """Write every message of a source into an empty store, with new ids.

    What was forgotten stays forgotten, and what was left of a message that was forgotten in part
    goes too: there is no text to make ids of.

    Args:
        source: what to read.
        target: opened for writing, empty.
        retokenizer: makes the ids.
        path: of the source, for errors.
        from_bytes: bytes of an id in the source.
        meta: of the target.
        trust_cap: messages are trusted at most so far.
        ts_us: time of the new commits; messages keep theirs.
        progress: called with tokens of the source done and in all.

    Returns:
        The position it ends at.

    Raises:
        ModelMismatchError: a message without text.
        StorageError: the target cannot be written.
    """
    writer = _Rewriter(target, meta, ts_us)
    state = source.state()
    for parts in _whole_messages(source, from_bytes):
        draft = _draft(parts, path, meta, trust_cap)
        writer.add(draft, retokenizer)
        if progress is not None:
            last = parts.rows[-1][0]
            progress(int(last["start"]) + int(last["n_tokens"]), state.n_tokens)
    writer.write_group()
    return writer.position


def write_drafts(
    target: Storage,
    drafts: Iterable[MessageDraft],
    retokenizer: Retokenizer,
    *,
    meta: MemoryMeta,
    ts_us: int,
) -> Position:
    """Write checked messages into an empty store.

    Args:
        target: opened for writing, empty.
        drafts: in order, each with text.
        retokenizer: makes the ids.
        meta: of the target.
        ts_us: time of the commits, and of messages without one.

    Returns:
        The position it ends at.

    Raises:
        StorageError: the target cannot be written.
    """
    writer = _Rewriter(target, meta, ts_us)
    for draft in drafts:
        made = _Draft(
            role=ROLES.index(draft.role),
            trust=int(draft.trust),
            ts_us=ts_us if draft.ts_us is None else draft.ts_us,
            body=draft.body(),
        )
        writer.add(made, retokenizer)
    writer.write_group()
    return writer.position


def _whole_messages(source: Source, token_bytes: int) -> Iterator[_Parts]:
    """Yield messages with all the rows that continue them; settings are left out."""
    current: _Parts | None = None
    for stretch in stretches(source, source.state(), token_bytes):
        first = int(stretch.rows["first_message"][0])
        for number, (row, body) in enumerate(
            zip(stretch.messages, stretch.bodies, strict=True), first
        ):
            if row["role"] == ROLE_SETTING:
                continue
            if current is None or not row["flags"] & FLAG_CONTINUES:
                if current is not None:
                    yield current
                current = _Parts(number)
            current.rows.append((row, body))
    if current is not None:
        yield current


@attrs.frozen(eq=False)
class _Draft:
    """A message before it has ids; no body means that it was forgotten."""

    role: int
    trust: int
    ts_us: int
    body: MessageBody | None


def _draft(parts: _Parts, path: str, meta: MemoryMeta, trust_cap: int | None) -> _Draft:
    """Return one message of its parts.

    Raises:
        ModelMismatchError: it has no text.
    """
    head = parts.rows[0][0]
    trust = min(int(row["trust"]) for row, _ in parts.rows)
    body: MessageBody | None = None
    if not any(row["flags"] & FLAG_FORGOTTEN for row, _ in parts.rows):
        # A row that only carries on the ids of a long message has no bytes of its own.
        bodies = [decode_body(raw) for at, (_, raw) in enumerate(parts.rows) if raw or at == 0]
        texts = [found.text for found in bodies if found.text is not None]
        if len(texts) < len(bodies):
            raise _no_text(path, parts.number, meta)
        metadata: dict[str, object] = {}
        for found in bodies:
            metadata |= found.metadata
        body = MessageBody(
            text="".join(texts),
            source=bodies[0].source,
            actor=bodies[0].actor,
            metadata=metadata,
            origin=bodies[0].origin,
        )
    return _Draft(
        role=int(head["role"]),
        trust=trust if trust_cap is None else min(trust, trust_cap),
        ts_us=int(head["ts_us"]),
        body=body,
    )


def _no_text(path: str, number: int, meta: MemoryMeta) -> ModelMismatchError:
    return ModelMismatchError(
        f"message {number} of {path} was stored as token ids without text, which mean nothing to "
        f"tokenizer {meta.tokenizer_fp[:12]}; load it with its own model, or forget that message "
        "there first",
        kind="tokenizer",
        stored="",
        given=meta.tokenizer_fp,
        message_id=number,
    )


class _Rewriter:
    """Collects messages into commits and writes them.

    Args:
        target: an empty store.
        meta: of the new memory.
        ts_us: time of the commits.
    """

    def __init__(self, target: Storage, meta: MemoryMeta, ts_us: int) -> None:
        self._target = target
        self._token_bytes = meta.token_bytes
        self._ts_us = ts_us
        self._ids: list[Ids] = []
        self._records: list[MessageRecord] = []
        self._n_bytes = 0
        self._is_empty = True
        self.position = Position(
            seq=0, chain=meta.root, n_tokens=0, n_messages=0, tail=np.empty(0, np.int32)
        )

    def add(self, draft: _Draft, retokenizer: Retokenizer) -> None:
        """Take one message."""
        ids, raw = np.empty(0, np.int32), b""
        if draft.body is not None:
            ids = self._render(ROLES[draft.role], draft.body.text or "", retokenizer)
            raw = encode_body(draft.body)
        record = MessageRecord(
            role=draft.role,
            trust=draft.trust,
            flags=FLAG_FORGOTTEN if draft.body is None else 0,
            ts_us=draft.ts_us,
            n_tokens=len(ids),
            body=raw,
        )
        self._ids.append(ids)
        self._records.append(record)
        self._n_bytes += 4 * len(ids) + len(raw) + MESSAGE.itemsize
        if self._n_bytes >= _GROUP_BYTES or len(self._records) >= _GROUP_MESSAGES:
            self.write_group()

    def _render(self, role: str, text: str, retokenizer: Retokenizer) -> Ids:
        parts: Sequence[Ids] = [retokenizer.render(role, text)]
        if self._is_empty:
            parts = [retokenizer.opening(role), *parts]
        self._is_empty = False
        return np.concatenate(parts).astype(np.int32, copy=False)

    def write_group(self) -> None:
        """Commit what was collected."""
        if not self._records:
            return
        for ids, records, size in split(np.concatenate(self._ids), self._records):
            what = (OP_APPEND, NO_KEY, self._ts_us)
            pending = pending_commit(self.position, ids, records, size, what, None, Outcome())
            batch = batch_of([pending], self.position, self._token_bytes)
            self._target.commit(batch, sync=False)  # one flush at the end makes it durable
            self.position = pending.after
        self._ids, self._records, self._n_bytes = [], [], 0
