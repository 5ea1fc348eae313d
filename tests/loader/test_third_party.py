"""The example of a storage by somebody else, installed into an empty folder and used as a stranger.

Nothing of it comes from the repository's own path, and the kits it runs are the public ones.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "third_party_storage"

USE = """
import sys
from megacontext_sdk import MemorySession
from megacontext_sdk.plugins import default_plugins

assert default_plugins().find("storage", "acme").owner == "acme (acme-memory 1.0.0)"
with MemorySession.open(sys.argv[1], model="echo", storage="acme") as session:
    session.append("The ferry leaves at nine.", idempotency_key="ferry")
with MemorySession.open(sys.argv[1], model="echo", storage="acme") as session:
    assert session.append("The ferry leaves at nine.", idempotency_key="ferry").duplicate
    print(session.search("ferry")[0].text)
"""


def _wheel(folder: Path) -> Path:
    """Pack the example as its build backend would; that backend is not here, and needs not be."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, version = project["name"].replace("-", "_"), project["version"]
    points = "\n".join(f"{k} = {v}" for k, v in project["entry-points"]["megacontext"].items())
    record = f"{name}-{version}.dist-info"
    files = {
        f"{record}/METADATA": "Metadata-Version: 2.1\n"
        f"Name: {project['name']}\nVersion: {version}\n",
        f"{record}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        f"{record}/entry_points.txt": f"[megacontext]\n{points}\n",
    }
    files |= {
        str(file.relative_to(EXAMPLE)): file.read_text(encoding="utf-8")
        for file in sorted((EXAMPLE / name).glob("*.py"))
    }
    files[f"{record}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{record}/RECORD"])
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def _install(wheel: Path, target: Path) -> None:
    """Install it without a network."""
    if find_spec("pip") is None:
        with ZipFile(wheel) as archive:
            archive.extractall(target)
        return
    options = ["--quiet", "--no-index", "--no-deps", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", target, wheel]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """Run Python where the example is installed and its sources are not."""
    folder = tmp_path_factory.mktemp("stranger")
    _install(_wheel(folder), folder / "site")
    shutil.copytree(EXAMPLE / "tests", folder / "work" / "tests")
    shutil.copy(EXAMPLE / "pyproject.toml", folder / "work")
    path = os.pathsep.join([str(folder / "site"), *(p for p in sys.path if p)])

    def run(*command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=folder / "work",
            env={**os.environ, "PYTHONPATH": path, "MEGACONTEXT_PLUGINS": "acme"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.slow
def test_the_example_passes_every_kit_as_a_stranger(stranger):
    done = stranger("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert 0 == done.returncode, done.stdout[-6_000:] + done.stderr[-2_000:]
    assert " passed" in done.stdout


def test_the_example_keeps_memories_where_only_it_is_allowed(stranger, tmp_path):
    done = stranger("-W", "error", "-c", USE, tmp_path / "alice.mc")
    assert ("The ferry leaves at nine.\n", 0) == (done.stdout, done.returncode), done.stderr
    assert ["acme.sqlite"] == [f.name for f in (tmp_path / "alice.mc" / "data-000001").iterdir()]


def test_the_example_is_no_member_of_the_workspace():
    root = EXAMPLE.parents[1]
    workspace = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    members = workspace["tool"]["uv"]["workspace"]["members"]
    assert not any(EXAMPLE in root.glob(pattern) for pattern in members)
    text = "".join(file.read_text(encoding="utf-8") for file in EXAMPLE.rglob("*.py"))
    assert "megacontext_duckdb" not in text
    assert "megacontext_filesystem" not in text
