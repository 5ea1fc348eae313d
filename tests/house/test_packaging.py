"""Distributions: pins agree, members keep one word through five places, the core stays small."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEMBERS = sorted(p.parent for p in [*ROOT.glob("backends/*/pyproject.toml"),
                                    *ROOT.glob("plugins/*/pyproject.toml")])  # fmt: skip


def read(folder):
    """Return the pyproject of a folder."""
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def constraints():
    """Return {name: version} of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [] == [pin for pin in pins if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin)]
    return dict(pin.split("==") for pin in pins)


def name_of(requirement):
    """Return the distribution a requirement names."""
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-")


def test_constraints_are_names_and_numbers_sorted():
    names = list(constraints())
    assert sorted(names) == names


def test_the_torch_pin_is_the_same_for_pip_and_uv():
    pins = dict(pin.split("==") for pin in read(ROOT)["tool"]["uv"]["constraint-dependencies"])
    assert {"torch"} == set(pins)
    assert pins["torch"] == constraints()["torch"]


def test_every_dependency_of_core_and_members_is_pinned():
    wanted = set()
    for folder in [ROOT, *MEMBERS]:
        project = read(folder)["project"]
        wanted |= {name_of(one) for one in project.get("dependencies", [])}
        for extra in project.get("optional-dependencies", {}).values():
            wanted |= {name_of(one) for one in extra}
    ours = {name for name in wanted if name.startswith("megacontext-")}
    assert set() == wanted - ours - set(constraints())


def test_build_backends_are_pinned_and_agree():
    pinned = constraints()
    for folder in [ROOT, *MEMBERS]:
        for requirement in read(folder)["build-system"]["requires"]:
            name, _, version = requirement.partition("==")
            assert pinned[name] == version, folder


def test_the_core_needs_four_libraries():
    needed = {name_of(one) for one in read(ROOT)["project"]["dependencies"]}
    assert {"attrs", "msgspec", "numpy", "pluggy"} == needed


def test_no_project_names_a_package_index():
    for folder in [ROOT, *MEMBERS]:
        tool = read(folder).get("tool", {})
        assert "index" not in tool.get("uv", {}), folder
        assert "//" not in (folder / "pyproject.toml").read_text(encoding="utf-8"), folder


def test_the_makefile_installs_every_member():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    listed = re.search(r"^MEMBERS := (.+)$", makefile, re.MULTILINE)[1].split()
    assert [str(member.relative_to(ROOT)) for member in MEMBERS] == sorted(listed)


def test_continuous_integration_only_calls_make():
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert ["set -eu", 'cd "$(dirname "$0")/.."', "exec make check test"] == commands
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_a_member_keeps_one_word_through_five_places(member):
    word = member.name.replace("_", "-")
    project = read(member)["project"]
    package = f"megacontext_{member.name}"
    assert f"megacontext-{word}" == project["name"]
    assert (member / package / "__init__.py").is_file()
    entry = project["entry-points"]["megacontext"]
    assert [word] == list(entry)
    assert package == entry[word].split(".")[0].split(":")[0]


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_a_member_is_typed_licensed_documented_and_tested(member):
    package = member / f"megacontext_{member.name}"
    assert (package / "py.typed").is_file()
    assert (member / "README.md").is_file()
    assert list((member / "tests").rglob("test_*.py"))
    project = read(member)["project"]
    assert ("MIT", ">=3.11") == (project["license"], project["requires-python"])


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_a_member_needs_the_core_of_its_own_minor_version(member):
    major, minor, _ = read(ROOT)["project"]["version"].split(".")
    wanted = f"megacontext-sdk>={major}.{minor},<{major}.{int(minor) + 1}"
    assert wanted in [one.replace(" ", "") for one in read(member)["project"]["dependencies"]]
    assert {"workspace": True} == read(member)["tool"]["uv"]["sources"]["megacontext-sdk"]


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_every_member_is_an_extra_of_the_core(member):
    root = read(ROOT)
    word = member.name.replace("_", "-")
    extra = root["project"]["optional-dependencies"][word]
    assert [f"megacontext-{word}"] == [name_of(one) for one in extra]
    assert {"workspace": True} == root["tool"]["uv"]["sources"][f"megacontext-{word}"]
