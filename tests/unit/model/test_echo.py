"""The echo model passes the kit, and is what its page says: small, seeded, readable."""

from __future__ import annotations

import numpy as np
import pytest

from megacontext_sdk.builtin.echo import EchoModel
from megacontext_sdk.contracts.model import RowBatch, SamplingOptions
from megacontext_sdk.errors import ConfigError, ModelError
from megacontext_sdk.testing.model import ModelAdapterConformance

NO_VECTORS = np.empty((0, 32), np.float32)


class TestEchoModel(ModelAdapterConformance):
    make = staticmethod(EchoModel)


def test_two_openings_are_the_same_model():
    first, second = EchoModel(), EchoModel()
    np.testing.assert_array_equal(first.embedding_table(), second.embedding_table())
    assert first.info == second.info
    assert first.info.fingerprint != EchoModel(seed=8).info.fingerprint


def test_replies_are_readable_text():
    with EchoModel() as model:
        window, sampler = model.open_window(256), model.sampler(SamplingOptions())
        ids = model.tokenizer.encode("<|bos|><|user|>hi<|end|><|assistant|>", special=True)
        places = np.arange(len(ids))
        output = window.write(RowBatch(ids, NO_VECTORS), places, places, "last")
        reply = []
        for position in range(len(ids), 120):
            reply.append(sampler.sample(output))
            output = window.step(reply[-1], position, position)
        text = model.tokenizer.decode(np.array(reply, np.int32), special=False)
        assert text.isascii()
        assert len(set(text)) > 8


def test_window_forward_equals_a_plain_loop_over_rows():
    model = EchoModel()
    ids = np.arange(40, 60).astype(np.int32)
    places = np.arange(20)
    found = model.open_window(20).write(RowBatch(ids, NO_VECTORS), places, places, "hidden")
    np.testing.assert_allclose(plain_forward(model, ids), found.numpy(), atol=1e-5)


def plain_forward(model, ids):
    """The oracle: one row, one head, one key at a time, in float64."""
    weights = model._weights
    x = weights.table[ids].astype(np.float64)
    frequencies = 10_000.0 ** (-np.arange(8) / 8)

    def turned(vector, position):
        angle = position * frequencies
        a, b = vector[:8], vector[8:]
        return np.concatenate(
            [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)]
        )

    for query, key, value, out in weights.projections.astype(np.float64):
        normed = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
        added = np.zeros_like(x)
        for row in range(len(x)):
            heads = []
            for head in range(2):
                part = slice(16 * head, 16 * head + 16)
                q = turned((normed[row] @ query)[part], row)
                scores = [q @ turned((normed[j] @ key)[part], j) / 4.0 for j in range(row + 1)]
                chances = np.exp(scores) / np.exp(scores).sum()
                heads.append(sum(c * (normed[j] @ value)[part] for j, c in enumerate(chances)))
            added[row] = np.concatenate(heads) @ out
        x = x + added
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def test_trained_window_can_be_given_as_text():
    model = EchoModel("", trained_window="32")
    assert 32 == model.info.trained_window
    with pytest.raises(ModelError, match="trained window of 32"):
        model.open_window(8).step(65, 32, 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -0.1), ("top_p", 0.0), ("top_p", 1.5), ("top_k", -1)],
)
def test_sampling_options_out_of_range_are_refused(field, value):
    with pytest.raises(ConfigError, match=field) as caught:
        EchoModel().sampler(SamplingOptions(**{field: value}))
    assert (field, value) == (caught.value.field, caught.value.value)


def test_top_p_keeps_the_token_that_crosses_it():
    from megacontext_sdk.builtin.array_sampler import ArrayOutput, ArraySampler

    output = ArrayOutput(np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32)))
    sampler = ArraySampler(SamplingOptions(temperature=1.0, top_p=0.6, seed=0))
    assert {0, 1} == {sampler.sample(output) for _ in range(200)}


def test_slot_mistakes_are_named():
    window = EchoModel().open_window(8)
    one, rows = np.array([0]), RowBatch(np.array([65], np.int32), NO_VECTORS)
    with pytest.raises(ModelError, match="1 rows were given 2 slots"):
        window.write(rows, np.array([0, 1]), np.array([0, 1]))
    with pytest.raises(ModelError, match="free slot"):
        window.move(one, one)
    with pytest.raises(ModelError, match="free slot"):
        window.export(one)
    window.write(rows, one, one)
    with pytest.raises(ModelError, match="relocated"):
        window.relocate(one, one)
    two = RowBatch(np.array([65, 66], np.int32), NO_VECTORS)
    with pytest.raises(ModelError, match="same position"):
        window.write(two, np.array([3, 3]), np.array([1, 2]))
    with pytest.raises(ModelError, match="named twice"):
        window.write(two, np.array([3, 4]), np.array([1, 1]))
    assert 1 == window.n_live


def test_an_empty_write_changes_nothing():
    window = EchoModel().open_window(8)
    nothing = np.array([], np.int64)
    assert window.write(RowBatch(nothing.astype(np.int32), NO_VECTORS), nothing, nothing) is None
    assert 0 == window.n_live


def test_history_longer_than_the_trained_window_is_refused():
    model = EchoModel(trained_window=16)
    with pytest.raises(ModelError, match="trained window"):
        model.hidden_states(np.arange(17, dtype=np.int32), np.array([], np.int32))
