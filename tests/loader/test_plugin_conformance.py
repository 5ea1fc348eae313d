"""The plugin kit is tested itself: a good plugin passes, each fault is caught by its test."""

from __future__ import annotations

import pytest

from megacontext_sdk.plugins import Plugins
from megacontext_sdk.testing import PluginConformance

GOOD = """
    from megacontext_sdk import StorageSpec, hookimpl

    @hookimpl
    def megacontext_storages():
        yield StorageSpec(
            "{name}", "megacontext_sdk.builtin.memory_storage:InMemoryStorage", "A double",
            requires="acme-memory",
        )
"""


@pytest.fixture
def kit(workshop, monkeypatch):
    """Install a plugin and return its kit, with the way to load it as a stranger would."""

    def kit(code, name="acme"):
        workshop.install(name, code)
        monkeypatch.setenv("PYTHONPATH", str(workshop.folder))
        made = PluginConformance()
        made.plugin = name
        return made, Plugins.load(plugins=[name], environ={})

    return kit


def test_a_good_plugin_passes_every_test(kit):
    made, plugins = kit(GOOD.format(name="acme"))
    made.test_the_entry_point_loads_and_offers_something(plugins)
    made.test_every_provider_can_be_loaded(plugins)
    made.test_every_provider_says_what_to_install(plugins)
    made.test_loading_twice_is_harmless(plugins)
    made.test_the_module_stays_light()


def test_a_plugin_that_does_not_load_is_caught(kit):
    made, plugins = kit("raise RuntimeError('boom')")
    with pytest.raises(AssertionError, match="registered no plugin"):
        made.test_the_entry_point_loads_and_offers_something(plugins)


def test_a_record_that_leads_nowhere_is_caught(kit):
    from megacontext_sdk.errors import PluginLoadError

    made, plugins = kit(GOOD.format(name="acme").replace("InMemoryStorage", "NoSuchStorage"))
    with pytest.raises(PluginLoadError):
        made.test_every_provider_can_be_loaded(plugins)


def test_a_record_without_install_line_is_caught(kit):
    made, plugins = kit(GOOD.format(name="acme").replace('requires="acme-memory",', ""))
    with pytest.raises(AssertionError, match="needs `requires=`"):
        made.test_every_provider_says_what_to_install(plugins)


def test_a_plugin_that_offers_something_else_the_second_time_is_caught(kit):
    code = GOOD.format(name="acme").replace('"acme",', 'f"acme-{next(NUMBER)}",')
    made, plugins = kit("    import itertools\n    NUMBER = itertools.count()\n" + code)
    with pytest.raises(AssertionError, match="a second load offers something else"):
        made.test_loading_twice_is_harmless(plugins)


def test_a_module_that_brings_a_heavy_library_is_caught(kit):
    made, _ = kit("    import numpy\n" + GOOD.format(name="acme"))
    with pytest.raises(AssertionError, match="brings numpy; name it instead"):
        made.test_the_module_stays_light()


def test_a_module_that_takes_long_to_import_is_caught(kit):
    work = "    sum(range(10_000_000))\n"
    made, _ = kit(work + GOOD.format(name="acme"))
    with pytest.raises(AssertionError, match="s to import"):
        made.test_the_module_stays_light()


def test_the_kit_can_be_subclassed_as_documented():
    class TestAcme(PluginConformance):
        plugin = "acme"

    assert "acme" == TestAcme.plugin
