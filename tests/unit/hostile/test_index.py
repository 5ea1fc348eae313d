"""The table of bad input, row by row: each of its 30 rows has tests, and this says where.

Rows that this folder tests are found by name. A few are tested where what they speak of lives; they
are listed, since other folders number the rows of another table.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent

ROWS = {
    1: "a session id or namespace that is no name",
    2: "a session id that is no text",
    3: "session ids that file systems confuse",
    4: "no namespace",
    5: "filter values",
    6: "filter keys",
    7: "odd paths",
    8: "remote paths and credentials",
    9: "links, devices, foreign directories",
    10: "permissions",
    11: "bundle headers and parts",
    12: "bundles with valid checksums",
    13: "MEMORY and manifests",
    14: "bodies",
    15: "gist rows",
    16: "token ids",
    17: "content",
    18: "metadata",
    19: "timestamps",
    20: "spans",
    21: "searches",
    22: "scopes of a forget",
    23: "dead handles",
    24: "idempotency keys",
    25: "lock files",
    26: "serialised state",
    27: "model folders",
    28: "the engine",
    29: "storage plugins",
    30: "recalled text",
}
ELSEWHERE = {
    1: ("tests/unit/keeping/test_store.py", "test_row01_and_02_a_bad_name"),
    2: ("tests/unit/keeping/test_store.py", "test_row01_and_02_a_bad_name"),
    3: ("tests/unit/keeping/test_store.py", "test_row03_names_that_some_file_systems_confuse"),
    4: ("tests/unit/keeping/test_store.py", "test_row04_there_is_no_store_without_a_namespace"),
    11: ("tests/unit/exchange/test_hostile_bundles.py", "test_row11_"),
    12: ("tests/unit/exchange/test_hostile_bundles.py", "test_row12_"),
    27: ("backends/hf/tests/test_loading.py", "test_pickled_weights_are_not_read"),
}


def names_in(file):
    """Return the names of the test functions of a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


NAMES = [name for file in sorted(HERE.glob("test_*.py")) for name in names_in(file)]


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_table_has_tests(row):
    if row in ELSEWHERE:
        file, start = ELSEWHERE[row]
        assert [name for name in names_in(ROOT / file) if name.startswith(start)], ROWS[row]
    else:
        assert [name for name in NAMES if name.startswith(f"test_row{row:02d}_")], ROWS[row]


def test_no_test_names_a_row_that_is_not_in_the_table():
    numbers = {int(name[8:10]) for name in NAMES if name.startswith("test_row")}
    assert set() == numbers - set(ROWS)
    assert list(range(1, 31)) == list(ROWS)
