"""Metrics as they come, curves as JSON and picture, sums kept on the device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from megacontext_gistnet.training.journal import METRICS, Journal
from megacontext_gistnet.training.meter import Meter

PNG = b"\x89PNG"


def row(step, **figures):
    return {"step": step, "seconds": 1.0, "stage": "head", **figures}


def test_lines_are_written_as_they_come(tmp_path):
    journal = Journal(tmp_path)
    journal.add(row(5, **{"train/loss": 2.0}))
    journal.add(row(10, **{"train/loss": 1.5}))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [5, 10] == [json.loads(line)["step"] for line in lines]


def test_a_resumed_run_forgets_what_lies_behind_its_checkpoint(tmp_path):
    journal = Journal(tmp_path)
    for step in (5, 10, 15):
        journal.add(row(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "seco')  # killed in the middle of a line
    resumed = Journal(tmp_path, 10)
    resumed.add(row(15))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [5, 10, 15] == [json.loads(line)["step"] for line in lines]
    assert [] == Journal(tmp_path).rows


def test_curves_are_drawn_from_the_lines(tmp_path):
    journal = Journal(tmp_path)
    journal.add(row(5, **{"train/loss": 2.0, "train/lr": 1e-3, "train/recovery": 0.1}))
    journal.add(row(5, **{"validation/recovery_all_s1": 0.2, "validation/score": 0.2}))
    journal.add(row(10, **{"validation/lod2_recovery_all_s1": 0.1}))
    journal.draw()
    curves = json.loads((tmp_path / "curve.json").read_text())
    assert [[5, 2.0]] == curves["train/loss"]
    assert [[10, 0.1]] == curves["validation/lod2_recovery_all_s1"]
    picture = (tmp_path / "curve.png").read_bytes()
    assert PNG == picture[:4]
    assert not list(tmp_path.glob("*.new"))


def test_a_run_that_has_only_begun_can_be_drawn(tmp_path):
    Journal(tmp_path).draw()
    assert PNG == (tmp_path / "curve.png").read_bytes()[:4]


def figures(loss, gain, lost):
    values = {"loss": loss, "gain": gain, "lost": lost}
    return {name: torch.tensor(value) for name, value in values.items()}


def test_figures_are_means_and_recovery_is_a_ratio_of_sums():
    meter = Meter()
    meter.add(figures(1.0, 1.0, 2.0))
    meter.add(figures(3.0, 2.0, 10.0))
    assert {"loss": 2.0, "recovery": 0.25} == meter.read()
    assert {"loss": 4.0, "recovery": 0.25} == meter.read(lambda sums: 2 * sums)
    meter.clear()
    assert {} == meter.read()


def test_sums_go_through_a_checkpoint():
    meter, other = Meter(), Meter()
    meter.add(figures(1.1, 0.3, 0.7))
    other.load(meter.tensors(), meter.n_steps, torch.device("cpu"))
    for one in (meter, other):
        one.add(figures(2.2, 0.1, 0.9))
    assert meter.read() == other.read()
    assert 2 == other.n_steps


def test_nothing_lost_is_no_recovery():
    meter = Meter()
    meter.add(figures(1.0, 1.0, 0.0))
    assert 0.0 == pytest.approx(meter.read()["recovery"])


def test_every_metric_stands_in_the_guide():
    guide = Path(__file__).resolve().parents[4] / "docs/how-to/train-encoders.md"
    text = guide.read_text(encoding="utf-8")
    assert [] == [name for name in METRICS if f"`{name}`" not in text]
