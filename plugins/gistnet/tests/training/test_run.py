"""Whole runs on a tiny base: weights, resumption to the bit, stages, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch

from megacontext_gistnet.nets.model import read_header
from megacontext_gistnet.training.checkpoint import read_checkpoint
from megacontext_gistnet.training.journal import METRICS
from megacontext_gistnet.training.recipe import Losses, recipe_bytes
from megacontext_gistnet.training.run import train
from megacontext_gistnet.training.trainer import Limits, Trainer
from megacontext_sdk.errors import ConfigError, ModelError

from .conftest import SHAPE, options_of, small_recipe, stage_of


def tensors_of(settings):
    return read_checkpoint(settings.out / "checkpoint.safetensors").tensors


def test_a_run_leaves_weights_card_curves_and_metrics(finished):
    settings, done = finished
    assert done.is_finished
    assert 6 == done.steps
    header = read_header(done.weights)
    assert "gistnet" == header.kind
    facts = header.facts
    assert recipe_bytes(settings.recipe).decode() == facts["recipe"]
    assert {"books.jsonl"} == {Path(one["name"]).name for one in json.loads(facts["sources"])}
    assert "6" == facts["steps"]
    assert done.found[1].row() == json.loads(facts["validation"])
    card = (settings.out / "card.md").read_text()
    assert "| LOD1 | 1 |" in card
    for name in ("curve.png", "curve.json", "recipe.json", "checkpoint.safetensors"):
        assert (settings.out / name).is_file()
    rows = [json.loads(one) for one in (settings.out / "metrics.jsonl").read_text().splitlines()]
    assert [0, 2, 3, 4, 6, 6] == [one["step"] for one in rows]
    told = {name for one in rows for name in one}
    expected = {n for n in METRICS if "<" not in n} - {
        "train/reconstruction", "train/contrast", "train/diversity"
    }  # fmt: skip
    assert expected <= told
    assert told - expected == {
        *(f"validation/recovery_{what}_s{slots}" for what in ("all", "recall") for slots in (1, 4)),
        "validation/recovery_story",
    }


def test_the_same_run_twice_is_the_same_to_the_bit(finished, settings):
    train(settings)
    assert_equal(tensors_of(finished[0]), tensors_of(settings))


def test_another_seed_is_another_run(finished, settings):
    train(attrs.evolve(settings, seed=1))
    name = "model/body.leave.weight"
    assert not torch.equal(tensors_of(finished[0])[name], tensors_of(settings)[name])


def assert_equal(expected, found):
    assert set(expected) == set(found)
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


DIE_IN_STEP_6 = """
import os, signal, torch
from megacontext_gistnet.training.trainer import Trainer
from megacontext_sdk._cli import main
torch.set_num_threads(1)
learn = Trainer._learn
def learn_or_die(self, done):
    learn(self, done)
    if self.step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
Trainer._learn = learn_or_die
main()
"""


@pytest.mark.parametrize("kind", [pytest.param("gistnet", marks=pytest.mark.slow), "contextual"])
def test_a_killed_and_resumed_run_ends_at_the_same_bits(settings, tmp_path, kind):
    """Step 6 is behind the checkpoint of step 4, and within the second stage."""
    shape = SHAPE if kind == "gistnet" else {"n_layers": 1, "rank": 2, "hidden": 32}
    recipe = small_recipe(stage_of("a", share=0.3), stage_of("b", share=0.7), shape=shape)
    limits = attrs.evolve(settings.limits, steps=8, checkpoint_every=4)
    straight = attrs.evolve(settings, kind=kind, recipe=recipe, limits=limits)
    train(straight)
    killed = attrs.evolve(straight, out=tmp_path / "killed")
    process = subprocess.run(
        [sys.executable, "-c", DIE_IN_STEP_6, "train", "gistnet", *options_of(killed)],
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert -signal.SIGKILL == process.returncode, process.stderr.decode()
    assert 4 == read_checkpoint(killed.out / "checkpoint.safetensors").state["step"]
    assert train(attrs.evolve(killed, resume=True)).is_finished
    assert_equal(tensors_of(straight), tensors_of(killed))
    lines = [
        [json.loads(line) for line in (one.out / "metrics.jsonl").read_text().splitlines()]
        for one in (straight, killed)
    ]
    for expected, found in zip(*lines, strict=True):
        for row in (expected, found):
            row.pop("seconds")
            row.pop("train/tokens_per_s", None)
        assert expected == found


@pytest.fixture
def interrupt(monkeypatch):
    """Make the user press Ctrl-C in the third step of the next run."""
    learn = Trainer._learn

    def learn_and_interrupt(self, done):
        learn(self, done)
        if self.step == 3:
            monkeypatch.setattr(Trainer, "_learn", learn)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "_learn", learn_and_interrupt)


@pytest.mark.usefixtures("interrupt")
def test_an_interrupt_saves_and_the_run_goes_on_later(finished, settings):
    done = train(settings)
    assert not done.is_finished
    assert done.weights is None
    assert 3 == read_checkpoint(settings.out / "checkpoint.safetensors").state["step"]
    assert signal.default_int_handler is signal.getsignal(signal.SIGINT)
    assert train(attrs.evolve(settings, resume=True)).is_finished
    assert_equal(tensors_of(finished[0]), tensors_of(settings))


@pytest.mark.usefixtures("interrupt")
def test_time_already_spent_counts_after_a_resumption(settings):
    limits = attrs.evolve(settings.limits, steps=None, minutes=60.0)
    train(attrs.evolve(settings, limits=limits))
    spent = read_checkpoint(settings.out / "checkpoint.safetensors").state["seconds"] / 60
    shorter = attrs.evolve(limits, minutes=spent / 2)
    done = train(attrs.evolve(settings, limits=shorter, resume=True))
    assert done.is_finished
    assert 3 == done.steps
    assert done.minutes >= spent > 0


def test_parents_are_trained_on_long_windows_after_their_blocks(settings):
    parents = stage_of("levels", lr={"levels": 1e-2}, lod=2, window_blocks=36, batch_ratio=0.5)
    recipe = small_recipe(stage_of("blocks", share=0.5), parents, shape=SHAPE)
    done = train(attrs.evolve(settings, recipe=recipe))
    assert {1, 2} == set(done.found)
    curves = json.loads((settings.out / "curve.json").read_text())
    assert "validation/lod2_recovery_all_s1" in curves
    assert "| LOD2 | 4 |" in (settings.out / "card.md").read_text()


def test_all_losses_together_run(settings):
    losses = Losses(reconstruction=0.4, contrast=0.05, diversity=0.05, reconstruction_blocks=4)
    recipe = small_recipe(stage_of(losses=losses), shape=SHAPE)
    assert train(attrs.evolve(settings, recipe=recipe)).is_finished
    curves = json.loads((settings.out / "curve.json").read_text())
    assert {"train/reconstruction", "train/contrast", "train/diversity"} <= set(curves)


def test_weights_can_be_the_start_of_another_run(finished, settings):
    first = finished[1]
    row = train(attrs.evolve(settings, init=first.weights)).weights.parent / "metrics.jsonl"
    begun = json.loads(row.read_text().splitlines()[0])
    assert first.found[1].score == pytest.approx(begun["validation/score"], abs=1e-4)


def test_weights_of_another_kind_are_no_start(finished, settings):
    wrong = attrs.evolve(settings, init=finished[1].weights, kind="contextual")
    with pytest.raises(ConfigError, match="is a gistnet, not a contextual"):
        train(wrong)


def test_the_best_weights_of_a_stage_are_kept(settings, monkeypatch):
    """Validation is made to fall; what is saved is what stood at its first figure."""
    from megacontext_gistnet.training.validation import Validation

    measure, scores, seen = Validation.__call__, iter((0.0, 0.5, 0.4)), []

    def falling(self):
        score = next(scores)
        seen.append({n: one.detach().clone() for n, one in self._model.named_parameters()})
        values = dict.fromkeys((1, 4), score)
        return attrs.evolve(measure(self), all=values, recall=values)

    monkeypatch.setattr(Validation, "__call__", falling)
    done = train(settings)
    assert 0.5 == done.found[1].score
    tensors = tensors_of(settings)
    for name, value in seen[1].items():
        assert torch.equal(value, tensors[f"model/{name}"]), name


def write_stories(path):
    """Write stories in which names and things come back."""
    rng = np.random.default_rng(0)
    plot = (
        "Once upon a time, there was a little {who} named {name}. {name} loved to play with the "
        "{thing} in the park. One day, {name} lost the {thing}. {name} was very sad. Then {friend} "
        'came and said, "I can help you find the {thing}!" {name} and {friend} looked and '
        "looked. At last, {friend} saw the {thing} under a big tree. {name} was so happy. "
    )
    chosen = {
        "who": ("girl", "boy", "cat", "dog", "bird"),
        "name": ("Lily", "Tim", "Sue", "Ben", "Mia", "Tom", "Anna", "Max"),
        "friend": ("Sam", "Lucy", "Jack", "Mum", "Amy", "Spot"),
        "thing": ("ball", "doll", "kite", "red car", "hat", "book", "blue boat"),
    }
    with path.open("w") as file:
        for number in range(200):
            pieces = []
            for _ in range(4):
                words = {name: rng.choice(options) for name, options in chosen.items()}
                pieces.append(plot.format(**words))
            file.write(json.dumps({"id": f"s{number}", "text": "".join(pieces)}) + "\n")


@pytest.mark.slow
def test_row37_gists_of_a_real_model_get_better_within_a_minute(settings, tmp_path):
    folder = Path(__file__).resolve().parents[5] / "shared/models/stories260K"
    if not folder.is_dir():
        pytest.skip("the folder ../shared/models is not here")
    (tmp_path / "stories").mkdir()
    write_stories(tmp_path / "stories/stories.jsonl")
    stage = stage_of(lr={"head": 2e-2, "lora": 2e-2})
    shape = {"n_layers": 2, "rank": 4, "hidden": 64, "pool": 32, "heads": 2}
    changes = {
        "model": f"hf:{folder}",
        "kind": "contextual",
        "data": (tmp_path / "stories",),
        "recipe": small_recipe(
            stage, batch=8, window_tokens=256, validation_windows=8, shape=shape
        ),
        "limits": Limits(steps=40, log_every=10, validate_every=40),
    }
    train(attrs.evolve(settings, **changes))
    curves = json.loads((settings.out / "curve.json").read_text())
    (_, before), *_, (_, after) = curves["validation/score"]
    assert after > before + 0.1
    kl = [value for _, value in curves["train/kl"]]
    assert 0 < kl[-1] < kl[0]


# -- refusals --------------------------------------------------------------------------------------


def test_a_folder_that_holds_a_run_is_not_overwritten(finished):
    with pytest.raises(ConfigError, match="holds a run already"):
        train(finished[0])


@pytest.mark.parametrize("length", [{"steps": None}, {"minutes": 1.0}])
def test_a_run_has_one_length(settings, length):
    limits = attrs.evolve(settings.limits, **length)
    with pytest.raises(ConfigError, match="--steps or as --minutes"):
        train(attrs.evolve(settings, limits=limits))


def test_a_run_that_was_never_begun_cannot_be_resumed(settings):
    with pytest.raises(ConfigError, match="nothing to resume"):
        train(attrs.evolve(settings, resume=True))


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"seed": 5}, "another seed"), ({"batch": 4}, "another recipe: batch differ")],
)
def test_a_run_is_resumed_as_it_was_begun(finished, changes, said):
    settings = finished[0]
    before = {path: path.read_bytes() for path in settings.out.iterdir()}
    recipe = attrs.evolve(settings.recipe, batch=changes.get("batch", 2))
    again = attrs.evolve(settings, recipe=recipe, seed=changes.get("seed", 0), resume=True)
    with pytest.raises(ConfigError, match=said):
        train(again)
    assert before == {path: path.read_bytes() for path in settings.out.iterdir()}


def test_no_data_is_said(settings, tmp_path):
    with pytest.raises(ConfigError, match="there is no data at"):
        train(attrs.evolve(settings, data=(tmp_path / "nothing",)))


def test_texts_shorter_than_a_window_name_the_stage(settings, tmp_path):
    (tmp_path / "brief.txt").write_text("Too short to learn from.")
    with pytest.raises(ConfigError, match=r"stage 'only' finds no window of 160 tokens"):
        train(attrs.evolve(settings, data=(tmp_path / "brief.txt",)))


def test_a_base_that_does_not_use_its_context_is_refused(settings):
    recipe = attrs.evolve(settings.recipe, least_recall_share=1.0)
    with pytest.raises(ModelError, match="hardly uses its context"):
        train(attrs.evolve(settings, recipe=recipe))


def test_a_shape_that_the_kind_does_not_know_is_refused(settings):
    recipe = attrs.evolve(settings.recipe, shape={"rank": 4})
    with pytest.raises(ConfigError, match="a gistnet does not know"):
        train(attrs.evolve(settings, recipe=recipe))


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_that_runs_out_comes_with_advice(settings, monkeypatch, error):
    def fail(self, done):
        raise error

    monkeypatch.setattr(Trainer, "_learn", fail)
    with pytest.raises(ModelError, match="halve --batch"):
        train(settings)


def test_a_loss_that_is_no_number_ends_the_run(settings):
    recipe = small_recipe(stage_of(losses=Losses(kl=float("nan"))), shape=SHAPE)
    with pytest.raises(ModelError, match="the loss is nan at step 2"):
        train(attrs.evolve(settings, recipe=recipe))
