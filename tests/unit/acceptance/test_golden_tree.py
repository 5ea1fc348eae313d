"""The golden coding session over a real tree of 100,000 tokens: rows 10, 53, 54 and 56.

The same turns as in the focus tests, but every entry is read from the tree, and the window's rows
are compared with what the tree holds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megacontext_sdk.builtin.echo import EchoModel
from megacontext_sdk.builtin.greedy import GreedyAllocator
from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.contracts.focus import Budget
from megacontext_sdk.contracts.storage import Header
from megacontext_sdk.focus.entries import entries_from_nodes
from megacontext_sdk.focus.saved_layout import pack
from megacontext_sdk.focus.working_context import WorkingContext
from megacontext_sdk.memory.journal import Journal, MessageRecord
from megacontext_sdk.memory.lod import NodeId, Span
from megacontext_sdk.memory.tree import MegaContextTree
from megacontext_sdk.runtime.tree_rows import TreeRows

N_TOKENS = 100_000
BUDGET = Budget(w_max=8192, headroom=64, sink_blocks=0)
TURN_1 = [(2, 0, 93), (1, 2976, 3077), (0, 3077, 3125)]
LOGIN = {(1, 3000): 0.8, (1, 3001): 0.8}
TURN_2 = LOGIN | {(0, 3077): -0.5, (0, 3078): -0.5}
TURN_3 = (
    {(1, block): 0.9 for block in range(3010, 3025)}
    | {(2, 40): 0.7}
    | {(1, block): 0.7 for block in range(1284, 1294)}
    | {(0, block): -0.6 for block in (3000, 3001, *range(3079, 3097))}
)
READS = ("read_blocks", "read_gists", "read_messages", "read_bodies", "read_commits")


class Golden:
    """A tree of 100,000 ids, and a count of what is read of the storage below it."""

    def __init__(self):
        self.ids = np.random.default_rng(56).integers(0, 256, N_TOKENS).astype(np.int32)
        self.storage = InMemoryStorage(Path("unused"))
        self.storage.open("create", Header(block_bytes=64))
        self.journal = Journal(self.storage, root=bytes(16), token_bytes=2, clock=lambda: 0)
        self.model = EchoModel()
        self.tree = MegaContextTree(self.journal, MeanGistEncoder(), self.model, gist_cache_rows=1)
        self.tree.open()
        record = MessageRecord(role=0, trust=3, flags=0, ts_us=0, n_tokens=N_TOKENS, body=b"")
        self.tree.append(self.ids, [record]).wait()
        self.tree.flush()
        self.n_reads = 0
        for name in READS:
            self._count(name)

    def _count(self, name):
        read = getattr(self.storage, name)

        def counted(*args):
            self.n_reads += 1
            return read(*args)

        setattr(self.storage, name, counted)

    def context(self):
        lods = np.concatenate([np.full(end - first, lod) for lod, first, end in TURN_1])
        indices = np.concatenate([np.arange(first, end) for _, first, end in TURN_1])
        entries = entries_from_nodes(lods, indices, N_TOKENS, 1)
        wc = WorkingContext(BUDGET, allocator=GreedyAllocator(), strict=True)
        wc.restore(pack(entries, N_TOKENS, (), 0))
        return wc

    def row(self, lod, index):
        """What a model is fed for an entry."""
        return self.tree.rows(NodeId(lod, index)).tobytes()


@pytest.fixture(scope="module")
def golden():
    made = Golden()
    yield made
    made.tree.close()
    made.journal.close()


def refocus(wc, scores):
    for _ in range(16):
        entries = wc.entries
        pairs = zip(entries.lod.tolist(), entries.index.tolist(), strict=True)
        values = np.array([scores.get(pair, 0.0) for pair in pairs], dtype=np.float32)
        plan = GreedyAllocator().plan(entries, values, (), wc.budget)
        wc.tick(values)
        if not plan.moves:
            return
        wc.apply(plan)


def shown(wc):
    return list(zip(wc.entries.lod.tolist(), wc.entries.index.tolist(), strict=True))


def test_row56_every_entry_of_every_turn_is_backed_by_a_node_of_the_tree(golden):
    """I6, I7, I12: nodes are committed, rows finite and as many as they cost, ids the original."""
    wc = golden.context()
    expected = [([93, 101, 48], 1730), ([93, 101, 48], 1730), ([92, 128, 53], 1916)]
    for turn, (counts, cost) in zip(({}, TURN_2, TURN_3), expected, strict=True):
        refocus(wc, turn)
        assert (counts, cost) == (np.bincount(wc.entries.lod)[::-1].tolist(), wc.cost)
        n_rows, ids = 0, []
        for lod, index in shown(wc):
            node = NodeId(lod, index)
            assert golden.tree.exists(node)
            rows = golden.tree.rows(node)
            assert np.isfinite(rows).all()
            n_rows += len(rows)
            ids.append(golden.tree.token_ids(node.span))
        assert n_rows == wc.cost
        assert np.array_equal(golden.ids, np.concatenate(ids))


def test_row56_login_comes_back_byte_identical_from_the_tree(golden):
    wc = golden.context()
    gists = [golden.row(1, 3000), golden.row(1, 3001)]
    refocus(wc, TURN_2)
    assert {(0, 3000), (0, 3001)} <= set(shown(wc))
    raw = [golden.row(0, 3000), golden.row(0, 3001)]
    read = TreeRows(golden.tree).token_ids_at(np.arange(3000 * 32, 3002 * 32))
    refocus(wc, TURN_3)
    assert {(1, 3000), (1, 3001)} <= set(shown(wc))
    assert gists == [golden.row(1, 3000), golden.row(1, 3001)]
    refocus(wc, LOGIN)
    assert {(0, 3000), (0, 3001)} <= set(shown(wc))
    assert raw == [golden.row(0, 3000), golden.row(0, 3001)]
    assert np.array_equal(golden.ids[3000 * 32 : 3002 * 32], read)
    assert raw[0] == golden.model.embed(golden.ids[3000 * 32 : 3001 * 32]).tobytes()


def test_row10_what_a_turn_brings_in_takes_one_read_per_level(golden):
    wc = golden.context()
    before = set(shown(wc))
    refocus(wc, TURN_2)
    refocus(wc, TURN_3)
    came = [node for node in shown(wc) if node not in before]
    rows, start = TreeRows(golden.tree), golden.n_reads
    blocks = np.array([index for lod, index in came if lod == 0])
    rows.token_ids_at((blocks[:, None] * 32 + np.arange(32)).reshape(-1))
    assert 1 == golden.n_reads - start
    for lod in (1, 2):
        nodes = np.array([index for at, index in came if at == lod], dtype=np.int64)
        start = golden.n_reads
        rows.gists(lod, nodes)
        assert golden.n_reads - start <= 1


@pytest.mark.parametrize("lod", [0, 1, 2, 3])
def test_row10_any_node_is_one_read_wherever_it_lies(golden, lod):
    n = golden.tree.n_nodes(lod)
    costs = set()
    for index in {0, n // 3, n // 2, n - 1}:
        start = golden.n_reads
        golden.tree.rows(NodeId(lod, index))
        costs.add(golden.n_reads - start)
    assert costs <= {0, 1}  # 0: the row that was read last is in the cache


@pytest.mark.parametrize("span", [(0, 1), (31, 33), (99_990, 100_000), (50_000, 50_320)])
def test_row10_ids_of_a_span_are_one_read(golden, span):
    start = golden.n_reads
    ids = golden.tree.token_ids(Span(*span))
    assert golden.n_reads - start <= 1
    assert np.array_equal(golden.ids[slice(*span)], ids)


def test_row34_nodes_that_came_later_change_no_row_that_was_there(golden):
    """I15: gists of complete nodes are functions of their own tokens."""
    short = golden.ids[: 40 * 32]
    memory = Golden.__new__(Golden)
    memory.storage = InMemoryStorage(Path("other"))
    memory.storage.open("create", Header(block_bytes=64))
    journal = Journal(memory.storage, root=bytes(16), token_bytes=2, clock=lambda: 0)
    tree = MegaContextTree(journal, MeanGistEncoder(), golden.model)
    tree.open()
    record = MessageRecord(role=0, trust=3, flags=0, ts_us=0, n_tokens=len(short), body=b"")
    tree.append(short, [record]).wait()
    for node in (NodeId(1, 0), NodeId(1, 39), NodeId(2, 0), NodeId(0, 17)):
        assert tree.rows(node).tobytes() == golden.tree.rows(node).tobytes()
    tree.close()
    journal.close()
