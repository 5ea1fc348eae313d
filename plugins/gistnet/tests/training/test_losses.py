"""The formulas, against numbers worked out by hand (row 37)."""

from __future__ import annotations

import math

import pytest
import torch

from megacontext_gistnet.training import losses


def same(rows):
    """A head that changes nothing: hidden states are logits."""
    return rows


def test_row37_token_weights_are_a_floor_plus_the_clipped_loss_of_dropping():
    drop = torch.tensor([3.0, 1.0, 9.0, 2.0])
    full = torch.tensor([2.0, 1.5, 1.0, 1.0])
    counted = torch.tensor([1.0, 1.0, 1.0, 0.0])
    found = losses.token_weights(drop, full, counted, floor=0.1, cap=3.0)
    torch.testing.assert_close(found, torch.tensor([1.1, 0.1, 3.1, 0.0]))


def test_row37_the_weighted_mean_is_a_ratio_of_sums():
    found = losses.weighted_mean(torch.tensor([2.0, 4.0]), torch.tensor([3.0, 1.0]))
    assert 2.5 == pytest.approx(float(found))
    assert 0.0 == float(losses.weighted_mean(torch.ones(2), torch.zeros(2)))


def test_row37_kl_and_nll_of_two_tokens():
    teacher = torch.tensor([[math.log(3.0), 0.0]])  # 0.75, 0.25
    student = torch.zeros(1, 2, requires_grad=True)  # 0.5, 0.5
    kl, nll = losses.transfer(same, student, teacher, torch.tensor([1]))
    assert 0.75 * math.log(1.5) + 0.25 * math.log(0.5) == pytest.approx(
        float(kl.detach()), abs=1e-6
    )
    assert math.log(2.0) == pytest.approx(float(nll.detach()), abs=1e-6)
    kl.sum().backward()
    # d KL / d logits = Q - P: the likelier token must rise, so its gradient is negative.
    torch.testing.assert_close(student.grad, torch.tensor([[-0.25, 0.25]]))


def test_row37_kl_of_equals_is_zero_and_otherwise_positive():
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 5, 7)
    targets = torch.zeros(5, dtype=torch.int64)
    assert 1e-6 > float(losses.transfer(same, teacher, teacher, targets)[0].abs().max())
    assert 0 < float(losses.transfer(same, student, teacher, targets)[0].min())


def test_token_nll_is_the_cross_entropy_of_each_row():
    hidden = torch.tensor([[0.0, 0.0], [math.log(4.0), 0.0]])
    found = losses.token_nll(same, hidden, torch.tensor([0, 1]))
    torch.testing.assert_close(found, torch.tensor([math.log(2.0), math.log(5.0)]))


@pytest.mark.parametrize("most", [8, 24, 1 << 20])
def test_a_large_vocabulary_in_chunks_gives_the_same_loss_and_gradient(monkeypatch, most):
    torch.manual_seed(0)
    student = torch.randn(5, 8, requires_grad=True)
    teacher, targets = torch.randn(5, 8), torch.arange(5)
    whole_kl, whole_nll = losses.transfer(same, student, teacher, targets)
    (whole_kl.sum() + whole_nll.sum()).backward()
    expected, student.grad = student.grad, None
    monkeypatch.setattr(losses, "_MOST_LOGITS", most)
    kl, nll = losses.transfer(same, student, teacher, targets)
    (kl.sum() + nll.sum()).backward()
    torch.testing.assert_close(kl, whole_kl)
    torch.testing.assert_close(nll, whole_nll)
    torch.testing.assert_close(student.grad, expected)
    torch.testing.assert_close(losses.token_nll(same, teacher, targets).shape, (5,))


def test_row37_info_nce_of_two_pairs():
    keys = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    found = losses.info_nce(keys, keys, temperature=1.0)
    assert math.log(1 + math.exp(-1.0)) == pytest.approx(float(found), abs=1e-6)
    crossed = losses.info_nce(keys, keys.flip(0), temperature=1.0)
    assert math.log(1 + math.exp(1.0)) == pytest.approx(float(crossed), abs=1e-6)


def test_row37_diversity_counts_neighbours_only():
    gists = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])  # cosines 1 and 0
    assert 0.5 == pytest.approx(float(losses.diversity(gists)))
    assert 0.1 == pytest.approx(float(losses.diversity_penalty(gists)))
    apart = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert 0.0 == float(losses.diversity_penalty(apart))
