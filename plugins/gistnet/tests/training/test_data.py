"""Windows of a run: by domain, apart from what is held out, another stream for each process."""

from __future__ import annotations

import json
from collections import Counter

import attrs
import numpy as np
import pytest

from megacontext_gistnet.training.data import open_data
from megacontext_sdk.builtin.echo import EchoModel
from megacontext_sdk.errors import ConfigError

from .conftest import small_recipe, stage_of

ADAPTER = EchoModel()  # its tokens are bytes: those of a window are its letters


@pytest.fixture
def folder(tmp_path):
    """Stories of the letter s and code of the letter c, 300 documents each."""
    place = tmp_path / "texts"  # pytest's own folder is named test…, which would be held out
    place.mkdir()
    for name, letter in (("stories", "s"), ("code", "c")):
        with (place / f"{name}.jsonl").open("w") as file:
            for number in range(300):
                row = {"id": f"{name}{number}", "text": letter * 190 + f"{number:010}"}
                file.write(json.dumps(row) + "\n")
    return place


def opened(folder, tmp_path, **changes):
    return open_data((folder,), ADAPTER, small_recipe(**changes), tmp_path / "tokens")


def texts_of(windows):
    return [ADAPTER.tokenizer.decode(window) for window in windows]


def test_windows_follow_the_mix_of_the_recipe(folder, tmp_path):
    data = opened(folder, tmp_path, mix={"story": 3.0, "code": 1.0})
    drawn = texts_of(data.sampler(0, 0).next(400, 160))
    found = Counter("s" if one.count("s") > one.count("c") else "c" for one in drawn)
    assert 0.75 == pytest.approx(found["s"] / 400, abs=0.08)


def test_every_process_and_seed_draws_other_windows(folder, tmp_path):
    data = opened(folder, tmp_path)
    drawn = [data.sampler(*one).next(16, 160) for one in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert np.array_equal(drawn[0], drawn[3])
    assert not np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_validation_windows_are_of_documents_that_training_never_sees(folder, tmp_path):
    data = opened(folder, tmp_path, validation_windows=3)
    windows = data.held_out(160)
    assert Counter({"story": 3, "code": 3}) == Counter(windows.domains)
    held_out = {one.doc_id for one in data.store.documents("held-out")}
    assert set(windows.documents) <= held_out
    assert np.array_equal(windows.token_ids, data.held_out(160).token_ids)


def test_made_up_facts_are_added_where_the_recipe_asks(folder, tmp_path):
    data = opened(folder, tmp_path, made_up_facts=60)
    assert {"story", "facts", "code"} == set(data.store.counts("train"))
    assert 2 == len(data.sources)


def test_the_stage_that_finds_no_window_is_named(folder, tmp_path):
    stage = stage_of("levels", lod=2, window_blocks=40)
    (folder / "code.jsonl").unlink()
    (folder / "stories.jsonl").write_text(json.dumps({"id": "one", "text": "short " * 40}) + "\n")
    with pytest.raises(ConfigError, match=r"stage 'levels' finds no window of 1280 tokens") as one:
        opened(folder, tmp_path, stages=(stage,))
    assert "leave the stage out" in str(one.value)
    assert attrs.fields_dict(type(stage))["window_blocks"].default == 0


def test_a_folder_for_evaluation_is_never_trained_on(folder, tmp_path):
    folder = folder.rename(tmp_path / "eval-dev")
    with pytest.raises(ConfigError, match="never trained on"):
        opened(folder, tmp_path)
