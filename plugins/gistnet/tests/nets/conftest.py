"""A tiny random base, untrained encoders over it, and the same with every parameter moved."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from megacontext_gistnet.nets.model import KINDS, new_model
from megacontext_hf.testing import build_model


class Table(nn.Module):
    """A base that is an embedding table and nothing else; enough for a gistnet."""

    def __init__(self, width, vocab_size=64, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(vocab_size, width, generator=generator) * 0.05
        self.embedding = nn.Embedding.from_pretrained(table)

    def get_input_embeddings(self):
        return self.embedding


def moved(model, seed=3, size=0.05):
    """Give every parameter of an encoder a push, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter, _ in model.trainable():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)
    return model


def windows(n=2, length=128, vocab_size=260, seed=5):
    """Return int64[n, length] random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab_size, (n, length), generator=generator)


@pytest.fixture(name="moved")
def _moved():
    return moved


@pytest.fixture(name="windows")
def _windows():
    return windows


@pytest.fixture
def table():
    """Return what makes a base of a table of some width."""
    return Table


@pytest.fixture(scope="module")
def base():
    """Return a frozen llama of 4 layers and width 48, trained on 128 rows, says its config."""
    return build_model("llama").requires_grad_(requires_grad=False)


@pytest.fixture(params=KINDS)
def model(request, base):
    """Return an untrained encoder of each kind."""
    return new_model(request.param, base)
