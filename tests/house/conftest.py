"""What house tests look at: the tree as git would ship it, without environments and builds."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("megacontext_sdk", "backends/*/megacontext_*", "plugins/*/megacontext_*")
TESTS = ("tests", "backends/*/tests", "plugins/*/tests", "examples/*/tests")


def python_files(*patterns):
    """Return the Python files under the folders that match."""
    folders = [folder for pattern in patterns for folder in sorted(ROOT.glob(pattern))]
    return [file for folder in folders for file in sorted(folder.rglob("*.py"))]


def n_lines(file):
    """Return the number of lines of a file."""
    return len(file.read_text(encoding="utf-8").splitlines())


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def sources():
    return python_files(*PACKAGES)


@pytest.fixture(scope="session")
def tests():
    return python_files(*TESTS)


def pytest_terminal_summary(terminalreporter):
    """Print the numbers of the house style; only the limit of 500 lines fails."""
    source = [n_lines(file) for file in python_files(*PACKAGES)]
    test = [n_lines(file) for file in python_files(*TESTS)]
    terminalreporter.write_line(
        f"house: {len(source)} modules, median {median(source):.0f} lines, longest {max(source)}; "
        f"{sum(test) / sum(source):.2f} test lines per source line (aim: 150, 500, 1.2)"
    )
