"""Every built-in allocator against the conformance kit, and the kit against broken doubles."""

from __future__ import annotations

from megacontext_sdk.builtin.greedy import GreedyAllocator
from megacontext_sdk.builtin.strategies import (
    AdaptiveTauAllocator,
    HybridAllocator,
    KnapsackAllocator,
    StochasticAllocator,
)
from megacontext_sdk.testing.focus import AllocatorConformance


class TestGreedy(AllocatorConformance):
    make = staticmethod(GreedyAllocator)


class TestStochastic(AllocatorConformance):
    make = staticmethod(StochasticAllocator)


class TestKnapsack(AllocatorConformance):
    make = staticmethod(KnapsackAllocator)


class TestHybrid(AllocatorConformance):
    make = staticmethod(HybridAllocator)


class TestAdaptiveTau(AllocatorConformance):
    make = staticmethod(AdaptiveTauAllocator)
    keeps_thresholds = False
