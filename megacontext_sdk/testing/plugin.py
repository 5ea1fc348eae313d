"""What every installed plugin must keep: it loads, is light, and loading it twice is harmless.

Checks the entry point and its records, not what the providers do: each contract has its own kit.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

import pytest

from megacontext_sdk.hookspecs import PROJECT
from megacontext_sdk.plugins import Plugins

if TYPE_CHECKING:
    from megacontext_sdk.catalogue import Provider

__all__ = ["PluginConformance"]

_HEAVY = ("duckdb", "matplotlib", "numpy", "onnxruntime", "tensorflow", "torch", "transformers")
_MEASURE = """
import sys, time
start = time.process_time()
import {module}
print(time.process_time() - start)
print(" ".join(name for name in {heavy!r} if name in sys.modules))
"""


class PluginConformance:
    """Standard tests of an installed plugin; set `plugin` to the name of its entry point.

    Example:
        >>> class TestAcme(PluginConformance):
        ...     plugin = "acme"
    """

    plugin: str
    max_import_seconds = 0.06
    heavy: tuple[str, ...] = _HEAVY
    """Modules the entry-point module must not bring along."""

    @pytest.fixture
    def plugins(self) -> Plugins:
        """Load this plugin alone; a failure is raised with its traceback."""
        return Plugins.load(plugins=[self.plugin], strict=True, environ={})

    def test_the_entry_point_loads_and_offers_something(self, plugins: Plugins) -> None:
        """A plugin that offers no provider must at least implement a lifecycle hook."""
        label = next(iter(self._labels(plugins)), None)
        assert label is not None, f"entry point {self.plugin!r} registered no plugin"

    def test_every_provider_can_be_loaded(self, plugins: Plugins) -> None:
        """Import strings lead somewhere, to a class of the right contract."""
        for provider in self._own(plugins):
            assert callable(provider.load()), f"{provider.spec.name} cannot be called"

    def test_every_provider_says_what_to_install(self, plugins: Plugins) -> None:
        """An import error then ends with the command that repairs it."""
        for provider in self._own(plugins):
            assert provider.spec.requires, f"{provider.spec.name} needs `requires=`"

    def test_loading_twice_is_harmless(self, plugins: Plugins) -> None:
        """Registration has no side effects; each worker process loads plugins again."""
        again = Plugins.load(plugins=[self.plugin], strict=True, environ={})
        assert plugins.catalogue == again.catalogue, "a second load offers something else"

    def test_the_module_stays_light(self) -> None:
        """Every session of the environment pays for this import, also without the plugin."""
        (point,) = (one for one in entry_points(group=PROJECT) if one.name == self.plugin)
        code = _MEASURE.format(module=point.module, heavy=self.heavy)
        runs = [
            subprocess.run(  # noqa: S603 - our own interpreter, our own code
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            ).stdout.split("\n")
            for _ in range(5)
        ]
        assert runs[0][1] == "", f"importing {point.module} brings {runs[0][1]}; name it instead"
        seconds = min(float(run[0]) for run in runs)
        assert seconds <= self.max_import_seconds, f"{point.module} takes {seconds:.3f} s to import"

    def _labels(self, plugins: Plugins) -> list[str]:
        return [label for label in plugins.labels if label.partition(" ")[0] == self.plugin]

    def _own(self, plugins: Plugins) -> list[Provider]:
        return [p for p in plugins.catalogue.providers if p.plugin == self.plugin]
