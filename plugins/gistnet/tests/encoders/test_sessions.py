"""Memories with learned gists: pure functions of the text, remembered, and beside the decoding."""

from __future__ import annotations

import shutil
from threading import Thread

import numpy as np
import pytest
import torch

from megacontext_hf.adapter import wrap
from megacontext_hf.testing import build_model, build_tokenizer
from megacontext_sdk import MemorySession, errors
from megacontext_sdk.plugins import Plugins
from megacontext_sdk.testing.gist import blocks_of

TEXT = "The harbour master of Oslo keeps a red boat and two grey cats. "


@pytest.fixture
def open_session(lab, tmp_path):
    """Return what opens a memory with the tiny model: in RAM, or on disk by a name."""

    def open_it(gist=None, name=None, **given):
        place = tmp_path / name if name else None
        arguments = {
            "model": lab.adapter,
            "storage": "duckdb" if name else "memory",
            "plugins": Plugins.load(plugins=("duckdb", "gistnet")),
            "gist": gist,
            "gist_dtype": "f4",
            "w_max": 320,
            "strict": True,
        }
        return MemorySession.open(place, **{**arguments, **given})

    return open_it


def gists_of(session, lod=1):
    """Return the stored gists of a level, float32[n, S, d]."""
    session.flush()
    tree = session._parts.tree
    return tree.gists(lod, np.arange(session.stats().nodes[lod])).copy()


def history_of(session):
    """Return the full blocks of a session, int32[n, 32]."""
    n_blocks = session.stats().n_blocks
    return session._parts.tree.token_ids_of_blocks(np.arange(n_blocks))


def test_row26_gists_do_not_depend_on_what_is_in_view(lab, open_session, kind):
    """The trap: gists made from the served window. Two budgets, two questions, one text."""
    found = []
    for w_max, word in ((320, "boat"), (400, "Lisbon")):
        with open_session(f"{kind}:{lab.file(kind)}", w_max=w_max) as session:
            for turn in range(30):
                session.append(TEXT * (1 + turn % 3))
                if turn % 10 == 9:
                    session.generate(f"Where is the {word}?", max_new_tokens=4, remember=False)
            found.append((gists_of(session), gists_of(session, 2), history_of(session)))
    for first, second in zip(*found, strict=True):
        assert np.abs(first - second).max() < 1e-4
    expected = lab.oracle(kind, found[0][2], 1)
    assert np.abs(expected - found[0][0]).max() < 1e-4


def test_the_memory_opens_with_the_weights_it_was_made_with(lab, open_session, kind):
    named = f"{kind}:{lab.file(kind)}"
    with open_session(named, name="a.mc") as session:
        session.append(TEXT * 10)
        assert named == session.stats().gist
        gists = gists_of(session)
    with open_session(name="a.mc") as session:
        assert named == session.stats().gist
        assert 0 == session.stats().gists_rebuilt
        np.testing.assert_array_equal(gists, gists_of(session))


def test_a_memory_whose_weights_are_gone_says_how_to_open_it(lab, open_session, kind, tmp_path):
    moving = shutil.copy(lab.file(kind), tmp_path / "moving.safetensors")
    with open_session(f"{kind}:{moving}", name="c.mc") as session:
        session.append(TEXT * 10)
    moving.unlink()
    with pytest.raises(errors.ModelError, match='moving.safetensors cannot be read.*gist="mean"'):
        open_session(name="c.mc")
    with open_session("mean", name="c.mc") as session:
        assert "mean" == session.stats().gist


def test_a_folder_names_its_weights(lab, open_session, kind):
    with open_session(f"{kind}:{lab.folder}") as session:
        session.append(TEXT * 3)
        assert np.abs(lab.oracle(kind, history_of(session), 1) - gists_of(session)).max() < 1e-4


def test_rebuild_re_encodes_a_memory_of_mean_gists(lab, open_session, kind):
    with open_session("mean", name="b.mc") as session:
        session.append(TEXT * 40)
        made = session.rebuild(gist=f"{kind}:{lab.file(kind)}")
        nodes = session.stats().nodes
        assert (sum(nodes[lod] for lod in nodes if lod), 0) == (made.encoded, made.kept_old)
        assert np.abs(lab.oracle(kind, history_of(session), 1) - gists_of(session)).max() < 1e-4
    with open_session(name="b.mc") as session:
        assert f"{kind}:{lab.file(kind)}" == session.stats().gist


def test_the_budget_counts_the_slots(lab, open_session, kind):
    for slots in (1, 4):
        with open_session(f"{kind}:{lab.file(kind)}", gist_slots=slots, w_max=448) as session:
            session.append(TEXT * 20)
            assert (slots, 48) == gists_of(session).shape[1:]
            cost = {e.lod: e.cost for e in session.focus.report().entries if e.lod}
            assert set(cost.values()) <= {slots}


def test_another_base_is_refused_before_anything_is_made(lab, open_session, kind, tmp_path):
    other = build_model("llama", intermediate_size=80)
    with wrap(other, build_tokenizer(), name="other", trained_window=512) as adapter:
        with pytest.raises(errors.ModelMismatchError, match="trained for the base") as caught:
            open_session(f"{kind}:{lab.file(kind)}", model=adapter)
        assert "'other'" in str(caught.value)
        assert 'say gist="mean"' in str(caught.value)
        assert lab.adapter.info.fingerprint == caught.value.stored
        assert adapter.info.fingerprint == caught.value.given


@pytest.mark.parametrize(
    ("gist", "error", "message"),
    [
        ("{kind}", errors.ConfigError, "needs weights; say gist="),
        ("{kind}:{folder}/gone.safetensors", errors.ModelError, "cannot be read"),
        ("{kind}:{folder}/empty", errors.ModelError, "cannot be read"),
        ("{kind}:{folder}/text.safetensors", errors.ModelError, "no safetensors file"),
        ("{other}:{file}", errors.ModelError, "holds a {kind}"),
    ],
    ids=["nothing", "missing", "empty", "text", "kind"],
)
def test_weights_that_are_none_are_refused(lab, open_session, kind, tmp_path, gist, error, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("no weights")
    other = {"contextual": "gistnet", "gistnet": "contextual"}[kind]
    words = {"kind": kind, "other": other, "folder": tmp_path, "file": lab.file(kind)}
    with pytest.raises(error, match=message.format(**words)):
        open_session(gist.format(**words))


def test_slots_that_were_not_trained_are_refused(lab, kind):
    with pytest.raises(errors.ConfigError, match="trained for up to 4"):
        lab.open(kind, 3)


def test_weights_that_changed_are_another_encoder(lab, kind, tmp_path):
    """Same shapes, other numbers: gists of both lie beside each other, told apart."""
    info, one = lab.adapter.info, lab.open(kind)
    copy = tmp_path / "copy.safetensors"
    shutil.copy(lab.file(kind), copy)
    same = type(one)(_weights(kind, copy, 1), 1, kind)
    assert one.fingerprint(info) == same.fingerprint(info)
    assert one.fingerprint(info) != lab.open(kind, 2).fingerprint(info)
    raw = bytearray(copy.read_bytes())
    raw[-1] ^= 1
    copy.write_bytes(raw)
    changed = type(one)(_weights(kind, copy, 1), 1, kind)
    assert one.fingerprint(info) != changed.fingerprint(info)


def _weights(kind, path, slots):
    from megacontext_gistnet.weights import find_weights

    return find_weights(kind, str(path), "", slots)


def test_row25_encoding_in_the_background_leaves_decoding_alone(lab, history, kind):
    """The same modules' parameters are read by two threads; no logit may move by a bit."""
    model = lab.adapter.torch_module()
    ids = torch.from_numpy(history[:3].astype(np.int64)).view(1, -1)
    with torch.inference_mode():
        expected = model(ids).logits
    encoder, failed = lab.open(kind), []

    def encode():
        try:
            for _ in range(3):
                encoder.encode_blocks(blocks_of(history, 0, 40, 0), lab.adapter)
        except BaseException as error:  # noqa: BLE001 - reported below
            failed.append(error)

    worker = Thread(target=encode)
    worker.start()
    with torch.inference_mode():
        while worker.is_alive():
            assert torch.equal(expected, model(ids).logits)
    worker.join()
    assert [] == failed
    assert not any(one.requires_grad for one in model.parameters())
