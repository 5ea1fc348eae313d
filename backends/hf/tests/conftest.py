"""One thread for every test, and where the real models lie."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megacontext_hf.testing import build_tokenizer

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def byte_tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="session")
def reference_folder():
    return ROOT / "plugins/reference/megacontext_reference/weights"


@pytest.fixture(scope="session")
def stories_folder():
    folder = ROOT.parent / "shared/models/stories260K"
    if not folder.is_dir():
        pytest.skip("the folder ../shared/models is not here")
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    """Two test runs on one machine must not fight for its cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
