"""Devices: one process does without messages, two end at the same weights."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from megacontext_gistnet.training.checkpoint import read_checkpoint
from megacontext_gistnet.training.fleet import Fleet

from .conftest import options_of


def test_one_process_is_its_own_main_and_keeps_its_numbers():
    fleet = Fleet("cpu")
    assert (0, 1, True) == (fleet.rank, fleet.size, fleet.is_main)
    assert torch.device("cpu") == fleet.device
    assert 8 == fleet.share_of(8)
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    fleet.average([parameter])
    assert [1.0, 2.0] == parameter.grad.tolist()
    assert 0.5 == fleet.from_main(0.5)
    assert [{"a": 1}] == fleet.gather({"a": 1})
    assert [3.0] == fleet.mean(torch.tensor([3.0])).tolist()
    fleet.wait()


def test_the_encoder_runs_in_the_number_format_of_the_passes():
    fleet = Fleet("cpu")
    assert isinstance(fleet.autocast(torch.float32), nullcontext)
    layer = nn.Linear(2, 2)
    with fleet.autocast(torch.bfloat16):
        assert torch.bfloat16 == layer(torch.ones(1, 2)).dtype


TWO = """
import sys, torch
from torch import nn
torch.set_num_threads(1)
from megacontext_gistnet.training.fleet import Fleet
fleet = Fleet("cpu")
assert 2 == fleet.size and 4 == fleet.share_of(8) and 1 == fleet.share_of(1)
parameter, still = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(3))
parameter.grad = torch.full((2, 2), 1.0 + 2 * fleet.rank)
fleet.average([parameter, still])
assert still.grad is None
assert torch.equal(torch.full((2, 2), 2.0), parameter.grad), parameter.grad
assert 7.0 == fleet.from_main(7.0 + fleet.rank)
assert [{"rank": 0}, {"rank": 1}] == fleet.gather({"rank": fleet.rank})
assert [1.5] == fleet.mean(torch.tensor([1.0 + fleet.rank])).tolist()
fleet.wait()
torch.distributed.destroy_process_group()
"""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def run_two(*arguments):
    """Run a command as two processes that know each other; return their outputs."""
    shared = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    started = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    found = [one.communicate(timeout=300)[0] for one in started]
    assert [0, 0] == [one.returncode for one in started], "\n".join(found)
    return found


@pytest.mark.slow
def test_two_processes_share_gradients_and_decisions():
    run_two("-c", TWO)


TRAIN = """
import torch
torch.set_num_threads(1)
from megacontext_gistnet.training.trainer import Trainer
from megacontext_sdk._cli import main
run = Trainer.run
def run_and_tell(self):
    is_finished = run(self)
    weights = self._weights().values()
    print("SUM", repr(sum(float(one.double().abs().sum()) for one in weights)))
    return is_finished
Trainer.run = run_and_tell
try:
    main()
finally:
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_one_encoder(settings):
    said = run_two("-c", TRAIN, "train", "gistnet", *options_of(settings))
    state = read_checkpoint(settings.out / "checkpoint.safetensors").state
    assert 6 == state["step"]
    assert 2 == len(state["ranks"])
    assert state["ranks"][0] != state["ranks"][1]
    assert (settings.out / "gistnet.safetensors").is_file()
    sums = [line for one in said for line in one.splitlines() if line.startswith("SUM")]
    assert 2 == len(sums)
    assert sums[0] == sums[1]
    assert "weights:" in said[0]
    assert "weights:" not in said[1]
