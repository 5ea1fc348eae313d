"""Optimised vectors: they climb above where they start, touch no weight, and are told apart."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from megacontext_gistnet.evaluation.ceiling import (
    ELSEWHERE,
    HERE,
    CeilingSettings,
    ceiling,
    fit,
    write_on,
)
from megacontext_gistnet.evaluation.lab import Arm, Lab, Readings
from megacontext_gistnet.evaluation.reader import Reader, frozen_base
from megacontext_gistnet.evaluation.windows import Windows
from megacontext_sdk.builtin.mean_gist import MeanGistEncoder

QUICK = CeilingSettings(n_steps=30, n_continuations=2)


@pytest.fixture
def lab(tiny):
    return Lab(
        adapter=tiny,
        reader=Reader(frozen_base(tiny)),
        arms=(Arm("mean", 1, MeanGistEncoder(1)),),
    )


@pytest.fixture
def windows():
    ids = np.random.default_rng(0).integers(0, 256, (2, 160))
    return Windows(ids, ("story", "code"), ("a", "b"), (0, 0))


def digest(model):
    whole = hashlib.sha256()
    for one in model.parameters():
        whole.update(one.detach().numpy().tobytes())
    return whole.hexdigest()


def test_vectors_climb_towards_the_full_context(lab, windows):
    found = ceiling(Readings(lab, windows), (1,), QUICK)
    nll = {name: found.line(name, 1).recovery for name in ("mean", HERE, ELSEWHERE)}
    assert nll[HERE].delta_nll.value < 0.7 * nll["mean"].delta_nll.value
    assert {"full", "drop", "mean", HERE, ELSEWHERE} == {one.condition.name for one in found.lines}
    assert "4 blocks of 2 windows" in found.about[0]


def test_fitting_lowers_the_divergence_from_the_teacher(lab, windows):
    """The same descent with no steps left over is where it began."""
    start = np.random.default_rng(1).normal(0, 1, (2, 2, 1, 48)).astype(np.float32)
    none = fit(lab.reader, [windows.token_ids], start, 1.0, CeilingSettings(n_steps=0))
    assert np.abs(none - start).max() < 1e-6
    told = []
    some = fit(
        lab.reader, [windows.token_ids], start, 1.0, CeilingSettings(n_steps=20), told.append
    )
    assert len(told) == 20
    assert np.abs(some - start).max() > 0.1


def test_the_base_is_frozen_and_holds_no_gradient(lab, windows, tiny):
    before = digest(tiny.torch_module())
    ceiling(Readings(lab, windows), (1,), QUICK)
    assert before == digest(tiny.torch_module())
    assert all(one.grad is None for one in tiny.torch_module().parameters())


def test_what_the_base_writes_is_repeatable_and_keeps_the_beginning(lab, windows):
    def write(seed):
        generator = torch.Generator().manual_seed(seed)
        return write_on(lab.reader, windows.token_ids, 64, generator)

    one = write(0)
    assert np.array_equal(one, write(0))
    assert not np.array_equal(one, write(1))
    assert np.array_equal(one[:, :64], windows.token_ids[:, :64])
    assert one.shape == windows.token_ids.shape


def test_it_writes_what_it_would_say_without_a_cache(lab, windows, monkeypatch):
    """Greedily, the oracle: the whole text is read again for every token."""
    monkeypatch.setattr(torch, "multinomial", lambda p, n, generator: p.argmax(-1, keepdim=True))
    found = write_on(lab.reader, windows.token_ids, 150, torch.Generator())
    for row in found:
        for at in range(150, 160):
            with torch.no_grad():
                logits = lab.reader.base(input_ids=torch.from_numpy(row[None, :at])).logits
            assert row[at] == logits[0, -1].argmax()


def test_the_honest_ceiling_never_sees_the_tokens_it_is_counted_on(lab, windows, monkeypatch):
    """Other endings, same beginning: planting the real text there is noticed."""
    seen = []
    right = fit

    def spy(reader, texts, *rest):
        seen.append([one.copy() for one in texts])
        return right(reader, texts, *rest)

    monkeypatch.setattr("megacontext_gistnet.evaluation.ceiling.fit", spy)
    ceiling(Readings(lab, windows), (1,), CeilingSettings(n_steps=1, n_continuations=2))
    elsewhere, here = seen
    assert np.array_equal(here[0], windows.token_ids)
    for text in elsewhere:
        assert np.array_equal(text[:, :64], windows.token_ids[:, :64])
        assert (text[:, 64:] == windows.token_ids[:, 64:]).mean() < 0.2
