"""The pytest plugin of the SDK: two options for the conformance kits. No logic, light imports.

It is in every pytest of the environment, so it imports nothing of the SDK.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

__all__ = ["pytest_addoption", "pytest_terminal_summary"]

_KITS = "megacontext_sdk/testing/"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--soak` and `--megacontext-report`."""
    group = parser.getgroup("megacontext")
    group.addoption(
        "--soak",
        action="store_true",
        help="let the conformance kits of megacontext_sdk repeat everything 50 times as often",
    )
    group.addoption(
        "--megacontext-report",
        action="store_true",
        help="print what the storages under test declare not to do, by reason",
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the tests of the kits that were skipped, counted by what was declared."""
    if not terminalreporter.config.getoption("--megacontext-report"):
        return
    terminalreporter.section("megacontext conformance")
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and _KITS in report.longrepr[0].replace("\\", "/")
    )
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"{count:4d} not tested: {reason}")
    if not reasons:
        terminalreporter.write_line("everything was tested")
