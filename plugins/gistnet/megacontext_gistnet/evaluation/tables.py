"""Sections of the evaluation as data: conditions, what each recovers, and differences.

One form for every table, so that the console, the file and the plot read the same. Nothing here
measures or prints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from megacontext_gistnet.evaluation.recovery import Recovery, Study
    from megacontext_gistnet.evaluation.statistics import Estimate, Nats

__all__ = [
    "ALL",
    "Condition",
    "Difference",
    "Line",
    "Section",
    "against",
    "difference_name",
    "tabulate",
]

ALL = "all"
"""Where all domains are taken together."""


@attrs.frozen
class Condition:
    """What stood in place of the old part of the history.

    Attributes:
        name: "full", "drop", "zero row", an encoder's name, or what a section explains.
        slots: S, 0 where there are no gists.
        rows: rows spent on the old part, the mean where windows differ.
    """

    name: str
    slots: int
    rows: float


@attrs.frozen
class Line:
    """One condition in one domain."""

    condition: Condition
    domain: str
    recovery: Recovery


@attrs.frozen
class Difference:
    """Recovery of one condition minus that of another, paired, over all domains.

    Attributes:
        what: the conditions, as in "contextual S=1 - mean S=1".
        all, recall: over all tokens and over recall tokens.
    """

    what: str
    all: Estimate
    recall: Estimate


@attrs.frozen(kw_only=True)
class Section:
    """One table.

    Attributes:
        key: short name in the file.
        title: what it shows.
        about: sentences that say exactly what was compared with what.
        fingerprint: digest of the windows read; two runs with the same one are comparable.
        lines: conditions by domain; domain "all" first.
        differences: paired comparisons.
    """

    key: str
    title: str
    about: tuple[str, ...]
    fingerprint: str
    lines: tuple[Line, ...]
    differences: tuple[Difference, ...] = ()

    def line(self, name: str, slots: int, domain: str = ALL) -> Line | None:
        """Return a line, None if there is none."""
        for line in self.lines:
            if (line.condition.name, line.condition.slots, line.domain) == (name, slots, domain):
                return line
        return None


def tabulate(
    study: Study,
    losses: Mapping[Condition, Nats],
    domains: Iterable[str],
    *,
    rows_of_full: float,
) -> tuple[Line, ...]:
    """Return the lines of a section: full and drop, then every condition, by domain.

    Args:
        study: windows with labels by domain.
        losses: condition -> float64[n, t].
        domains: which, in order.
        rows_of_full: rows the full context spends on the old part.
    """
    everything = {
        Condition("full", 0, rows_of_full): study.full,
        Condition("drop", 0, 0): study.drop,
        **losses,
    }
    parts = [(ALL, slice(None))] + [(one, study.names == one) for one in domains]
    lines = []
    for domain, chosen in parts:
        part = study if domain == ALL else study.part(domain)
        for condition, nll in everything.items():
            lines.append(Line(condition, domain, part.recovery(nll[chosen])))
    return tuple(lines)


def difference_name(name: str, other: str, slots: int) -> str:
    """Return what the difference of two conditions is called."""
    return f"{name} - {other}, S={slots}"


def against(
    study: Study, losses: Mapping[Condition, Nats], names: Iterable[str], other: str
) -> tuple[Difference, ...]:
    """Return how far conditions are above another one with as many slots.

    Args:
        study: the windows.
        losses: condition -> float64[n, t].
        names: of conditions to compare.
        other: name of the one they are compared with; it is not compared with itself.
    """
    others = {one.slots: one for one in losses if one.name == other}
    wanted = set(names) - {other}
    found = []
    for condition, nll in losses.items():
        if condition.name not in wanted or condition.slots not in others:
            continue
        apart = study.difference(nll, losses[others[condition.slots]])
        what = difference_name(condition.name, other, condition.slots)
        found.append(Difference(what, apart["all"], apart["recall"]))
    return tuple(found)
