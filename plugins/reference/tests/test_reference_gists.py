"""The packaged encoders: offered once their weights are here, and right for the packaged model."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import megacontext_reference
from megacontext_sdk import MemorySession
from megacontext_sdk.plugins import Plugins
from megacontext_sdk.testing.gist import blocks_of

PACKAGED = Path(megacontext_reference.__file__).with_name("weights") / "gist"
KINDS = sorted(path.stem for path in PACKAGED.glob("*.safetensors"))
NEEDED = ("duckdb", "gistnet", "hf", "reference")

WITH_CODE = pytest.mark.skipif(
    find_spec("megacontext_gistnet") is None, reason="megacontext-gistnet is not installed"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return an empty folder where the entry point looks for weights."""
    monkeypatch.setattr(megacontext_reference, "_GISTS", tmp_path)
    return tmp_path


def offered():
    """Return the names of encoders, and the one of the model."""
    (model,) = megacontext_reference.megacontext_model_adapters()
    return [one.name for one in megacontext_reference.megacontext_gist_encoders()], model.gist


def test_nothing_is_offered_without_weights(folder):
    assert ([], "") == offered()


def test_nothing_is_offered_that_cannot_run(folder, monkeypatch):
    (folder / "gistnet.safetensors").touch()
    monkeypatch.setattr(megacontext_reference, "find_spec", lambda _name: None)
    assert ([], "") == offered()


@WITH_CODE
def test_weights_are_offered_as_far_as_they_are_there(folder):
    (folder / "contextual.safetensors").touch()
    assert (["reference-contextual"], "reference-contextual") == offered()
    (folder / "gistnet.safetensors").touch()
    assert (["reference-gistnet", "reference-contextual"], "reference-gistnet") == offered()


@WITH_CODE
def test_an_encoder_asked_for_by_name_is_read_from_the_package(tmp_path, monkeypatch):
    """With weights of an untrained encoder, laid out as the package lays them out."""
    nets = import_module("megacontext_gistnet.nets.model")
    adapters = Plugins.load(plugins=NEEDED)
    with adapters.model_factory("reference")() as adapter:
        info = adapter.info
        package = tmp_path / "lab_weights"
        (package / "weights").mkdir(parents=True)
        (package / "__init__.py").touch()
        monkeypatch.syspath_prepend(str(tmp_path))
        model = nets.new_model("gistnet", adapter.torch_module())
        facts = {"base_fingerprint": info.fingerprint}
        nets.save_weights(
            model,
            package / "weights" / "gist" / "gistnet.safetensors",
            facts | {"tokenizer_fingerprint": info.tokenizer_fingerprint},
        )
        monkeypatch.setattr(megacontext_reference, "_GISTS", package / "weights" / "gist")
        monkeypatch.setattr(megacontext_reference, "_PACKAGE", "lab_weights")
        plugins = Plugins.load(plugins=NEEDED)
        with MemorySession.open(tmp_path / "a.mc", model=adapter, plugins=plugins) as session:
            session.append("The harbour master keeps a red boat. " * 20)
            assert "reference-gistnet" == session.stats().gist


@WITH_CODE
@pytest.mark.parametrize("kind", KINDS)
def test_packaged_weights_fit_the_packaged_model(kind):
    plugins = Plugins.load(plugins=NEEDED)
    encoder = plugins.gist_factory(f"reference-{kind}")(1)
    history = np.random.default_rng(0).integers(7, 4096, (4, 32)).astype(np.int32)
    with plugins.model_factory("reference")() as adapter:
        encoder.fingerprint(adapter.info)
        rows = encoder.encode_blocks(blocks_of(history, 0, 4, 0), adapter).rows
    assert (4, 1, 256) == rows.shape
    assert np.isfinite(rows).all()
