"""Sessions on real models: greedy replies are the base's own while all fits; facts return."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch

from megacontext_hf.adapter import wrap
from megacontext_hf.testing import build_model, build_tokenizer
from megacontext_sdk import MemorySession, errors
from megacontext_sdk.builtin.echo import EchoModel
from megacontext_sdk.memory.lod import Span
from megacontext_sdk.plugins import Plugins

STORIES = Path(__file__).resolve().parents[4] / "shared/models/stories260K"
PLUGINS = Plugins.load()
SIZES = {"max_position_embeddings": 512}
RANDOM = {
    "qwen3": SIZES,
    "mistral": {**SIZES, "sliding_window": None},
    "gpt-neox": SIZES,
}


@pytest.fixture(autouse=True)
def one_thread():
    """Two test runs on one machine must not fight for its cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def reference():
    with PLUGINS.model_factory("reference")() as adapter:
        yield adapter


@pytest.fixture(scope="module")
def stories():
    if not STORIES.is_dir():
        pytest.skip("the folder ../shared/models is not here")
    with PLUGINS.model_factory(f"hf:{STORIES}")() as adapter:
        yield adapter


@pytest.fixture(scope="module", params=RANDOM)
def random_model(request):
    with wrap(build_model(request.param, **RANDOM[request.param]), build_tokenizer()) as adapter:
        yield adapter


def open_session(model, **settings) -> MemorySession:
    arguments = {"storage": "memory", "strict": True, "sinks": (), "plugins": PLUGINS} | settings
    return MemorySession.open(None, model=model, **arguments)


def generated(adapter, prompt: np.ndarray, n_tokens: int) -> list[int]:
    """The oracle: transformers' own greedy generation, the end token left out."""
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    with torch.inference_mode():
        full = adapter._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=n_tokens,
            do_sample=False,
            eos_token_id=list(adapter.info.eos_ids) or [10**9],
            pad_token_id=0,
        )
    out = full[0, len(prompt) :].tolist()
    return out[:-1] if out and out[-1] in adapter.info.eos_ids else out


def check_reply(session: MemorySession, adapter, prompt: str | None, n_tokens: int) -> int:
    """Ask, and compare the reply with the base's own; return how many tokens were compared."""
    reply = session.generate(prompt, max_new_tokens=n_tokens)
    assert set(reply.focus.lod_counts) <= {0}
    chat = session._parts.scribe.chat
    message = session.messages()[-1]
    ids = session._parts.tree.token_ids(Span(0, session.stats().n_tokens))
    start = message.span.start + len(chat.reply_header_ids())
    if message.span.start == 0:
        start += len(chat.opening_ids)
    expected = generated(adapter, ids[:start], n_tokens)
    n_ended = reply.usage.generated_tokens - len(expected)
    assert n_ended == int(reply.finish_reason == "stop")
    assert expected == ids[start : start + len(expected)].tolist()
    footer = chat.reply_footer_ids().tolist()
    assert footer == ids[start + len(expected) :].tolist()
    return len(expected)


@pytest.mark.parametrize("kv_mode", ["seam", "exact"])
def test_row60_reference_replies_are_the_models_own_while_everything_fits(
    reference, kv_mode
) -> None:
    with open_session(reference, w_max=896, kv_mode=kv_mode) as session:
        session.append("Anna lives in Paris.")
        session.append("Okay.", role="assistant")
        n_compared = check_reply(session, reference, "Where does Anna live?", 40)
        n_compared += check_reply(session, reference, "Tell me a long story about a dog.", 120)
        session.append("Peter has a dog called Max.")
        n_compared += check_reply(session, reference, "What is the name of Peter's dog?", 40)
        n_compared += check_reply(session, reference, None, 40)
    assert n_compared >= 10


def test_row60_endless_reference_replies_are_the_models_own_over_many_blocks(
    reference, monkeypatch
) -> None:
    info = attrs.evolve(reference.info, eos_ids=())
    monkeypatch.setattr(type(reference), "info", property(lambda adapter: info))
    with open_session(reference, w_max=896) as session:
        session.append("Tom lives in a big house by the sea, and Anna lives in Paris.")
        assert 130 == check_reply(session, reference, "Tell me a story.", 130)
        assert 130 == check_reply(session, reference, "Go on.", 130)
        assert session.stats().n_tokens > 260


def test_row60_stories_replies_are_the_models_own_while_everything_fits(stories) -> None:
    w_max = min(448, stories.info.trained_window - 64)
    with open_session(stories, w_max=w_max, recent_tokens=96) as session:
        session.append("Once upon a time there was a little dog.")
        assert 120 == check_reply(session, stories, "Tom lived in a big house. One day", 120)
        assert 40 == check_reply(session, stories, "Then Lily", 40)


def test_row60_random_models_reply_their_own_tokens_while_everything_fits(random_model) -> None:
    with open_session(random_model, w_max=448, recent_tokens=96) as session:
        session.append("A first line of history.")
        n_compared = check_reply(session, random_model, "What is this?", 70)
        n_compared += check_reply(session, random_model, "And that?", 70)
        n_compared += check_reply(session, random_model, None, 30)
    assert n_compared > 30


def test_row60_an_empty_history_starts_like_the_model_itself(reference) -> None:
    with open_session(reference, w_max=896) as session:
        check_reply(session, reference, None, 40)


def test_row70_exact_mode_has_no_distance_and_seam_mode_little(reference) -> None:
    distances = {}
    for kv_mode in ("exact", "seam"):
        with open_session(reference, w_max=320, recent_tokens=96, kv_mode=kv_mode) as session:
            session.append("Anna lives in Paris.")
            session.append([{"role": "user", "content": f"Day {n} was dull."} for n in range(80)])
            for question in ("Where does Anna live?", "Which day was dull?", "What was day 7?"):
                session.generate(question, max_new_tokens=34)
            distances[kv_mode] = session.audit().kl_mean_nats
    assert distances["exact"] < 1e-6
    assert distances["seam"] < 0.2


def test_row58_a_fact_far_behind_the_window_is_shown_and_answered(reference) -> None:
    with open_session(reference, w_max=512) as session:
        told = session.append("Anna lives in Paris.")
        session.append("Okay.", role="assistant")
        filler = "The rain fell on the hills and the sheep stayed in the valley all day long."
        session.append([{"role": "user", "content": filler} for _ in range(200)])
        session.append("Okay.", role="assistant")
        assert session.stats().n_tokens > 3_000

        reply = session.generate("Where does Anna live?", max_new_tokens=30)

        shown = [e for e in reply.focus.entries if e.span.overlaps(told.span)]
        assert {0} == {entry.lod for entry in shown}
        assert "Paris" in reply.text
        assert reply.usage.window_rows <= 512


def test_row25_a_session_leaves_the_weights_as_they_are(reference) -> None:
    def digest() -> float:
        return sum(float(p.double().abs().sum()) for p in reference._model.parameters())

    before = digest()
    with open_session(reference, w_max=512) as session:
        session.append("Anna lives in Paris. " * 60)
        session.generate("Where does Anna live?", max_new_tokens=40)
        session.audit()
    assert before == digest()
    assert not any(parameter.grad is not None for parameter in reference._model.parameters())


def test_row14_a_memory_of_another_model_is_refused_and_unchanged(reference, tmp_path) -> None:
    pytest.importorskip("megacontext_duckdb", reason="needs a storage on disk")
    path = tmp_path / "alice.mc"
    given = {"storage": "duckdb", "plugins": PLUGINS, "sinks": (), "w_max": 512}
    with MemorySession.open(path, model=EchoModel(), **given) as session:
        session.append("Written by echo.")
    before = {p.name: p.read_bytes() for p in path.rglob("*") if p.is_file()}

    for read_only in (False, True):
        with pytest.raises(errors.ModelMismatchError) as caught:
            MemorySession.open(path, model=reference, read_only=read_only, **given)
        assert "tokenizer" == caught.value.kind
        assert reference.info.tokenizer_fingerprint == caught.value.given
        assert before == {p.name: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    with MemorySession.open(path, model=EchoModel(), **given) as session:
        assert "Written by echo." == session.messages()[0].text


_RESUMED = """
    import sys
    import torch
    torch.set_num_threads(1)
    from megacontext_sdk import MemorySession
    with MemorySession.open(sys.argv[1], w_max=512, kv_mode="exact", sinks=()) as session:
        entries = session._parts.state.wc.entries
        print(entries.lod.tolist(), entries.index.tolist())
        print(session.generate("Where does Anna live?", max_new_tokens=20).text)
"""


def test_row78_a_memory_resumed_in_another_process_goes_on_as_this_one_would(
    reference, tmp_path
) -> None:
    pytest.importorskip("megacontext_duckdb", reason="needs a storage on disk")
    path = tmp_path / "alice.mc"
    given = {"model": reference, "w_max": 512, "kv_mode": "exact", "sinks": ()}
    with open_session(**given) as here, MemorySession.open(path, plugins=PLUGINS, **given) as there:
        for session in (here, there):
            session.append("Anna lives in Paris.")
            session.append([{"role": "user", "content": f"Day {n} was dull."} for n in range(80)])
            session.generate("What was day 7?", max_new_tokens=10)
        entries = here._parts.state.wc.entries
        layout = f"{entries.lod.tolist()} {entries.index.tolist()}"
        expected = here.generate("Where does Anna live?", max_new_tokens=20).text
    command = [sys.executable, "-c", textwrap.dedent(_RESUMED), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert [layout, expected] == done.stdout.rstrip("\n").split("\n", 1)
