from __future__ import annotations

import pytest
from typer.testing import CliRunner

from megacontext_sdk._cli.app import build_app
from megacontext_sdk.plugins import Plugins


@pytest.fixture(scope="session")
def builtins():
    return Plugins.load(plugins=())


@pytest.fixture
def call(builtins, monkeypatch):
    """Run a command line with the built-ins only; returns typer's result."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "dumb")

    def run(*arguments, said=None):
        return CliRunner().invoke(build_app(builtins), list(map(str, arguments)), input=said)

    return run
