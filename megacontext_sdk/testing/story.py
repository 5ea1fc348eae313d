"""The story that victims tell: commits whose content is a pure function of their number.

So the expected state never has to be read from the memory under test: whoever checks tells the same
story to an in-memory store and compares every byte, the chain included.
"""
# ruff: noqa: SIM300 - asserts read expected == actual

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.contracts.storage import GistBatch
from megacontext_sdk.memory.chain import encode_ids
from megacontext_sdk.memory.directory.vault import Fingerprints, open_memory
from megacontext_sdk.memory.journal import MessageRecord
from megacontext_sdk.memory.lod import Span, n_nodes

if TYPE_CHECKING:
    from pathlib import Path

    from megacontext_sdk.contracts.storage import Storage
    from megacontext_sdk.memory.directory.stores import StorageFactory
    from megacontext_sdk.memory.directory.vault import OpenedMemory
    from megacontext_sdk.memory.journal import Journal, Ticket

__all__ = ["HUGE", "LARGE", "PLAIN", "Story", "Truth", "gist_rows", "kept", "secret", "store_of"]

_NOW_US = 1_700_000_000_000_000
_ROOT = bytes(range(1, 17))
_PRINTS = Fingerprints("a" * 64, "b" * 64)
_VOCAB = 50_000
_TOKEN_BYTES = 2
_GIST_BYTES = 16


def kept(path: Path | None, factory: StorageFactory, **options: object) -> OpenedMemory:
    """Open a memory in which the same calls give the same bytes everywhere: root and clock stand.

    Args:
        path: its directory, None for a store that has none.
        factory: of the store.
        **options: of `open_memory`.
    """
    return open_memory(
        path,
        backend="conformance",
        factory=factory,
        fingerprints=_PRINTS,
        vocab_size=_VOCAB,
        clock=lambda: _NOW_US,
        root=_ROOT,
        **options,  # type: ignore[arg-type]
    )


def store_of(memory: OpenedMemory) -> Storage:
    """Return the open store of a memory, for reading."""
    return memory.storage


def gist_rows(lod: int, first: int, stop: int) -> GistBatch:
    """Return the only right rows of nodes `[first, stop)` of version 0."""
    nodes = np.arange(first, stop, dtype=np.uint64)
    mixed = nodes[:, None] * 131 + np.arange(_GIST_BYTES, dtype=np.uint64) + lod * 7
    return GistBatch(
        version=0,
        lod=lod,
        nodes=nodes,
        trust=np.full(len(nodes), 3, np.uint8),
        rows=(mixed % 251).astype(np.uint8),
    )


def secret(number: int) -> str:
    """Return a text that occurs nowhere else."""
    return f"number {number} marker-{number * 7919:06d}-{'abcdefgh'[number % 8] * 9} of the story"


@attrs.frozen
class Story:
    """What is appended, step by step; a step is one call and one or more commits.

    Attributes:
        commits_per_step: above 1 each step is one append of so many messages, each of which fills
            a commit of its own.
        body_bytes: of most bodies.
    """

    commits_per_step: int = 1
    body_bytes: int = 24

    def tell(self, journal: Journal) -> tuple[int, Ticket]:
        """Make the next step, or finish one that was cut short; return last commit, ticket."""
        step = journal.seq // self.commits_per_step + 1
        last = step * self.commits_per_step
        if self.commits_per_step == 1 and step % 7 == 3:
            return last, journal.update_settings({"step": step})
        messages = self._messages(step)
        n_tokens = sum(message.n_tokens for message in messages)
        ids = np.random.default_rng(step).integers(0, _VOCAB, n_tokens).astype(np.int32)
        key = step.to_bytes(16, "big")
        return last, journal.append(ids, messages, key=key, ts_us=_NOW_US + step)

    def _messages(self, step: int) -> list[MessageRecord]:
        rng = np.random.default_rng((step, 1))
        count = self.commits_per_step if self.commits_per_step > 1 else 1 + step % 7 // 5
        bodies = [f"body {step} {at} ".encode() for at in range(count)]
        return [
            MessageRecord(
                role=step % 4,
                trust=at + 1,
                flags=0,
                ts_us=_NOW_US + step,
                n_tokens=int(rng.integers(0, 91)),
                body=body + rng.bytes(self.body_bytes),
            )
            for at, body in enumerate(bodies)
        ]

    def put_gists(self, journal: Journal) -> None:
        """Hand over the gist rows of all nodes that are complete and have none."""
        for lod in (1, 2):
            first, stop = journal.gist_count(0, lod), n_nodes(journal.n_tokens, lod)
            if stop > first:
                journal.put_gists(gist_rows(lod, first, stop))


PLAIN = Story()
LARGE = Story(body_bytes=600_000)
HUGE = Story(commits_per_step=3, body_bytes=9 * 2**20)


class Truth:
    """The expected content of a memory to which a story was told.

    Args:
        story: the same.
    """

    def __init__(self, story: Story = PLAIN) -> None:
        self.story = story
        self.memory = kept(None, InMemoryStorage)

    def extend(self, seq: int) -> None:
        """Tell the story until it covers commit `seq`."""
        while self.memory.journal.seq < seq:
            self.story.tell(self.memory.journal)[1].wait()

    def close(self) -> None:
        """Let go of it."""
        self.memory.close()

    def check(self, found: OpenedMemory, *, at_least: int) -> int:
        """Compare everything a memory holds; return its newest commit.

        Args:
            found: the memory under test, nothing queued.
            at_least: newest commit that was acknowledged.
        """
        seq = found.journal.seq
        assert seq >= at_least, f"ends at commit {seq}, but {at_least} were acknowledged"
        self.extend(seq)
        self._check_rows(store_of(found), store_of(self.memory), seq)
        self._check_gists(store_of(found))
        return seq

    def _check_rows(self, found: Storage, true: Storage, seq: int) -> None:
        """Compare commits, messages, bodies, ids and state up to a commit."""
        state = found.state()
        assert seq == state.seq
        if seq == 0:
            assert (0, 0, 0, b"") == (state.n_tokens, state.n_blocks, state.n_messages, state.tail)
            return
        commits = true.read_commits(1, seq + 1)
        assert commits.tobytes() == found.read_commits(1, seq + 1).tobytes()
        last = commits[-1]
        n_tokens = int(last["start"]) + int(last["n_tokens"])
        n_messages = int(last["first_message"]) + int(last["n_messages"])
        assert (n_tokens, n_messages) == (state.n_tokens, state.n_messages)
        assert last["chain"].tobytes() == state.chain
        assert int(last["setting"]) == state.setting
        messages = true.read_messages(0, n_messages)
        assert messages.tobytes() == found.read_messages(0, n_messages).tobytes()
        numbers = np.arange(n_messages)
        same = true.read_bodies(numbers) == found.read_bodies(numbers)
        assert same, "bodies differ"
        ids = encode_ids(self.memory.journal.token_ids(Span(0, n_tokens)), _TOKEN_BYTES)
        stored = found.read_blocks(np.arange(n_tokens // 32)).tobytes() + state.tail
        assert ids == stored, "token ids differ"

    def _check_gists(self, found: Storage) -> None:
        """Rows may be missing at the end of a level, never wrong."""
        for version, lod, count in found.state().gist_rows:
            assert version == 0
            assert n_nodes(found.state().n_tokens, lod) >= count, "gists of tokens that are none"
            rows = found.read_gists(version, lod, np.arange(count))
            right = gist_rows(lod, 0, count)
            assert rows.present.all(), "a gist that was counted is missing"
            assert right.rows.tobytes() == rows.rows.tobytes(), "a gist row is wrong"
            assert right.trust.tobytes() == rows.trust.tobytes(), "the trust of a gist is wrong"
