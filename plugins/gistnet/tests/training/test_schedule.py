"""Stages, learning rates, plateaus and rises, simulated with plain numbers (row 31)."""

from __future__ import annotations

import json
import math

import pytest

from megacontext_gistnet.training.recipe import Recipe
from megacontext_gistnet.training.schedule import Plateau, Schedule

from .conftest import stage_of


def schedule_of(*stages, **changes):
    return Schedule(Recipe(stages=stages, warmup_steps=10, **changes))


def test_row31_a_loss_that_stands_still_ends_a_stage():
    plateau = Plateau(least=0.05, steps=1_000, rises=3)
    for step in range(2_000):
        plateau.step(2.0 if step < 1_000 else 1.93)
        assert (step == 1_999) == plateau.is_flat


def test_row31_a_loss_that_falls_by_five_percent_goes_on():
    plateau = Plateau(least=0.05, steps=1_000, rises=3)
    for step in range(5_000):
        plateau.step(2.0 * 0.9 ** (step // 1_000))
        assert not plateau.is_flat


def test_a_stage_that_asks_for_nothing_has_no_plateau():
    plateau = Plateau(least=0.0, steps=10, rises=3)
    for _ in range(100):
        plateau.step(1.0)
    assert not plateau.is_flat


def test_means_of_several_steps_count_as_so_many():
    plateau = Plateau(least=0.05, steps=100, rises=3)
    for _ in range(8):
        plateau.step(1.0, 25)
    assert plateau.is_flat


def test_row31_three_rises_in_a_row_stop_and_two_do_not():
    plateau = Plateau(least=0.0, steps=10, rises=3)
    for loss, is_over in ((1.0, 0), (1.1, 0), (1.2, 0), (1.1, 0), (1.2, 0), (1.3, 0), (1.4, 1)):
        plateau.validated(loss)
        assert bool(is_over) == plateau.is_rising


def test_figures_that_rise_and_fall_by_chance_stop_nothing():
    plateau = Plateau(least=0.0, steps=10, rises=3, margin=0.01)
    for loss in (1.0, 1.002, 1.004, 1.006, 1.008):
        plateau.validated(loss)
    assert not plateau.is_rising
    for loss in (1.011, 1.012, 1.013):
        plateau.validated(loss)
    assert plateau.is_rising


def test_stages_follow_one_another_by_their_shares():
    schedule = schedule_of(stage_of("a", share=1.0), stage_of("b", share=3.0))
    assert "" == schedule.verdict(0.24)
    assert "time" == schedule.verdict(0.25)
    schedule.advance(0.25)
    assert "b" == schedule.stage.name
    assert schedule.is_last
    assert 0.5 == pytest.approx(schedule.progress(0.625))
    assert "time" == schedule.verdict(1.0)


def test_time_left_by_a_stage_that_ended_early_goes_to_the_later_ones():
    schedule = schedule_of(*(stage_of(name, share=1.0) for name in "abc"))
    schedule.advance(0.1)
    assert 0.5 == pytest.approx(schedule.progress(0.1 + 0.9 / 4))
    assert 1.0 == pytest.approx(schedule.progress(0.55))


def test_the_rate_warms_up_and_then_falls_as_half_a_cosine():
    schedule = schedule_of(stage_of(lr_start=1.0, lr_end=0.1))
    assert 0.1 == pytest.approx(schedule.factor(0.0))
    schedule.steps_in_stage = 9
    assert 1.0 == pytest.approx(schedule.factor(0.0))
    schedule.steps_in_stage = 1_000
    assert 0.55 == pytest.approx(schedule.factor(0.5))
    assert 0.1 == pytest.approx(schedule.factor(1.0))


def test_state_is_plain_json_and_goes_on_the_same():
    schedule = schedule_of(
        stage_of("a", share=1.0, plateau=0.05, plateau_steps=20), stage_of("b", share=1.0)
    )
    schedule.plateau.step(2.0, 20)
    schedule.plateau.step(1.5, 7)
    schedule.plateau.validated(0.3)
    schedule.steps_in_stage = 27
    other = schedule_of(
        stage_of("a", share=1.0, plateau=0.05, plateau_steps=20), stage_of("b", share=1.0)
    )
    other.load(json.loads(json.dumps(schedule.state())))
    assert schedule.state() == other.state()
    for one in (schedule, other):
        one.plateau.step(1.99, 13)
    assert schedule.plateau.is_flat == other.plateau.is_flat
    assert schedule.state() == other.state()


def test_a_new_state_has_no_numbers_that_json_lacks():
    assert math.isnan(Plateau(0.05, 10, 3).state()["_last"])
    assert "NaN" in json.dumps(schedule_of(stage_of()).state())  # python's json reads it back
