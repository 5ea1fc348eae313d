"""The node cache gives the same answers as no cache, and stays small."""

from __future__ import annotations

import numpy as np

from megacontext_sdk.builtin.node_cache import NodeCache


class Squares:
    def __init__(self):
        self.asked = []

    def __call__(self, nodes):
        self.asked.append(nodes.tolist())
        return (nodes**2).astype(np.float32)


def test_each_node_is_computed_once():
    cache, compute = NodeCache(), Squares()
    assert [9.0, 1.0, 9.0] == cache.get(1, np.array([3, 1, 3]), compute).tolist()
    assert [16.0, 9.0] == cache.get(1, np.array([4, 3]), compute).tolist()
    assert [[1, 3], [4]] == compute.asked


def test_levels_are_kept_apart_and_cleared():
    cache, compute = NodeCache(), Squares()
    cache.get(1, np.array([2]), compute)
    cache.get(2, np.array([2]), compute)
    cache.clear()
    cache.get(1, np.array([2]), compute)
    assert [[2], [2], [2]] == compute.asked


def test_it_agrees_with_no_cache_under_any_limit():
    rng = np.random.default_rng(0)
    cache, compute = NodeCache(limit=16), Squares()
    for _ in range(200):
        nodes = rng.integers(0, 60, rng.integers(0, 12))
        assert (nodes**2).tolist() == cache.get(0, nodes, compute).astype(int).tolist()
        assert len(cache._levels.get(0, ([], []))[0]) <= 16


def test_nothing_is_computed_for_nothing():
    compute = Squares()
    assert 0 == len(NodeCache().get(0, np.empty(0, np.int64), compute))
    assert [] == compute.asked
