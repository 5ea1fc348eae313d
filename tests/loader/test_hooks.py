"""Row 95: every hook has a test named after it, and a runnable example in its docstring."""

from __future__ import annotations

import ast
import inspect
import logging
import textwrap
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest

from megacontext_sdk import errors, hookspecs, records
from megacontext_sdk.catalogue import KINDS
from megacontext_sdk.contracts.model import SamplingOptions
from megacontext_sdk.hookspecs import hookimpl
from megacontext_sdk.records import GenerateRequest, RuntimeSpec

HOOKS = [name for name in hookspecs.__all__ if name.startswith("megacontext_")]
CATALOGUE_HOOKS = {kind.hook: kind for kind in KINDS.values()}
REQUEST = GenerateRequest(
    where="memory:", max_new_tokens=8, sampling=SamplingOptions(), remember=True
)


def example_of(hook):
    """Return the code of the plugin in a hook's docstring."""
    _, _, code = inspect.getdoc(getattr(hookspecs, hook)).partition("Example::\n\n")
    return textwrap.dedent(code)


def plugin(**hooks):
    """Return a plugin object with the given hook implementations."""
    return SimpleNamespace(
        __name__="acme", **{f"megacontext_{n}": hookimpl(f) for n, f in hooks.items()}
    )


# -- every hook ------------------------------------------------------------------------------------


def test_row95_every_hook_has_a_test_named_after_it():
    tests = {
        node.name
        for node in ast.walk(ast.parse(inspect.getsource(inspect.getmodule(plugin))))
        if isinstance(node, ast.FunctionDef)
    }
    missing = [hook for hook in HOOKS if not any(hook in test for test in tests)]
    assert [] == missing


@pytest.mark.parametrize("hook", HOOKS)
def test_row95_the_example_of_every_hook_is_a_plugin_that_loads(hook, load_code):
    plugins = load_code(example_of(hook))
    assert () == plugins.failures
    if hook in CATALOGUE_HOOKS:
        kind = CATALOGUE_HOOKS[hook]
        assert kind.record is type(plugins.find(kind.name, "acme").spec)


# -- catalogue hooks -------------------------------------------------------------------------------


def offered(load, hook, kind, record):
    """Load a plugin that offers one record through one hook; return the provider."""
    plugins = load(plugins=(), modules=[plugin(**{hook: lambda: [record]})])
    assert () == plugins.failures
    assert "acme" in plugins.names(kind)
    return plugins.find(kind, "acme")


def test_megacontext_storages_offers_a_storage(load):
    record = records.StorageSpec("acme", dict, "Blocks in Acme Cloud")
    assert record is offered(load, "storages", "storage", record).spec


def test_megacontext_model_adapters_offers_a_model_with_argument_and_options(load):
    def opener(argument, **options):
        return argument, options

    record = records.ModelAdapterSpec("acme", opener, "Models", options={"device": "cpu"})
    plugins = load(plugins=(), modules=[plugin(model_adapters=lambda: [record])])
    assert ("team/small", {"device": "cpu"}) == plugins.model_factory("acme:team/small")()
    assert ("", {"device": "cpu"}) == plugins.model_factory("acme")()


def test_megacontext_gist_encoders_offers_an_encoder_with_argument_and_options(load):
    def opener(argument, *, gist_slots, **options):
        return argument, gist_slots, options

    record = records.GistEncoderSpec("acme", opener, "First token", options={"level": "2"})
    plugins = load(plugins=(), modules=[plugin(gist_encoders=lambda: [record])])
    assert ("a/b:c", 4, {"level": "2"}) == plugins.gist_factory("acme:a/b:c")(4)
    assert ("", 1, {"level": "2"}) == plugins.gist_factory("acme")(1)


def test_an_encoder_that_cannot_be_made_names_its_plugin(load):
    record = records.GistEncoderSpec("acme", lambda gist_slots: gist_slots, "Takes no argument")
    plugins = load(plugins=(), modules=[plugin(gist_encoders=lambda: [record])])
    with pytest.raises(errors.ModelError, match="'acme' failed with TypeError"):
        plugins.gist_factory("acme")(1)


def test_megacontext_focus_policies_offers_a_focus_policy(load):
    record = records.FocusPolicySpec("acme", lambda: "policy", "Longest words first")
    assert "policy" == offered(load, "focus_policies", "focus", record).load()()


def test_megacontext_allocators_offers_an_allocator(load):
    record = records.AllocatorSpec("acme", lambda: "allocator", "One move at a time")
    assert "allocator" == offered(load, "allocators", "allocator", record).load()()


def test_megacontext_position_schemes_offers_a_position_scheme(load):
    record = records.PositionSchemeSpec("acme", lambda: "scheme", "Every second position")
    assert "scheme" == offered(load, "position_schemes", "positions", record).load()()


def test_megacontext_runtimes_offers_a_loop_with_probe_and_rank(load):
    record = RuntimeSpec("acme", lambda state: state, "Loop", probe=lambda: True, rank=100)
    provider = offered(load, "runtimes", "runtime", record)
    assert (100, True) == (provider.spec.rank, provider.spec.probe())


def test_megacontext_telemetry_sinks_offers_a_sink_that_gets_its_argument(load):
    opened = []

    class Sink:
        name = "acme"

        def emit(self, event):
            opened.append(event)

    def open_sink(where="default"):
        opened.append(where)
        return Sink()

    record = records.SinkSpec("acme", open_sink, "Acme's collector")
    plugins = load(plugins=(), modules=[plugin(telemetry_sinks=lambda: [record])])
    telemetry = plugins.telemetry(["acme:here", "acme", Sink()])
    telemetry.emit("event")
    assert ["here", "default", "event", "event", "event"] == opened


def test_megacontext_commands_offers_a_command(load):
    record = records.CommandSpec("acme", lambda: "done", "Send a memory to Acme Cloud")
    assert "done" == offered(load, "commands", "command", record).load()()


def test_megacontext_commands_may_offer_one_name_in_several_groups(load):
    specs = [
        records.CommandSpec("acme", dict, f"Acme {group}", group=group)
        for group in ("", "train", "eval")
    ]
    plugins = load(plugins=(), modules=[plugin(commands=lambda: specs)])
    assert () == plugins.failures
    assert ("acme", "eval acme", "train acme") == plugins.names("command")
    assert specs[1] is plugins.find("command", "train acme").spec


# -- choosing a runtime ----------------------------------------------------------------------------


CPU = SimpleNamespace(device="cpu")


def loops(*specs, **hooks):
    """Return a plugin that offers loops."""
    return plugin(runtimes=lambda: list(specs), **hooks)


def test_megacontext_choose_runtime_takes_the_plain_loop_when_nothing_else_is_installed(load):
    assert "plain" == load(plugins=()).choose_runtime(CPU)


def test_megacontext_choose_runtime_takes_the_highest_rank_whose_probe_passes(load):
    specs = (
        RuntimeSpec("broken", dict, "Loop", probe=lambda: 1 / 0, rank=300),
        RuntimeSpec("absent", dict, "Loop", probe=lambda: False, rank=200),
        RuntimeSpec("fast", dict, "Loop", probe=lambda: True, rank=100),
        RuntimeSpec("slow", dict, "Loop", rank=50),
    )
    assert "fast" == load(plugins=(), modules=[loops(*specs)]).choose_runtime(CPU)


def test_megacontext_choose_runtime_imports_a_probe_given_as_text(load, workshop):
    name = workshop.module("def usable():\n    return True\n")
    spec = RuntimeSpec("acme", dict, "Loop", probe=f"{name}:usable", rank=9)
    assert "acme" == load(plugins=(), modules=[loops(spec)]).choose_runtime(CPU)


def test_megacontext_choose_runtime_refuses_a_tie(load):
    from megacontext_sdk.errors import DuplicateProviderError

    specs = [RuntimeSpec(name, dict, "Loop", rank=7) for name in ("left", "right")]
    plugins = load(plugins=(), modules=[loops(*specs)])
    with pytest.raises(DuplicateProviderError, match="left and right share the rank 7") as caught:
        plugins.choose_runtime(CPU)
    assert ("left", "right") == caught.value.owners


def test_megacontext_choose_runtime_lets_a_plugin_take_over_by_looking_at_the_context(load):
    def choose(context):
        return "own" if context.info.device == "cpu" else None

    acme = loops(RuntimeSpec("own", dict, "Loop", rank=-1), choose_runtime=choose)
    plugins = load(plugins=(), modules=[acme])
    assert "own" == plugins.choose_runtime(CPU)
    assert "plain" == plugins.choose_runtime(SimpleNamespace(device="cuda"))


def test_megacontext_choose_runtime_falls_back_to_the_built_in_when_a_chooser_raises(load, caplog):
    def choose(context):
        raise RuntimeError

    plugins = load(plugins=(), modules=[plugin(choose_runtime=choose)])
    assert "plain" == plugins.choose_runtime(CPU)
    assert "choosing a runtime gave RuntimeError; the built-in decides" in caplog.text


def test_megacontext_choose_runtime_refuses_a_loop_that_does_not_exist(load):
    from megacontext_sdk.errors import UnknownProviderError

    plugins = load(plugins=(), modules=[plugin(choose_runtime=lambda context: "plane")])
    with pytest.raises(UnknownProviderError, match='did you mean "plain"'):
        plugins.choose_runtime(CPU)


# -- session hooks ---------------------------------------------------------------------------------


def test_megacontext_session_opened_tells_every_plugin_even_after_one_raised(load, caplog):
    seen = []

    def fail(session):
        raise OSError

    first = plugin(session_opened=lambda session: seen.append(session))
    broken = plugin(session_opened=fail)
    last = plugin(session_opened=lambda session: seen.append(session))
    for number, one in enumerate((first, broken, last)):
        one.__name__ = f"acme{number}"
    plugins = load(plugins=(), modules=[first, broken, last])
    plugins.session_opened("session")
    assert ["session", "session"] == seen
    assert "plugin acme1: OSError in a hook" in caplog.text


def test_megacontext_session_closed_passes_only_the_arguments_an_implementation_names(load):
    seen = []
    narrow = plugin(session_closed=lambda error: seen.append(error))
    wide = plugin(session_closed=lambda session, error: seen.append((session, error)))
    wide.__name__ = "other"
    error = ValueError()
    load(plugins=(), modules=[narrow, wide]).session_closed("session", error)
    assert [("session", error), error] == seen


# -- around a reply --------------------------------------------------------------------------------


def test_megacontext_around_generate_is_entered_before_and_left_after(load):
    log = []

    @contextmanager
    def around(request):
        log.append(("in", request.max_new_tokens))
        yield
        log.append("out")

    with load(plugins=(), modules=[plugin(around_generate=around)]).around_generate(REQUEST):
        log.append("reply")
    assert [("in", 8), "reply", "out"] == log


def test_megacontext_around_generate_is_left_when_the_caller_stops_early(load):
    log = []

    @contextmanager
    def around(request):
        try:
            yield
        finally:
            log.append("left")

    plugins = load(plugins=(), modules=[plugin(around_generate=around)])

    def stream():
        with plugins.around_generate(REQUEST):
            yield "first"
            yield "second"

    reply = stream()
    next(reply)
    assert [] == log
    reply.close()
    assert ["left"] == log


def test_megacontext_around_generate_may_raise_on_entry_and_earlier_ones_are_left(load):
    log = []

    @contextmanager
    def careful(request):
        try:
            yield
        finally:
            log.append("left")

    def refuse(request):
        message = "over quota"
        raise PermissionError(message)

    late = plugin(around_generate=refuse)
    early = plugin(around_generate=careful)
    early.__name__ = "zealous"  # called last-registered first
    plugins = load(plugins=(), modules=[late, early])
    with pytest.raises(PermissionError, match="over quota"), plugins.around_generate(REQUEST):
        log.append("reply")
    assert ["left"] == log


def test_megacontext_around_generate_cannot_swallow_an_exception(load):
    class Swallow(nullcontext):
        def __exit__(self, *error):
            return True

    plugins = load(plugins=(), modules=[plugin(around_generate=lambda request: Swallow())])
    with pytest.raises(KeyboardInterrupt), plugins.around_generate(REQUEST):
        raise KeyboardInterrupt


def test_megacontext_around_generate_may_return_nothing(load):
    with load(plugins=(), modules=[plugin(around_generate=lambda request: None)]).around_generate(
        REQUEST
    ):
        logging.getLogger(__name__).debug("nothing surrounds this")
