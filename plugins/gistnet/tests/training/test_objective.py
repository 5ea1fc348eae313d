"""One step's loss: shifted labels, gradients through the frozen base, bugs planted on purpose."""

from __future__ import annotations

from types import SimpleNamespace

import attrs
import numpy as np
import pytest
import torch

from megacontext_gistnet.training.layouts import Layout
from megacontext_gistnet.training.objective import Objective
from megacontext_gistnet.training.optimizer import Optimizer
from megacontext_gistnet.training.recipe import Losses, Recipe
from megacontext_sdk.errors import ConfigError, InvariantError

from .conftest import VOCAB, SuccessorBase, build_objective, draw_ids, stage_of

TAIL = np.array([[1, 1, 0, 0, 0]] * 2, np.int8)
PLAIN = Losses()


def counting_windows(n_blocks=5):
    """Windows in which each token is followed by the next number."""
    starts = torch.tensor([[3], [40]])
    return (starts + torch.arange(32 * n_blocks)) % VOCAB


def test_row24_labels_are_shifted_by_one():
    objective = build_objective(SuccessorBase())
    figures = objective(counting_windows(), Layout(TAIL, 1), PLAIN).figures
    assert 1e-3 > float(figures["nll"])
    assert 1e-3 > float(figures["kl"])


def test_row24_labels_that_are_not_shifted_are_caught(monkeypatch):
    def unshifted(token_ids, token_at):
        return token_ids.gather(1, token_at), torch.ones_like(token_at, dtype=torch.float32)

    monkeypatch.setattr(Objective, "_targets", staticmethod(unshifted))
    objective = build_objective(SuccessorBase())
    assert 10 < float(objective(counting_windows(), Layout(TAIL, 1), PLAIN).figures["nll"])


def test_the_last_token_of_a_window_has_no_label():
    targets, counted = Objective._targets(torch.tensor([[5, 6, 7]]), torch.tensor([[0, 2]]))
    assert 6 == int(targets[0, 0])
    assert [1.0, 0.0] == counted[0].tolist()


@pytest.mark.parametrize("has_bos_row", [False, True])
def test_with_every_block_raw_the_student_is_the_teacher(objective, has_bos_row):
    raw = np.zeros((2, 5), np.int8)
    figures = objective(draw_ids(), Layout(raw, 1, has_bos_row), PLAIN).figures
    assert 1e-5 > abs(float(figures["kl"]))
    assert 1e-5 > abs(float(figures["gain"]) - float(figures["lost"]))


def test_the_student_reads_what_a_loop_lays_out(objective, llama):
    ids, slots = draw_ids(), 2
    lods = np.array([[1, 0, 1, 0, 0], [0, 1, 1, 0, 0]], np.int8)
    figures = objective(ids, Layout(lods, slots), PLAIN).figures
    gists = objective.model.blocks(ids).detach()
    table = llama.get_input_embeddings()
    nats = []
    for window, row in enumerate(lods):
        rows, wanted = [], []
        for block, lod in enumerate(row):
            if lod:
                rows += list(gists[window, block, :slots])
                wanted += [None] * slots
                continue
            for at in range(32 * block, 32 * block + 32):
                rows.append(table(ids[window, at]))
                wanted.append(int(ids[window, at + 1]) if at < 159 else None)
        logits = llama(inputs_embeds=torch.stack(rows)[None]).logits[0].log_softmax(-1)
        nats += [-float(logits[at, one]) for at, one in enumerate(wanted) if one is not None]
    assert sum(nats) / len(nats) == pytest.approx(float(figures["nll"]), rel=1e-4)


@pytest.mark.parametrize("kind", ["gistnet", "contextual"])
def test_row23_gradients_reach_the_encoder_and_not_the_base(llama, kind):
    objective = build_objective(llama, kind)
    outcome = objective(draw_ids(), Layout(TAIL, 4), PLAIN)
    outcome.loss.backward()
    assert all(parameter.grad is None for parameter in llama.parameters())
    grads = [one.grad for one in objective.model.parameters() if one.grad is not None]
    assert 0 < sum(float(one.abs().sum()) for one in grads)


@pytest.mark.parametrize("bug", ["no_grad", "detached"])
def test_row23_gists_that_training_could_never_reach_are_refused(objective, monkeypatch, bug):
    blocks = objective.model.blocks

    def without_gradient(token_ids):
        if bug == "detached":
            return blocks(token_ids).detach()
        with torch.no_grad():
            return blocks(token_ids)

    monkeypatch.setattr(objective.model, "blocks", without_gradient)
    with pytest.raises(InvariantError, match="carry no gradient"):
        objective(draw_ids(), Layout(TAIL, 1), PLAIN)


def test_teacher_and_drop_pass_carry_no_gradient(objective, monkeypatch):
    seen = []
    read = objective._read

    def watched(hidden, targets):
        seen.append(hidden.requires_grad)
        return read(hidden, targets)

    monkeypatch.setattr(objective, "_read", watched)
    objective(draw_ids(), Layout(TAIL, 1), PLAIN)
    assert [False, False] == seen


def test_row31_the_teachers_reading_is_that_of_the_model_itself(objective, llama):
    ids = draw_ids()
    with torch.no_grad():
        logits = llama(ids).logits[:, 64:159].log_softmax(-1)
        expected = -logits.gather(-1, ids[:, 65:, None])[..., 0].mean()
        figures = objective(ids, Layout(TAIL, 1), PLAIN).figures
    found = figures["nll"] - figures["delta_nll"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_longer_window_than_trained_is_read_with_its_oldest_blocks_as_gists(llama):
    ids = draw_ids()
    whole = build_objective(llama)
    short = build_objective(llama, trained_window=128)
    full, cut = (one(ids, Layout(TAIL, 1), PLAIN).figures for one in (whole, short))
    assert float(full["nll"]) == pytest.approx(float(cut["nll"]))
    assert float(full["lost"]) != pytest.approx(float(cut["lost"]))


def test_a_window_that_the_teacher_cannot_read_is_refused(llama):
    lods = np.array([[0, 1, 1, 1, 0]] * 2, np.int8)
    with pytest.raises(ConfigError, match="longer than the 128 the base was trained on"):
        build_objective(llama, trained_window=128)(draw_ids(), Layout(lods, 1), PLAIN)


def test_nothing_is_encoded_behind_the_last_block_that_is_replaced(objective, monkeypatch):
    seen = []
    blocks = objective.model.blocks
    monkeypatch.setattr(
        objective.model, "blocks", lambda ids: seen.append(ids.shape) or blocks(ids)
    )
    objective(draw_ids(), Layout(TAIL, 2), PLAIN)
    objective(draw_ids(), Layout(np.array([[0, 1, 0, 1, 0]] * 2, np.int8), 2), PLAIN)
    assert [(2, 64), (2, 128)] == seen


def test_parents_learn_while_blocks_are_frozen(llama):
    objective = build_objective(llama)
    for _, parameter, group in objective.model.trainable():
        parameter.requires_grad_(group == "levels")
    lods = np.full((1, 36), 2, np.int8)
    lods[:, 32:] = 1
    lods[:, -3:] = 0
    objective(draw_ids(1, 36), Layout(lods, 2), PLAIN).loss.backward()
    groups = {
        group
        for _, one, group in objective.model.trainable()
        if one.grad is not None and bool(one.grad.any())
    }
    assert {"levels"} == groups


@pytest.mark.parametrize("name", ["reconstruction", "contrast", "diversity"])
def test_auxiliary_losses_are_added_by_their_weight_and_reach_the_gists(llama, name):
    objective = build_objective(llama, recipe=Recipe(prompt_rows=3))
    ids = draw_ids()
    ids[:, 32:60] = ids[:, :28]  # two blocks that are nearly the same
    plain = objective(ids, Layout(TAIL, 2), PLAIN)
    more = objective(ids, Layout(TAIL, 2), attrs.evolve(PLAIN, **{name: 2.0}))
    assert name not in plain.figures
    part = float(more.figures[name])
    assert part > 0
    assert float(plain.loss.detach()) + 2 * part == pytest.approx(float(more.loss.detach()))
    only = Losses(kl=0.0, nll=0.0, **{name: 1.0})
    objective(ids, Layout(TAIL, 2), only).loss.backward()
    used = dict(objective.extras.parameters_for(only))
    assert all(bool(one.grad.any()) for one in used.values())
    assert any(one.grad is not None and one.grad.any() for one in objective.model.parameters())


def test_a_bos_row_stands_in_front_of_long_windows_too(llama):
    objective = build_objective(llama, bos_id=7)
    lods = np.ones((1, 36), np.int8)
    lods[:, -3:] = 0
    seen = []
    hidden = objective.base.hidden
    objective.base.hidden = lambda rows: seen.append(rows) or hidden(rows)
    objective(draw_ids(1, 36), Layout(lods, 1, has_bos_row=True), PLAIN)
    bos = llama.get_input_embeddings()(torch.tensor(7))
    assert 3 == len(seen)
    for rows in seen:
        torch.testing.assert_close(rows[0, 0], bos)


def test_row37_the_gist_that_is_the_text_recovers_more_than_one_of_other_text(objective):
    """R is the ratio of what gists and what the whole text save against dropping."""
    figures = objective(draw_ids(), Layout(TAIL, 1), PLAIN).figures
    assert {"kl", "nll", "gain", "lost", "delta_nll"} <= set(figures)
    assert 0.9 < float(figures["gist_norm_ratio"]) < 1.1
    assert 0 < float(figures["gist_diversity"]) < 1.5


class PresenceBase(SuccessorBase):
    """What stands anywhere before is likely next: a gist can carry all that is of use."""

    def __init__(self):
        super().__init__()
        self.base_model = lambda inputs_embeds, use_cache: SimpleNamespace(
            last_hidden_state=torch.tanh(4 * inputs_embeds.cumsum(dim=1))
        )
        with torch.no_grad():
            self.head.weight.copy_(5.0 * torch.eye(VOCAB))

    def forward(self, inputs_embeds, use_cache):
        return SimpleNamespace(
            logits=self.head(self.base_model(inputs_embeds, use_cache).last_hidden_state)
        )


def test_row37_the_loss_is_above_zero_and_falls():
    recipe = Recipe()
    objective = build_objective(PresenceBase(), recipe=recipe)
    optimizer, stage = Optimizer(objective.model, objective.extras, recipe), stage_of()
    optimizer.enter(stage)
    found = []
    for step in range(60):
        ids = draw_ids(8, seed=step) % 16 + 16 * torch.arange(8)[:, None] % VOCAB
        outcome = objective(ids, Layout(TAIL[:1].repeat(8, axis=0), 1), PLAIN)
        outcome.loss.backward()
        optimizer.step(stage, 1.0)
        figures = outcome.figures
        found.append((float(figures["kl"]), float(figures["gain"] / figures["lost"])))
    assert 0 < found[-1][0] < 0.5 * found[0][0]
    assert found[-1][1] > found[0][1]
