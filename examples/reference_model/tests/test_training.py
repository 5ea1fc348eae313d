"""Training: it learns, its labels are shifted, a stopped run goes on bit for bit."""

from __future__ import annotations

import attrs
import pytest
import torch
from accelerate import Accelerator
from reference_model.checkpoint import load_checkpoint
from reference_model.model import build_model, n_parameters, next_token_losses
from reference_model.presets import PRESETS, preset_named
from reference_model.run import train
from reference_model.trainer import Limit, _share_of_rate

from megacontext_sdk.errors import ConfigError


class Nobody:
    def preparing(self, what, n_tokens):
        pass

    def row(self, row, used):
        pass


def go(run, preset, folder, **changes):
    """Train in another folder with the tokens of the run; return the trainer."""
    settings = {"limit": Limit(steps=12), "accelerator": Accelerator(), "watcher": Nobody()}
    return train(run.prepared, preset, folder, **settings | changes)


def weights(trainer):
    return {name: one.detach().clone() for name, one in trainer.model.named_parameters()}


def test_the_loss_falls_clearly(run):
    losses = [row["loss"] for row in run.watcher.rows]
    assert losses[0] > 5.5
    assert losses[-1] < 0.5 * losses[0]


def test_held_out_losses_fall_with_it(run):
    measured = [row["held_out"] for row in run.watcher.rows if "held_out" in row]
    assert 2 == len(measured)
    assert {"story", "dialogue", "dialogue, chat"} <= set(measured[0])
    assert all(measured[1][name] < measured[0][name] for name in measured[0])


def test_a_copy_task_goes_to_zero_on_the_next_token_and_not_on_the_current_one():
    preset = attrs.evolve(
        preset_named("smoke"), vocab_size=24, window=32, hidden_size=48, mlp_size=96
    )
    model = build_model(preset, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    random = torch.Generator().manual_seed(0)
    for _ in range(250):
        token_ids = torch.randint(7, 24, (16, 8), generator=random).repeat(1, 4)
        next_token_losses(model, token_ids).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    token_ids = torch.randint(7, 24, (32, 8), generator=random).repeat(1, 4)
    with torch.no_grad():
        losses = next_token_losses(model, token_ids)
        logits = model(input_ids=token_ids).logits[:, 16:]
    on_current = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), token_ids[:, 16:].flatten()
    )
    assert (32, 31) == losses.shape
    assert float(losses[:, 16:].mean()) < 0.2  # the pattern has been seen twice
    assert float(losses[:, :6].mean()) > 2.0  # nothing to copy from yet
    assert float(on_current) > 2.0


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_stopped_run_goes_on_bit_for_bit(run, preset, tmp_path, accumulation):
    preset = attrs.evolve(preset, accumulation=accumulation)
    whole = go(run, preset, tmp_path / "whole")
    go(run, preset, tmp_path / "cut", pause=Limit(steps=5))
    resumed = go(run, preset, tmp_path / "cut", is_resumed=True)
    assert whole.progress.step == resumed.progress.step == 12
    assert whole.progress.tokens == resumed.progress.tokens
    for name, one in weights(whole).items():
        assert torch.equal(one, weights(resumed)[name]), name
    losses = [row["loss"] for row in whole.progress.history]
    assert losses == [row["loss"] for row in resumed.progress.history]
    files = [(tmp_path / one / "checkpoint.safetensors") for one in ("whole", "cut")]
    optimizers = [torch.optim.AdamW(whole.model.parameters()) for _ in files]
    for path, optimizer in zip(files, optimizers, strict=True):
        load_checkpoint(path, whole.model, optimizer, preset.name)
    for parameter in whole.model.parameters():
        first, second = (optimizer.state[parameter] for optimizer in optimizers)
        assert all(torch.equal(first[key], second[key]) for key in ("exp_avg", "exp_avg_sq"))
        assert 12 == int(first["step"])


def test_another_seed_is_another_run(run, preset, tmp_path):
    first, second = (go(run, preset, tmp_path / str(seed), seed=seed) for seed in (1, 2))
    assert not torch.equal(*(next(iter(weights(one).values())) for one in (first, second)))


def test_a_run_is_not_overwritten_and_not_invented(run, preset, tmp_path):
    with pytest.raises(ConfigError, match="go on with --resume"):
        go(run, preset, run.folder)
    with pytest.raises(ConfigError, match="nothing to resume"):
        go(run, preset, tmp_path, is_resumed=True)


def test_a_checkpoint_of_another_preset_or_other_data_is_refused(run, preset, tmp_path):
    go(run, preset, tmp_path, limit=Limit(steps=1))
    with pytest.raises(ConfigError, match="another preset"):
        go(run, attrs.evolve(preset, name="other"), tmp_path, is_resumed=True)
    store = attrs.evolve(run.prepared.store, fingerprint="other")
    other = attrs.evolve(run, prepared=attrs.evolve(run.prepared, store=store))
    with pytest.raises(ConfigError, match="made with other data"):
        go(other, preset, tmp_path, is_resumed=True)


def test_an_interrupted_run_leaves_a_checkpoint(run, preset, tmp_path):
    class Impatient(Nobody):
        def row(self, row, used):
            if row["step"] == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(run, preset, tmp_path, watcher=Impatient())
    assert 12 == go(run, preset, tmp_path, is_resumed=True).progress.step


def test_minutes_end_a_run_and_cool_it_down(run, preset, tmp_path):
    trainer = go(run, preset, tmp_path, limit=Limit(minutes=0.03))
    last = trainer.progress.history[-1]
    assert 1.8 <= last["seconds"] < 20
    assert last["rate"] < 0.1 * preset.learning_rate


@pytest.mark.parametrize(
    "wrong", [{}, {"steps": 0}, {"minutes": -1.0}, {"steps": 5, "minutes": 0.0}]
)
def test_a_run_without_an_end_is_refused(wrong):
    with pytest.raises(ConfigError, match="give one above zero"):
        Limit(**wrong)


def test_the_rate_warms_up_and_falls():
    rates = [_share_of_rate(step / 1000, step, 20) for step in range(1001)]
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert max(rates) > 0.95
    assert pytest.approx(0.02) == rates[-1]


def test_a_short_run_warms_up_in_a_twentieth_of_it():
    rates = [_share_of_rate(step / 100, step, 1_000) for step in range(101)]
    assert 5 == rates.index(max(rates))


@pytest.mark.parametrize(("name", "low", "high"), [("laptop", 5.5e6, 6.0e6), ("gpu", 10e6, 20e6)])
def test_the_presets_have_the_sizes_they_claim(name, low, high):
    preset = PRESETS[name]
    model = build_model(preset, 0)
    assert low < n_parameters(model) < high
    assert 2 * n_parameters(model) < 40e6  # bytes of the bfloat16 file
    assert preset.window == model.config.max_position_embeddings
    assert pytest.approx(1.0) == sum(preset.mix.values())


def test_an_unknown_preset_is_named(run):
    with pytest.raises(ConfigError, match="no preset 'huge'; use one of laptop, gpu, smoke"):
        preset_named("huge")
