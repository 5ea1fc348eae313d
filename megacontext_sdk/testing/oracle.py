"""What a store should hold, as plain Python lists, and a maker of batches that extend it.

It knows the layout of rows and nothing of journals: chain values are random bytes here, so that a
store cannot pass by computing them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.contracts.storage import (
    COMMIT,
    MESSAGE,
    NO_SETTING,
    Batch,
    GistBatch,
    Header,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BLOCK_BYTES", "HEADER", "Oracle", "numbers"]

BLOCK_BYTES = 64
HEADER = Header(block_bytes=BLOCK_BYTES)


def numbers(*values: int) -> NDArray[np.int64]:
    """Return ids as a store is asked for them."""
    return np.array(values, dtype=np.int64)


@attrs.define
class Oracle:
    """What a store should hold, and a maker of batches that extend it.

    Attributes:
        seed: of the random content.
    """

    seed: int = 0
    commits: list[NDArray[np.void]] = attrs.field(factory=list)
    blocks: list[bytes] = attrs.field(factory=list)
    messages: list[NDArray[np.void]] = attrs.field(factory=list)
    bodies: list[bytes] = attrs.field(factory=list)
    tail: bytes = b""
    n_tokens: int = 0

    def batch(self, n_tokens: int, *, n_commits: int = 1, n_messages: int = 1) -> Batch:
        """Return the next batch of `n_commits` commits of `n_tokens` each, and remember it."""
        rng = np.random.default_rng((self.seed, len(self.commits)))
        first_block, first_message = len(self.blocks), len(self.messages)
        rows = [self._commit(n_tokens, n_messages, rng) for _ in range(n_commits)]
        ids = self.tail + rng.bytes(2 * n_tokens * n_commits)
        full = len(ids) // BLOCK_BYTES * BLOCK_BYTES
        self.blocks += [ids[at : at + BLOCK_BYTES] for at in range(0, full, BLOCK_BYTES)]
        self.tail = ids[full:]
        blocks = b"".join(self.blocks[first_block:])
        return Batch(
            commits=np.array(rows, dtype=COMMIT),
            blocks=np.frombuffer(blocks, np.uint8).reshape(-1, BLOCK_BYTES),
            tail=self.tail,
            messages=np.array(self.messages[first_message:], dtype=MESSAGE),
            bodies=tuple(self.bodies[first_message:]),
        )

    def _commit(self, n_tokens: int, n_messages: int, rng: np.random.Generator) -> NDArray[np.void]:
        row = np.zeros((), COMMIT)
        row["seq"] = len(self.commits) + 1
        row["ts_us"] = 1_700_000_000_000_000 + len(self.commits)
        row["start"] = self.n_tokens
        row["first_message"] = len(self.messages)
        row["setting"] = NO_SETTING
        row["n_tokens"] = n_tokens
        row["n_messages"] = n_messages
        row["op"] = 1
        row["key"] = np.void(rng.bytes(16))
        row["chain"] = np.void(rng.bytes(16))
        self.commits.append(row)
        for at in range(n_messages):
            message = np.zeros((), MESSAGE)
            message["start"] = self.n_tokens
            message["ts_us"] = -at
            message["n_tokens"] = n_tokens if at == n_messages - 1 else 0
            message["role"], message["trust"], message["flags"] = at % 5, at % 5, at
            self.messages.append(message)
            self.bodies.append(rng.bytes(int(rng.integers(0, 200))))
        self.n_tokens += n_tokens
        return row

    def gists(
        self, first: int, stop: int, *, lod: int = 1, version: int = 0, row_bytes: int = 20
    ) -> GistBatch:
        """Return rows of nodes `[first, stop)`, a pure function of the arguments."""
        nodes = np.arange(first, stop, dtype=np.uint64)
        mixed = nodes[:, None] * 131 + np.arange(row_bytes, dtype=np.uint64) + lod * 7 + version
        return GistBatch(
            version=version,
            lod=lod,
            nodes=nodes,
            trust=(nodes % 5).astype(np.uint8),
            rows=(mixed % 251).astype(np.uint8),
        )
