"""Opening models: folders, options, fingerprints, and errors that name the place and the fix."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import megacontext_hf
from megacontext_hf.adapter import HfAdapter, open_hf, open_packaged, wrap
from megacontext_hf.testing import build_model, build_tokenizer
from megacontext_sdk.errors import ConfigError, ModelError


@pytest.fixture
def folder(tmp_path, byte_tokenizer):
    path = tmp_path / "tiny"
    build_model("llama", torch.bfloat16).save_pretrained(path)
    byte_tokenizer.save_pretrained(path)
    return path


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_saved_model_opens_from_its_folder(folder):
    with open_hf(str(folder), device="cpu") as adapter:
        assert isinstance(adapter, HfAdapter)
        assert str(folder) == adapter.info.name
        assert ("cpu", "float32") == (adapter.info.device, adapter.info.dtype)
        assert (128, 260, 48, 4) == (
            adapter.info.trained_window,
            adapter.info.vocab_size,
            adapter.info.hidden_size,
            adapter.info.n_layers,
        )
        assert (256, (259,)) == (adapter.info.bos_id, adapter.info.eos_ids)
        assert not any(p.requires_grad for p in adapter._model.parameters())
        assert not adapter._model.training


def test_loading_is_silent_and_leaves_the_settings_of_transformers(folder, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_hf(str(folder)).close()
    assert [] == caught
    assert ("", "") == tuple(capfd.readouterr())
    assert before == (logging.get_verbosity(), logging.is_progress_bar_enabled())


def test_dtype_and_trained_window_can_be_chosen(folder):
    with open_hf(str(folder), device="cpu", dtype="bfloat16", trained_window="64") as adapter:
        assert ("bfloat16", 64) == (adapter.info.dtype, adapter.info.trained_window)
        table = adapter.embedding_table()
        assert np.float32 == table.dtype
        assert not table.flags.writeable


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"dtype": "int8"}, "dtype"),
        ({"device": "abacus"}, "device"),
        ({"device": "meta"}, "device"),
        ({"forward": "fast"}, "forward"),
        ({"trained_window": 0}, "trained_window"),
    ],
)
def test_options_that_are_none_are_refused(folder, options, field):
    with pytest.raises(ConfigError) as caught:
        open_hf(str(folder), **options)
    assert field == caught.value.field


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_a_device_is_refused(folder):
    with pytest.raises(ConfigError, match="no CUDA device"):
        open_hf(str(folder), device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_cuda_by_option_computes_there(folder):
    with open_hf(str(folder), device="cuda") as adapter:
        assert "cuda" in adapter.info.device
        assert "bfloat16" == adapter.info.dtype


def test_sliding_attention_caps_the_trained_window(byte_tokenizer):
    with wrap(build_model("mistral"), byte_tokenizer) as adapter:
        assert 96 == adapter.info.trained_window
    with wrap(build_model("mistral"), byte_tokenizer, trained_window=500) as adapter:
        assert 96 == adapter.info.trained_window
    with wrap(build_model("qwen2", sliding_window=50), byte_tokenizer) as adapter:
        assert 128 == adapter.info.trained_window


# ------------------------------------------------------------------------------ fingerprints


def test_fingerprint_survives_device_dtype_and_file_times(folder):
    first = open_hf(str(folder), device="cpu").info
    second = open_hf(str(folder), dtype="bfloat16", trained_window=64, forward="plain").info
    assert first.fingerprint == second.fingerprint
    assert first.tokenizer_fingerprint == second.tokenizer_fingerprint


def test_fingerprint_changes_with_one_weight_or_the_rotary_base(folder):
    before = open_hf(str(folder)).info.fingerprint
    change_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 5_000.0})
    other_base = open_hf(str(folder)).info.fingerprint
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] += 0.5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert 3 == len({before, other_base, open_hf(str(folder)).info.fingerprint})


def test_wrapped_models_have_fingerprints_by_their_weights(byte_tokenizer):
    first, again = (wrap(build_model("qwen3"), byte_tokenizer).info for _ in range(2))
    changed = build_model("qwen3")
    with torch.no_grad():
        changed.model.norm.weight[0] += 1.0
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != wrap(changed, byte_tokenizer).info.fingerprint


# ------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "", "a/b/c"])
def test_a_missing_folder_is_named(name):
    with pytest.raises(ModelError, match="there is no model folder") as caught:
        open_hf(name)
    assert name == caught.value.path


def test_a_hub_id_that_is_not_cached_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="not found in the local cache"):
        open_hf("nobody-here/no-such-model", local_files_only=True, revision="abc")


def test_code_from_a_checkpoint_is_never_run(folder):
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    change_config(folder, model_type="evil", auto_map={"AutoModelForCausalLM": "evil.Evil"})
    with pytest.raises(ModelError, match=r"'evil' of .* needs code of its own \(auto_map\)"):
        open_hf(str(folder))


def test_auto_map_beside_a_known_type_uses_the_known_type(folder):
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    change_config(folder, auto_map={"AutoModelForCausalLM": "evil.Evil"})
    with open_hf(str(folder)) as adapter:
        assert type(adapter._model).__module__.startswith("transformers.models.llama")


def test_an_unknown_type_is_named(folder):
    change_config(folder, model_type="quantum")
    with pytest.raises(ModelError, match="'quantum' of .* is unknown"):
        open_hf(str(folder))


def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only safetensors weights are read"):
        open_hf(str(folder))


def test_missing_tensors_are_not_replaced_by_random_ones(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="lack 1 tensors") as caught:
        open_hf(str(folder))
    assert ("model.layers.2.mlp.up_proj.weight",) == caught.value.missing


def test_weights_of_another_size_are_refused(folder):
    change_config(folder, intermediate_size=80)
    with pytest.raises(ModelError, match="cannot be loaded"):
        open_hf(str(folder))


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "tokenizer.json"])
def test_damaged_files_raise_our_error(folder, damage):
    (folder / damage).write_bytes(b"\x00 not a model")
    with pytest.raises(ModelError) as caught:
        open_hf(str(folder))
    assert str(folder) in str(caught.value)


def test_sharded_weights_are_read_and_fingerprinted(folder, tmp_path):
    sharded = tmp_path / "sharded"
    shutil.copytree(folder, sharded)
    (sharded / "model.safetensors").unlink()
    build_model("llama", torch.bfloat16).save_pretrained(sharded, max_shard_size="50KB")
    assert (sharded / "model.safetensors.index.json").is_file()
    with open_hf(str(sharded)) as shards, open_hf(str(folder)) as whole:
        np.testing.assert_array_equal(whole.embedding_table(), shards.embedding_table())
    next(iter(sorted(sharded.glob("model-*.safetensors")))).unlink()
    with pytest.raises(ModelError, match=r"there is no model-0"):
        open_hf(str(sharded))


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(ModelError, match="pip install megacontext-nothing"):
        open_packaged(package="megacontext_nothing")


# ----------------------------------------------------------------------------------- adapter


def test_embedding_table_is_a_view_of_float32_weights(byte_tokenizer):
    model = build_model("llama")
    with wrap(model, byte_tokenizer) as adapter:
        weight = model.get_input_embeddings().weight.detach().numpy()
        assert np.shares_memory(weight, adapter.embedding_table())


@pytest.mark.parametrize("token", [-1, 260])
def test_tokens_without_an_embedding_are_refused(byte_tokenizer, token):
    with wrap(build_model("llama"), byte_tokenizer) as adapter:
        with pytest.raises(ModelError, match="outside the vocabulary of 260"):
            adapter.embed(np.array([3, token]))
        assert (0, 48) == adapter.embed(np.array([], np.int32)).shape


def test_embeddings_a_family_scales_are_scaled(byte_tokenizer):
    model = build_model("gemma3-two-bases")
    with wrap(model, byte_tokenizer) as adapter, torch.inference_mode():
        expected = model.get_input_embeddings()(torch.tensor([7])).numpy()
        np.testing.assert_array_equal(expected, adapter.embed(np.array([7])))


def test_hidden_states_longer_than_the_window_are_refused(byte_tokenizer):
    with wrap(build_model("llama"), byte_tokenizer) as adapter:
        ids = np.zeros(100, np.int32)
        with pytest.raises(ModelError, match="129 tokens exceed"):
            adapter.hidden_states(ids, ids[:29])
        assert (0, 48) == adapter.hidden_states(ids[:0], ids).shape


def test_a_closed_adapter_refuses_and_closes_twice(byte_tokenizer):
    adapter = wrap(build_model("llama"), byte_tokenizer, name="mine")
    adapter.close()
    adapter.close()
    for call in (lambda: adapter.open_window(4), adapter.embedding_table):
        with pytest.raises(ModelError, match="'mine' is closed"):
            call()


def test_a_window_needs_a_slot(byte_tokenizer):
    with wrap(build_model("llama"), byte_tokenizer) as adapter:
        with pytest.raises(ConfigError, match="capacity=0"):
            adapter.open_window(0)


def test_flash_attention_is_refused_with_the_fix(byte_tokenizer):
    model = build_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    with wrap(model, byte_tokenizer) as adapter:
        with pytest.raises(ModelError, match="attn_implementation"):
            adapter.open_window(4)


def test_several_eos_tokens_are_all_kept(byte_tokenizer):
    model = build_model("llama")
    model.generation_config.eos_token_id = [7, 258]
    with wrap(model, build_tokenizer()) as adapter:
        assert (7, 258, 259) == adapter.info.eos_ids


def test_repr_names_the_model_and_where_it_computes(byte_tokenizer):
    adapter = wrap(build_model("llama"), byte_tokenizer, name="mine")
    assert "HfAdapter('mine', cpu, float32)" == repr(adapter)


def test_record_is_valid_and_its_module_light():
    (record,) = megacontext_hf.megacontext_model_adapters()
    assert ("hf", "megacontext_hf.adapter:open_hf") == (record.name, record.factory)
    code = (
        "import sys, megacontext_hf; "
        "print([m for m in ('numpy', 'torch', 'transformers') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[]" == found.stdout.strip()


def test_the_torch_module_is_the_model_itself_and_frozen():
    model = build_model("llama")
    with wrap(model, build_tokenizer()) as adapter:
        assert model is adapter.torch_module()
        assert not any(one.requires_grad for one in model.parameters())
    with pytest.raises(ModelError, match="closed"):
        adapter.torch_module()
