"""The frozen base: what it refuses, and that a copy in another number format computes the same."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from megacontext_gistnet.training.base import (
    FrozenBase,
    best_dtype,
    digest_of,
    freeze,
    refuse_changed,
)
from megacontext_sdk.errors import InvariantError, ModelError

from .conftest import SuccessorBase, build_llama, draw_ids

CPU = torch.device("cpu")


def test_layers_and_head_apart_are_the_whole_model(llama):
    base, ids = FrozenBase(llama), draw_ids()
    with torch.no_grad():
        found = base.logits(base.hidden(base.embed(ids)))
        torch.testing.assert_close(found, llama(ids).logits)


def test_a_copy_in_bfloat16_leaves_the_model_and_its_rotary_angles_alone(llama):
    before = digest_of(llama)
    base = FrozenBase(llama, torch.bfloat16)
    assert torch.bfloat16 == base.dtype
    assert torch.float32 == next(llama.parameters()).dtype
    assert before == digest_of(llama)
    assert torch.float32 == base._run.model.rotary_emb.inv_freq.dtype
    tied = base._run.get_output_embeddings().weight.dtype
    assert torch.bfloat16 == tied
    ids = draw_ids()
    with torch.no_grad():
        rough = base.logits(base.hidden(base.embed(ids))).float().log_softmax(-1)
        exact = llama(ids).logits.log_softmax(-1)
    assert 0.3 > float((rough - exact).abs().max())


def test_gradients_cross_the_base_to_its_rows(llama):
    base = FrozenBase(llama)
    rows = base.embed(draw_ids()).requires_grad_()
    base.hidden(rows).sum().backward()
    assert bool((rows.grad[:, 0] != 0).any())


def test_a_base_that_would_be_trained_is_refused():
    module = build_llama()
    module.lm_head.weight.requires_grad_(True)
    with pytest.raises(ModelError, match="freeze it first"):
        FrozenBase(module)


def test_a_soft_cap_behind_the_head_is_known():
    module = SuccessorBase()
    module.config = SimpleNamespace(final_logit_softcapping=5.0)
    plain = module.forward
    module.forward = lambda inputs_embeds, use_cache: SimpleNamespace(
        logits=torch.tanh(plain(inputs_embeds, use_cache).logits / 5.0) * 5.0
    )
    base = FrozenBase(module)
    assert 5.0 >= float(base.logits(base.embed(torch.tensor([[3]]))).max())


def test_a_model_that_changes_its_logits_otherwise_is_refused():
    module = SuccessorBase()
    plain = module.forward
    module.forward = lambda inputs_embeds, use_cache: SimpleNamespace(
        logits=plain(inputs_embeds, use_cache).logits * 0.5
    )
    with pytest.raises(ModelError, match="changes its logits behind the head"):
        FrozenBase(module)


def test_a_model_without_a_head_is_refused():
    module = SuccessorBase()
    module.get_output_embeddings = lambda: None
    with pytest.raises(ModelError, match="has no head"):
        FrozenBase(module)


def test_row25_a_base_that_changed_is_reported():
    module = freeze(build_llama())
    before = digest_of(module)
    refuse_changed(before, module)
    with torch.no_grad():
        module.lm_head.weight[0, 0] += 1e-3
    with pytest.raises(InvariantError, match="changed the frozen base"):
        refuse_changed(before, module)


def test_the_number_format_is_what_was_asked_for_or_the_faster_one(monkeypatch):
    from megacontext_gistnet.training import base

    assert torch.float32 == best_dtype(CPU, "float32")
    assert torch.bfloat16 == best_dtype(CPU, "bfloat16")
    for fast, expected in ((0.5, torch.bfloat16), (1.0, torch.float32)):
        seconds = {torch.float32: 1.0, torch.bfloat16: fast}
        monkeypatch.setattr(base, "_seconds", seconds.get)
        assert expected == best_dtype(CPU)
    assert torch.float32 == best_dtype(torch.device("meta"))


def test_the_probe_takes_a_time():
    from megacontext_gistnet.training.base import _seconds

    assert 0 < _seconds(torch.float32) < 60


FAMILIES = (
    *("llama", "llama3-scaling", "qwen2", "qwen3", "mistral", "smollm3"),
    *("gpt-neox", "phi3", "cohere-interleaved", "gemma3-two-bases"),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_cross_every_family_and_its_logits_are_the_models(family):
    testing = pytest.importorskip("megacontext_hf.testing", reason="megacontext-hf is missing")
    base = FrozenBase(freeze(testing.build_model(family)))  # compares them when it is made
    rows = base.embed(torch.arange(40)[None]).requires_grad_()
    base.logits(base.hidden(rows))[:, -1].sum().backward()
    assert bool((rows.grad[:, 0] != 0).any())
