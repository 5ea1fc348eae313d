"""Fair timing: two sides in turn, medians, intervals by bootstrap."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import attrs
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Stamps", "bootstrap", "in_turn", "quiet", "seconds"]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the garbage collector out of a measurement."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def seconds(work: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    with quiet():
        start = perf_counter()
        work()
        return perf_counter() - start


def in_turn(rounds: int, *sides: Callable[[], float]) -> list[list[float]]:
    """Run every side once per round, the order turned from round to round; first a warm-up.

    A side measures itself and returns its figure.
    """
    results: list[list[float]] = [[] for _ in sides]
    if rounds > 1:
        for side in sides:
            side()
    for number in range(rounds):
        order = list(range(len(sides)))
        for at in order if number % 2 == 0 else order[::-1]:
            results[at].append(sides[at]())
    return results


def spread(values: Sequence[float], form: str = ".3g") -> str:
    """Return "median (lowest to highest)"."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def bootstrap(rows: np.ndarray, statistic: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """Return the 95 % interval of a statistic of rows, drawn again 10,000 times."""
    rng = np.random.default_rng(0)
    draws = [statistic(rows[rng.integers(0, len(rows), len(rows))]) for _ in range(10_000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


@attrs.frozen
class Stamps:
    """When each token of one reply came, and the rows in the window then."""

    times: list[float] = attrs.Factory(list)
    rows: list[int] = attrs.Factory(list)

    @property
    def seconds_per_token(self) -> float:
        """Seconds per token from the first token to the last."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)

    @property
    def overhead(self) -> float:
        """Return all that is no plain decode step, over plain decode steps."""
        steps = np.diff(self.times)
        return float(steps.sum() / (np.median(steps) * len(steps)) - 1)
