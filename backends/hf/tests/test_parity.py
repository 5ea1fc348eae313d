"""Windows give what the plain model gives: greedy text, logits, keys, for every family."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megacontext_hf.adapter import open_hf, wrap
from megacontext_hf.testing import FAMILIES, build_model
from megacontext_sdk.contracts.model import RowBatch, SamplingOptions

RANDOM_FAMILIES = ("qwen3", "mistral", "gpt-neox", "phi3", "cohere-interleaved")


def rows(ids, width):
    return RowBatch(np.asarray(ids, np.int32), np.empty((0, width), np.float32))


def greedy(adapter, prompt, n_tokens):
    """Decode through `step` alone, the prompt included."""
    window = adapter.open_window(len(prompt) + n_tokens)
    sampler = adapter.sampler(SamplingOptions())
    for at, token in enumerate(prompt):
        output = window.step(int(token), at, at)
    found = []
    for at in range(len(prompt), len(prompt) + n_tokens):
        found.append(sampler.sample(output))
        output = window.step(found[-1], at, at)
    return found


def generated(model, prompt, n_tokens):
    """The oracle: transformers' own greedy generation."""
    ids = torch.tensor([list(map(int, prompt))])
    with torch.inference_mode():
        full = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=n_tokens,
            min_new_tokens=n_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return full[0, len(prompt) :].tolist()


@pytest.mark.parametrize("forward", ["auto", "plain"])
@pytest.mark.parametrize("name", ["reference", "stories"])
def test_row60_greedy_steps_equal_generate_on_trained_models(name, forward, request):
    folder = request.getfixturevalue(f"{name}_folder")
    with open_hf(str(folder), forward=forward, device="cpu") as adapter:
        text = "Once upon a time there was a little dog. Tom lives in"
        prompt = adapter.tokenizer.encode(text)
        assert generated(adapter._model, prompt, 120) == greedy(adapter, prompt, 120)


@pytest.mark.parametrize("family", RANDOM_FAMILIES)
def test_row60_greedy_steps_equal_generate_on_random_models(family, byte_tokenizer):
    model = build_model(family)
    with wrap(model, byte_tokenizer) as adapter:
        prompt = np.random.default_rng(2).integers(0, 256, 12)
        assert generated(model, prompt, 60) == greedy(adapter, prompt, 60)


@pytest.mark.parametrize("forward", ["auto", "plain"])
@pytest.mark.parametrize("family", FAMILIES)
def test_row77_window_equals_plain_forward_also_in_shuffled_slots(family, forward, byte_tokenizer):
    model = build_model(family)
    ids = np.random.default_rng(4).integers(0, 260, 40)
    with torch.inference_mode():
        expected = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    scale = np.abs(expected).max()
    order = np.random.default_rng(5).permutation(40)
    with wrap(model, byte_tokenizer, forward=forward) as adapter:
        width = adapter.info.hidden_size
        for slots in (np.arange(40), order):
            window = adapter.open_window(40)
            found = window.write(rows(ids, width), np.arange(40), slots, "all").numpy()
            assert np.abs(expected - found).max() <= 1e-5 * max(1.0, scale)
        pieces = adapter.open_window(64)
        pieces.write(rows(ids[order[:20]], width), order[:20], np.arange(20))
        pieces.write(rows(ids[order[20:]], width), order[20:], np.arange(20, 40), "nothing")
        # The first half did not see the second; repaired rows do.
        for _ in range(len(model.get_decoder().layers)):
            found = pieces.write(rows(ids[order], width), order, np.arange(40), "all").numpy()
        assert np.abs(expected[order] - found).max() <= 1e-5 * max(1.0, scale)


@pytest.mark.parametrize("family", ["llama", "gpt-neox", "smollm3"])
def test_row77_half_precision_stays_near_the_plain_forward(family, byte_tokenizer):
    model = build_model(family, torch.bfloat16)
    ids = np.random.default_rng(4).integers(0, 260, 40)
    with torch.inference_mode():
        expected = model(torch.from_numpy(ids)[None]).logits[0].float().numpy()
    with wrap(model, byte_tokenizer) as adapter:
        assert "bfloat16" == adapter.info.dtype
        window = adapter.open_window(40)
        order = np.random.default_rng(5).permutation(40)
        found = window.write(rows(ids, adapter.info.hidden_size), np.arange(40), order, "all")
        assert np.abs(expected - found.numpy()).max() <= 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_row62_turned_keys_equal_keys_computed_there(family, byte_tokenizer):
    ids = np.random.default_rng(6).integers(0, 260, 24)
    targets = np.random.default_rng(7).permutation(90)[:24]
    with wrap(build_model(family), byte_tokenizer, trained_window=96) as adapter:
        width = adapter.info.hidden_size
        moved, shifted, fresh = (adapter.open_window(24) for _ in range(3))
        for window in (moved, shifted):
            window.write(rows(ids, width), np.arange(24), np.arange(24))
        fresh.write(rows(ids, width), np.arange(24) + 60, np.arange(24))
        shifted.move(np.arange(24), np.arange(24) + 60)
        assert_keys_equal(fresh._cache.keys, shifted._cache.keys)
        # The first layer's keys depend on token and position alone, so any order must agree.
        fresh.write(rows(ids, width), targets, np.arange(24))
        moved.move(np.arange(24), targets)
        assert_keys_equal(fresh._cache.keys[0], moved._cache.keys[0])


def test_row62_a_thousand_swaps_do_not_drift(reference_folder):
    random = np.random.default_rng(8)
    ids = random.integers(7, 4000, 64)
    with open_hf(str(reference_folder), trained_window=1024, device="cpu") as adapter:
        window, fresh = adapter.open_window(64), adapter.open_window(64)
        window.write(rows(ids, 256), np.arange(64), np.arange(64))
        for _ in range(1_000):
            slots = random.permutation(64)[: random.integers(1, 64)]
            window.move(slots, random.permutation(1024)[: len(slots)])
        window.move(np.arange(64), np.arange(64) + 900)
        fresh.write(rows(ids, 256), np.arange(64) + 900, np.arange(64))
        assert_keys_equal(fresh._cache.keys, window._cache.keys)


def assert_keys_equal(expected, found):
    """Within 1e-5 of the largest key, float32."""
    worst = float((expected - found).abs().max() / expected.abs().max())
    assert worst <= 1e-5


@pytest.mark.parametrize("forward", ["auto", "plain"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt-neox"])
def test_row68_shuffled_slots_and_poisoned_free_slots_change_nothing(
    family, forward, byte_tokenizer
):
    random = np.random.default_rng(9)
    ids = random.integers(0, 260, 30)
    with wrap(build_model(family), byte_tokenizer, forward=forward) as adapter:
        width = adapter.info.hidden_size
        clean, dirty = adapter.open_window(30), adapter.open_window(64)
        clean.write(rows(ids[:20], width), np.arange(20), np.arange(20))
        dirty.write(rows(ids[:20], width), np.arange(20), random.permutation(20))
        poison(dirty)
        expected = clean.write(rows(ids[20:], width), np.arange(20, 30), np.arange(20, 30), "all")
        found = dirty.write(rows(ids[20:], width), np.arange(20, 30), np.arange(20, 30), "all")
        np.testing.assert_allclose(expected.numpy(), found.numpy(), atol=1e-4)
        poison(dirty)
        expected, found = (w.step(7, 30, w.n_live) for w in (grown(clean, adapter), dirty))
        np.testing.assert_allclose(expected.numpy(), found.numpy(), atol=1e-4)


def grown(window, adapter):
    """A larger window with the same rows, through export and restore."""
    larger = adapter.open_window(window.capacity + 1)
    places = np.arange(window.n_live)
    larger.restore(window.export(places), places, places)
    return larger


def poison(window):
    """Fill every free slot with NaN."""
    free = torch.from_numpy(window._slots.positions < 0)
    with torch.inference_mode():
        for buffer in window._buffers():
            buffer[:, :, :, free] = float("nan")


def test_row68_slots_with_holes_are_gathered_not_masked(byte_tokenizer):
    """A caller that has not packed its slots yet still never reaches a free one."""
    with wrap(build_model("llama"), byte_tokenizer) as adapter:
        width, ids = adapter.info.hidden_size, np.arange(12)
        holey, packed = adapter.open_window(32), adapter.open_window(32)
        for window in (holey, packed):
            window.write(rows(ids, width), np.arange(12), np.arange(12))
            window.release(np.array([2, 3, 7]))
        packed.relocate(np.array([11, 10, 9]), np.array([2, 3, 7]))
        poison(holey)
        expected, found = packed.step(5, 12, 9), holey.step(5, 12, 12)
        np.testing.assert_allclose(expected.numpy(), found.numpy(), atol=1e-5)
        assert (10, 10) == (packed.n_live, holey.n_live)
