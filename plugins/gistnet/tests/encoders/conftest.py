"""Weight files of moved encoders for a tiny model, and the model as the services of a session."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from megacontext_gistnet.encoder import open_contextual, open_gistnet
from megacontext_gistnet.nets.model import new_model, save_weights
from megacontext_hf.adapter import wrap
from megacontext_hf.testing import build_model, build_tokenizer
from megacontext_sdk.testing.gist import TableServices, blocks_of

OPEN = {"contextual": open_contextual, "gistnet": open_gistnet}


class Table(nn.Module):
    """The table of `TableServices` as a base; enough for a gistnet."""

    def __init__(self, services):
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(torch.from_numpy(services.table.copy()))

    def get_input_embeddings(self):
        return self.embedding


def moved(model, seed=3, size=0.02):
    """Give every parameter of an encoder a push, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter, _ in model.trainable():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)
    return model


def facts_of(info):
    """Return what a weight file must say of its base."""
    return {
        "base_fingerprint": info.fingerprint,
        "tokenizer_fingerprint": info.tokenizer_fingerprint,
    }


class Lab:
    """A model, and weight files of both kinds for it."""

    def __init__(self, adapter, folder):
        self.adapter = adapter
        self.folder = folder
        self.models = {}
        for kind in OPEN:
            # the windows of a base trained on 128 rows are short: prefix 64, chunks of 64
            model = new_model(kind, adapter.torch_module(), trained_window=128)
            self.models[kind] = moved(model).requires_grad_(requires_grad=False)
            save_weights(model, self.file(kind), facts_of(adapter.info))

    def file(self, kind):
        return self.folder / f"{kind}.safetensors"

    def open(self, kind, gist_slots=1):
        return OPEN[kind](str(self.file(kind)), gist_slots=gist_slots)

    def oracle(self, kind, history, slots):
        """Return what the plain network says of a history int32[N, 32]."""
        ids = torch.from_numpy(history.astype(np.int64)).view(1, -1)
        return self.models[kind].blocks(ids, slots=slots)[0].numpy()

    def encoded(self, encoder, history, cuts=None):
        """Return gists of a history, encoded in the batches that `cuts` bound."""
        bounds = cuts or (0, len(history))
        parts = [
            encoder.encode_blocks(
                blocks_of(history, start, stop, encoder.left_tokens), self.adapter
            )
            for start, stop in pairwise(bounds)
        ]
        return np.concatenate([part.rows for part in parts])


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """Return a tiny llama and its weight files."""
    model = build_model("llama", max_position_embeddings=512)
    with wrap(model, build_tokenizer(), name="tiny", trained_window=512) as adapter:
        yield Lab(adapter, tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def table_weights(tmp_path_factory):
    """Return a gistnet's weight file for `TableServices`."""
    services = TableServices()
    model = moved(new_model("gistnet", Table(services)))
    path = tmp_path_factory.mktemp("table") / "gistnet.safetensors"
    save_weights(model, path, facts_of(services.info))
    return path


@pytest.fixture
def history():
    """Return 40 blocks of random tokens, int32[40, 32]."""
    return np.random.default_rng(5).integers(0, 256, (40, 32)).astype(np.int32)


@pytest.fixture(params=sorted(OPEN))
def kind(request):
    return request.param
