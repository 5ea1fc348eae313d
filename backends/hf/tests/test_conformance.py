"""The kit of the contract on several families, in both forward passes and in half precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megacontext_hf.adapter import open_hf, wrap
from megacontext_hf.testing import build_model, build_tokenizer
from megacontext_sdk.testing.model import ModelAdapterConformance

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = ROOT / "plugins/reference/megacontext_reference/weights"
STORIES = ROOT.parent / "shared/models/stories260K"


def wrapped(family, dtype=torch.float32, forward="auto"):
    return wrap(build_model(family, dtype), build_tokenizer(), name=family, forward=forward)


class TestLlama(ModelAdapterConformance):
    make = staticmethod(lambda: wrapped("llama"))


class TestLlamaPlain(ModelAdapterConformance):
    make = staticmethod(lambda: wrapped("llama", forward="plain"))


class TestGPTNeoX(ModelAdapterConformance):
    make = staticmethod(lambda: wrapped("gpt-neox"))


class TestSmolLM3(ModelAdapterConformance):
    make = staticmethod(lambda: wrapped("smollm3"))


class TestHalfPrecision(ModelAdapterConformance):
    make = staticmethod(lambda: wrapped("qwen2", torch.bfloat16))


class TestReference(ModelAdapterConformance):
    make = staticmethod(lambda: open_hf(str(REFERENCE), trained_window=1024))


@pytest.mark.skipif(not STORIES.is_dir(), reason="the folder ../shared/models is not here")
class TestStories(ModelAdapterConformance):
    make = staticmethod(lambda: open_hf(str(STORIES)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
class TestCuda(ModelAdapterConformance):
    make = staticmethod(lambda: open_hf(str(REFERENCE), trained_window=1024, device="cuda"))
