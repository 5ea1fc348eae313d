"""The kit is tested first: each broken store here must be caught by the test that is named."""

from pathlib import Path

import attrs
import numpy as np
import pytest

from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.contracts.storage import Header
from megacontext_sdk.testing.storage import Oracle, StorageConformance


class SortsBlocks(InMemoryStorage):
    def read_blocks(self, blocks):
        return super().read_blocks(np.unique(blocks))


class SortsBodies(InMemoryStorage):
    def read_bodies(self, messages):
        return super().read_bodies(np.sort(messages))


class LosesEmptyBodies(InMemoryStorage):
    def read_bodies(self, messages):
        return [body or b" " for body in super().read_bodies(messages)]


class HandsOutItsArrays(InMemoryStorage):
    def read_messages(self, start, stop):
        return super().read_messages(start, stop).copy()


class AcceptsGaps(InMemoryStorage):
    def commit(self, batch, *, sync=True):
        commits = batch.commits.copy()
        first = self.state().seq + 1
        commits["seq"] = np.arange(first, first + len(commits))
        super().commit(attrs.evolve(batch, commits=commits), sync=sync)


class KeepsHalfOfARefusedBatch(InMemoryStorage):
    def commit(self, batch, *, sync=True):
        self._messages.extend(batch.messages)
        self._state = attrs.evolve(self._state, n_messages=len(self._messages))
        super().commit(batch, sync=sync)


class KeepsTheOldTail(InMemoryStorage):
    def commit(self, batch, *, sync=True):
        old = self._state.tail
        super().commit(batch, sync=sync)
        self._state = attrs.evolve(self._state, tail=old)


class RaisesForMissingGists(InMemoryStorage):
    def read_gists(self, version, lod, nodes):
        found = super().read_gists(version, lod, nodes)
        if not found.present.all():
            raise LookupError("no such gist")
        return found


class IgnoresTheVersion(InMemoryStorage):
    def put_gists(self, batch):
        super().put_gists(attrs.evolve(batch, version=0))


class DropsGistsAtCommit(InMemoryStorage):
    def commit(self, batch, *, sync=True):
        super().commit(batch, sync=sync)
        self._gists.clear()


class ReturnsWrongRange(InMemoryStorage):
    def read_commits(self, start, stop):
        return super().read_commits(max(start - 1, 1), stop)


class ClampsUnknownNumbers(InMemoryStorage):
    def read_blocks(self, blocks):
        return super().read_blocks(np.minimum(blocks, self.state().n_blocks - 1))


class WorksAfterClose(InMemoryStorage):
    def close(self):
        pass


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (SortsBlocks, "test_blocks_keep_order_and_repeats"),
        (SortsBodies, "test_bodies_keep_order_and_repeats"),
        (LosesEmptyBodies, "test_empty_and_large_bodies_are_kept"),
        (HandsOutItsArrays, "test_arrays_are_read_only"),
        (AcceptsGaps, "test_gap_in_seq_is_refused_and_changes_nothing"),
        (KeepsHalfOfARefusedBatch, "test_wrong_shapes_are_refused_and_change_nothing"),
        (KeepsTheOldTail, "test_state_follows_each_batch"),
        (RaisesForMissingGists, "test_missing_gists_are_absent_not_errors"),
        (IgnoresTheVersion, "test_gists_of_levels_and_versions_do_not_mix"),
        (DropsGistsAtCommit, "test_gists_around_commits_and_flushes_are_all_there"),
        (ReturnsWrongRange, "test_commits_come_back_byte_for_byte"),
        (ClampsUnknownNumbers, "test_unknown_numbers_are_named"),
        (WorksAfterClose, "test_closed_store_refuses_everything"),
    ],
)
def test_planted_bug_is_caught(broken, test):
    def play(factory):
        store, oracle = factory(Path("planted")), Oracle()
        store.open("create", Header(block_bytes=64))
        if test not in {"test_state_follows_each_batch", "test_empty_and_large_bodies_are_kept"}:
            for n_commits in (1, 4, 7):
                store.commit(oracle.batch(45, n_commits=n_commits, n_messages=3))
        arguments = {"filled": store, "store": store, "oracle": oracle, "wanted": [4, 0, 4, 3]}
        method = getattr(StorageConformance, test)
        names = method.__code__.co_varnames[1 : method.__code__.co_argcount]
        method(StorageConformance(), **{name: arguments[name] for name in names})

    play(InMemoryStorage)
    with pytest.raises((AssertionError, LookupError, ValueError, pytest.fail.Exception)):
        play(broken)
