"""Sampling is transformers' own: options mean the same, seeds reproduce, nonsense is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megacontext_hf.output import TensorOutput
from megacontext_hf.sampler import TorchSampler
from megacontext_sdk.contracts.model import SamplingOptions, WindowOutput
from megacontext_sdk.errors import ConfigError, ModelError

CPU = torch.device("cpu")
LOGITS = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))


def draws(n=400, logits=LOGITS, **options):
    sampler = TorchSampler(SamplingOptions(**options), CPU)
    return [sampler.sample(TensorOutput(logits)) for _ in range(n)]


def test_greedy_is_argmax_and_needs_no_seed():
    assert [0] * 5 == draws(5)


def test_frequencies_follow_the_distribution():
    counts = np.bincount(draws(4000, temperature=1.0, seed=3), minlength=4) / 4000
    np.testing.assert_allclose([0.5, 0.3, 0.15, 0.05], counts, atol=0.03)


def test_low_temperature_sharpens_and_high_flattens():
    cold = np.bincount(draws(temperature=0.2, seed=3), minlength=4)
    hot = np.bincount(draws(temperature=20.0, seed=3), minlength=4)
    assert cold[0] > 340
    assert hot.min() > 60


def test_top_k_and_top_p_cut_the_tail():
    assert {0, 1} == set(draws(temperature=1.0, top_k=2, seed=0))
    assert {0, 1} == set(draws(temperature=1.0, top_p=0.6, seed=0))
    assert {0, 1, 2, 3} == set(draws(temperature=1.0, seed=0))


def test_same_seed_same_draws_and_no_shared_state():
    expected = draws(50, temperature=1.0, seed=9)
    torch.manual_seed(123)
    assert expected == draws(50, temperature=1.0, seed=9)
    state = torch.get_rng_state()
    draws(50, temperature=1.0, seed=9)
    assert torch.equal(state, torch.get_rng_state())


def test_unseeded_samplers_differ():
    flat = torch.zeros(1000)
    assert draws(20, flat, temperature=1.0) != draws(20, flat, temperature=1.0)


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", -1.0), ("top_k", -2), ("top_p", 0.0), ("top_p", 1.1)]
)
def test_options_out_of_range_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        TorchSampler(SamplingOptions(**{field: value}), CPU)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_reported(temperature):
    with pytest.raises(ModelError, match="not numbers"):
        draws(1, torch.tensor([0.0, float("nan"), 1.0]), temperature=temperature)


def test_half_precision_logits_are_sampled():
    assert {0, 1} == set(draws(logits=LOGITS.bfloat16(), temperature=1.0, top_k=2, seed=1))


def test_output_of_another_kind_is_read_through_numpy():
    class Plain(WindowOutput):
        def numpy(self):
            return np.array([0.0, 2.0, 1.0], np.float32)

    assert 1 == TorchSampler(SamplingOptions(), CPU).sample(Plain())


def test_output_is_float32_on_the_cpu():
    array = TensorOutput(torch.ones(3, dtype=torch.bfloat16)).numpy()
    assert np.float32 == array.dtype
