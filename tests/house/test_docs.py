"""The reference covers everything public: hooks, names, variables, settings, errors, events."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import megacontext_sdk
from megacontext_sdk import errors, hookspecs, testing
from megacontext_sdk.builtin import sinks
from megacontext_sdk.catalogue import KINDS
from megacontext_sdk.config import ENV_PREFIX, RESERVED_ENV, Config
from megacontext_sdk.contracts import arrays
from megacontext_sdk.events import EVENTS

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
HOOKS = [name for name in hookspecs.__all__ if name.startswith("megacontext_")]
DEFAULTS_IN_WORDS = {"w_max": "auto", "recent_tokens": "auto", "lock_timeout_seconds": "none"}


def page(name):
    """Return the text of a reference page."""
    return (REFERENCE / f"{name}.md").read_text(encoding="utf-8")


def rows(name):
    """Return {first cell: all cells} of the tables of a page."""
    lines = [line for line in page(name).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0].strip("`| "): row for row in cells}


@pytest.mark.parametrize("name", megacontext_sdk.__all__)
def test_every_public_name_is_on_the_api_page(name):
    assert re.search(rf"`[^`]*\b{name}\b[^`]*`|^## {name}$", page("api"), re.MULTILINE)


def test_no_public_method_of_a_session_is_left_out():
    public = {name for name in dir(megacontext_sdk.MemorySession) if not name.startswith("_")}
    assert set() == {n for n in public if f"`{n}" not in page("api") and f".{n}" not in page("api")}


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_section_with_its_exact_signature(hook):
    signature = str(inspect.signature(getattr(hookspecs, hook))).replace("'", "")
    assert f"### `{hook}`" in page("hooks")
    assert f"{hook}{signature}" in page("hooks")


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_every_catalogue_hook_is_in_the_table_with_record_and_contract(kind):
    row = " ".join(rows("hooks")[kind.hook])
    assert kind.record.__name__ in row
    assert (kind.contract or "none").partition(":")[2] in row


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.contract])
def test_every_contract_has_a_section(kind):
    assert f"## {kind.contract.partition(':')[2]}\n" in page("contracts")


@pytest.mark.parametrize("name", [name for name in arrays.__all__ if name[0].isupper()])
def test_every_array_type_is_on_the_contracts_page(name):
    assert f"`{name}`" in page("contracts")


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_drawn_and_explained(name):
    assert re.search(rf"^[ │├└─]*{name}\b", page("errors"), re.MULTILINE)
    assert name in rows("errors")


@pytest.mark.parametrize("name", errors.__all__)
def test_every_fact_of_an_error_is_listed(name):
    facts = vars(getattr(errors, name)).get("__annotations__", {})
    assert [] == [fact for fact in facts if f"`{fact}`" not in rows("errors")[name][-1]]


@pytest.mark.parametrize("variable", sorted(RESERVED_ENV))
def test_every_variable_of_the_loader_is_documented(variable):
    assert variable in rows("environment")


@pytest.mark.parametrize("name", Config.names())
def test_every_setting_is_documented_with_its_variable_and_default(name):
    assert ENV_PREFIX + name.upper() in rows("environment")
    default = Config().to_dict()[name]
    shown = rows("configuration")[name][1].strip("`")
    if name == "sinks":
        default = ",".join(default)
    assert DEFAULTS_IN_WORDS.get(name, str(default)) == shown


def test_no_variable_is_documented_that_does_not_exist():
    found = set(re.findall(r"`(MEGACONTEXT_\w+)`", page("environment")))
    known = {ENV_PREFIX + name.upper() for name in Config.names()} | RESERVED_ENV
    assert known == found - {ENV_PREFIX}


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__struct_config__.tag)
def test_every_event_is_documented_with_its_fields(event):
    row = rows("telemetry")[event.__struct_config__.tag]
    own = [name for name in event.__struct_fields__ if name not in {"step", "epoch", "seconds"}]
    assert own == re.findall(r"`(\w+)`", row[-1])


def test_no_event_is_documented_that_does_not_exist():
    table = page("telemetry").partition("## Events")[2]
    found = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert [event.__struct_config__.tag for event in EVENTS] == found


def test_every_built_in_sink_is_documented():
    names = {getattr(sinks, name).name for name in sinks.__all__}
    assert set() == {name for name in names if f"`{name}" not in page("telemetry")}


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r": ([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {str(file.relative_to(ROOT / "docs")) for file in (ROOT / "docs").rglob("*.md")}
    assert pages == listed


def test_every_change_fragment_has_a_known_type():
    fragments = [file.name for file in (ROOT / "changes").glob("*.md") if file.name != "README.md"]
    pattern = re.compile(r"[\w+-]+\.(feature|fix|removal|doc|misc)\.md")
    assert [] == [name for name in fragments if not pattern.fullmatch(name)]


def test_every_skipped_example_states_its_reason():
    silent = [
        str(file.relative_to(ROOT))
        for file in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
        if re.search(r"<!---? *skip: *\w+ *-?-->", file.read_text(encoding="utf-8"))
    ]
    assert [] == silent


@pytest.mark.parametrize("kit", testing.__all__)
def test_every_conformance_kit_loads_and_is_named_with_its_contract(kit):
    assert kit == getattr(testing, kit).__name__
    assert f"`megacontext_sdk.testing.{kit}`" in page("contracts")
