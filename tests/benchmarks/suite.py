"""Which benchmark measures which figures, and what it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from tests.benchmarks import decoding, evidence, gists, recall, rows, stores, storing, swaps
from tests.benchmarks.figures import UNITS, Figure, measured

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.benchmarks.workshop import Workshop

__all__ = ["SUITE", "Benchmark", "chosen"]


@attrs.frozen
class Benchmark:
    """One benchmark: the figures it gives, and the call that measures them."""

    names: tuple[str, ...]
    run: Callable[[Workshop], list[Figure]]
    why_not: Callable[[], str] = lambda: ""

    def measure(self, workshop: Workshop) -> list[Figure]:
        """Return the figures; without a value, and with the reason, where they cannot be had."""
        reason = self.why_not()
        if reason:
            return [Figure(name=n, value=None, baseline="none", reason=reason) for n in self.names]
        return self.run(workshop)


def _evidence(workshop: Workshop) -> list[Figure]:
    settings = evidence.EvidenceSettings(stride=workshop.scale.evidence_stride)
    shares = evidence.measure_evidence(workshop.scale.windows, settings=settings)
    return [
        measured(f"evidence_{rows}", share, "the floor of the specification's table, LoCoMo")
        for rows, share in shares.items()
    ]


def _no_locomo() -> str:
    if evidence.DATA.is_dir() and evidence.MODEL.is_dir():
        return ""
    return "needs the conversations beside the repository, ../shared/data/eval-dev/locomo"


def _sized(stem: str, ends: Sequence[object]) -> tuple[str, ...]:
    return tuple(f"{stem}_{end}" for end in ends)


def _each(stem: str, ends: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{stem}.{end}" for end in ends)


SUITE = (
    Benchmark(("decode_vs_generate",), decoding.decode_vs_generate),
    Benchmark(_sized("swap_vs_recompute", (512, 1024, 2048)), swaps.swap_vs_recompute),
    Benchmark(("ms_per_token_1m_vs_10k",), decoding.ms_per_token),
    Benchmark(("rss_growth_mb",), storing.rss_growth),
    Benchmark(("append_tokens_per_s", "append_vs_tokenise"), storing.append),
    Benchmark(("reopen_s_1m",), storing.reopen),
    Benchmark(
        ("bytes_per_token", *_each("bytes_per_token", ("duckdb.i1", "duckdb.f2"))),
        storing.bytes_per_token_duckdb,
    ),
    Benchmark(
        _each("bytes_per_token", ("filesystem.i1", "filesystem.f2")),
        storing.bytes_per_token_filesystem,
        stores.no_filesystem,
    ),
    Benchmark(
        ("fs_write_vs_duckdb", "fs_write_vs_bare", "duckdb_write_vs_bare"),
        stores.bulk_write,
        stores.no_filesystem,
    ),
    Benchmark(
        (
            *_each("random_gists_256_ms", stores.BACKENDS),
            *_each("random_gists_256_vs_memmap", stores.BACKENDS),
        ),
        stores.random_gists,
        stores.no_filesystem,
    ),
    Benchmark(_each("chat_turn_vs_bare", stores.BACKENDS), stores.chat_turns, stores.no_filesystem),
    Benchmark(
        _each("commits_8_threads_vs_1", stores.BACKENDS), stores.many_writers, stores.no_filesystem
    ),
    Benchmark(_each("reopen_s_10m", stores.BACKENDS), stores.reopen_long, stores.no_filesystem),
    Benchmark(_each("forget_s_1m", stores.BACKENDS), storing.forget, stores.no_filesystem),
    Benchmark(("recall_200k", "recall_ceiling"), recall.recall),
    Benchmark(_sized("evidence", (512, 1024, 2048)), _evidence, _no_locomo),
    Benchmark(("audit_kl",), swaps.audit_kl),
    Benchmark(("int8_nll_shift",), rows.int8_shift, rows.no_texts),
    Benchmark(
        _sized("refocus_overhead", (512, 2048, "512_uncached", "2048_uncached")),
        decoding.refocus_overhead,
    ),
    Benchmark(
        _each("append_tokens_per_s", gists.ENCODERS), gists.append_learned, gists.no_encoders
    ),
    Benchmark(
        _each("encode_vs_prefill", gists.ENCODERS), gists.encode_vs_prefill, gists.no_encoders
    ),
    Benchmark(_each("gist_overhead", gists.ENCODERS), gists.overhead, gists.no_encoders),
)
"""All benchmarks, in the order they run."""


def chosen(only: Sequence[str]) -> list[Benchmark]:
    """Return the benchmarks that give the wanted figures; all of them for none.

    Raises:
        ValueError: a name that no benchmark gives.
    """
    unknown = sorted(set(only) - set(UNITS))
    if unknown:
        raise ValueError(f"no figure is called {', '.join(unknown)}; there are {', '.join(UNITS)}")
    return [b for b in SUITE if not only or set(b.names) & set(only)]
