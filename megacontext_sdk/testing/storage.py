"""Conformance of a `Storage`: the contract, case by case, against the oracle of plain Python lists.

Subclass `StorageConformance` and give it a `make`; the in-tree backends use exactly this class. It
does not test what one backend adds (SQL, files, locks), nor crashes: see `testing.crashes`.
"""
# ruff: noqa: SIM300 - asserts read expected == actual

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np
import pytest

from megacontext_sdk.contracts.storage import COMMIT, MESSAGE, NO_SETTING
from megacontext_sdk.errors import InvariantError, ReadOnlyError, SessionClosedError
from megacontext_sdk.testing.oracle import BLOCK_BYTES, Oracle, numbers
from megacontext_sdk.testing.storage_base import StorageBase
from megacontext_sdk.testing.storage_sharing import StorageSharing

if TYPE_CHECKING:
    from pathlib import Path

    from megacontext_sdk.contracts.storage import Storage

__all__ = ["Oracle", "StorageConformance"]


class StorageConformance(StorageSharing, StorageBase):
    """The contract of `Storage` as tests.

    Set `make` to a function of an empty folder that returns a new, unopened store. A store whose
    `capabilities.durability` is empty dies with its process and skips the reopening tests.

    Example:
        >>> class TestAcme(StorageConformance):
        ...     make = staticmethod(lambda folder: AcmeStorage(folder / "data-000001"))
    """

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
        "wanted", [[], [0], [15, 0, 3], [3, 3, 3], [*range(16)], [9, 2, 9, 14, 2, 0]]
    )
    def test_blocks_keep_order_and_repeats(
        self, filled: Storage, oracle: Oracle, wanted: list[int]
    ) -> None:
        """Blocks come in the order asked, repeats included."""
        rows = filled.read_blocks(numbers(*wanted))
        assert (len(wanted), BLOCK_BYTES) == rows.shape
        assert np.uint8 == rows.dtype
        assert b"".join(oracle.blocks[number] for number in wanted) == rows.tobytes()

    @pytest.mark.parametrize("wanted", [[], [35], [4, 0, 4, 30], [*range(36)]])
    def test_bodies_keep_order_and_repeats(
        self, filled: Storage, oracle: Oracle, wanted: list[int]
    ) -> None:
        """Bodies come in the order asked, repeats and empty ones included."""
        bodies = filled.read_bodies(numbers(*wanted))
        assert [oracle.bodies[number] for number in wanted] == bodies
        assert {bytes} >= {type(body) for body in bodies}

    def test_empty_and_large_bodies_are_kept(self, store: Storage, oracle: Oracle) -> None:
        """A body may be empty, and may be larger than any page."""
        batch = oracle.batch(1, n_messages=3)
        bodies = (b"", b"\x00" * 300_000, b"'; DROP TABLE \xff")
        store.commit(attrs.evolve(batch, bodies=bodies))
        assert list(bodies) == store.read_bodies(numbers(0, 1, 2))

    def test_arrays_are_read_only(self, filled: Storage, oracle: Oracle) -> None:
        """What a store hands out cannot be written to."""
        filled.put_gists(oracle.gists(0, 4))
        found = filled.read_gists(0, 1, numbers(0, 1))
        for array in (
            filled.read_commits(1, 3),
            filled.read_blocks(numbers(0, 1)),
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
            (lambda: filled.read_blocks(numbers(3, 17)), "block", "17"),
            (lambda: filled.read_bodies(numbers(36)), "message", "36"),
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
        found = filled.read_gists(0, 1, numbers(15, 3, 3, 0))
        assert batch.rows[[15, 3, 3, 0]].tobytes() == found.rows.tobytes()
        assert [0, 3, 3, 0] == found.trust.tolist()
        assert found.present.all()

    def test_missing_gists_are_absent_not_errors(self, filled: Storage, oracle: Oracle) -> None:
        """A node, level or version without rows is `present == False`."""
        filled.put_gists(oracle.gists(0, 3))
        found = filled.read_gists(0, 1, numbers(2, 3, 10**9))
        assert [True, False, False] == found.present.tolist()
        assert (3, 20) == found.rows.shape
        assert not found.rows[1:].any()
        for version, lod in ((0, 2), (1, 1)):
            nothing = filled.read_gists(version, lod, numbers(0, 1))
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
            {"blocks": np.zeros((1, BLOCK_BYTES - 1), np.uint8)},
            {"blocks": np.zeros((1, BLOCK_BYTES), np.int8)},
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
            lambda: filled.read_blocks(numbers(0)),
            lambda: filled.read_gists(0, 1, numbers(0)),
            lambda: filled.commit(oracle.batch(1)),
        ):
            with pytest.raises(SessionClosedError) as caught:
                call()
            assert "closed" == caught.value.reason

    def test_construction_touches_no_disk(self, tmp_path: Path) -> None:
        """Making a store does no I/O."""
        type(self).make(tmp_path)
        assert [] == list(tmp_path.iterdir())
