"""The loader's rules: built-ins first, each plugin checked alone, failures reported, not fatal."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from megacontext_sdk import builtin
from megacontext_sdk.errors import (
    ConfigError,
    DuplicateProviderError,
    PluginLoadError,
    UnknownProviderError,
)
from megacontext_sdk.plugins import Plugins, default_plugins

STORAGE = """
    from megacontext_sdk import StorageSpec, hookimpl

    @hookimpl
    def megacontext_storages():
        yield StorageSpec("{name}", "{name}_memory.store:Store", "Blocks in {name}")
"""


def storage(name):
    """Return the code of a plugin that offers one storage."""
    return STORAGE.format(name=name)


def only_failure(plugins):
    """Return the error of the one plugin that failed."""
    (failure,) = plugins.failures
    return failure.error


# -- what is loaded --------------------------------------------------------------------------------


def test_built_ins_load_without_any_installed_plugin(load):
    plugins = load(plugins=())
    assert ("memory",) == plugins.names("storage")
    assert ("echo",) == plugins.names("model")
    assert ("mean",) == plugins.names("gist")
    assert {"heuristic", "recency", "random", "bm25", "cosine"} == set(plugins.names("focus"))
    assert "greedy" in plugins.names("allocator")
    assert ("absolute", "compact") == plugins.names("positions")
    assert ("plain",) == plugins.names("runtime")
    assert {"logging", "memory", "jsonl"} == set(plugins.names("sink"))
    assert () == plugins.failures


def test_an_installed_entry_point_is_found_with_its_distribution(workshop, load):
    workshop.install("acme", storage("acme"))
    provider = load(plugins=["acme"]).find("storage", "acme")
    assert ("acme", "acme-acme", "1.2.3") == (
        provider.plugin,
        provider.distribution,
        provider.version,
    )


def test_an_explicit_module_needs_no_installation(load_code):
    assert ("acme", "memory") == load_code(storage("acme")).names("storage")


def test_a_module_object_is_taken_as_well_as_its_name(workshop, load):
    name = workshop.module(storage("acme"))
    module = __import__(name)
    assert "acme" in load(plugins=(), modules=[module]).names("storage")


def test_the_environment_lists_the_entry_points_to_import(workshop, load):
    workshop.install("acme", storage("acme"))
    workshop.install("emca", "raise RuntimeError('must not be imported')")
    plugins = load({"MEGACONTEXT_PLUGINS": " acme ,"})
    assert ("acme", "memory") == plugins.names("storage")
    assert () == plugins.failures


def test_an_empty_allow_list_means_built_ins_only(workshop, load):
    workshop.install("acme", storage("acme"))
    assert ("memory",) == load({"MEGACONTEXT_PLUGINS": ""}).names("storage")


def test_the_argument_narrows_the_allow_list_and_never_widens_it(workshop, load):
    workshop.install("acme", storage("acme"))
    workshop.install("emca", storage("emca"))
    listed = {"MEGACONTEXT_PLUGINS": "acme"}
    assert ("acme", "memory") == load(listed, plugins=["acme", "emca"]).names("storage")
    assert ("memory",) == load(listed, plugins=["emca"]).names("storage")


def test_a_listed_plugin_that_is_not_installed_is_a_failure(load):
    plugins = load({"MEGACONTEXT_PLUGINS": "nobody"})
    assert "no entry point 'nobody' is installed" in str(only_failure(plugins))


def test_the_order_of_installation_carries_no_meaning(workshop, load):
    for name in ("zeta", "alpha"):
        workshop.install(name, storage(name))
    plugins = load(plugins=["zeta", "alpha"])
    assert ("alpha", "memory", "zeta") == plugins.names("storage")
    listed = [provider.spec.name for provider in plugins.providers("storage")]
    assert ["alpha", "memory", "zeta"] == listed


def test_loading_twice_is_harmless(workshop, load):
    workshop.install("acme", storage("acme"))
    first, second = load(plugins=["acme"]), load(plugins=["acme"])
    assert first.catalogue == second.catalogue


def test_default_plugins_load_once_per_process():
    default_plugins.cache_clear()
    assert default_plugins() is default_plugins()


def test_loading_does_not_import_providers():
    code = (
        "import sys\n"
        "from megacontext_sdk.plugins import Plugins\n"
        "Plugins.load(plugins=())\n"
        "print([m for m in ('numpy', 'sqlite3', 'importlib.metadata') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[]" == done.stdout.strip()


# -- broken plugins are reported, not fatal --------------------------------------------------------


BROKEN = {
    "does not import": ("import surely_not_installed", "surely_not_installed"),
    "raises while it is imported": ("raise RuntimeError('boom')", "boom"),
    "has no hook": ("value = 1", "implements no hook"),
    "misspells a hook": (
        """
        from megacontext_sdk import hookimpl
        @hookimpl
        def megacontext_storage():
            return []
        """,
        "there is no hook 'megacontext_storage', did you mean \"megacontext_storages\"?",
    ),
    "forgets the decorator": (
        """
        from megacontext_sdk import hookimpl
        @hookimpl
        def megacontext_storages():
            return []
        def megacontext_runtimes():
            return []
        """,
        "megacontext_runtimes lacks the decorator @hookimpl",
    ),
    "asks for an argument the hook does not have": (
        """
        from megacontext_sdk import hookimpl
        @hookimpl
        def megacontext_storages(path):
            return []
        """,
        "path",
    ),
    "raises in its catalogue hook": (
        """
        from megacontext_sdk import hookimpl
        @hookimpl
        def megacontext_storages():
            yield 1 / 0
        """,
        "division by zero",
    ),
    "returns nothing": (
        """
        from megacontext_sdk import hookimpl
        @hookimpl
        def megacontext_storages():
            pass
        """,
        "megacontext_storages returned None; yield StorageSpec records",
    ),
    "yields another hook's record": (
        """
        from megacontext_sdk import SinkSpec, hookimpl
        @hookimpl
        def megacontext_storages():
            yield SinkSpec("acme", "acme:Acme", "A sink")
        """,
        "yielded a SinkSpec; it must yield StorageSpec",
    ),
    "has a bad name": (storage("Acme Cloud"), "StorageSpec has the name 'Acme Cloud'"),
    "offers a name twice": (
        """
        from megacontext_sdk import StorageSpec, hookimpl
        @hookimpl
        def megacontext_storages():
            yield StorageSpec("acme", "acme:Acme", "Blocks")
            yield StorageSpec("acme", "acme:Acme", "Blocks")
        """,
        "takes its own record's name",
    ),
    "takes a built-in's name": (storage("memory"), "storage 'memory' takes a built-in's name"),
    "wraps a hook that only notifies": (
        """
        from megacontext_sdk import hookimpl
        @hookimpl(wrapper=True)
        def megacontext_session_opened(session):
            yield
        """,
        "megacontext_session_opened cannot be wrapped",
    ),
}


@pytest.mark.parametrize("why", BROKEN)
def test_row95_a_broken_plugin_is_reported_and_the_next_one_loads(why, workshop, load):
    code, message = BROKEN[why]
    workshop.install("acme", code)
    workshop.install("zeta", storage("zeta"))
    plugins = load(plugins=["acme", "zeta"])
    (failure,) = plugins.failures
    assert ("acme", "acme-acme", "1.2.3") == (
        failure.plugin,
        failure.distribution,
        failure.version,
    )
    assert message in str(failure.error)
    assert ("memory", "zeta") == plugins.names("storage")


def test_a_plugin_is_left_out_whole_when_one_of_its_records_is_bad(load_code):
    plugins = load_code(
        """
        from megacontext_sdk import SinkSpec, StorageSpec, hookimpl

        @hookimpl
        def megacontext_storages():
            yield StorageSpec("acme", "acme:Acme", "Blocks")

        @hookimpl
        def megacontext_telemetry_sinks():
            yield "no record"

        @hookimpl
        def megacontext_session_opened(session):
            raise AssertionError("must have been unregistered")
        """
    )
    assert ("memory",) == plugins.names("storage")
    assert 1 == len(plugins.failures)
    assert () == plugins._opened


def test_a_failure_is_one_warning_line_with_the_traceback_at_debug(load_code, caplog):
    caplog.set_level(logging.DEBUG)
    load_code("raise RuntimeError('boom')")
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert 1 == len(warnings)
    assert "plugin left out" in warnings[0].getMessage()
    assert "boom" in warnings[0].getMessage()
    assert any(r.exc_info for r in caplog.records if r.levelno == logging.DEBUG)


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_strict_mode_raises_all_failures_together(how, workshop, load):
    workshop.install("acme", "raise RuntimeError('boom')")
    workshop.install("emca", "value = 1")
    strict = {"strict": True} if how == "argument" else {}
    environ = {"MEGACONTEXT_STRICT_PLUGINS": "1"} if how == "environment" else {}
    with pytest.raises(ExceptionGroup, match="2 plugins failed to load") as caught:
        load(environ, plugins=["acme", "emca"], **strict)
    assert [RuntimeError, PluginLoadError] == [type(error) for error in caught.value.exceptions]
    assert ["plugin acme was not loaded"] == caught.value.exceptions[0].__notes__


def test_strict_mode_is_content_when_nothing_fails(load):
    assert () == load(plugins=(), strict=True).failures


def test_a_broken_built_in_is_fatal(load, monkeypatch):
    monkeypatch.setattr(builtin, "megacontext_storages", builtin.hookimpl(lambda: None))
    with pytest.raises(PluginLoadError, match="megacontext_storages returned None"):
        load(plugins=())


def test_a_switch_that_is_neither_0_nor_1_is_refused(load):
    with pytest.raises(ConfigError, match="MEGACONTEXT_STRICT_PLUGINS is 'ja'; set it to 0 or 1"):
        load({"MEGACONTEXT_STRICT_PLUGINS": "ja"})


def test_a_switch_may_be_off(load):
    switches = {"MEGACONTEXT_STRICT_PLUGINS": "0", "MEGACONTEXT_TRACE_PLUGINS": ""}
    assert () == load(switches, plugins=()).failures


# -- names that clash ------------------------------------------------------------------------------


def test_a_name_offered_by_two_plugins_is_contested_and_the_rest_works(workshop, load):
    workshop.install("left", storage("acme"))
    workshop.install("right", storage("acme"))
    plugins = load(plugins=["left", "right"])
    assert () == plugins.failures
    assert ("acme", "memory") == plugins.names("storage")
    with pytest.raises(DuplicateProviderError) as caught:
        plugins.resolve("storage", "acme")
    assert ("left (acme-left 1.2.3)", "right (acme-right 1.2.3)") == caught.value.owners
    assert "uninstall one" in str(caught.value)


def test_two_distributions_may_use_one_entry_point_name(workshop, load):
    workshop.install("acme", storage("left"), distribution="left-memory")
    workshop.install("acme", storage("right"), distribution="right-memory")
    plugins = load(plugins=["acme"])
    assert () == plugins.failures
    assert ("left", "memory", "right") == plugins.names("storage")


def test_one_module_given_twice_is_registered_once(workshop, load):
    name = workshop.module(storage("acme"))
    plugins = load(plugins=(), modules=[name, name])
    assert "registered already" in str(only_failure(plugins))
    assert "acme" == plugins.find("storage", "acme").spec.name


# -- asking for a provider -------------------------------------------------------------------------


def test_an_unknown_provider_lists_what_exists_and_what_failed(workshop, load):
    workshop.install("acme", "raise RuntimeError('boom')")
    plugins = load(plugins=["acme"])
    with pytest.raises(UnknownProviderError) as caught:
        plugins.resolve("focus", "heuristics")
    error = caught.value
    assert ("focus", "heuristics") == (error.kind, error.name)
    assert plugins.names("focus") == error.available
    assert ("acme (RuntimeError: boom)",) == error.failures
    assert 'did you mean "heuristic"?' in str(error)
    assert "failed to load: acme (RuntimeError: boom)" in str(error)


def test_an_unknown_member_comes_with_its_install_line(load):
    with pytest.raises(UnknownProviderError, match="pip install megacontext-duckdb"):
        load(plugins=()).resolve("storage", "duckdb")


def test_a_lookup_error_catches_an_unknown_provider(load):
    with pytest.raises(LookupError):
        load(plugins=()).model_factory("nobody:model")


def test_a_factory_that_cannot_be_imported_names_what_to_install(load_code):
    plugins = load_code(
        """
        from megacontext_sdk import StorageSpec, hookimpl

        @hookimpl
        def megacontext_storages():
            yield StorageSpec("acme", "surely_absent:Store", "Blocks", requires="acme-memory[all]")
        """
    )
    with pytest.raises(PluginLoadError, match=r"run `pip install acme-memory\[all\]`") as caught:
        plugins.resolve("storage", "acme")
    assert "ModuleNotFoundError" in str(caught.value)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert "acme" == caught.value.provider


@pytest.mark.parametrize(
    ("factory", "why"),
    [
        ("math:pi", "is a float and cannot be called"),
        ("math:tau_of_nothing", "AttributeError"),
        ("collections:OrderedDict", "OrderedDict does not implement Storage"),
    ],
)
def test_a_factory_that_is_no_provider_is_refused(factory, why, load_code):
    plugins = load_code(
        f"""
        from megacontext_sdk import StorageSpec, hookimpl

        @hookimpl
        def megacontext_storages():
            yield StorageSpec("acme", "{factory}", "Blocks")
        """
    )
    with pytest.raises(PluginLoadError, match=why):
        plugins.resolve("storage", "acme")


def test_an_unknown_kind_is_a_mistake_of_ours(load):
    with pytest.raises(KeyError):
        load(plugins=()).names("storages")


# -- errors in use ---------------------------------------------------------------------------------


def test_a_guard_wraps_foreign_errors_once_and_names_the_plugin(workshop, load):
    from megacontext_sdk.errors import StorageError

    workshop.install("acme", storage("acme"))
    provider = load(plugins=["acme"]).find("storage", "acme")
    with pytest.raises(StorageError, match="storage 'acme' failed with KeyError") as caught:
        with provider.guard(StorageError):
            raise KeyError("secret text of the memory")
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)
    assert ["raised by storage 'acme' of plugin acme (acme-acme 1.2.3)"] == caught.value.__notes__


def test_a_guard_leaves_our_own_errors_as_they_are(workshop, load):
    from megacontext_sdk.errors import ReadOnlyError, StorageError

    workshop.install("acme", storage("acme"))
    provider = load(plugins=["acme"]).find("storage", "acme")
    error = ReadOnlyError("mounted read-only", why="mount")
    with pytest.raises(ReadOnlyError) as caught, provider.guard(StorageError):
        raise error
    assert caught.value is error
    assert 1 == len(error.__notes__)


# -- tracing ---------------------------------------------------------------------------------------


def test_tracing_logs_every_hook_call(workshop, load, caplog):
    caplog.set_level(logging.INFO)
    workshop.install("acme", storage("acme"))
    environ = {"MEGACONTEXT_TRACE_PLUGINS": "1"}
    plugins = load(environ, plugins=["acme"])
    assert "hook megacontext_storages of acme" in caplog.text
    from types import SimpleNamespace

    plugins.choose_runtime(SimpleNamespace(device="cpu"))
    assert "hook megacontext_choose_runtime of builtin" in caplog.text


def test_without_tracing_no_hook_call_is_logged(load, caplog):
    caplog.set_level(logging.DEBUG)
    load(plugins=())
    assert "" == caplog.text


def test_plugins_can_be_loaded_from_the_real_environment(monkeypatch):
    monkeypatch.setenv("MEGACONTEXT_PLUGINS", "")
    assert ("memory",) == Plugins.load().names("storage")
