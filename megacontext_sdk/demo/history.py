"""A long history: real text with facts told in between, message by message.

It decides what is said when. It appends nothing and knows no session.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import attrs

from megacontext_sdk.demo.texts import open_library

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from megacontext_sdk.demo.facts import Fact

__all__ = ["Item", "build_history", "depths"]

CHARACTERS_PER_TOKEN = 3.4
"""The reference tokenizer's on this text; only a first guess where `count` is given."""

_NEWEST = 0.97
"""No fact is told later than this share of the history: the newest tokens need no memory."""


@attrs.frozen
class Item:
    """One message of the history, and the fact it tells, if any."""

    role: str
    text: str
    fact: Fact | None = None


def depths(n: int, seed: int = 0) -> list[float]:
    """Return `n` rising depths, as shares of the history: the first 0, the rest random."""
    rng = random.Random(seed)
    return [0.0, *sorted(rng.uniform(0.0, _NEWEST) for _ in range(n - 1))][:n]


def build_history(
    n_tokens: int,
    facts: Sequence[Fact],
    *,
    seed: int = 0,
    data_dir: Path | None = None,
    count: Callable[[], int] | None = None,
) -> Iterator[Item]:
    """Yield messages until `n_tokens` are told; ends earlier only when the texts run out.

    The first message tells the first fact, so that it stands at the very start.

    Args:
        n_tokens: length of the history to reach.
        facts: what to tell in between, in this order.
        seed: fixes the texts' order and the facts' depths.
        data_dir: folder with the texts; by default the project's, or the packaged books.
        count: says how many tokens were taken in so far. Without it, characters are counted.

    Raises:
        FileNotFoundError: `data_dir` does not hold the texts.
    """
    meter = _Meter(count)
    waiting = list(zip(depths(len(facts), seed), facts, strict=True))[::-1]
    for turn in open_library(data_dir).turns(seed):
        while waiting and meter.tokens() >= waiting[-1][0] * n_tokens:
            fact = waiting.pop()[1]
            meter.add(fact.text)
            yield Item("user", fact.text, fact)
        if meter.tokens() >= n_tokens:
            return
        meter.add(turn.text)
        yield Item(turn.role, turn.text)


class _Meter:
    """Where the history stands: counted tokens, and a guess for what was not counted yet."""

    def __init__(self, count: Callable[[], int] | None) -> None:
        self._count = count if count is not None else lambda: 0
        self._counted = 0
        self._characters = 0  # of all counted text
        self._pending = 0  # characters since

    def add(self, text: str) -> None:
        self._pending += len(text)

    def tokens(self) -> float:
        counted = self._count()
        if counted != self._counted:
            self._characters += self._pending
            self._pending = 0
            self._counted = counted
        rate = self._characters / counted if self._characters else CHARACTERS_PER_TOKEN
        return counted + self._pending / rate
