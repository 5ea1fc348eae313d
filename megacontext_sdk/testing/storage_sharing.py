"""The part of the storage contract about others: reopening, salvage, clones, threads, readers.

These are the cases in which a store meets itself again, in another object, thread or directory.
"""
# ruff: noqa: SIM300 - asserts read expected == actual

from __future__ import annotations

from threading import Event, Thread
from typing import TYPE_CHECKING

import attrs
import numpy as np
import pytest

from megacontext_sdk.contracts.storage import COMMIT, MESSAGE
from megacontext_sdk.errors import InvariantError
from megacontext_sdk.testing.damage import fingerprint
from megacontext_sdk.testing.oracle import BLOCK_BYTES, HEADER, Oracle, numbers
from megacontext_sdk.testing.storage_base import StorageBase

if TYPE_CHECKING:
    from pathlib import Path

    from megacontext_sdk.contracts.storage import OpenMode, Storage

__all__ = ["StorageSharing"]


def same_rows(expected: Oracle, store: Storage) -> None:
    """Compare every row a store holds with the oracle's, byte for byte."""
    n_commits, n_messages = len(expected.commits), len(expected.messages)
    commits = store.read_commits(1, n_commits + 1)
    assert np.array(expected.commits, COMMIT).tobytes() == commits.tobytes()
    messages = store.read_messages(0, n_messages)
    assert np.array(expected.messages, MESSAGE).tobytes() == messages.tobytes()
    blocks = store.read_blocks(np.arange(len(expected.blocks)))
    assert b"".join(expected.blocks) == blocks.tobytes()
    assert expected.bodies == store.read_bodies(np.arange(n_messages))


class StorageSharing(StorageBase):
    """Reopening, salvage, clones, threads and readers."""

    # --- batches of all sizes ----------------------------------------------------------------

    @pytest.mark.parametrize("n_tokens", [0, 1, 31, 32, 33, 63, 64, 100, 1_000])
    def test_batches_of_any_length_add_up(
        self, store: Storage, oracle: Oracle, n_tokens: int
    ) -> None:
        """Blocks fill across commits; the tail is what the last full block leaves."""
        for n_commits in (1, 2, 3):
            store.commit(oracle.batch(n_tokens, n_commits=n_commits, n_messages=n_commits - 1))
            self.check_state(store, oracle)
        same_rows(oracle, store)

    def test_large_batches_are_whole(self, store: Storage, oracle: Oracle, tmp_path: Path) -> None:
        """One batch of 20,000 blocks, one of 500 commits, one body of 4 MiB."""
        store.commit(oracle.batch(32 * 20_000 + 7))
        store.commit(oracle.batch(3, n_commits=500, n_messages=2))
        batch = oracle.batch(1, n_messages=1)
        oracle.bodies[-1] = b"\xff\x00\x01\x02" * 2**20
        store.commit(attrs.evolve(batch, bodies=(oracle.bodies[-1],)))
        same_rows(oracle, store)
        store.flush()
        same_rows(oracle, store)
        if store.capabilities.durability:
            again = self.reopen(store, tmp_path, "read")
            same_rows(oracle, again)
            again.close()

    @pytest.mark.parametrize("seed", range(12))
    def test_random_reads_equal_the_oracle(self, store: Storage, oracle: Oracle, seed: int) -> None:
        """Any mix of rows, flushed and not, in any order, with repeats."""
        rng = np.random.default_rng(seed)
        for _ in range(6):
            n_commits = int(rng.integers(1, 5))
            store.commit(
                oracle.batch(
                    int(rng.integers(0, 200)),
                    n_commits=n_commits,
                    n_messages=int(rng.integers(0, 4)),
                )
            )
            if rng.random() < 0.4:
                store.flush()
        for _ in range(5):
            if oracle.blocks:
                wanted = rng.integers(0, len(oracle.blocks), int(rng.integers(0, 60)))
                expected = b"".join(oracle.blocks[number] for number in wanted)
                assert expected == store.read_blocks(wanted).tobytes()
            if oracle.messages:
                wanted = rng.integers(0, len(oracle.messages), int(rng.integers(0, 30)))
                found = store.read_bodies(wanted)
                assert [oracle.bodies[number] for number in wanted] == found
            start, stop = np.sort(rng.integers(1, len(oracle.commits) + 2, 2)).tolist()
            rows = store.read_commits(start, stop)
            assert (
                np.array(oracle.commits[start - 1 : stop - 1], COMMIT).tobytes() == rows.tobytes()
            )
        same_rows(oracle, store)

    def test_what_was_handed_out_does_not_change(self, filled: Storage, oracle: Oracle) -> None:
        """Arrays and states are valid until `close`, whatever is written meanwhile."""
        filled.put_gists(oracle.gists(0, 8))
        state, commits = filled.state(), filled.read_commits(1, 13)
        blocks, found = filled.read_blocks(numbers(3, 1)), filled.read_gists(0, 1, numbers(2))
        before = (commits.tobytes(), blocks.tobytes(), found.rows.tobytes())
        seq = state.seq
        for _ in range(40):
            filled.commit(oracle.batch(64, n_messages=2))
        filled.put_gists(oracle.gists(8, 60))
        filled.flush()
        assert seq == state.seq
        assert before == (commits.tobytes(), blocks.tobytes(), found.rows.tobytes())

    # --- reopening ---------------------------------------------------------------------------

    @pytest.mark.parametrize("is_flushed", [False, True])
    def test_commits_survive_a_close_with_or_without_a_flush(
        self, filled: Storage, oracle: Oracle, tmp_path: Path, *, is_flushed: bool
    ) -> None:
        """`close` is no durability point and needs to be none: a commit already is."""
        filled.put_gists(oracle.gists(0, 9))
        if is_flushed:
            filled.flush()
        again = self.reopen(filled, tmp_path, "read")
        same_rows(oracle, again)
        found = again.read_gists(0, 1, np.arange(9))
        expected = oracle.gists(0, 9)
        assert found.present.all() or not is_flushed
        width = found.rows.shape[1]
        assert expected.rows[found.present][:, :width].tobytes() == (
            found.rows[found.present].tobytes()
        )
        again.close()

    def test_a_store_goes_on_after_every_reopening(
        self, store: Storage, oracle: Oracle, tmp_path: Path
    ) -> None:
        """Ten times: append, sometimes flush, reopen, compare."""
        for number in range(10):
            store.commit(oracle.batch(20 + number, n_commits=2, n_messages=1))
            if number % 3 == 0:
                store.flush()
            store = self.reopen(store, tmp_path)
            self.check_state(store, oracle)
        same_rows(oracle, store)
        store.close()

    def test_reading_changes_no_byte(self, filled: Storage, oracle: Oracle, tmp_path: Path) -> None:
        """Neither "read" nor "salvage" touches a file."""
        filled.put_gists(oracle.gists(0, 4))
        self.reopen(filled, tmp_path).close()
        before = fingerprint(tmp_path)
        modes: tuple[OpenMode, ...] = ("read", "salvage")
        for mode in modes:
            again = self.reopen(filled, tmp_path, mode)
            same_rows(oracle, again)
            again.close()
        assert before == fingerprint(tmp_path)

    @pytest.mark.parametrize("is_flushed", [False, True])
    def test_salvage_of_an_intact_store_equals_read(
        self, filled: Storage, oracle: Oracle, tmp_path: Path, *, is_flushed: bool
    ) -> None:
        """Salvage shows the longest prefix it can give: here that is everything."""
        filled.put_gists(oracle.gists(0, 16))
        if is_flushed:
            filled.flush()
        plain = self.reopen(filled, tmp_path, "read")
        state, gists = plain.state(), plain.read_gists(0, 1, np.arange(16))
        plain.close()
        salvaged = self.reopen(filled, tmp_path, "salvage")
        assert state == salvaged.state()
        same_rows(oracle, salvaged)
        found = salvaged.read_gists(0, 1, np.arange(16))
        assert gists.rows.tobytes() == found.rows.tobytes()
        salvaged.close()

    # --- clones ------------------------------------------------------------------------------

    def clone(self, store: Storage, folder: Path, upto_seq: int) -> Storage:
        """Return the unopened clone of a flushed store."""
        if not store.capabilities.cheap_fork:
            pytest.skip("declares no cheap_fork: forks replay its commits")
        folder.mkdir()
        twin = type(self).make(folder)
        store.flush()
        store.clone(twin.path, upto_seq)
        return twin

    @pytest.mark.parametrize("upto_seq", [1, 5, 8, 12])
    def test_a_clone_ends_where_it_was_cut(
        self, filled: Storage, oracle: Oracle, tmp_path: Path, upto_seq: int
    ) -> None:
        """Commits, tokens, tail and messages up to the cut; gists only of whole nodes."""
        filled.put_gists(oracle.gists(0, 16))
        twin = self.clone(filled, tmp_path / "twin", upto_seq)
        twin.open("read", HEADER)
        state, last = twin.state(), oracle.commits[upto_seq - 1]
        n_tokens = int(last["start"]) + int(last["n_tokens"])
        n_messages = int(last["first_message"]) + int(last["n_messages"])
        assert (upto_seq, n_tokens, n_tokens // 32, n_messages) == (
            state.seq,
            state.n_tokens,
            state.n_blocks,
            state.n_messages,
        )
        every = b"".join(oracle.blocks) + oracle.tail
        kept = twin.read_blocks(np.arange(state.n_blocks)).tobytes() + state.tail
        assert every[: 2 * n_tokens] == kept
        assert oracle.bodies[:n_messages] == twin.read_bodies(np.arange(n_messages))
        found = twin.read_gists(0, 1, np.arange(16))
        assert state.n_blocks >= int(found.present.sum())
        held = oracle.gists(0, 16).rows[found.present]
        assert held.tobytes() == found.rows[found.present].tobytes()
        twin.close()

    def test_a_clone_is_independent(self, filled: Storage, oracle: Oracle, tmp_path: Path) -> None:
        """Nothing written to either is ever seen through the other."""
        twin = self.clone(filled, tmp_path / "twin", 12)
        other = Oracle(**{**attrs.asdict(oracle, recurse=False), "seed": 99})
        for name in ("commits", "blocks", "messages", "bodies"):
            setattr(other, name, list(getattr(oracle, name)))
        twin.open("write", HEADER)
        for _ in range(5):
            twin.commit(other.batch(45, n_messages=2))
            filled.commit(oracle.batch(33, n_messages=1))
            twin.flush()
            filled.flush()
        same_rows(other, twin)
        same_rows(oracle, filled)
        twin.close()
        again = self.reopen(filled, tmp_path)
        same_rows(oracle, again)
        again.close()
        twin = type(self).make(tmp_path / "twin")
        twin.open("read", HEADER)
        same_rows(other, twin)
        twin.close()

    def test_a_clone_of_an_unknown_commit_is_refused(self, filled: Storage, tmp_path: Path) -> None:
        """There is no commit 13: LookupError. Without cheap_fork: InvariantError."""
        error = LookupError if filled.capabilities.cheap_fork else InvariantError
        with pytest.raises(error):
            filled.clone(tmp_path / "data-000009", 13)
        assert not (tmp_path / "data-000009").exists()

    # --- others at the same time -------------------------------------------------------------

    def test_threads_see_committed_prefixes_while_one_writes(
        self, store: Storage, oracle: Oracle
    ) -> None:
        """A state never promises a row that cannot be read, nor shows half a batch."""
        batches = [oracle.batch(40, n_commits=3, n_messages=2) for _ in range(60)]
        done, failures, seen = Event(), [], []

        def watch() -> None:
            try:
                while not done.is_set():
                    seen.append(self._check_prefix(store, oracle))
            except BaseException as error:  # noqa: BLE001 - a failed assert is reported below
                failures.append(error)

        watchers = [Thread(target=watch) for _ in range(4)]
        for watcher in watchers:
            watcher.start()
        try:
            for number, batch in enumerate(batches):
                store.commit(batch)
                if number % 20 == 19:
                    store.flush()
        finally:
            done.set()
            for watcher in watchers:
                watcher.join()
        assert [] == failures
        assert all(seq % 3 == 0 for seq in seen), "half a batch was visible"
        same_rows(oracle, store)

    def _check_prefix(self, store: Storage, oracle: Oracle) -> int:
        """Read what the newest state promises; return its commit."""
        state = store.state()
        if state.seq == 0:
            return 0
        last = oracle.commits[state.seq - 1]
        assert last["chain"].tobytes() == state.chain
        assert int(last["start"]) + int(last["n_tokens"]) == state.n_tokens
        rows = store.read_commits(max(1, state.seq - 3), state.seq + 1)
        assert last.tobytes() == rows[-1].tobytes()
        blocks = np.arange(max(0, state.n_blocks - 5), state.n_blocks)
        expected = b"".join(oracle.blocks[number] for number in blocks)
        assert expected == store.read_blocks(blocks).tobytes()
        bodies = np.arange(state.n_messages - 2, state.n_messages)
        assert [oracle.bodies[number] for number in bodies] == store.read_bodies(bodies)
        return state.seq

    def test_a_reader_picks_up_newer_commits(
        self, filled: Storage, oracle: Oracle, tmp_path: Path
    ) -> None:
        """`state()` in read mode moves on with the writer, over flushes too."""
        if not filled.capabilities.concurrent_readers:
            pytest.skip("declares no concurrent_readers: nobody reads while it is written")
        reader = type(self).make(tmp_path)
        reader.open("read", HEADER)
        before = fingerprint(tmp_path)
        self.check_state(reader, oracle)
        assert before == fingerprint(tmp_path)
        for number in range(12):
            filled.commit(oracle.batch(BLOCK_BYTES, n_commits=2, n_messages=1))
            if number % 4 == 3:
                filled.put_gists(oracle.gists(4 * (number // 4), 4 * (number // 4) + 4))
                filled.flush()
            self.check_state(reader, oracle)
            same_rows(oracle, reader)
        found = reader.read_gists(0, 1, np.arange(12))
        assert oracle.gists(0, 12).rows[found.present].tobytes() == (
            found.rows[found.present].tobytes()
        )
        reader.close()
