"""What every conformance class has: no quiet overrides, and an effort that `--soak` multiplies.

A standard test may be overridden only with `pytest.mark.xfail(reason=...)`: then the report shows
which line of the contract is not kept, and why.
"""

from __future__ import annotations

import pytest

__all__ = ["SOAK_FACTOR", "Kit", "quiet_overrides"]

SOAK_FACTOR = 50
"""How many times more of everything `pytest --soak` does."""

_ROOM = "megacontext_sdk.testing"


def quiet_overrides(kit: type) -> list[str]:
    """Return the standard tests that a class replaces without `xfail(reason=...)`."""
    standard = {
        name
        for base in kit.__mro__
        if base.__module__.startswith(_ROOM)
        for name in vars(base)
        if name.startswith("test_")
    }
    foreign = [base for base in kit.__mro__ if not base.__module__.startswith(_ROOM)]
    return sorted(
        name
        for base in foreign
        for name, value in vars(base).items()
        if name in standard and not _is_explained(value)
    )


def _is_explained(test: object) -> bool:
    marks = getattr(test, "pytestmark", [])
    return any(mark.name == "xfail" and mark.kwargs.get("reason") for mark in marks)


class Kit:
    """Base of the classes that third parties subclass.

    Attributes:
        effort: multiplies repetitions; `--soak` sets it to `SOAK_FACTOR`.
    """

    effort: int = 1

    @pytest.fixture(autouse=True)
    def _read_effort(self, request: pytest.FixtureRequest) -> None:
        if request.config.getoption("--soak", default=False):
            self.effort = SOAK_FACTOR

    def test_no_standard_test_is_overridden_quietly(self) -> None:
        """A standard test that cannot pass is marked `xfail(reason=...)`, not replaced."""
        quiet = quiet_overrides(type(self))
        assert quiet == [], f"{quiet} replace standard tests; mark them xfail(reason=...) instead"
