"""Commands of plugins: groups, clashes, and how their errors look."""

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

from megacontext_sdk import CommandSpec, hookimpl
from megacontext_sdk._cli.app import build_app
from megacontext_sdk.errors import ConfigError
from megacontext_sdk.plugins import Plugins


class Offer:
    """A plugin that offers these commands."""

    def __init__(self, *specs):
        self.specs = specs

    @hookimpl
    def megacontext_commands(self):
        return list(self.specs)


class OtherOffer(Offer):
    """Another one."""


def say(text):
    """Return a command that says something."""
    return lambda: sys.stdout.write(text)


def run(*arguments, modules):
    """Run `megacontext` with these plugins only."""
    app = build_app(Plugins.load(plugins=(), modules=modules))
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_commands_of_a_group_stand_behind_its_name():
    trains = Offer(
        CommandSpec("acme", say("trained"), "Train Acme", group="train"),
        CommandSpec("acme", say("measured"), "Measure Acme", group="eval"),
        CommandSpec("acme", say("plain"), "Acme itself"),
    )
    assert "trained" == run("train", "acme", modules=(trains,)).stdout
    assert "measured" == run("eval", "acme", modules=(trains,)).stdout
    assert "plain" == run("acme", modules=(trains,)).stdout
    listed = run("train", "--help", modules=(trains,)).stdout
    assert "Train Acme" in listed
    assert "Measure Acme" not in listed


def test_several_plugins_add_to_one_group():
    modules = (
        Offer(CommandSpec("one", say("1"), "First", group="train")),
        OtherOffer(CommandSpec("two", say("2"), "Second", group="train")),
    )
    assert "1" == run("train", "one", modules=modules).stdout
    assert "2" == run("train", "two", modules=modules).stdout


def test_options_of_a_command_in_a_group_are_read():
    def train(name: str, *, steps: int = 3) -> None:
        sys.stdout.write(name * steps)

    modules = (Offer(CommandSpec("acme", train, "Train", group="train")),)
    assert "abab" == run("train", "acme", "ab", "--steps", 2, modules=modules).stdout


@pytest.mark.parametrize("group", ["", "train"])
def test_errors_of_plugin_commands_are_one_line(group):
    def fail() -> None:
        message = "no data in notes; name a folder with text"
        raise ConfigError(message, field="data", value="notes")

    modules = (Offer(CommandSpec("acme", fail, "Fails", group=group)),)
    result = run(*[group] * bool(group), "acme", modules=modules)
    assert 1 == result.exit_code
    assert "ConfigError: no data in notes; name a folder with text\n" == result.stderr


def test_a_broken_command_leaves_the_rest_of_its_group():
    modules = (
        Offer(
            CommandSpec("broken", "no_such_module_anywhere:run", "Broken", group="train"),
            CommandSpec("whole", say("whole"), "Whole", group="train"),
        ),
    )
    result = run("train", "whole", modules=modules)
    assert "whole" == result.stdout
    assert 2 == run("train", "broken", modules=modules).exit_code


@pytest.mark.parametrize("taken", ["stats", "demo"])
def test_a_group_cannot_take_the_name_of_our_command(taken, capsys):
    modules = (Offer(CommandSpec("acme", say("not me"), "Acme", group=taken)),)
    assert "not me" not in run(taken, "acme", modules=modules).output
    assert f"command '{taken} acme'" in capsys.readouterr().err


def test_words_that_two_plugins_offer_belong_to_neither(capsys):
    modules = (
        Offer(CommandSpec("acme", say("one"), "One", group="train")),
        OtherOffer(CommandSpec("acme", say("two"), "Two", group="train")),
    )
    assert 2 == run("train", "acme", modules=modules).exit_code
    said = capsys.readouterr().err
    assert "offered by Offer and by OtherOffer" in said
    assert "MEGACONTEXT_PLUGINS" in said


def test_a_group_and_a_command_of_one_name_are_both_left_out():
    modules = (
        Offer(CommandSpec("train", say("one"), "One")),
        OtherOffer(CommandSpec("acme", say("two"), "Two", group="train")),
    )
    assert 2 == run("train", modules=modules).exit_code
    assert 2 == run("train", "acme", modules=modules).exit_code


@pytest.mark.parametrize("group", ["Train", "train it", "-train", "1st", None, 3])
def test_a_group_that_is_no_name_is_refused(group):
    with pytest.raises(ConfigError, match="CommandSpec has the group"):
        CommandSpec("acme", say("x"), "Acme", group=group)
