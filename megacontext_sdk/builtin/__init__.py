"""The built-in plugin: small providers without dependencies, through the same hooks as strangers.

Together they run the quickstart. Only import strings here, so that loading it stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megacontext_sdk.errors import DuplicateProviderError, PluginError
from megacontext_sdk.hookspecs import hookimpl
from megacontext_sdk.records import (
    AllocatorSpec,
    FocusPolicySpec,
    GistEncoderSpec,
    ModelAdapterSpec,
    PositionSchemeSpec,
    RuntimeSpec,
    SinkSpec,
    StorageSpec,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megacontext_sdk.records import RuntimeContext

__all__: list[str] = []

_HERE = __name__


@hookimpl
def megacontext_storages() -> Iterator[StorageSpec]:
    """Offer the storage that lives and dies with the process."""
    yield StorageSpec(
        "memory", f"{_HERE}.memory_storage:InMemoryStorage", "In memory, gone with the process"
    )


@hookimpl
def megacontext_model_adapters() -> Iterator[ModelAdapterSpec]:
    """Offer the model that needs no weights."""
    yield ModelAdapterSpec(
        "echo", f"{_HERE}.echo:EchoModel", "Repeats what it reads; for tests and first steps"
    )


@hookimpl
def megacontext_gist_encoders() -> Iterator[GistEncoderSpec]:
    """Offer the encoder that needs no training."""
    yield GistEncoderSpec(
        "mean", f"{_HERE}.mean_gist:open_mean", "Mean of the token embeddings, no training"
    )


@hookimpl
def megacontext_focus_policies() -> Iterator[FocusPolicySpec]:
    """Offer the default policy and the ones it is compared with."""
    yield FocusPolicySpec(
        "heuristic", f"{_HERE}.heuristic:HeuristicFocus", "Words, gist cosine, recency and pins"
    )
    yield FocusPolicySpec("recency", f"{_HERE}.recency:RecencyFocus", "Newest first")
    yield FocusPolicySpec("random", f"{_HERE}.baselines:RandomFocus", "Seeded noise, a floor")
    yield FocusPolicySpec("bm25", f"{_HERE}.baselines:Bm25Focus", "Words of the turn alone")
    yield FocusPolicySpec("cosine", f"{_HERE}.baselines:CosineFocus", "Gist cosine alone")


@hookimpl
def megacontext_allocators() -> Iterator[AllocatorSpec]:
    """Offer the default allocator and its alternatives."""
    yield AllocatorSpec("greedy", f"{_HERE}.greedy:GreedyAllocator", "Best score first")
    yield AllocatorSpec(
        "stochastic", f"{_HERE}.strategies:StochasticAllocator", "Sampled by score, seeded"
    )
    yield AllocatorSpec(
        "knapsack", f"{_HERE}.strategies:KnapsackAllocator", "Most utility for the rows"
    )
    yield AllocatorSpec(
        "adaptive-tau", f"{_HERE}.strategies:AdaptiveTauAllocator", "Thresholds follow utilisation"
    )
    yield AllocatorSpec(
        "hybrid", f"{_HERE}.strategies:HybridAllocator", "Greedy, with a sampled share"
    )


@hookimpl
def megacontext_position_schemes() -> Iterator[PositionSchemeSpec]:
    """Offer the default scheme and the literal one."""
    yield PositionSchemeSpec("compact", f"{_HERE}.positions:CompactPositions", "Row after row")
    yield PositionSchemeSpec(
        "absolute", f"{_HERE}.positions:AbsolutePositions", "Centre of the span; short histories"
    )


@hookimpl
def megacontext_runtimes() -> Iterator[RuntimeSpec]:
    """Offer the loop every other loop must match."""
    yield RuntimeSpec("plain", "megacontext_sdk.runtime.loop:PlainLoop", "Plain, on any device")


@hookimpl
def megacontext_telemetry_sinks() -> Iterator[SinkSpec]:
    """Offer sinks that stay on this machine."""
    yield SinkSpec("logging", f"{_HERE}.sinks:LoggingSink", "One debug line per event")
    yield SinkSpec("memory", f"{_HERE}.sinks:InMemorySink", "A list of the newest events")
    yield SinkSpec("jsonl", f"{_HERE}.sinks:JsonLinesSink", "A file: jsonl:<path>")


@hookimpl(trylast=True)
def megacontext_choose_runtime(context: RuntimeContext) -> str:
    """Take the highest rank whose probe passes.

    Raises:
        DuplicateProviderError: two usable loops share the highest rank.
        PluginError: no loop is usable.
    """
    by_rank = sorted(context.runtimes, key=lambda spec: -spec.rank)
    rank: int | None = None
    best: list[str] = []
    for spec in by_rank:
        if rank is not None and spec.rank < rank:
            break
        if context.is_usable(spec):
            rank = spec.rank
            best.append(spec.name)
    if not best:
        raise PluginError("no runtime loop is usable here; run `megacontext doctor` to see why")
    if len(best) > 1:
        raise DuplicateProviderError(
            f"runtimes {' and '.join(best)} share the rank {rank}; choose one with runtime="
            f'"{best[0]}"',
            kind="runtime",
            name=best[0],
            owners=tuple(best),
        )
    return best[0]
