"""The one way into the memory: drafts and reply parts become tokens, messages and index rows.

Appended and generated tokens go through here alike and cannot be told apart later. Rendering, the
commit and the lexical index are its business; the working context follows in the loop.
"""

from __future__ import annotations

import itertools
from hashlib import blake2b
from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.errors import ConfigError
from megacontext_sdk.memory.checks import check_remembered
from megacontext_sdk.memory.forgotten import remaining
from megacontext_sdk.memory.journal import OP_APPEND, OP_GENERATE, MessageRecord
from megacontext_sdk.memory.lexical import LexicalRow
from megacontext_sdk.memory.lod import Span
from megacontext_sdk.messages import (
    CONTINUES,
    ROLE_CODES,
    MessageBody,
    Trust,
    encode_body,
    load_messages,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from megacontext_sdk.contracts.arrays import Ids
    from megacontext_sdk.contracts.model import Tokenizer
    from megacontext_sdk.memory.journal import CommitReceipt, Journal, Ticket
    from megacontext_sdk.memory.lexical import LexicalIndex
    from megacontext_sdk.memory.tree import MegaContextTree
    from megacontext_sdk.messages import ChatFormat, Message, MessageDraft

__all__ = ["PIECE_TOKENS", "ReplyScribe", "Scribe", "Written"]

PIECE_TOKENS = 128
"""Longer messages enter the lexical index in pieces of this many tokens."""

_MAX_KEY_CHARACTERS = 1024
_CATCH_UP_MESSAGES = 1024
_CATCH_UP_TOKENS = 2**20  # read at once; a page of longer messages is read one by one


@attrs.frozen(eq=False, kw_only=True)
class Written:
    """What was accepted: readable at once, durable when `ticket.wait()` returns.

    Attributes:
        span: its tokens.
        first_message: number of the first message, then one per draft.
        n_messages: how many.
        ticket: waits for durability; None for a repeated idempotency key.
        duplicate: receipt of the first call with this idempotency key.
        token_ids: int32[n], what was appended.
    """

    span: Span
    first_message: int
    n_messages: int
    ticket: Ticket | None
    duplicate: CommitReceipt | None
    token_ids: Ids


class Scribe:
    """Writes messages of one session.

    Args:
        journal: commits, for idempotency keys and message texts.
        tree: takes the tokens.
        lexical: takes the text.
        chat: the model's chat format.
        tokenizer: the model's.
        clock: microseconds since 1970.
    """

    def __init__(
        self,
        journal: Journal,
        tree: MegaContextTree,
        lexical: LexicalIndex,
        chat: ChatFormat,
        tokenizer: Tokenizer,
        clock: Callable[[], int],
    ) -> None:
        self.chat = chat
        self.clock = clock
        self._journal = journal
        self._tree = tree
        self._lexical = lexical
        self._tokenizer = tokenizer

    # -- append ---------------------------------------------------------------------------------

    def write(
        self,
        drafts: Sequence[MessageDraft],
        *,
        idempotency_key: str | None = None,
        open_ended: bool = False,
    ) -> Written:
        """Append messages in one commit.

        Args:
            drafts: checked messages.
            idempotency_key: a retry with the same key and content writes nothing.
            open_ended: the last message is a prompt to be continued (plain text formats).

        Raises:
            ConfigError: a key used before with other content, or no text of at most 1,024
                characters.
            StorageError: the commit was refused; nothing was written.
        """
        key = _key_digest(idempotency_key)
        start = self._tree.n_tokens
        parts = self.render(drafts, open_ended=open_ended)
        ids = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
        known = None if key is None else self._journal.find_key(key)
        if known is not None:
            return self._repeated(known, ids)
        now = self.clock()
        records = [
            MessageRecord(
                role=ROLE_CODES[draft.role],
                trust=int(draft.trust),
                flags=0,
                ts_us=now if draft.ts_us is None else draft.ts_us,
                n_tokens=len(part),
                body=encode_body(draft.body()),
            )
            for draft, part in zip(drafts, parts, strict=True)
        ]
        first = self._journal.n_messages
        ticket = self._tree.append(ids, records, op=OP_APPEND, key=key, ts_us=now)
        self._index_drafts(drafts, parts, start)
        return Written(
            span=Span(start, start + len(ids)),
            first_message=first,
            n_messages=len(records),
            ticket=ticket,
            duplicate=None,
            token_ids=ids,
        )

    def render(self, drafts: Sequence[MessageDraft], *, open_ended: bool = False) -> list[Ids]:
        """Return the token ids of each message, the opening of an empty history included."""
        parts: list[Ids] = []
        is_empty = self._tree.n_tokens == 0
        for number, draft in enumerate(drafts):
            is_last = open_ended and number == len(drafts) - 1
            if draft.token_ids is not None:
                ids = draft.token_ids
            else:
                ids = self.chat.render(draft.role, draft.text or "", open_ended=is_last)
                if is_empty and not parts:
                    ids = np.concatenate([self.chat.opening_for(draft.role), ids])
            parts.append(ids.astype(np.int32, copy=False))
        return parts

    def _repeated(self, known: CommitReceipt, ids: Ids) -> Written:
        first = known.first_message
        check_remembered(self._journal.messages(first, first + known.n_messages), known.seq)
        stored = self._tree.token_ids(known.span)
        # The first message of a history carries its opening; a retry comes without it.
        if not np.array_equal(stored[len(stored) - len(ids) :], ids):
            message = (
                "this idempotency_key was used before with other content; use a new key for new "
                "content"
            )
            raise ConfigError(message, field="idempotency_key", value="used before")
        return Written(
            span=known.span,
            first_message=known.first_message,
            n_messages=known.n_messages,
            ticket=None,
            duplicate=known,
            token_ids=ids,
        )

    # -- lexical index --------------------------------------------------------------------------

    def _index_drafts(
        self, drafts: Sequence[MessageDraft], parts: Sequence[Ids], start: int
    ) -> None:
        rows: list[LexicalRow] = []
        for draft, ids in zip(drafts, parts, strict=True):
            rows += self.index_rows(start, ids, draft.text)
            start += len(ids)
        self._lexical.add(rows)

    def index_rows(self, start: int, ids: Ids, text: str | None) -> list[LexicalRow]:
        """Return the rows of one message: one, or pieces of 128 tokens cut on block boundaries.

        A piece that was forgotten has no row.
        """
        end = start + len(ids)
        if len(ids) <= PIECE_TOKENS:
            shown = self._decoded(ids) if text is None else text
            is_gone = bool((ids < 0).all())
            return [] if is_gone else [LexicalRow(start, end, shown)]
        first_cut = start // PIECE_TOKENS * PIECE_TOKENS + PIECE_TOKENS
        cuts = [start, *range(first_cut, end, PIECE_TOKENS), end]
        return [
            LexicalRow(a, b, self._decoded(left))
            for a, b in itertools.pairwise(cuts)
            if len(left := remaining(ids[a - start : b - start]))
        ]

    def _decoded(self, ids: Ids) -> str:
        return self._tokenizer.decode(remaining(ids), special=False)

    def repair_index(self) -> None:
        """Index anew what a reset of the index in mid-session has lost."""
        if self._lexical.was_reset and self._lexical.end < self._tree.n_tokens:
            self.catch_up()

    def catch_up(self) -> int:
        """Index messages the index does not know (after a crash or a reset); return how many.

        When it is interrupted, the next search goes on where it stopped.
        """
        if self._lexical.end < self._tree.n_tokens:
            self._lexical.expect_rows()
        n_indexed = 0
        first, n_messages = self._first_unindexed(), self._journal.n_messages
        for at in range(first, n_messages, _CATCH_UP_MESSAGES):
            stop = min(at + _CATCH_UP_MESSAGES, n_messages)
            page = load_messages(self._journal, at, stop, lambda _span: "")
            if page:
                self._lexical.add(
                    self._page_rows(page), covers=Span(page[0].span.start, page[-1].span.end)
                )
            n_indexed += len(page)
        return n_indexed

    def _page_rows(self, page: Sequence[Message]) -> list[LexicalRow]:
        """Return the rows of neighbouring messages; their tokens are read at once if they are few.

        A message that was forgotten has no row.
        """
        start, end = page[0].span.start, page[-1].span.end
        is_short = end - start <= _CATCH_UP_TOKENS
        known = self._tree.token_ids(Span(start, end)) if is_short else None
        rows: list[LexicalRow] = []
        for message in page:
            span = message.span
            if known is None:
                ids = self._tree.token_ids(span)
            else:
                ids = known[span.start - start : span.end - start]
            # What was stored without text is decoded from these ids.
            rows += self.index_rows(span.start, ids, message.text or None)
        return rows

    def _first_unindexed(self) -> int:
        end = self._lexical.end
        if end >= self._tree.n_tokens:
            return self._journal.n_messages
        return self._journal.message_at(end)

    # -- replies --------------------------------------------------------------------------------

    def reply(self, recall: Sequence[Span]) -> ReplyScribe:
        """Return a writer for one generated reply."""
        return ReplyScribe(self, self._journal, self._tree, recall)

    def index_reply(self, start: int, ids: Ids, text: str) -> None:
        """Index a finished reply as one message."""
        self._lexical.add(self.index_rows(start, ids, text))


class ReplyScribe:
    """Commits a reply part by part: each part is durable on its own, all are one message.

    Args:
        scribe: whose chat format and index are used.
        journal, tree: where the parts go.
        recall: spans shown in full for this reply, kept with it as its receipt.
    """

    def __init__(
        self, scribe: Scribe, journal: Journal, tree: MegaContextTree, recall: Sequence[Span]
    ) -> None:
        self._scribe = scribe
        self._journal = journal
        self._tree = tree
        self._recall = tuple((span.start, span.end) for span in recall)
        self._tickets: list[Ticket] = []
        self._ids: list[Ids] = []
        self._text = ""
        self.start = tree.n_tokens
        self.message_id: int | None = None

    def commit(self, ids: Ids, text: str, final: bool) -> None:  # noqa: FBT001 - a callback
        """Take one part; `final` closes the message and indexes it."""
        is_first = self.message_id is None
        body = MessageBody(text=text, recall=self._recall if is_first else ())
        record = MessageRecord(
            role=ROLE_CODES["assistant"],
            trust=int(Trust.MODEL),
            flags=0 if is_first else CONTINUES,
            ts_us=self._scribe.clock(),
            n_tokens=len(ids),
            body=encode_body(body),
        )
        if is_first:
            self.message_id = self._journal.n_messages
        self._tickets.append(self._tree.append(ids, [record], op=OP_GENERATE))
        self._ids.append(ids)
        self._text += text
        if final and self.message_id is not None:
            self._scribe.index_reply(self.start, np.concatenate(self._ids), self._text)

    def wait(self) -> None:
        """Return when every part is durable.

        Raises:
            StorageError: a part could not be written.
        """
        for ticket in self._tickets:
            ticket.wait()


def _key_digest(key: str | None) -> bytes | None:
    if key is None:
        return None
    if not isinstance(key, str) or not 0 < len(key) <= _MAX_KEY_CHARACTERS:
        message = f"idempotency_key must be text of 1 to {_MAX_KEY_CHARACTERS} characters"
        raise ConfigError(message, field="idempotency_key", value=type(key).__name__)
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
