"""How big a run is: full for figures, quick for a look, tiny for `make test`."""

from __future__ import annotations

import attrs

__all__ = ["FULL", "QUICK", "TINY", "Scale"]


@attrs.frozen(kw_only=True)
class Scale:
    """Sizes of one run.

    Attributes:
        name: for people.
        rounds: interleaved rounds per timed pair.
        long, middle, short: lengths of history in tokens; "1m" in a name means `long`.
        decode_history: tokens of history behind `decode_vs_generate`.
        decode_tokens: tokens generated per round.
        append_tokens: tokens appended per round.
        recall_tokens, recall_facts, recall_seeds: the recall benchmark.
        evidence_stride: ask every n-th question.
        windows: rows of the swap benchmark.
        overhead_windows: rows of the refocus overhead.
        audit_swaps: numbers of swaps after which the window is audited.
        write_groups: groups of 4,096 blocks in the storage benchmarks.
        random_reads: reads of 256 random gists.
        turns: chat turns, and commits per thread.
        reopen_tokens: tokens behind `reopen_s_10m`.
        row_windows: windows of each kind of text in `int8_nll_shift`.
        forget_rounds: memories of `long` tokens that forget.
        rss_runs: processes per length of history.
        is_isolated: measure memory in processes of their own.
    """

    name: str
    rounds: int
    long: int
    middle: int
    short: int
    decode_history: int
    decode_tokens: int
    append_tokens: int
    recall_tokens: int
    recall_facts: int
    recall_seeds: tuple[int, ...]
    evidence_stride: int
    write_groups: int = 32
    random_reads: int = 60
    turns: int = 100
    reopen_tokens: int = 10_000_000
    forget_rounds: int = 3
    row_windows: int = 100
    windows: tuple[int, ...] = (512, 1024, 2048)
    overhead_windows: tuple[int, ...] = (512, 2048)
    audit_swaps: tuple[int, ...] = (4, 8, 16, 32)
    rss_runs: int = 3
    is_isolated: bool = True


FULL = Scale(
    name="full",
    rounds=7,
    long=1_000_000,
    middle=100_000,
    short=10_000,
    decode_history=50_000,
    decode_tokens=192,
    append_tokens=200_000,
    recall_tokens=200_000,
    recall_facts=50,
    recall_seeds=(101, 102, 103, 104),
    evidence_stride=1,
)
QUICK = attrs.evolve(
    FULL,
    name="quick",
    rounds=5,
    long=100_000,
    middle=30_000,
    decode_history=20_000,
    decode_tokens=128,
    append_tokens=50_000,
    recall_facts=20,
    recall_tokens=50_000,
    recall_seeds=(11,),
    evidence_stride=20,
    reopen_tokens=1_000_000,
    forget_rounds=1,
    row_windows=20,
    rss_runs=1,
)
TINY = attrs.evolve(
    QUICK,
    name="tiny",
    rounds=1,
    long=6_000,
    middle=4_000,
    short=3_000,
    decode_history=3_000,
    decode_tokens=40,
    append_tokens=3_000,
    recall_facts=2,
    recall_tokens=3_000,
    evidence_stride=400,
    write_groups=1,
    random_reads=2,
    turns=2,
    reopen_tokens=70_000,
    row_windows=1,
    windows=(512,),
    overhead_windows=(512,),
    audit_swaps=(2,),
    is_isolated=False,
)
