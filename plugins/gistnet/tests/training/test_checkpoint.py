"""Checkpoints: whole or not there, without pickle, and only for the run that wrote them."""

from __future__ import annotations

import os

import pytest
import torch

from megacontext_gistnet.training.checkpoint import (
    Checkpoint,
    read_checkpoint,
    refuse_other_run,
    write_checkpoint,
)
from megacontext_sdk.errors import ConfigError, CorruptError, ModelMismatchError

IDENTITY = {"seed": "0", "base": "b", "data": "d", "kind": "gistnet"}


def checkpoint(step=3):
    tensors = {
        "model/w": torch.arange(6.0).view(2, 3).T,
        "moments/model/w/step": torch.tensor(3.0),
        "rng/torch": torch.get_rng_state(),
    }
    return Checkpoint(IDENTITY, {"step": step, "ranks": [{"layouts": "{}"}]}, tensors)


def test_what_is_read_is_what_was_written(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    write_checkpoint(path, checkpoint())
    found = read_checkpoint(path)
    assert IDENTITY == found.identity
    assert {"step": 3, "ranks": [{"layouts": "{}"}]} == found.state
    for name, tensor in checkpoint().tensors.items():
        assert torch.equal(tensor, found.tensors[name])
    assert [path] == list(tmp_path.iterdir())


def test_a_process_that_dies_while_it_writes_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.safetensors"
    write_checkpoint(path, checkpoint(3))

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(path, checkpoint(4))
    assert 3 == read_checkpoint(path).state["step"]


def test_nothing_to_resume_is_said(tmp_path):
    with pytest.raises(ConfigError, match="start without --resume"):
        read_checkpoint(tmp_path / "checkpoint.safetensors")


def test_damage_is_a_typed_error(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    write_checkpoint(path, checkpoint())
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CorruptError, match="is damaged"):
        read_checkpoint(path)


def test_weights_are_no_checkpoint(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "checkpoint.safetensors"
    save_file({"w": torch.ones(1)}, path)
    with pytest.raises(CorruptError, match="no checkpoint of training"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["seed", "data", "kind"])
def test_a_run_of_another_seed_kind_or_data_is_refused(name):
    refuse_other_run(IDENTITY, IDENTITY)
    with pytest.raises(ConfigError, match=f"another {name}"):
        refuse_other_run(IDENTITY, {**IDENTITY, name: "x" * 64})


def test_a_run_of_another_base_is_a_mismatch():
    with pytest.raises(ModelMismatchError, match="another base"):
        refuse_other_run(IDENTITY, {**IDENTITY, "base": "other"})
