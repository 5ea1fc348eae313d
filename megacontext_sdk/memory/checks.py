"""What may be handed to the journal: arguments are checked here before anything is allocated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.errors import ConfigError, InvariantError, QuotaError
from megacontext_sdk.memory.chain import FLAG_FORGOTTEN, MAX_COMMIT_BYTES, frozen
from megacontext_sdk.memory.lod import MAX_LOD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Ids
    from megacontext_sdk.contracts.storage import GistBatch
    from megacontext_sdk.memory.chain import MessageRecord
    from megacontext_sdk.memory.lod import Span

__all__ = [
    "check_gists",
    "check_key",
    "check_messages",
    "check_remembered",
    "check_span",
    "checked_ids",
    "head_of",
]

_MAX_TOKENS = 2**48
_MAX_ROW_BYTES = 64 * 2**10


def checked_ids(token_ids: Ids, *, token_bytes: int, n_tokens: int) -> Ids:
    """Return a private copy of the ids to append after `n_tokens`, int32[n].

    Raises:
        ConfigError: not a row of integers, or an id the memory cannot hold.
        QuotaError: the memory would exceed 2**48 tokens.
    """
    given = np.asarray(token_ids)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise ConfigError(
            f"token ids are a row of integers, got {given.dtype} of shape {given.shape}",
            field="token_ids",
            value=str(given.dtype),
        )
    limit = 2**31 if token_bytes == 4 else 2**16 - 1
    if len(given) and (int(given.min()) < 0 or int(given.max()) >= limit):
        index = int(np.flatnonzero((given < 0) | (given >= limit))[0])
        raise ConfigError(
            f"token id {int(given[index])} at index {index} is outside [0, {limit})",
            field="token_ids",
            value=int(given[index]),
            index=index,
        )
    if n_tokens + len(given) > _MAX_TOKENS:
        raise QuotaError(
            f"a memory holds at most {_MAX_TOKENS} tokens, this append would make "
            f"{n_tokens + len(given)}; start another memory",
            field="token_ids",
            value=n_tokens + len(given),
            quota="memory_tokens",
            limit=_MAX_TOKENS,
        )
    return frozen(np.array(given, dtype=np.int32))


def check_messages(n_tokens: int, messages: Sequence[MessageRecord]) -> None:
    """Check that messages tile an append of `n_tokens`.

    Raises:
        InvariantError: they do not.
        QuotaError: a body above 16 MiB.
    """
    for number, message in enumerate(messages):
        if len(message.body) > MAX_COMMIT_BYTES:
            raise QuotaError(
                f"message {number} of this append has a body of {len(message.body)} bytes, at most "
                f"{MAX_COMMIT_BYTES} are possible; cut it into several messages",
                field="messages",
                value=len(message.body),
                quota="body_bytes",
                limit=MAX_COMMIT_BYTES,
            )
    total = sum(message.n_tokens for message in messages)
    if total != n_tokens or any(message.n_tokens < 0 for message in messages):
        raise InvariantError(
            f"messages cover {total} tokens, the append has {n_tokens}",
            code="message-tiling",
            detail="each token belongs to exactly one message",
            epoch=None,
        )


def check_key(key: bytes) -> None:
    """Check an idempotency key.

    Raises:
        ConfigError: it is not 16 bytes, or all zero, which means "no key".
    """
    if not isinstance(key, bytes) or len(key) != 16 or not any(key):
        raise ConfigError(
            "an idempotency key is 16 bytes, not all zero; hash what you have to that length",
            field="idempotency_key",
            value=None,
        )


def check_remembered(rows: NDArray[np.void], seq: int) -> None:
    """Check that none of the messages of a repeated append was forgotten meanwhile.

    Args:
        rows: MESSAGE[n], of the commit with the key.
        seq: its number.

    Raises:
        ConfigError: one was; storing it again must be asked for.
    """
    if (rows["flags"] & FLAG_FORGOTTEN).any():
        raise ConfigError(
            f"what commit {seq} stored under this idempotency key was forgotten; use a new key to "
            "append it again",
            field="idempotency_key",
            value="forgotten",
        )


def check_span(span: Span, n_tokens: int) -> None:
    """Check that a span lies inside the history.

    Raises:
        ConfigError: it does not.
    """
    if not 0 <= span.start <= span.end <= n_tokens:
        raise ConfigError(
            f"the span [{span.start}, {span.end}) does not lie in [0, {n_tokens})",
            field="span",
            value=(span.start, span.end),
        )


def check_gists(batch: GistBatch) -> None:
    """Check dtypes, shapes and order of gist rows.

    Raises:
        InvariantError: naming what is wrong.
    """
    n = len(batch.nodes)
    fits = (
        n > 0
        and 1 <= batch.lod <= MAX_LOD
        and 0 <= batch.version < 2**16
        and batch.rows.dtype == np.uint8
        and batch.rows.ndim == 2
        and len(batch.rows) == len(batch.trust) == n
        and 0 < batch.rows.shape[1] <= _MAX_ROW_BYTES
    )
    if not fits or int(batch.nodes[-1]) - int(batch.nodes[0]) != n - 1:
        raise InvariantError(
            f"{n} gist rows of version {batch.version}, LOD{batch.lod} are no dense uint8 rows of "
            f"at most {_MAX_ROW_BYTES} bytes",
            code="gist-shape",
            detail="nodes ascend without a gap; one trust value and one row per node",
            epoch=None,
        )


def head_of(batch: GistBatch, n: int) -> GistBatch:
    """Return a private copy of the first n rows of a batch."""
    return attrs.evolve(
        batch,
        nodes=np.array(batch.nodes[:n], dtype=np.uint64),
        trust=np.array(batch.trust[:n], dtype=np.uint8),
        rows=np.array(batch.rows[:n], dtype=np.uint8),
    )
