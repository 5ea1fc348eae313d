"""Texts written here, one small run that several tests look at, and the recipe on the path."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import attrs
import pytest
import torch
from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).parents[1]))

from reference_model.presets import preset_named
from reference_model.run import finish, measure, prepare, train
from reference_model.trainer import Limit


class Silent:
    """A watcher that only remembers."""

    def __init__(self):
        self.rows = []
        self.sources = []

    def preparing(self, what, n_tokens):
        self.sources.append(what)

    def row(self, row, used):
        self.rows.append(row)


@attrs.frozen(eq=False)
class Run:
    folder: Path
    data: tuple[Path, ...]
    prepared: object
    trainer: object
    figures: object
    watcher: Silent


@pytest.fixture(autouse=True)
def one_thread():
    """Bit for bit holds for one number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def preset():
    return attrs.evolve(preset_named("smoke"), warmup_steps=10, evaluations=2)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Stories and dialogues of few words: a model of any size learns them."""
    rng = random.Random(0)
    folder = tmp_path_factory.mktemp("data")
    animals, places = ("fox", "hen", "cat", "dog", "owl"), ("wood", "barn", "lake", "hill")
    stories, talks = [], []
    for i in range(300):
        lines = [
            f"The {rng.choice(animals)} went to the {rng.choice(places)}. It was a fine day."
            for _ in range(8)
        ]
        stories.append({"id": f"s{i}", "text": " ".join(lines)})
        animal, place = rng.choice(animals), rng.choice(places)
        text = f"User: Where is the {animal}?\nSystem: The {animal} is at the {place}.\n"
        talks.append({"id": f"d{i}", "text": text + "User: Thank you.\nSystem: Goodbye."})
    for name, rows in (("stories", stories), ("task_dialogue", talks)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return (folder,)


@pytest.fixture(scope="session")
def run(data, preset, tmp_path_factory):
    """A whole run of 150 steps."""
    torch.set_num_threads(1)
    folder, watcher = tmp_path_factory.mktemp("run"), Silent()
    prepared = prepare(data, preset, folder, watcher)
    trainer = train(
        prepared,
        preset,
        folder,
        limit=Limit(steps=150),
        accelerator=Accelerator(),
        watcher=watcher,
    )
    figures = measure(trainer.model, prepared, preset, data, n_probes=40)
    finish(trainer, preset, figures, folder)
    return Run(folder, data, prepared, trainer, figures, watcher)
