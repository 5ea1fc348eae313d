"""What learns when: every parameter of a stage moves, nothing else does (row 23)."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
import torch
from torch import nn

from megacontext_gistnet.training.layouts import Layout
from megacontext_gistnet.training.optimizer import Optimizer
from megacontext_gistnet.training.recipe import Losses, Recipe
from megacontext_sdk.errors import CorruptError, InvariantError

from .conftest import build_objective, draw_ids, stage_of

RECIPE = Recipe(weight_decay=0.0)  # decay would move what never had a gradient
BLOCKS = np.array([[1, 1, 0, 0, 0]] * 2, np.int8)
PARENTS = np.array([[2] * 32 + [1, 0, 0, 0]], np.int8)


def learn(objective, optimizer, stage, n_steps, lods=BLOCKS):
    """Take some steps with all slots."""
    for step in range(n_steps):
        ids = draw_ids(*lods.shape, seed=step)
        objective(ids, Layout(lods, 4), stage.losses).loss.backward()
        optimizer.step(stage, 1.0)


def values(objective):
    return {name: one.detach().clone() for name, one in objective.model.named_parameters()}


@pytest.mark.parametrize(("kind", "n_steps"), [("gistnet", 2), ("contextual", 3)])
def test_row23_every_parameter_of_the_stage_changes_and_no_other(llama, kind, n_steps):
    """The output starts at zero, so inner layers move from the second step on.

    Of the low-rank change, one factor starts at zero, too: the other moves from the third.
    """
    objective = build_objective(llama, kind)
    optimizer, stage = Optimizer(objective.model, objective.extras, RECIPE), stage_of()
    optimizer.enter(stage)
    before = values(objective)
    learn(objective, optimizer, stage, n_steps)
    after = values(objective)
    for name, _, group in objective.model.trainable():
        assert (group != "levels") == bool((before[name] != after[name]).any()), name


@pytest.mark.parametrize("kind", ["gistnet", "contextual"])
def test_parents_learn_alone_in_their_stage(llama, kind):
    objective = build_objective(llama, kind)
    stage = stage_of(lr={"levels": 1e-2}, lod=2, window_blocks=36)
    optimizer = Optimizer(objective.model, objective.extras, RECIPE)
    optimizer.enter(stage)
    before = values(objective)
    learn(objective, optimizer, stage, 2, PARENTS)
    after = values(objective)
    for name, _, group in objective.model.trainable():
        assert (group == "levels") == bool((before[name] != after[name]).any()), name


def test_groups_have_rates_of_their_own(llama):
    objective = build_objective(llama, "contextual")
    optimizer = Optimizer(objective.model, objective.extras, RECIPE)
    stage = stage_of(lr={"head": 1e-2, "lora": 1e-4})
    optimizer.enter(stage)
    learn(objective, optimizer, stage, 1)
    for inner in optimizer._inner:
        rates = {group["name"]: group["lr"] for group in inner.param_groups}
        assert {name: {"head": 1e-2, "lora": 1e-4}.get(name, 0.0) for name in rates} == rates
    assert 5e-3 == optimizer.rate(stage, 0.5)


@pytest.mark.parametrize("kind", ["gistnet", "contextual"])
def test_matrices_descend_by_muon_and_all_else_by_adamw(llama, kind):
    """A list of vectors, such as queries or slots, is no map; its rows have sizes of their own."""
    objective = build_objective(llama, kind)
    for matrices in ("muon", "adamw"):
        recipe = attrs.evolve(RECIPE, matrices=matrices)
        optimizer, stage = Optimizer(objective.model, objective.extras, recipe), stage_of()
        optimizer.enter(stage)
        learn(objective, optimizer, stage, 1)
        by_muon = {
            name.removeprefix("moments/model/").removesuffix("/momentum_buffer")
            for name in optimizer.tensors()
            if name.endswith("/momentum_buffer")
        }
        wanted = {
            name
            for name, one, group in objective.model.trainable()
            if group != "levels" and one.ndim == 2 and name.endswith((".weight", ".down", ".up"))
        }
        assert by_muon == (wanted if matrices == "muon" else set())


def test_gradients_are_clipped_to_the_norm_of_the_recipe(llama):
    objective = build_objective(llama)
    optimizer = Optimizer(objective.model, objective.extras, attrs.evolve(RECIPE, clip=1e-3))
    stage = stage_of()
    optimizer.enter(stage)
    objective(draw_ids(), Layout(BLOCKS, 4), Losses()).loss.backward()
    seen = []
    optimizer._inner[0].register_step_pre_hook(
        lambda *_: seen.append(torch.stack([p.grad.norm() for p in optimizer.learning]).norm())
    )
    norm = optimizer.step(stage, 1.0)
    assert 1e-3 < float(norm)
    assert 1e-3 == pytest.approx(float(seen[0]), rel=1e-3)
    assert all(one.grad is None for one in optimizer.learning)


def test_row23_a_parameter_that_never_has_a_gradient_is_reported(llama):
    objective = build_objective(llama)
    optimizer = Optimizer(objective.model, objective.extras, RECIPE)
    stage = stage_of(lr={"head": 1e-2, "levels": 1e-2})  # no parent is ever made
    optimizer.enter(stage)
    with pytest.raises(InvariantError, match=r"had no gradient in the first 4 steps.*levels"):
        learn(objective, optimizer, stage, 4)
    assert 0 < len(optimizer._seen)


def test_row23_an_encoder_with_a_parameter_outside_the_optimiser_is_refused(llama, monkeypatch):
    objective = build_objective(llama)
    objective.model.forgotten = nn.Parameter(torch.ones(2))
    known = [one for one in objective.model.trainable() if one[0] != "forgotten"]
    monkeypatch.setattr(objective.model, "trainable", lambda: known)
    with pytest.raises(InvariantError, match="forgotten of the encoder is not in the optimiser"):
        Optimizer(objective.model, objective.extras, RECIPE)


def test_row23_moments_and_parameters_go_through_tensors_unchanged(llama):
    first, second = (build_objective(llama, "contextual") for _ in range(2))
    stage = stage_of()
    optimizers = [Optimizer(one.model, one.extras, RECIPE) for one in (first, second)]
    for optimizer in optimizers:
        optimizer.enter(stage)
    learn(first, optimizers[0], stage, 3)
    saved = {name: one.clone() for name, one in optimizers[0].tensors().items()}
    assert {f"model/{name}" for name, _ in first.model.named_parameters()} <= set(saved)
    assert any(name.startswith("moments/model/lora") for name in saved)
    optimizers[1].load(saved)
    learn(first, optimizers[0], stage, 2)
    learn(second, optimizers[1], stage, 2)
    other = optimizers[1].tensors()
    for name, tensor in optimizers[0].tensors().items():
        assert torch.equal(tensor, other[name]), name


def test_a_checkpoint_that_lacks_a_parameter_is_refused(llama):
    objective = build_objective(llama)
    optimizer = Optimizer(objective.model, objective.extras, RECIPE)
    tensors = optimizer.tensors()
    name = next(iter(tensors))
    del tensors[name]
    with pytest.raises(CorruptError, match=f"lacks {name}"):
        optimizer.load(tensors)
