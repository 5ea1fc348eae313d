"""The recipe: one record, readable and writable, that refuses what no run could follow."""

from __future__ import annotations

import json

import pytest

from megacontext_gistnet.training.recipe import (
    Layouts,
    Recipe,
    Stage,
    parse_recipe,
    read_recipe,
    recipe_bytes,
    refuse_other_recipe,
)
from megacontext_sdk.errors import ConfigError

from .conftest import stage_of


def test_a_recipe_survives_its_json(tmp_path):
    recipe = Recipe(shape={"rank": 8, "residual_bound": 0.5}, mix={"story": 1.0})
    path = tmp_path / "recipe.json"
    path.write_bytes(recipe_bytes(recipe))
    found = read_recipe(path)
    assert recipe == found
    assert recipe_bytes(recipe) == recipe_bytes(found)
    assert isinstance(found.shape["rank"], int)


def test_what_a_file_leaves_out_has_its_default(tmp_path):
    path = tmp_path / "recipe.json"
    stage = {"name": "all", "share": 1.0, "lr": {"head": 2e-3}, "layouts": {"tail": 0.25}}
    path.write_text(json.dumps({"batch": 4, "stages": [stage]}))
    found = read_recipe(path)
    assert (4, 512) == (found.batch, found.window_tokens)
    assert Layouts(tail=0.25) == found.stages[0].layouts
    assert {"head": 2e-3} == dict(found.stages[0].lr)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"batch": "many"}, "is no recipe"),
        ({"batches": 4}, "has no 'batches'"),
        ({"stages": [{"name": "a", "share": 1.0, "lr": {}, "lose": {}}]}, "has no 'lose'"),
        (
            {"stages": [{"name": "a", "share": 1.0, "lr": {}, "losses": {"k": 1}}]},
            "a Losses has no 'k'",
        ),
        ({"window_tokens": 100}, "multiple of 32"),
        ({"slots": {"two": 1.0}}, "give shares by slots"),
        ({"stages": []}, "has no stage"),
        ({"batch": 0}, "above 0"),
    ],
)
def test_what_no_run_could_follow_is_refused(tmp_path, values, said):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=said):
        read_recipe(path)


def test_text_that_is_no_json_is_refused(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text("batch = 4")
    with pytest.raises(ConfigError, match="is no recipe"):
        read_recipe(path)


def test_shares_are_shares():
    with pytest.raises(ConfigError, match=r"Layouts.tail is 2"):
        Layouts(tail=2.0)
    with pytest.raises(ConfigError, match=r"Stage.share is 0"):
        Stage(name="a", share=0, lr={})


def test_windows_of_parents_need_their_32_blocks():
    with pytest.raises(ConfigError, match="at least 1152"):
        Recipe(stages=(stage_of(lod=2),))
    recipe = Recipe(stages=(stage_of(lod=2, window_blocks=36, batch_ratio=0.25),), batch=8)
    assert 1152 == recipe.window_of(recipe.stages[0])
    assert 2 == recipe.batch_of(recipe.stages[0])


def test_one_rate_scales_all(tmp_path):
    recipe = Recipe(stages=(stage_of(lr={"head": 1e-3, "lora": 1e-4}),)).with_learning_rate(5e-3)
    rates = dict(recipe.stages[0].lr)
    assert {"head": pytest.approx(5e-3), "lora": pytest.approx(5e-4)} == rates


def test_the_default_trains_head_blocks_and_parents_in_this_order():
    stages = Recipe().stages
    assert ["head", "substitution", "levels"] == [one.name for one in stages]
    assert [1, 1, 2] == [one.lod for one in stages]
    assert "lora" not in stages[0].lr
    assert {"levels", "extra"} == set(stages[2].lr)


def test_a_recipe_of_before_a_field_was_added_is_the_same_recipe():
    text = json.loads(recipe_bytes(Recipe()))
    del text["at_start"]
    del text["stages"][0]["margin"]
    refuse_other_recipe(parse_recipe(json.dumps(text).encode()), Recipe())
    with pytest.raises(ConfigError, match="another recipe: batch, clip differ"):
        refuse_other_recipe(Recipe(batch=4, clip=2.0), Recipe())
