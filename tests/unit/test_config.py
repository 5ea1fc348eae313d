"""Settings: names, ranges, where they come from, and the budget they resolve to."""

from __future__ import annotations

import attrs
import pytest

from megacontext_sdk.config import ENV_PREFIX, RESERVED_ENV, Config
from megacontext_sdk.contracts.focus import Budget
from megacontext_sdk.errors import ConfigError


def load(path=None, environ=None, **settings):
    """Load under an environment that holds nothing but what the test says."""
    return Config.load(path, environ or {}, **settings)


@pytest.fixture
def toml(tmp_path):
    def write(text):
        path = tmp_path / "memory.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


# -- defaults and names ----------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_specification():
    expected = {
        "w_max": None,
        "headroom": 64,
        "recent_tokens": None,
        "sink_blocks": 1,
        "pin_share": 0.25,
        "tau_expand": 0.2,
        "tau_collapse": 0.2,
        "n_diff": 4,
        "max_iterations": 16,
        "decode_price": 0.3,
        "cooldown": 2,
        "hysteresis": 0.1,
        "hysteresis_iterations": 8,
        "allocator": "greedy",
        "positions": "compact",
        "gist_slots": 1,
        "gist_dtype": "i1",
        "gist_cache_rows": 8192,
        "gist_background": "auto",
        "strict_encoder": False,
        "runtime": "auto",
        "kv_mode": "seam",
        "seam_rows": 16,
        "kv_cache_bytes": 33554432,
        "rebuild_after_swaps": 16,
        "rebuild_stale_ratio": 0.5,
        "audit_limit_nats": 0.2,
        "strict": False,
        "durability": "sync",
        "lock_timeout_seconds": None,
        "allow_network_fs": False,
        "adopt_model": False,
        "sinks": ("logging",),
    }
    assert expected == load().to_dict()
    assert set(expected) == set(Config.names())


def test_names_are_sorted_and_unique_over_all_groups():
    names = Config.names()
    assert sorted(set(names)) == list(names)


def test_settings_are_frozen():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        load().focus.w_max = 7


def test_equal_settings_are_equal():
    assert load(w_max=896) == load(environ={"MEGACONTEXT_W_MAX": "896"})
    assert load(w_max=896) != load()


def test_replace_changes_only_what_it_names():
    before = load(w_max=896, kv_mode="exact")
    after = before.replace(kv_mode="stale")
    assert (896, "stale") == (after.focus.w_max, after.runtime.kv_mode)
    assert "exact" == before.runtime.kv_mode


# -- where values come from ------------------------------------------------------------------------


def test_keywords_go_before_environment_before_file_before_defaults(toml):
    path = toml("[focus]\nw_max = 300\nn_diff = 3\ncooldown = 3\n")
    environ = {"MEGACONTEXT_N_DIFF": "5", "MEGACONTEXT_COOLDOWN": "5"}
    config = load(path, environ, cooldown=7)
    assert (300, 5, 7, 64) == (
        config.focus.w_max,
        config.focus.n_diff,
        config.focus.cooldown,
        config.focus.headroom,
    )


def test_a_file_may_set_every_group(toml):
    path = toml(
        """
        [focus]
        allocator = "knapsack"
        [gist]
        gist_slots = 4
        [runtime]
        strict = true
        [storage]
        lock_timeout_seconds = 2.5
        [telemetry]
        sinks = ["logging", "jsonl:trace.jsonl"]
        """
    )
    config = load(path)
    assert ("knapsack", 4, True, 2.5, ("logging", "jsonl:trace.jsonl")) == (
        config.focus.allocator,
        config.gist.gist_slots,
        config.runtime.strict,
        config.storage.lock_timeout_seconds,
        config.telemetry.sinks,
    )


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("W_MAX", "896", "w_max", 896),
        ("W_MAX", "auto", "w_max", None),
        ("W_MAX", "", "w_max", None),
        ("PIN_SHARE", "0.5", "pin_share", 0.5),
        ("STRICT", "1", "strict", True),
        ("STRICT", "False", "strict", False),
        ("ALLOW_NETWORK_FS", "yes", "allow_network_fs", True),
        ("ADOPT_MODEL", "yes", "adopt_model", True),
        ("KV_MODE", "exact", "kv_mode", "exact"),
        ("GIST_SLOTS", "2", "gist_slots", 2),
        ("SINKS", "logging, memory", "sinks", ("logging", "memory")),
        ("SINKS", "", "sinks", ()),
        ("LOCK_TIMEOUT_SECONDS", "1.5", "lock_timeout_seconds", 1.5),
    ],
)
def test_the_environment_is_read_by_the_kind_of_the_setting(variable, text, name, value):
    assert value == load(environ={ENV_PREFIX + variable: text}).to_dict()[name]


@pytest.mark.parametrize("name", Config.names())
def test_every_setting_has_an_environment_variable(name):
    with pytest.raises(ConfigError) as caught:
        load(environ={ENV_PREFIX + name.upper(): "\x00 no value of any setting"})
    assert name == caught.value.field


def test_variables_of_the_loader_are_no_settings():
    environ = dict.fromkeys(RESERVED_ENV, "acme")
    assert load() == load(environ=environ | {"PATH": "/bin", "MEGACONTEXTUAL": "1"})


def test_the_real_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("MEGACONTEXT_N_DIFF", "9")
    assert 9 == Config.load().focus.n_diff


# -- refusals --------------------------------------------------------------------------------------


def test_an_unknown_keyword_is_refused_with_a_near_miss():
    with pytest.raises(ConfigError, match="no setting 'wmax'; did you mean \"w_max\"") as caught:
        load(wmax=896)
    assert ("wmax", 896) == (caught.value.field, caught.value.value)


def test_an_unknown_keyword_like_no_other_lists_them_all():
    with pytest.raises(ConfigError, match="there are: adopt_model, allocator, allow_network_fs"):
        load(zzzz=1)


def test_an_unknown_variable_is_refused_with_a_near_miss():
    with pytest.raises(ConfigError, match='did you mean "MEGACONTEXT_W_MAX"'):
        load(environ={"MEGACONTEXT_WMAX": "896"})


def test_an_unknown_table_is_refused(toml):
    with pytest.raises(ConfigError, match='did you mean "focus"'):
        load(toml("[focuss]\nw_max = 896\n"))


def test_a_setting_outside_any_table_is_refused(toml):
    with pytest.raises(ConfigError, match="'w_max'"):
        load(toml("w_max = 896\n"))


def test_an_unknown_setting_in_a_table_is_refused(toml):
    with pytest.raises(ConfigError, match='did you mean "headroom"'):
        load(toml("[focus]\nheadrom = 64\n"))


def test_a_setting_in_the_wrong_table_is_told_where_to_go(toml):
    with pytest.raises(ConfigError, match=r"'strict' stands in \[focus\].*move it to \[runtime\]"):
        load(toml("[focus]\nstrict = true\n"))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.toml cannot be read") as caught:
        load(tmp_path / "nowhere.toml")
    assert "config" == caught.value.field


def test_a_file_that_is_no_toml_is_refused(toml):
    with pytest.raises(ConfigError, match="cannot be read"):
        load(toml("w_max: 896"))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "memory.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("w_max", 0),
        ("w_max", -1),
        ("w_max", 896.0),
        ("w_max", True),
        ("w_max", "896"),
        ("headroom", 31),
        ("headroom", None),
        ("recent_tokens", -1),
        ("sink_blocks", -1),
        ("pin_share", 1.01),
        ("pin_share", "0.5"),
        ("tau_expand", -0.1),
        ("tau_collapse", float("nan")),
        ("n_diff", 0),
        ("max_iterations", 0),
        ("decode_price", 1.5),
        ("cooldown", -1),
        ("hysteresis", 2),
        ("hysteresis_iterations", -1),
        ("allocator", "Greedy"),
        ("positions", ""),
        ("gist_slots", 3),
        ("gist_slots", True),
        ("gist_dtype", "bf16"),
        ("gist_cache_rows", -1),
        ("gist_background", "always"),
        ("strict_encoder", "yes"),
        ("runtime", None),
        ("kv_mode", "seem"),
        ("seam_rows", -1),
        ("kv_cache_bytes", -1),
        ("rebuild_after_swaps", -1),
        ("rebuild_stale_ratio", 1.5),
        ("audit_limit_nats", -0.1),
        ("strict", 1),
        ("strict", "yes"),
        ("durability", 3),
        ("lock_timeout_seconds", -1),
        ("allow_network_fs", None),
        ("adopt_model", None),
        ("sinks", 3),
        ("sinks", ("Logging",)),
        ("sinks", (3,)),
        ("sinks", None),
    ],
)
def test_a_value_out_of_range_is_refused_by_name_value_and_fix(name, value):
    with pytest.raises(ConfigError) as caught:
        load(**{name: value})
    assert name == caught.value.field
    assert str(caught.value).startswith(f"{name} is {value!r}; it must be ")


def test_every_setting_is_covered_by_a_refusal_above():
    refused = test_a_value_out_of_range_is_refused_by_name_value_and_fix.pytestmark[0].args[1]
    assert set(Config.names()) == {name for name, _ in refused}


def test_one_sink_may_be_given_without_a_tuple():
    assert ("memory",) == load(sinks="memory").telemetry.sinks
    assert ("memory", "logging") == load(sinks=["memory", "logging"]).telemetry.sinks


def test_a_sink_may_be_an_object():
    class Sink:
        def emit(self, event):
            pass

    sink = Sink()
    assert (sink,) == load(sinks=(sink,)).telemetry.sinks


# -- the budget ------------------------------------------------------------------------------------


def test_the_budget_takes_over_every_rule():
    config = load(
        w_max=2000, headroom=96, recent_tokens=64, sink_blocks=2, pin_share=0.5, tau_expand=0.3,
        tau_collapse=0.4, n_diff=5, cooldown=3, hysteresis=0.2, hysteresis_iterations=9,
        gist_slots=2,
    )  # fmt: skip
    expected = Budget(
        w_max=2000, headroom=96, gist_slots=2, recent_tokens=64, sink_blocks=2, pin_share=0.5,
        tau_expand=0.3, tau_collapse=0.4, n_diff=5, cooldown=3, hysteresis=0.2,
        hysteresis_iterations=9,
    )  # fmt: skip
    assert expected == config.budget(4096)


@pytest.mark.parametrize(
    ("trained_window", "w_max"), [(1024, 896), (2048, 1920), (8192, 8064), (131072, 8192)]
)
def test_an_unset_budget_follows_the_trained_window(trained_window, w_max):
    assert w_max == load().budget(trained_window).w_max


@pytest.mark.parametrize(("w_max", "recent_tokens"), [(512, 128), (1023, 128), (1024, 256)])
def test_unset_recent_tokens_follow_the_budget(w_max, recent_tokens):
    assert recent_tokens == load(w_max=w_max).budget(4096).recent_tokens


def test_a_budget_up_to_the_trained_window_less_a_reply_is_taken():
    assert 960 == load(w_max=960).budget(1024).w_max


def test_a_budget_above_the_trained_window_is_refused():
    with pytest.raises(ConfigError) as caught:
        load(w_max=961).budget(1024)
    error = caught.value
    assert ("w_max", 961, 1024) == (error.field, error.value, error.trained_window)
    assert "trained on 1024; set w_max to at most 960" in str(error)


def test_absolute_positions_leave_the_limit_to_the_scheme():
    assert 4096 == load(w_max=4096, positions="absolute").budget(1024).w_max


def test_the_smallest_default_budget_is_256_rows():
    assert 256 == load(w_max=256).budget(1024).w_max
    with pytest.raises(ConfigError, match="w_max=255 is below the 256 rows needed") as caught:
        load(w_max=255).budget(1024)
    assert ("w_max", 255, 256) == (caught.value.field, caught.value.value, caught.value.needed)


def test_a_budget_too_small_for_the_chosen_protection_is_refused():
    with pytest.raises(ConfigError, match="raise w_max or lower recent_tokens"):
        load(w_max=512, recent_tokens=512).budget(1024)


def test_a_smaller_protection_admits_a_smaller_budget():
    assert 128 == load(w_max=128, recent_tokens=32, headroom=32, sink_blocks=1).budget(1024).w_max


def test_more_slots_need_more_rows():
    with pytest.raises(ConfigError, match="128 for a cover of the history"):
        load(w_max=256, gist_slots=4).budget(1024)


def test_a_model_with_too_short_a_window_is_named_as_the_reason():
    with pytest.raises(ConfigError, match="the model was trained on 256 rows only"):
        load().budget(256)
