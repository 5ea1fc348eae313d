"""Validation between steps: the evaluation's protocol, straight from the model in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megacontext_gistnet.evaluation.windows import Windows
from megacontext_gistnet.training.recipe import Losses
from megacontext_gistnet.training.validation import (
    Found,
    Validation,
    refuse_without_context,
    window_of,
)
from megacontext_sdk.errors import ModelError

from .conftest import build_objective, draw_ids
from .test_objective import TAIL, Layout

FOUND = Found(
    all={1: 0.5, 4: 0.7}, recall={1: 0.6, 4: 0.8}, by_domain={"story": 0.4}, nll=2.0,
    recall_share=0.1,
)  # fmt: skip


def windows_of(ids):
    n = len(ids)
    names = tuple(f"d{at}" for at in range(n))
    return Windows(ids.numpy(), ("story", "code") * (n // 2), names, (0,) * n)


@pytest.mark.parametrize("slots", [1, 4])
def test_losses_are_those_of_the_objective_under_the_same_layout(llama, slots):
    """Two ways to the same figures: the loss of training, and the reader of the evaluation."""
    objective, ids = build_objective(llama), draw_ids(2)
    validation = Validation(
        llama, objective.model, windows_of(ids), slots=(slots,), trained_window=1024
    )
    found = validation()
    with torch.no_grad():
        figures = objective(ids, Layout(TAIL, slots), Losses()).figures
    assert found.nll == pytest.approx(float(figures["nll"]), rel=1e-5)
    study = validation.study
    lost = (study.drop - study.full).sum()
    assert lost == pytest.approx(float(figures["lost"]), rel=1e-3)
    assert ["code", "story"] == sorted(found.by_domain)


def test_untrained_gists_are_those_of_mean(llama):
    objective = build_objective(llama)
    validation = Validation(
        llama, objective.model, windows_of(draw_ids(2)), slots=(1,), trained_window=1024
    )
    before = validation()
    with torch.no_grad():
        objective.model.body.leave.weight.add_(0.1)
    assert before.all != validation().all


def test_parents_are_measured_on_windows_of_whole_units(llama):
    assert (512, 1120) == (window_of(1, 512), window_of(2, 512))
    objective = build_objective(llama)
    ids = draw_ids(2, 35)
    validation = Validation(
        llama, objective.model, windows_of(ids), slots=(1, 2), lod=2, trained_window=1024
    )
    found = validation()
    assert 2 == found.lod
    assert "validation/lod2_recovery_all_s2" in found.row()
    with torch.no_grad():
        objective.model.levels.body.leave.weight.add_(0.1)
    assert found.all != validation().all


def test_the_full_context_is_no_longer_than_the_base_was_trained_on(llama):
    windows = windows_of(draw_ids(2))
    model = build_objective(llama).model
    short, long = (
        Validation(llama, model, windows, slots=(1,), trained_window=n).study for n in (128, 160)
    )
    assert np.array_equal(short.drop, long.drop)
    assert not np.array_equal(short.full, long.full)


def test_the_score_is_the_mean_of_all_recoveries():
    assert 0.65 == pytest.approx(FOUND.score)
    assert 0.8 == FOUND.row()["validation/recovery_recall_s4"]
    assert 0.4 == FOUND.row()["validation/recovery_story"]


def test_a_base_without_recall_tokens_is_refused():
    refuse_without_context(FOUND, 0.1, "base")
    with pytest.raises(ModelError, match="base loses more than 0.5 nat at only 10.00%"):
        refuse_without_context(FOUND, 0.2, "base")
