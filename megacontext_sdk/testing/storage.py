"""Conformance of a `Storage`: the contract, case by case, against the oracle of plain Python lists.

Subclass `StorageConformance` and give it a `make`; the in-tree backends use exactly this class. It
does not test what one backend adds (SQL, files, locks), nor crashes.
"""
# ruff: noqa: SIM300 - asserts read expected == actual

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs
import numpy as np
import pytest

from megacontext_sdk.contracts.storage import (
    COMMIT,
    MESSAGE,
    NO_SETTING,
    Batch,
    GistBatch,
    Header,
)
from megacontext_sdk.errors import InvariantError, ReadOnlyError, SessionClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.storage import (
        Storage,
    )

__all__ = ["Oracle", "StorageConformance"]

_BLOCK_BYTES = 64
_HEADER = Header(block_bytes=_BLOCK_BYTES)


def _numbers(*values: int) -> NDArray[np.int64]:
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
        full = len(ids) // _BLOCK_BYTES * _BLOCK_BYTES
        self.blocks += [ids[at : at + _BLOCK_BYTES] for at in range(0, full, _BLOCK_BYTES)]
        self.tail = ids[full:]
        blocks = b"".join(self.blocks[first_block:])
        return Batch(
            commits=np.array(rows, dtype=COMMIT),
            blocks=np.frombuffer(blocks, np.uint8).reshape(-1, _BLOCK_BYTES),
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


class StorageConformance:
    """The contract of `Storage` as tests.

    Set `make` to a function of an empty folder that returns a new, unopened store. A store whose
    `capabilities.durability` is empty dies with its process and skips the reopening tests.

    Example:
        >>> class TestAcme(StorageConformance):
        ...     make = staticmethod(lambda folder: AcmeStorage(folder / "data-000001"))
    """

    make: Callable[[Path], Storage]

    # --- what the tests stand on -------------------------------------------------------------

    @pytest.fixture
    def oracle(self) -> Oracle:
        """Return an oracle of an empty store."""
        return Oracle()

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Storage]:
        """Return a created, empty store."""
        store = type(self).make(tmp_path)
        store.open("create", _HEADER)
        yield store
        store.close()

    @pytest.fixture
    def filled(self, store: Storage, oracle: Oracle) -> Storage:
        """Return a store with 12 commits of 45 tokens in three batches."""
        for n_commits in (1, 4, 7):
            store.commit(oracle.batch(45, n_commits=n_commits, n_messages=3))
        return store

    def reopen(
        self, store: Storage, folder: Path, mode: Literal["read", "write"] = "write"
    ) -> Storage:
        """Close a store and open its data again with a new object."""
        if not store.capabilities.durability:
            pytest.skip("declares no durability: its data dies with the object")
        store.close()
        again = type(self).make(folder)
        again.open(mode, _HEADER)
        return again

    # --- state -------------------------------------------------------------------------------

    def test_new_store_is_empty(self, store: Storage) -> None:
        """A created store is at commit 0."""
        state = store.state()
        assert (0, 0, 0, 0, b"") == (
            state.seq,
            state.n_tokens,
            state.n_blocks,
            state.n_messages,
            state.tail,
        )
        assert NO_SETTING == state.setting
        assert () == state.gist_rows
        assert bytes(16) == state.chain  # core puts the root in its place

    def test_state_follows_each_batch(self, store: Storage, oracle: Oracle) -> None:
        """The state is that of the newest commit, whatever the batch sizes."""
        for n_commits in (1, 3, 2):
            store.commit(oracle.batch(37, n_commits=n_commits, n_messages=2))
            self.check_state(store, oracle)

    def test_state_survives_reopening(
        self, filled: Storage, oracle: Oracle, tmp_path: Path
    ) -> None:
        """A reopened store is where it was, and goes on."""
        again = self.reopen(filled, tmp_path)
        self.check_state(again, oracle)
        again.commit(oracle.batch(5))
        self.check_state(again, oracle)
        again.close()

    def test_state_counts_gists_by_version_and_level(self, filled: Storage, oracle: Oracle) -> None:
        """`gist_rows` is ascending by version and level."""
        filled.put_gists(oracle.gists(0, 16))
        filled.put_gists(oracle.gists(0, 2, lod=2))
        filled.put_gists(oracle.gists(0, 5, version=3))
        assert ((0, 1, 16), (0, 2, 2), (3, 1, 5)) == filled.state().gist_rows

    def check_state(self, store: Storage, oracle: Oracle) -> None:
        """Compare the state with the oracle's."""
        state = store.state()
        assert len(oracle.commits) == state.seq
        assert oracle.commits[-1]["chain"].tobytes() == state.chain
        assert oracle.n_tokens == state.n_tokens
        assert len(oracle.blocks) == state.n_blocks
        assert len(oracle.messages) == state.n_messages
        assert oracle.tail == state.tail

    # --- reading -----------------------------------------------------------------------------

    def test_commits_come_back_byte_for_byte(self, filled: Storage, oracle: Oracle) -> None:
        """Any interval of commits equals what was written."""
        for start, stop in ((1, 13), (1, 2), (12, 13), (4, 9), (5, 5)):
            rows = filled.read_commits(start, stop)
            assert COMMIT == rows.dtype
            assert b"".join(row.tobytes() for row in oracle.commits[start - 1 : stop - 1]) == (
                rows.tobytes()
            )

    def test_messages_come_back_byte_for_byte(self, filled: Storage, oracle: Oracle) -> None:
        """Any interval of messages equals what was written."""
        for start, stop in ((0, 36), (0, 1), (35, 36), (7, 20), (3, 3)):
            rows = filled.read_messages(start, stop)
            assert MESSAGE == rows.dtype
            assert b"".join(row.tobytes() for row in oracle.messages[start:stop]) == rows.tobytes()

    @pytest.mark.parametrize(
        "numbers", [[], [0], [15, 0, 3], [3, 3, 3], [*range(16)], [9, 2, 9, 14, 2, 0]]
    )
    def test_blocks_keep_order_and_repeats(
        self, filled: Storage, oracle: Oracle, numbers: list[int]
    ) -> None:
        """Blocks come in the order asked, repeats included."""
        rows = filled.read_blocks(_numbers(*numbers))
        assert (len(numbers), _BLOCK_BYTES) == rows.shape
        assert np.uint8 == rows.dtype
        assert b"".join(oracle.blocks[number] for number in numbers) == rows.tobytes()

    @pytest.mark.parametrize("numbers", [[], [35], [4, 0, 4, 30], [*range(36)]])
    def test_bodies_keep_order_and_repeats(
        self, filled: Storage, oracle: Oracle, numbers: list[int]
    ) -> None:
        """Bodies come in the order asked, repeats and empty ones included."""
        bodies = filled.read_bodies(_numbers(*numbers))
        assert [oracle.bodies[number] for number in numbers] == bodies

    def test_empty_and_large_bodies_are_kept(self, store: Storage, oracle: Oracle) -> None:
        """A body may be empty, and may be larger than any page."""
        batch = oracle.batch(1, n_messages=3)
        bodies = (b"", b"\x00" * 300_000, b"'; DROP TABLE \xff")
        store.commit(attrs.evolve(batch, bodies=bodies))
        assert list(bodies) == store.read_bodies(_numbers(0, 1, 2))

    def test_arrays_are_read_only(self, filled: Storage, oracle: Oracle) -> None:
        """What a store hands out cannot be written to."""
        filled.put_gists(oracle.gists(0, 4))
        found = filled.read_gists(0, 1, _numbers(0, 1))
        for array in (
            filled.read_commits(1, 3),
            filled.read_blocks(_numbers(0, 1)),
            filled.read_messages(0, 2),
            found.rows,
            found.trust,
            found.present,
        ):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = array[1]

    def test_unknown_numbers_are_named(self, filled: Storage) -> None:
        """An unknown id raises LookupError with kind, id and range."""
        for read, kind, number in (
            (lambda: filled.read_blocks(_numbers(3, 17)), "block", "17"),
            (lambda: filled.read_bodies(_numbers(36)), "message", "36"),
            (lambda: filled.read_messages(30, 37), "message", "37"),
            (lambda: filled.read_commits(0, 3), "commit", "0"),
            (lambda: filled.read_commits(12, 14), "commit", "14"),
        ):
            with pytest.raises(LookupError) as caught:
                read()
            assert kind in str(caught.value)
            assert number in str(caught.value)

    def test_everything_survives_reopening(
        self, filled: Storage, oracle: Oracle, tmp_path: Path
    ) -> None:
        """A store opened for reading shows every row."""
        again = self.reopen(filled, tmp_path, "read")
        assert b"".join(oracle.blocks) == again.read_blocks(np.arange(16)).tobytes()
        assert oracle.bodies == again.read_bodies(np.arange(36))
        assert np.array(oracle.commits, COMMIT).tobytes() == again.read_commits(1, 13).tobytes()
        assert np.array(oracle.messages, MESSAGE).tobytes() == again.read_messages(0, 36).tobytes()
        again.close()

    # --- gists -------------------------------------------------------------------------------

    def test_gists_are_readable_at_once(self, filled: Storage, oracle: Oracle) -> None:
        """Rows come in the order asked, repeats included, before any flush."""
        batch = oracle.gists(0, 16)
        filled.put_gists(batch)
        found = filled.read_gists(0, 1, _numbers(15, 3, 3, 0))
        assert batch.rows[[15, 3, 3, 0]].tobytes() == found.rows.tobytes()
        assert [0, 3, 3, 0] == found.trust.tolist()
        assert found.present.all()

    def test_missing_gists_are_absent_not_errors(self, filled: Storage, oracle: Oracle) -> None:
        """A node, level or version without rows is `present == False`."""
        filled.put_gists(oracle.gists(0, 3))
        found = filled.read_gists(0, 1, _numbers(2, 3, 10**9))
        assert [True, False, False] == found.present.tolist()
        assert (3, 20) == found.rows.shape
        assert not found.rows[1:].any()
        for version, lod in ((0, 2), (1, 1)):
            nothing = filled.read_gists(version, lod, _numbers(0, 1))
            assert [False, False] == nothing.present.tolist()
            assert 2 == len(nothing.rows) == len(nothing.trust)

    def test_gists_of_levels_and_versions_do_not_mix(self, filled: Storage, oracle: Oracle) -> None:
        """The key is version, level and node; rows of another width are another level's."""
        batches = [
            oracle.gists(0, 8),
            oracle.gists(0, 8, lod=2, row_bytes=36),
            oracle.gists(0, 8, version=1, row_bytes=12),
        ]
        for batch in batches:
            filled.put_gists(batch)
        filled.flush()
        for batch in batches:
            found = filled.read_gists(batch.version, batch.lod, np.arange(8))
            assert batch.rows.tobytes() == found.rows.tobytes()

    def test_gists_around_commits_and_flushes_are_all_there(
        self, filled: Storage, oracle: Oracle
    ) -> None:
        """Rows put before a commit, after it and after a flush read as one level."""
        filled.put_gists(oracle.gists(0, 5))
        filled.commit(oracle.batch(64))
        filled.put_gists(oracle.gists(5, 9))
        filled.flush()
        filled.put_gists(oracle.gists(9, 12))
        found = filled.read_gists(0, 1, np.arange(12))
        assert oracle.gists(0, 12).rows.tobytes() == found.rows.tobytes()
        assert ((0, 1, 12),) == filled.state().gist_rows

    def test_flushed_gists_survive_reopening(
        self, filled: Storage, oracle: Oracle, tmp_path: Path
    ) -> None:
        """After a flush no gist is missing."""
        filled.put_gists(oracle.gists(0, 16))
        filled.flush()
        again = self.reopen(filled, tmp_path)
        found = again.read_gists(0, 1, np.arange(16))
        assert oracle.gists(0, 16).rows.tobytes() == found.rows.tobytes()
        assert ((0, 1, 16),) == again.state().gist_rows
        again.close()

    # --- refusals ----------------------------------------------------------------------------

    def test_gap_in_seq_is_refused_and_changes_nothing(
        self, filled: Storage, oracle: Oracle
    ) -> None:
        """Commits are dense."""
        before = filled.state()
        batch = oracle.batch(3)
        for seq in (0, 12, 14, 2**40):
            commits = batch.commits.copy()
            commits["seq"] = seq
            with pytest.raises(InvariantError):
                filled.commit(attrs.evolve(batch, commits=commits))
        assert before == filled.state()
        filled.commit(batch)
        assert before.seq + 1 == filled.state().seq

    def test_wrong_shapes_are_refused_and_change_nothing(
        self, filled: Storage, oracle: Oracle
    ) -> None:
        """Blocks have the header's width and dtype; each message has a body."""
        before = filled.state()
        batch = oracle.batch(40)
        for change in (
            {"blocks": np.zeros((1, _BLOCK_BYTES - 1), np.uint8)},
            {"blocks": np.zeros((1, _BLOCK_BYTES), np.int8)},
            {"bodies": ()},
        ):
            with pytest.raises(InvariantError):
                filled.commit(attrs.evolve(batch, **change))
        assert before == filled.state()

    def test_read_mode_refuses_writes(
        self, filled: Storage, oracle: Oracle, tmp_path: Path
    ) -> None:
        """A store opened for reading raises ReadOnlyError for a write."""
        again = self.reopen(filled, tmp_path, "read")
        with pytest.raises(ReadOnlyError):
            again.commit(oracle.batch(1))
        with pytest.raises(ReadOnlyError):
            again.put_gists(oracle.gists(0, 1))
        again.close()

    def test_closed_store_refuses_everything(self, filled: Storage, oracle: Oracle) -> None:
        """`close` is idempotent; afterwards calls raise SessionClosedError."""
        filled.close()
        filled.close()
        for call in (
            filled.state,
            lambda: filled.read_blocks(_numbers(0)),
            lambda: filled.read_gists(0, 1, _numbers(0)),
            lambda: filled.commit(oracle.batch(1)),
        ):
            with pytest.raises(SessionClosedError) as caught:
                call()
            assert "closed" == caught.value.reason

    def test_construction_touches_no_disk(self, tmp_path: Path) -> None:
        """Making a store does no I/O."""
        type(self).make(tmp_path)
        assert [] == list(tmp_path.iterdir())
