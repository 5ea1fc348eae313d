"""A bundle written by the first release of the format; every later build opens it."""

from pathlib import Path

import numpy as np
import pytest

from megacontext_sdk.memory.exchange.bundle import write_bundle
from megacontext_sdk.memory.exchange.bundle_check import check_bundle
from megacontext_sdk.memory.exchange.bundle_reader import open_bundle
from megacontext_sdk.memory.exchange.loading import load_memory
from megacontext_sdk.messages import decode_body

GOLDEN = Path(__file__).parent / "golden" / "format-1.0.bundle"
CHAIN = "f4265a83e79314ffb75927b6622a0fc0"
NUMBERS = (10, 831, 22)


def test_the_golden_bundle_is_sound(kit):
    with open_bundle(GOLDEN) as bundle:
        check_bundle(bundle, kit.vocab_size)
        assert CHAIN == bundle.header.chain
        assert NUMBERS == (
            bundle.header.seq,
            bundle.header.n_tokens,
            bundle.header.n_messages,
        )


def test_the_golden_bundle_says_what_it_said(kit):
    with open_bundle(GOLDEN) as bundle:
        bodies = bundle.read_bodies(np.array([1, 2, 4]))
        rows = bundle.read_messages(0, 5)
    assert ["question 0", None, "question 1"] == [decode_body(body).text for body in bodies]
    assert [4, 0, 1, 1, 0] == rows["role"].tolist()
    assert kit.forgotten == rows["flags"][2] & kit.forgotten


def test_the_golden_bundle_is_written_again_byte_by_byte(tmp_path, kit):
    meta = kit.meta(parent={"uuid": "f" * 32, "seq": 3, "chain": "e" * 32})
    with open_bundle(GOLDEN) as bundle:
        write_bundle(bundle, meta, tmp_path / "again")
    assert GOLDEN.read_bytes() == (tmp_path / "again").read_bytes()


@pytest.mark.parametrize("trust", ["cap", "keep"])
def test_the_golden_bundle_can_be_loaded(tmp_path, kit, trust):
    meta = load_memory(GOLDEN, into=tmp_path / "a.mc", trust=trust, **kit.target())
    store = kit.reopened(tmp_path / "a.mc", meta)
    assert NUMBERS[1] == store.state().n_tokens
    assert (CHAIN == store.read_commits(1, NUMBERS[0] + 1)["chain"][-1].tobytes().hex()) == (
        trust == "keep"
    )
