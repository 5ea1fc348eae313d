"""Imports run downwards only: import-linter's contracts, and what members may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEMBER_FILES = sorted(
    file
    for kind in ("backends", "plugins")
    for file in ROOT.glob(f"{kind}/*/megacontext_*/**/*.py")
)
MEMBER_PACKAGES = sorted({file.relative_to(ROOT).parts[2] for file in MEMBER_FILES})
OPEN_TO_MEMBERS = {"contracts", "errors", "records", "hookimpl", "testing", "NodeId", "Span"}
# Commands that train and evaluate open models by name, and measure sessions as they are served.
OPEN_TO_COMMANDS = {"MemorySession", "measuring", "plugins", "providers"}
WITH_COMMANDS = {"megacontext_gistnet"}


def test_import_linter_keeps_every_contract():
    missing = [name for name in MEMBER_PACKAGES if find_spec(name) is None]
    if missing:
        pytest.skip(f"the contracts speak of members that are not installed: {missing}")
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stdout[-4000:]


def imported_names(file):
    """Return what a file imports, as dotted names: modules, and names out of modules."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_of_core(file):
    """Return the rooms of the core a file imports from; records through the front door count."""
    for name in imported_names(file):
        first, _, rest = name.partition(".")
        if first == "megacontext_sdk":
            room = rest.partition(".")[0]
            yield "records" if room.endswith("Spec") else room


@pytest.mark.parametrize("file", MEMBER_FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_member_imports_only_contracts_errors_records_and_the_marker(file):
    has_commands = file.relative_to(ROOT).parts[2] in WITH_COMMANDS
    more = OPEN_TO_COMMANDS if has_commands else set()
    assert set() == set(rooms_of_core(file)) - OPEN_TO_MEMBERS - more


@pytest.mark.parametrize("file", MEMBER_FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_member_imports_no_other_member(file):
    own = next(part for part in file.parts if part.startswith("megacontext_"))
    packages = {name.partition(".")[0] for name in imported_names(file)}
    others = {name for name in packages if name.startswith("megacontext_")}
    assert set() == others - {own, "megacontext_sdk"}
