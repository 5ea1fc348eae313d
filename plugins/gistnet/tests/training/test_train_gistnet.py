"""`megacontext train gistnet`: options become a recipe and limits, errors one line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from rich.console import Console
from typer.testing import CliRunner

from megacontext_gistnet.training import run
from megacontext_gistnet.training.progress import Display
from megacontext_gistnet.training.run import Trained
from megacontext_sdk._cli.app import build_app
from megacontext_sdk.plugins import Plugins


@pytest.fixture
def asked(monkeypatch):
    """What the command asks of `train`, which is not run."""
    seen = []

    def note(settings, *, console):
        seen.append(settings)
        return Trained(is_finished=len(seen) < 2, weights=None, steps=3, minutes=0.5, found={})

    monkeypatch.setattr(run, "train", note)
    return seen


def call(*arguments):
    import megacontext_gistnet

    app = build_app(Plugins.load(plugins=(), modules=(megacontext_gistnet,)))
    return CliRunner().invoke(app, ["train", "gistnet", *(str(one) for one in arguments)])


NEEDED = ("--data", "texts", "--out", "run", "--steps", "10")


def test_defaults_are_the_recipes(asked):
    assert 0 == call(*NEEDED).exit_code
    settings = asked[0]
    assert ("reference", "gistnet", 10) == (settings.model, settings.kind, settings.limits.steps)
    assert run.Settings.__attrs_attrs__ is not None
    assert (8, 512) == (settings.recipe.batch, settings.recipe.window_tokens)


def test_options_change_the_recipe(asked, tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"batch": 4, "clip": 0.5}))
    result = call(
        *NEEDED, "--data", "more", "--recipe", recipe, "--window", 256, "--lr", 2e-3,
        "--slots", 2, "--stages", "substitution", "--kind", "contextual",
    )  # fmt: skip
    assert 0 == result.exit_code, result.output
    settings = asked[0]
    assert ["texts", "more"] == [str(one) for one in settings.data]
    chosen = settings.recipe
    assert (4, 0.5, 256, {"slots": 2}) == (
        chosen.batch, chosen.clip, chosen.window_tokens, dict(chosen.shape)
    )  # fmt: skip
    assert ["substitution"] == [stage.name for stage in chosen.stages]
    assert 2e-3 == pytest.approx(max(chosen.stages[0].lr.values()))


def test_the_preset_for_a_gpu_takes_more_windows_and_options_win_over_it(asked):
    call(*NEEDED, "--preset", "gpu")
    call(*NEEDED, "--preset", "gpu", "--batch", 16)
    assert [64, 16] == [settings.recipe.batch for settings in asked]


def test_an_interrupted_run_says_how_to_go_on(asked):
    first, second = call(*NEEDED), call(*NEEDED)
    assert "3 steps, 0.5 minutes" in first.stdout
    assert 130 == second.exit_code
    assert "--resume --out run" in second.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--kind", "mean"), "--kind mean is unknown; give one of gistnet, contextual"),
        (("--preset", "tpu"), "--preset tpu is unknown"),
        (("--precision", "int8"), "--precision int8 is unknown"),
        (("--stages", "head,tail"), "--stages names 'tail'; the recipe has head, substitution"),
        (("--window", "100"), "multiple of 32"),
        (("--recipe", "/nowhere/recipe.json"), "no such file"),
    ],
)
def test_what_cannot_be_meant_is_one_line(asked, options, said):
    result = call(*NEEDED, *options)
    assert 1 == result.exit_code
    assert said in result.stderr
    assert not asked


def test_the_module_of_the_command_is_light():
    code = (
        "import sys, megacontext_gistnet.commands.train_gistnet; "
        "print([m for m in ('numpy', 'torch', 'matplotlib', 'accelerate') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[]" == found.stdout.strip()


# -- what is shown ---------------------------------------------------------------------------------


TRAINED = {"step": 50, "stage": "head", "train/loss": 1.25, "train/recovery": 0.5}
VALIDATED = {"step": 50, "stage": "levels", "validation/lod2_recovery_all_s1": 0.25}


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_shows_loss_recovery_and_validation(is_terminal):
    console = Console(record=True, force_terminal=is_terminal, width=200, quiet=False)
    with Display(console) as display:
        display.advance(0.5, TRAINED)
        display.advance(0.5, VALIDATED)
    text = console.export_text()
    assert "loss 1.250" in text
    assert "R 0.500" in text
    assert "step 50  levels  held-out R  lod2_all_s1 0.250" in text


def test_other_processes_show_nothing():
    with Display(None) as display:
        display.say("hello")
        display.advance(0.5, TRAINED)
