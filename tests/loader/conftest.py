"""Plugins as strangers would install them: modules on the path and fake distribution records."""

from __future__ import annotations

import importlib
import sys
import textwrap
import uuid
from typing import TYPE_CHECKING

import pytest

from megacontext_sdk.plugins import Plugins

if TYPE_CHECKING:
    from pathlib import Path


class Workshop:
    """Writes plugin modules and `*.dist-info` records into a folder on the import path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: list[str] = []

    def module(self, code: str, name: str | None = None) -> str:
        """Write a module under a name no other test uses; return the name."""
        name = name or f"plugin_{uuid.uuid4().hex}"
        (self.folder / f"{name}.py").write_text(textwrap.dedent(code), encoding="utf-8")
        self.modules.append(name)
        importlib.invalidate_caches()
        return name

    def install(self, entry_point: str, code: str, distribution: str | None = None) -> str:
        """Write a module and the record of a distribution that offers it as a plugin."""
        name = self.module(code)
        self.record(entry_point, name, distribution)
        return name

    def record(self, entry_point: str, module: str, distribution: str | None = None) -> None:
        """Write the record of a distribution whose entry point is `module`."""
        distribution = distribution or f"acme-{entry_point}"
        info = self.folder / f"{distribution.replace('-', '_')}-1.2.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2.3\n", encoding="utf-8"
        )
        (info / "entry_points.txt").write_text(
            f"[megacontext]\n{entry_point} = {module}\n", encoding="utf-8"
        )
        importlib.invalidate_caches()


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    made = Workshop(tmp_path)
    yield made
    for name in made.modules:
        sys.modules.pop(name, None)


@pytest.fixture
def load():
    """Load plugins under an environment that holds nothing but what the test says."""

    def load(environ=None, **arguments):
        return Plugins.load(environ=environ or {}, **arguments)

    return load


@pytest.fixture
def load_code(workshop, load):
    """Load the built-ins and one plugin given as code, uninstalled."""

    def load_code(code, **arguments):
        return load(plugins=(), modules=[workshop.module(code)], **arguments)

    return load_code
