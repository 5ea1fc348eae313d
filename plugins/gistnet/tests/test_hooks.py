"""The entry point of the plugin: what it offers, and that looking at it costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from megacontext_sdk.plugins import Plugins
from megacontext_sdk.testing import PluginConformance


class TestPlugin(PluginConformance):
    plugin = "gistnet"


def test_entry_point_module_is_light():
    code = (
        "import sys, megacontext_gistnet; "
        "print([m for m in ('numpy', 'torch', 'transformers', 'accelerate') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[]" == found.stdout.strip()


@pytest.mark.parametrize("name", ["contextual", "gistnet"])
def test_megacontext_gist_encoders_offers_both_kinds(name):
    plugins = Plugins.load(plugins=("gistnet",))
    assert name in plugins.names("gist")
    assert "megacontext-gistnet" == plugins.find("gist", name).spec.requires
    assert f"open_{name}" == plugins.resolve("gist", name).__name__
