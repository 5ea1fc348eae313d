"""Encoders by name, file and folder, as a session would resolve them."""

from __future__ import annotations

import pytest

from megacontext_gistnet.evaluation.arms import Asked, asked, facts_of, open_arms
from megacontext_gistnet.evaluation.floors import FLOORS
from megacontext_gistnet.nets.model import new_model, save_weights
from megacontext_sdk.errors import (
    ConfigError,
    ModelError,
    ModelMismatchError,
    UnknownProviderError,
)
from megacontext_sdk.plugins import Plugins


@pytest.fixture(scope="module")
def plugins():
    return Plugins.load(plugins=["gistnet", "hf"])


@pytest.fixture
def weights(tiny, tmp_path):
    def make(folder, kind="gistnet", base=tiny.info.fingerprint, **facts):
        model = new_model(kind, tiny.torch_module().requires_grad_(requires_grad=False))
        told = {
            "base_fingerprint": base,
            "tokenizer_fingerprint": tiny.info.tokenizer_fingerprint,
            **facts,
        }
        path = tmp_path / folder / f"{kind}.safetensors"
        save_weights(model, path, told)
        return path

    return make


def test_mean_is_always_there_and_first():
    assert asked([]) == (Asked("mean", "mean"),)
    found = asked(["reference-gistnet", "mean", "reference-gistnet"])
    assert ["mean", "reference-gistnet"] == [one.name for one in found]


def test_weights_are_found_by_file_folder_and_kind(weights):
    path = weights("run-1")
    for text in (str(path), str(path.parent), f"gistnet:{path}"):
        assert asked([text])[1:] == (Asked("gistnet (run-1)", f"gistnet:{path}"),)


def test_two_files_of_one_name_stay_apart(weights):
    one, two = weights("a/run"), weights("b/run")
    assert ["gistnet (run)", "gistnet (run) #2"] == [
        found.name for found in asked([str(one), str(two)])[1:]
    ]


def test_every_encoder_is_made_with_every_number_of_slots(plugins, weights, tiny):
    arms = open_arms(plugins, asked([str(weights("run"))]), (4, 1), tiny.info)
    names = ("mean", *FLOORS, "gistnet (run)")
    assert [(name, slots) for name in names for slots in (1, 4)] == [
        (one.name, one.encoder.gist_slots) for one in arms
    ]
    assert ["mean S=1", "mean S=4"] == [one.label for one in arms[:2]]


def test_a_weight_file_tells_where_it_is_from(plugins, weights, tiny):
    arms = open_arms(plugins, asked([str(weights("run", minutes="7"))]), (1,), tiny.info)
    facts = facts_of(arms[-1].encoder)
    assert ("7", "gistnet") == (facts["minutes"], facts["kind"])
    assert len(facts["weights_sha256"]) == 64
    assert facts_of(arms[0].encoder) == {}


def test_what_cannot_be_measured_is_refused(plugins, weights, tiny, tmp_path):
    with pytest.raises(ModelMismatchError, match="trained for the base"):
        open_arms(plugins, asked([str(weights("run", base="0" * 64))]), (1,), tiny.info)
    with pytest.raises(UnknownProviderError):
        open_arms(plugins, asked(["nobody"]), (1,), tiny.info)
    with pytest.raises(ConfigError, match="give some of 1, 2 and 4"):
        open_arms(plugins, asked([]), (3,), tiny.info)
    with pytest.raises(ConfigError, match="holds no weights"):
        asked([str(tmp_path)])
    with pytest.raises(ModelError):
        asked([str(tmp_path / "missing.safetensors")])
