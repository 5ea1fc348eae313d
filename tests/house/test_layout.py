"""Files: small, named by a noun, opening with what they are; no leftovers."""

from __future__ import annotations

import ast
import re
import subprocess

import pytest

MAX_LINES = 500
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
LEFTOVERS = re.compile(r"\b(TOD[O]|FIXM[E]|XX[X]|NotImplemented[E]rror)\b")  # does not match itself
TOP_LEVEL = ("backends", "plugins", "examples", "tests", "docs", "changes")
MACHINE_PATHS = re.compile(r"(?<![\w.])/(work|home|root|Users)/\w")


def test_no_module_is_longer_than_500_lines(sources, tests, root):
    too_long = {
        str(file.relative_to(root)): n
        for file in [*sources, *tests]
        if (n := len(file.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert {} == too_long


def test_no_module_has_a_name_that_says_nothing(sources, tests):
    assert [] == [file for file in [*sources, *tests] if file.stem in BANNED_NAMES]


def test_every_module_opens_with_what_it_is(sources, root):
    silent = [
        str(file.relative_to(root))
        for file in sources
        if file.read_text(encoding="utf-8").strip()
        and not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert [] == silent


def test_no_source_file_holds_a_leftover(sources, root):
    found = {
        str(file.relative_to(root)): LEFTOVERS.findall(file.read_text(encoding="utf-8"))
        for file in sources
        if LEFTOVERS.search(file.read_text(encoding="utf-8"))
    }
    assert {} == found


def test_no_code_is_read_from_data(sources):
    """No pickle anywhere: a memory from elsewhere must not run code."""
    banned = re.compile(r"\bimport pickle\b|allow_pickle=True|(?<![.\w])(eval|exec)\(|\bmarshal\b")
    assert [] == [file for file in sources if banned.search(file.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("folder", TOP_LEVEL)
def test_top_level_folders_are_no_packages(folder, root):
    """An editable root would make them importable."""
    assert not (root / folder / "__init__.py").exists()


def test_top_level_folders_of_tests_are_no_packages(tests):
    assert [] == [file for file in tests if file.name == "__init__.py"]


def test_public_lists_are_literal_and_unique(sources, root):
    repeated = {}
    for file in sources:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names = ast.literal_eval(node.value)
                if len(names) != len(set(names)):
                    repeated[str(file.relative_to(root))] = names
    assert {} == repeated


def test_no_shipped_text_names_a_machine(root):
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout, so what ships is unknown")
    found = []
    for name in listed.stdout.split("\0"):
        file = root / name
        if file.suffix in {".py", ".md", ".toml", ".txt", ".yml"} and file.is_file():
            text = file.read_text(encoding="utf-8")
            if file.name != "test_layout.py" and MACHINE_PATHS.search(text):
                found.append(name)
    assert [] == found
