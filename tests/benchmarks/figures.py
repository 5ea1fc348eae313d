"""What a figure is, and the figures there are, with the limits the project set itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LIMITS", "UNITS", "Figure", "Limit"]

UNITS: Mapping[str, str] = {
    "decode_vs_generate": "ratio",
    "swap_vs_recompute_512": "ratio",
    "swap_vs_recompute_1024": "ratio",
    "swap_vs_recompute_2048": "ratio",
    "ms_per_token_1m_vs_10k": "ratio",
    "rss_growth_mb": "MiB",
    "append_tokens_per_s": "tokens/s",
    "append_vs_tokenise": "ratio",
    "reopen_s_1m": "s",
    "bytes_per_token": "B/token",
    "bytes_per_token.duckdb.i1": "B/token",
    "bytes_per_token.duckdb.f2": "B/token",
    "bytes_per_token.filesystem.i1": "B/token",
    "bytes_per_token.filesystem.f2": "B/token",
    "fs_write_vs_duckdb": "ratio",
    "fs_write_vs_bare": "ratio",
    "duckdb_write_vs_bare": "ratio",
    "random_gists_256_ms.duckdb": "ms",
    "random_gists_256_ms.filesystem": "ms",
    "random_gists_256_vs_memmap.duckdb": "ratio",
    "random_gists_256_vs_memmap.filesystem": "ratio",
    "chat_turn_vs_bare.duckdb": "ratio",
    "chat_turn_vs_bare.filesystem": "ratio",
    "commits_8_threads_vs_1.duckdb": "ratio",
    "commits_8_threads_vs_1.filesystem": "ratio",
    "reopen_s_10m.duckdb": "s",
    "reopen_s_10m.filesystem": "s",
    "forget_s_1m.duckdb": "s",
    "forget_s_1m.filesystem": "s",
    "recall_200k": "share",
    "recall_ceiling": "share",
    "evidence_512": "share",
    "evidence_1024": "share",
    "evidence_2048": "share",
    "audit_kl": "nats",
    "int8_nll_shift": "nats",
    "refocus_overhead_512": "ratio",
    "refocus_overhead_2048": "ratio",
    "refocus_overhead_512_uncached": "ratio",
    "refocus_overhead_2048_uncached": "ratio",
    "append_tokens_per_s.gistnet": "tokens/s",
    "append_tokens_per_s.contextual": "tokens/s",
    "encode_vs_prefill.gistnet": "ratio",
    "encode_vs_prefill.contextual": "ratio",
    "gist_overhead.gistnet": "ratio",
    "gist_overhead.contextual": "ratio",
}
"""Every figure, in the order of the table, with its unit."""


@attrs.frozen
class Limit:
    """What a figure must reach: at least (a floor) or at most (a ceiling)."""

    value: float
    is_floor: bool

    def __str__(self) -> str:
        return f"{'≥' if self.is_floor else '≤'} {self.value:,.6g}"

    def margin(self, value: float) -> float:
        """Return how many times better than required a value is; 1 is just enough."""
        if self.is_floor:
            return value / self.value
        return self.value / value if value > 0 else math.inf


LIMITS: Mapping[str, Limit] = {
    "decode_vs_generate": Limit(0.9, is_floor=True),
    "swap_vs_recompute_2048": Limit(10, is_floor=True),
    "ms_per_token_1m_vs_10k": Limit(1.1, is_floor=False),
    "rss_growth_mb": Limit(64, is_floor=False),
    "append_tokens_per_s": Limit(100_000, is_floor=True),
    "reopen_s_1m": Limit(1, is_floor=False),
    "bytes_per_token": Limit(17, is_floor=False),
    "bytes_per_token.duckdb.i1": Limit(17, is_floor=False),
    "bytes_per_token.duckdb.f2": Limit(26, is_floor=False),
    "bytes_per_token.filesystem.i1": Limit(17, is_floor=False),
    "bytes_per_token.filesystem.f2": Limit(26, is_floor=False),
    "fs_write_vs_duckdb": Limit(5, is_floor=True),
    "fs_write_vs_bare": Limit(0.5, is_floor=True),
    "random_gists_256_vs_memmap.filesystem": Limit(3, is_floor=False),
    "commits_8_threads_vs_1.duckdb": Limit(1.5, is_floor=True),
    "commits_8_threads_vs_1.filesystem": Limit(4, is_floor=True),
    "reopen_s_10m.duckdb": Limit(1, is_floor=False),
    "reopen_s_10m.filesystem": Limit(1, is_floor=False),
    "forget_s_1m.duckdb": Limit(2, is_floor=False),
    "forget_s_1m.filesystem": Limit(2, is_floor=False),
    "evidence_512": Limit(0.54, is_floor=True),
    "evidence_1024": Limit(0.69, is_floor=True),
    "evidence_2048": Limit(0.77, is_floor=True),
    "append_tokens_per_s.gistnet": Limit(30_000, is_floor=True),
    "encode_vs_prefill.contextual": Limit(0.8, is_floor=True),
    "gist_overhead.gistnet": Limit(0.01, is_floor=False),
    "gist_overhead.contextual": Limit(0.01, is_floor=False),
}
"""Fixed limits. That of `recall_200k` is 85 % of the ceiling measured in the same run."""


@attrs.frozen(kw_only=True)
class Figure:
    """One measured figure.

    Attributes:
        name: one of `UNITS`.
        value: None where it could not be measured.
        baseline: what it was measured against, in words, with that side's own figure.
        limit: what it must reach, if anything.
        reason: why there is no value.
        parts: what the value is the sum of.
    """

    name: str
    value: float | None
    baseline: str
    limit: Limit | None = None
    reason: str = ""
    parts: Mapping[str, float] = attrs.field(factory=dict)

    @property
    def unit(self) -> str:
        """Unit of the value."""
        return UNITS[self.name]

    @property
    def verdict(self) -> str:
        """Say whether the limit is met."""
        if self.value is None:
            return "skipped"
        if self.limit is None:
            return ""
        return "yes" if self.limit.margin(self.value) >= 1 else "NO"

    def to_json(self, machine: str, date: str) -> dict[str, object]:
        """Return the entry of `bench.json`."""
        entry: dict[str, object] = {
            "value": self.value,
            "unit": self.unit,
            "baseline": self.baseline + (f"; required: {self.limit}" if self.limit else ""),
            "machine": machine,
            "date": date,
        }
        if self.value is None:
            entry["reason"] = self.reason
        if self.parts:
            entry["parts"] = dict(self.parts)
        return entry


def measured(name: str, value: float, baseline: str, limit: Limit | None = None) -> Figure:
    """Return a figure with the limit of its name, or the given one."""
    return Figure(name=name, value=float(value), baseline=baseline, limit=limit or LIMITS.get(name))
