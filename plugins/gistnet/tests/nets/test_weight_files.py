"""Weight files: what goes in comes out, and nothing else is taken for one."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from megacontext_gistnet.nets.config import ContextualConfig, GistNetConfig
from megacontext_gistnet.nets.model import (
    load_weights,
    new_model,
    read_header,
    save_weights,
    weights_digest,
)
from megacontext_hf.testing import build_model
from megacontext_sdk.errors import ConfigError, ModelError

FACTS = {"base_fingerprint": "ba5e", "tokenizer_fingerprint": "70ce", "minutes": "7"}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "new folder" / "one.safetensors"


def test_what_is_saved_is_loaded(model, base, moved, windows, file):
    expected = moved(model).blocks(windows())
    save_weights(model, file, FACTS)
    loaded = load_weights(file, base)
    assert torch.equal(expected, loaded.blocks(windows()))
    assert (model.kind, model.config) == (loaded.kind, loaded.config)
    assert ["one.safetensors"] == [one.name for one in file.parent.iterdir()]


def test_the_header_tells_what_it_is(model, file):
    save_weights(model, file, FACTS)
    header = read_header(file)
    assert (model.kind, model.config, 48) == (header.kind, header.config, header.width)
    assert ("ba5e", "70ce") == (header.base_fingerprint, header.tokenizer_fingerprint)
    assert {"minutes": "7"} == header.facts


def test_the_digest_follows_every_number_and_every_fact(model, moved, file):
    digests = set()
    for facts in (FACTS, FACTS | {"minutes": "8"}):
        save_weights(model, file, facts)
        digests.add(weights_digest(file))
    save_weights(moved(model), file, FACTS)
    assert 3 == len(digests | {weights_digest(file)})


def test_weights_hold_the_encoder_s_own_tensors_only(model, base, file):
    save_weights(model, file, FACTS)
    assert set(model.state_dict()) == set(load_file(file))
    assert file.stat().st_size < 4.2 * sum(one.numel() for one in model.parameters()) + 20_000


@pytest.mark.parametrize("missing", ["base_fingerprint", "tokenizer_fingerprint"])
def test_an_encoder_without_its_base_s_name_is_not_saved(model, file, missing):
    with pytest.raises(ConfigError, match=missing):
        save_weights(model, file, {k: v for k, v in FACTS.items() if k != missing})
    assert not file.exists()


def test_a_file_that_is_not_there_is_missed(base, file, tmp_path):
    for path in (file, tmp_path):
        with pytest.raises(ModelError, match="cannot be read"):
            load_weights(path, base)
    with pytest.raises(ModelError, match="cannot be read"):
        weights_digest(file)


def test_a_file_of_another_kind_is_refused(base, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("These are no weights at all.")
    with pytest.raises(ModelError, match="is no safetensors file"):
        load_weights(text, base)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(2)}, foreign)
    with pytest.raises(ModelError, match="holds no encoder of this plugin"):
        load_weights(foreign, base)


def test_tensors_of_other_shapes_are_refused(model, file):
    save_weights(model, file, FACTS)
    with pytest.raises(ModelError, match="does not fit this base"):
        load_weights(file, build_model("llama", hidden_size=64))


def test_missing_and_further_tensors_are_refused(model, base, file):
    save_weights(model, file, FACTS)
    header = read_header(file)
    tensors = load_file(file)
    metadata = {
        "format": "megacontext-gist/1",
        "kind": header.kind,
        "config": header.config.to_json(),
        "width": "48",
        **{name: FACTS[name] for name in ("base_fingerprint", "tokenizer_fingerprint")},
    }
    some = min(tensors)
    for spoiled in (
        tensors | {"more": torch.zeros(1)},
        {k: v for k, v in tensors.items() if k != some},
    ):
        save_file(spoiled, file, metadata=metadata)
        with pytest.raises(ModelError, match="1 such tensors"):
            load_weights(file, base)


def test_a_kind_and_its_shape_belong_together(base):
    with pytest.raises(ConfigError, match="a gistnet takes a GistNetConfig"):
        new_model("gistnet", base, ContextualConfig())
    with pytest.raises(ConfigError, match="there is no encoder 'lens'"):
        new_model("lens", base)


@pytest.mark.parametrize("config", [GistNetConfig(hidden=64), ContextualConfig(rank=0, n_layers=2)])
def test_shapes_survive_json(config):
    assert config == type(config).from_json(config.to_json())


@pytest.mark.parametrize("text", ["", "[]", '{"heads": "four"}', json.dumps({"wings": 2})])
def test_json_that_is_no_shape_is_refused(text):
    with pytest.raises(ConfigError):
        GistNetConfig.from_json(text)
