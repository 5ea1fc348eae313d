"""The pytest plugin: two options, offered in every pytest of the environment."""

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

KIT = """
from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.testing import StorageConformance

class TestIt(StorageConformance):
    make = staticmethod(lambda folder: InMemoryStorage(folder))

    def test_effort(self):
        print("effort", self.effort)
"""


@pytest.fixture
def run(tmp_path):
    """Run pytest on a small kit and return what it printed."""
    (tmp_path / "test_it.py").write_text(KIT)
    names = {point.name for point in entry_points(group="pytest11")}
    plugin = [] if "megacontext" in names else ["-p", "megacontext_sdk._pytest"]

    def run_with(*options):
        command = [sys.executable, "-m", "pytest", "-q", "-s", *plugin, *options]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
        )
        assert 0 == done.returncode, done.stdout
        return done.stdout

    return run_with


def test_soak_multiplies_the_effort_of_every_kit(run):
    assert "effort 1\n" in run("-k", "effort")
    assert "effort 50\n" in run("-k", "effort", "--soak")


def test_the_report_counts_what_was_declared(run):
    told = run("-k", "clone", "--megacontext-report")
    assert "5 not tested: declares no cheap_fork: forks replay its commits" in told
    assert "everything was tested" in run("-k", "effort", "--megacontext-report")
