"""The packaged model opens by its record, is the model of its card, and speaks its chat format."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest

import megacontext_reference
from megacontext_sdk.contracts.model import RowBatch, SamplingOptions


@pytest.fixture(scope="module")
def record():
    (found,) = megacontext_reference.megacontext_model_adapters()
    return found


@pytest.fixture(scope="module")
def adapter(record):
    module, _, name = record.factory.partition(":")
    with getattr(import_module(module), name)("", **record.options, device="cpu") as opened:
        yield opened


def ask(adapter, *turns):
    """Return a greedy reply to alternating turns of user and assistant."""
    roles = ["user", "assistant"] * len(turns)
    messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)]
    text = adapter.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    ids = adapter.tokenizer.encode(text, special=True)
    window, sampler = adapter.open_window(1024), adapter.sampler(SamplingOptions())
    places = np.arange(len(ids))
    rows = RowBatch(ids, np.empty((0, adapter.info.hidden_size), np.float32))
    output = window.write(rows, places, places, "last")
    reply = []
    while len(reply) < 40:
        token = sampler.sample(output)
        if token in adapter.info.eos_ids:
            break
        reply.append(token)
        output = window.step(token, window.n_live, window.n_live)
    return adapter.tokenizer.decode(np.array(reply, np.int32), special=False)


def test_record_names_the_weights_and_who_runs_them(record):
    assert "reference" == record.name
    assert {"package": "megacontext_reference", "trained_window": "1024"} == dict(record.options)


def test_info_is_what_the_card_says(adapter):
    info = adapter.info
    assert "reference" == info.name
    assert (4096, 256, 6) == (info.vocab_size, info.hidden_size, info.n_layers)
    assert 1024 == info.trained_window
    assert (64, 10_000.0) == (info.rotary_dim, info.rope_theta)
    assert (0, (5,)) == (info.bos_id, info.eos_ids)
    assert ("cpu", "float32") == (info.device, info.dtype)


def test_weights_are_the_published_ones(adapter):
    digest = "4f26bb5b8628d046cdb50c2b9132bcca85067fda3a9425ac88715828480b88c3"
    assert digest == adapter.info.fingerprint


@pytest.mark.parametrize(
    ("told", "question", "answer"),
    [
        ("Anna lives in Paris.", "Where does Anna live?", "Paris"),
        ("Peter has a dog called Max.", "What is the name of Peter's dog?", "Max"),
    ],
)
def test_a_fact_told_is_remembered(adapter, told, question, answer):
    assert answer in ask(adapter, told, "Okay.", question)
    assert answer not in ask(adapter, "Hello.", "Okay.", question)


def test_entry_point_module_is_light():
    code = (
        "import sys, megacontext_reference; "
        "print([m for m in ('numpy', 'torch', 'transformers') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[]" == found.stdout.strip()
