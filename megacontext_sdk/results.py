"""What the session returns: frozen values, each with `to_dict()`.

Nothing here reads or computes; text appears only where the caller asked for text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from megacontext_sdk.memory.lod import NodeId, Span

__all__ = [
    "Appended",
    "Audit",
    "Citation",
    "Completed",
    "EntryReport",
    "FocusAction",
    "FocusChanged",
    "FocusReport",
    "Hit",
    "Reply",
    "Result",
    "Stats",
    "TextDelta",
    "Usage",
]


def _plain(value: object) -> object:
    fields = getattr(type(value), "__attrs_attrs__", None)
    if fields is not None:
        return {field.name: _plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


class Result:
    """Gives attrs values a `to_dict` of plain JSON types."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain dicts, lists, numbers and strings."""
        plain = _plain(self)
        return dict(plain) if isinstance(plain, dict) else {}


@attrs.frozen(kw_only=True)
class Appended(Result):
    """Receipt of an append.

    Attributes:
        span: the tokens it added.
        message_ids: the messages it added.
        seq: sequence number of its last commit.
        durability: "sync" when flushed, "none" for a memory that lives in this process only.
        duplicate: the idempotency key was known; nothing was written.
    """

    span: Span
    message_ids: tuple[int, ...]
    seq: int
    durability: str
    duplicate: bool = False


@attrs.frozen(kw_only=True)
class Usage(Result):
    """Tokens of one reply: prompt as appended, generated (the end token included), rows fed."""

    prompt_tokens: int
    generated_tokens: int
    window_rows: int


@attrs.frozen(kw_only=True)
class Citation(Result):
    """A span the policy revealed in full for this query.

    Attributes:
        span: the tokens.
        message_ids: messages that own them.
        score: focus score of the reveal.
        reason: why ("lexical", "cosine", ...).
    """

    span: Span
    message_ids: tuple[int, ...]
    score: float
    reason: str


@attrs.frozen(kw_only=True)
class EntryReport(Result):
    """One entry of the working context: level, tokens, rows, score and why it is there.

    `provisional` says that its gist is still to be made and something else stands in for it.
    """

    lod: int
    span: Span
    cost: int
    score: float | None
    protected: bool
    pinned: bool
    revealed: bool
    reason: str = ""
    provisional: bool = False


@attrs.frozen(kw_only=True)
class FocusReport(Result):
    """What the model sees: the whole history as entries in order.

    Attributes:
        entries: they tile `[0, n_tokens)`.
        n_tokens: length of the history.
        cost: rows of all entries.
        w_max: budget in rows.
        epoch: rises with every change of the working context.
        lod_counts: entries per level.
        revealed: spans revealed for the last query, best first.
        iterations: iterations of the last refocus.
    """

    entries: tuple[EntryReport, ...]
    n_tokens: int
    cost: int
    w_max: int
    epoch: int
    lod_counts: Mapping[int, int]
    revealed: tuple[Citation, ...] = ()
    iterations: int = 0


@attrs.frozen(kw_only=True)
class FocusAction(Result):
    """One applied change of focus: the epoch it led to, kind, node, score, rows, trigger."""

    epoch: int
    kind: str
    node: NodeId
    score: float
    delta_cost: int
    reason: str
    trigger: str


@attrs.frozen(kw_only=True)
class Reply(Result):
    """What `generate` returns.

    Attributes:
        text: the reply.
        message_id: its message, None if it was not remembered.
        usage: token counts.
        finish_reason: "stop" (end token or stop string) or "length".
        focus: what the model saw when the reply began.
        citations: spans revealed in full for this prompt.
        seconds: wall time, refocus and durability included.
    """

    text: str
    message_id: int | None
    usage: Usage
    finish_reason: str
    focus: FocusReport
    citations: tuple[Citation, ...]
    seconds: float

    def __str__(self) -> str:
        """Return the text."""
        return self.text


@attrs.frozen
class TextDelta(Result):
    """Text that became final while streaming."""

    text: str


@attrs.frozen
class FocusChanged(Result):
    """The working context changed before or during a reply."""

    focus: FocusReport


@attrs.frozen
class Completed(Result):
    """Last item of a stream: the whole reply."""

    reply: Reply


@attrs.frozen(kw_only=True)
class Hit(Result):
    """One search result: a message or a piece of a long one; a larger score is better."""

    text: str
    span: Span
    score: float
    message_id: int


@attrs.frozen(kw_only=True)
class Stats(Result):
    """Counts and sizes of a memory and its working context.

    Attributes:
        path: the directory, None for a memory that lives in this process only.
        storage, model, focus, gist: providers in use.
        n_tokens, n_blocks, n_messages, tail_tokens, seq: of the history.
        nodes: gists per level.
        gist_versions: rows per encoder version.
        gists_reused, gists_rebuilt: found when the memory was opened, and made then because they
            were missing.
        gists_missing: complete nodes without a stored gist of the encoder in use now.
        gists_pending: how far it lags: full blocks without one.
        gists_provisional: entries of the working context that something else stands in for now.
        gists_served: nodes per encoder version that serves them; -1 is stored nowhere.
        generation: how often the memory was made anew as a whole, by restore or forget, and 1.
        snapshots: how many there are.
        forgotten_tokens: tokens whose content was forgotten, as far as receipts are kept.
        rows, w_max, entries, epoch: of the working context.
        lod_counts: entries per level.
        window_rows, stale_rows, rebuilds, kv_cache_hit_ratio: of the KV window.
        bytes_on_disk, bytes_per_token: everything in the directory.
    """

    path: str | None
    storage: str
    model: str
    focus: str
    gist: str
    n_tokens: int
    n_blocks: int
    n_messages: int
    tail_tokens: int
    seq: int
    nodes: Mapping[int, int]
    gist_versions: Mapping[int, int]
    gists_reused: int
    gists_rebuilt: int
    gists_missing: int
    gists_pending: int
    gists_provisional: int
    gists_served: Mapping[int, int]
    generation: int
    snapshots: int
    forgotten_tokens: int
    rows: int
    w_max: int
    entries: int
    epoch: int
    lod_counts: Mapping[int, int]
    window_rows: int
    stale_rows: int
    rebuilds: int
    kv_cache_hit_ratio: float
    bytes_on_disk: int
    bytes_per_token: float


@attrs.frozen(kw_only=True)
class Audit(Result):
    """Distance of the served window from an exact recomputation of the same layout.

    Attributes:
        kl_mean_nats, kl_p95_nats: KL(served || exact) of next-token distributions.
        top1_agreement: share of rows with the same most likely token.
        n_rows: rows compared, the newest ones.
        stale_rows: rows computed when their left side looked different.
        swaps_since_rebuild: edited runs since the last exact rebuild.
    """

    kl_mean_nats: float
    kl_p95_nats: float
    top1_agreement: float
    n_rows: int
    stale_rows: int
    swaps_since_rebuild: int
