"""What the window does beside computing: refusals, repairs, no needless work on the hot path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megacontext_hf.adapter import wrap
from megacontext_hf.testing import build_model, build_tokenizer
from megacontext_sdk.contracts.model import BlockKV, RowBatch
from megacontext_sdk.errors import ModelError


def rows(ids, width=48):
    return RowBatch(np.asarray(ids, np.int32), np.empty((0, width), np.float32))


@pytest.fixture
def adapter(byte_tokenizer):
    with wrap(build_model("llama"), byte_tokenizer) as opened:
        yield opened


@pytest.fixture
def window(adapter):
    opened = adapter.open_window(32)
    opened.write(rows(range(16)), np.arange(16), np.arange(16))
    return opened


class Counter(TorchDispatchMode):
    """Counts operations."""

    def __init__(self):
        super().__init__()
        self.n_calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.n_calls += 1
        return function(*args, **(kwargs or {}))


def test_fast_step_takes_far_fewer_operations(byte_tokenizer):
    n_calls = {}
    for forward in ("auto", "plain"):
        with wrap(build_model("llama"), byte_tokenizer, forward=forward) as adapter:
            window = adapter.open_window(32)
            window.step(1, 0, 0)
            with Counter() as counter:
                window.step(2, 1, 1)
            n_calls[forward] = counter.n_calls
    assert n_calls["auto"] <= 0.6 * n_calls["plain"]


def test_step_makes_no_mask(window, monkeypatch):
    monkeypatch.setattr(window, "_mask", lambda *_: pytest.fail("step built a mask"))
    window.step(5, 16, 16)
    assert 17 == window.n_live


def test_prefill_of_an_empty_window_in_order_makes_no_mask(adapter, monkeypatch):
    window = adapter.open_window(32)
    monkeypatch.setattr(window, "_mask", lambda *_: pytest.fail("prefill built a mask"))
    window.write(rows(range(16)), np.arange(3, 19), np.arange(16))


def test_step_behind_other_rows_still_sees_only_smaller_positions(adapter, window):
    window.move(np.array([15]), np.array([30]))
    other = adapter.open_window(32)
    other.write(rows(range(15)), np.arange(15), np.arange(15))
    expected, found = other.step(9, 15, 15), window.step(9, 15, 16)
    np.testing.assert_allclose(expected.numpy(), found.numpy(), atol=1e-5)


def test_wanting_nothing_leaves_the_head_alone(window, monkeypatch):
    monkeypatch.setattr(window._forward, "logits", lambda *_: pytest.fail("the head ran"))
    window.write(rows([1]), np.array([16]), np.array([16]))
    window.write(rows([1]), np.array([17]), np.array([17]), "hidden")


def test_a_failing_pass_frees_its_slots(window, monkeypatch):
    def fail(*_):
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(window._forward, "hidden", fail)
        patch.setattr(window._forward, "logits", fail)
        with pytest.raises(RuntimeError):
            window.write(rows([1, 2]), np.array([16, 17]), np.array([16, 17]))
        with pytest.raises(RuntimeError):
            window.step(1, 16, 16)
    assert 16 == window.n_live
    window.step(1, 16, 16)


def test_moving_most_rows_leaves_the_others_bit_for_bit(window):
    before = window._cache.keys.clone()
    window.move(np.arange(4, 16), np.arange(4, 16) + 10)
    assert torch.equal(before[:, :, :, :4], window._cache.keys[:, :, :, :4])
    assert not torch.equal(before[:, :, :, 4:16], window._cache.keys[:, :, :, 4:16])
    window.move(np.arange(4, 16), np.arange(4, 16))
    assert torch.equal(before, window._cache.keys)


def test_moving_few_scattered_rows_touches_no_other(window):
    before = window._cache.keys.clone()
    window.move(np.array([3, 9]), np.array([20, 21]))
    still = torch.tensor([slot for slot in range(32) if slot not in {3, 9}])
    assert torch.equal(before[:, :, :, still], window._cache.keys[:, :, :, still])
    assert not torch.equal(before[:, :, :, 9], window._cache.keys[:, :, :, 9])


def test_values_never_turn(window):
    before = window._cache.values.clone()
    window.move(np.arange(16), np.arange(16) + 5)
    assert torch.equal(before, window._cache.values)


def test_moving_nothing_and_releasing_nothing_are_no_ops(window):
    nothing = np.array([], np.int64)
    window.move(nothing, nothing)
    window.release(nothing)
    window.relocate(nothing, nothing)
    assert window.write(rows([]), nothing, nothing) is None
    assert 16 == window.n_live


def test_relocation_keeps_the_base_of_turned_rows(window):
    window.move(np.arange(16), np.arange(16) + 3)
    window.release(np.array([0, 1]))
    window.relocate(np.array([15, 14]), np.array([0, 1]))
    kept = window._cache.keys[:, :, :, :14].clone()
    window.move(np.arange(14), window._slots.positions[:14] + 5)
    window.move(np.arange(14), window._slots.positions[:14] - 5)
    assert torch.equal(kept, window._cache.keys[:, :, :, :14])


def test_exported_bytes_are_counted(window):
    block = window.export(np.arange(4))
    # 4 layers, 2 heads, 4 rows, head dimension 12, keys and values, float32
    assert 4 * 2 * 4 * 12 * 2 * 4 == block.n_bytes


def test_restored_block_of_another_model_is_refused(window, byte_tokenizer):
    with wrap(build_model("qwen3"), byte_tokenizer) as other:
        stranger = other.open_window(4)
        stranger.step(1, 0, 0)
        block = stranger.export(np.array([0]))
    for bad in (block, BlockKV(1, 8, ("keys", "values"))):
        with pytest.raises(ModelError, match="another model"):
            window.restore(bad, np.array([16]), np.array([16]))
    with pytest.raises(ModelError, match="rows were given"):
        window.restore(window.export(np.arange(2)), np.array([16]), np.array([16]))


@pytest.mark.parametrize("token", [-1, 260, 10_000])
def test_tokens_outside_the_vocabulary_are_refused(window, token):
    with pytest.raises(ModelError, match="vocabulary of 260"):
        window.step(token, 16, 16)
    if token > 0:
        with pytest.raises(ModelError, match=f"token {token} is outside"):
            window.write(rows([1, token]), np.array([16, 17]), np.array([16, 17]))
    assert 16 == window.n_live


def test_vectors_must_match_the_rows_that_ask_for_them(window):
    bad = RowBatch(np.array([-1, 3], np.int32), np.zeros((2, 48), np.float32))
    with pytest.raises(ModelError, match="1 rows are vectors, but 2"):
        window.write(bad, np.array([16, 17]), np.array([16, 17]))


def test_step_beyond_the_capacity_or_the_trained_window_is_refused(adapter):
    window = adapter.open_window(1)
    with pytest.raises(ModelError, match="trained window of 128"):
        window.step(1, 128, 0)
    window.step(1, 0, 0)
    with pytest.raises(ModelError, match="capacity of 1"):
        window.step(1, 1, 1)


def test_a_closed_window_refuses_everything(window):
    block = window.export(np.arange(2))
    window.close()
    window.close()
    one = np.array([0])
    calls = [
        lambda: window.write(rows([1]), one, one),
        lambda: window.step(1, 0, 0),
        lambda: window.release(one),
        lambda: window.relocate(one, one),
        lambda: window.move(one, one),
        lambda: window.export(one),
        lambda: window.restore(block, np.arange(2), np.arange(2)),
    ]
    for call in calls:
        with pytest.raises(ModelError, match="closed"):
            call()
    assert 0 == window.n_live


def test_repr_shows_counts_only(window):
    assert "TorchWindow(16 of 32 slots)" == repr(window)


def test_windows_of_one_adapter_do_not_share_slots(byte_tokenizer):
    with wrap(build_model("mistral"), build_tokenizer()) as adapter:
        first, second = adapter.open_window(8), adapter.open_window(8)
        expected = first.step(5, 0, 0).numpy()
        second.step(9, 0, 0)
        assert (1, 1) == (first.n_live, second.n_live)
        again = adapter.open_window(8).step(5, 0, 0).numpy()
        np.testing.assert_array_equal(expected, again)
