"""What a run leaves: a tokenizer, figures, a card, a curve, and a model that memories open."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
import transformers
import typer
from reference_model.export import export_model
from reference_model.heldout import context_gains, held_out_losses
from reference_model.model import next_token_losses
from reference_model.probes import Probe, make_probes, run_probes
from reference_model.run import prepare
from reference_model.tokenizer import SPECIAL_TOKENS
from train import main
from typer.testing import CliRunner

from megacontext_sdk import MemorySession
from megacontext_sdk.errors import ConfigError

SMALL = {"w_max": 128, "recent_tokens": 32, "sink_blocks": 0, "headroom": 32}
TRAIN = Path(__file__).parents[1] / "train.py"


def test_the_folder_opens_as_a_memory_and_answers(run, tmp_path):
    model = f"hf:{run.folder / 'model'}"
    with MemorySession.open(tmp_path / "memory.mc", model=model, **SMALL) as session:
        session.append("The fox went to the wood.")
        reply = session.generate("Where is the fox?", max_new_tokens=6)
        assert reply.usage.generated_tokens >= 1
    with MemorySession.open(tmp_path / "memory.mc", model=model, **SMALL) as session:
        assert "fox" in session.search("fox")[0].text


def test_the_folder_is_small_and_complete(run):
    model = run.folder / "model"
    files = {file.name for file in model.iterdir()}
    assert {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    } == files
    config = json.loads((model / "config.json").read_text())
    assert ("llama", "bfloat16", 256) == (
        config["model_type"],
        config["dtype"],
        config["max_position_embeddings"],
    )


def test_the_saved_model_is_the_trained_one(run):
    saved = transformers.AutoModelForCausalLM.from_pretrained(run.folder / "model")
    for name, one in run.trainer.model.state_dict().items():
        assert torch.equal(one.bfloat16(), saved.state_dict()[name]), name


def test_large_weights_are_cut_into_files(run, tmp_path):
    export_model(run.trainer.model, run.folder / "tokenizer", tmp_path / "cut", shard_mb=0)
    assert (tmp_path / "cut" / "model.safetensors.index.json").is_file()


def test_the_tokenizer_reads_digits_one_by_one_and_markers_only_in_the_template(run):
    tokenizer = run.prepared.tokenizer
    assert list(range(7)) == [
        int(tokenizer.encode(marker, special=True)[0]) for marker in SPECIAL_TOKENS
    ]
    pieces = [tokenizer.decode(np.array([one])) for one in tokenizer.encode("code 4917")]
    assert ["4", "9", "1", "7"] == pieces[-4:]
    assert min(tokenizer.encode("<|end|>")) > 6
    text = "Grüße, 北京 🙂\n\ttabs"
    assert text == tokenizer.decode(tokenizer.encode(text))
    chat = [{"role": "user", "content": "Hi"}]
    rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    assert "<|bos|><|user|>Hi<|end|><|assistant|>" == rendered


def test_tokenizer_and_tokens_are_made_once(run, preset):
    before = len(run.watcher.sources)
    again = prepare(run.data, preset, run.folder, run.watcher)
    assert before == len(run.watcher.sources)
    assert again.store.fingerprint == run.prepared.store.fingerprint


def test_a_tokenizer_that_is_too_large_for_the_model_is_refused(run, preset):
    small = attrs.evolve(preset, vocab_size=300)
    with pytest.raises(ConfigError, match="more entries than the 300"):
        prepare(run.data, small, run.folder, run.watcher)


def test_dialogues_are_read_in_both_layouts_and_facts_beside_them(run):
    store, tokenizer = run.prepared.store, run.prepared.tokenizer
    openings = {
        tokenizer.decode(document.token_ids)[:14] for document in store.documents("all", "dialogue")
    }
    assert {"<|bos|><|user|", "<|bos|>User: W"} == openings
    assert {"story", "dialogue", "facts"} == set(store.counts("train"))


def test_held_out_losses_are_those_of_the_documents(run, preset):
    model, texts = run.trainer.model, {}
    for at, document in enumerate(run.prepared.store.documents("held-out")):
        texts[str(at)] = [document.token_ids]
    found = held_out_losses(model, texts, preset.window)
    for name, (ids,) in texts.items():
        part = torch.from_numpy(ids[: preset.window + 1].astype(np.int64))[None]
        with torch.no_grad():
            expected = float(next_token_losses(model, part).mean())
        assert pytest.approx(expected, abs=1e-3) == found[name]


def test_context_is_worth_what_dropping_it_costs(run):
    texts = {"a": [np.resize(np.arange(7, 60, dtype=np.int32), 600)], "short": [np.ones(40)]}
    gains = context_gains(run.trainer.model, texts)
    assert {"a"} == set(gains)
    assert pytest.approx(gains["a"].drop - gains["a"].full) == gains["a"].gain


def test_probes_hold_the_fact_and_ask_for_it(run, data):
    tokenizer, info = run.prepared.tokenizer, run.prepared.info
    info = attrs.evolve(info, trained_window=4096)
    probes = make_probes(20, data, tokenizer, info)
    again = make_probes(20, data, tokenizer, info)
    for probe, same in zip(probes, again, strict=True):
        prompt, answer = (tokenizer.decode(one) for one in (probe.prompt, probe.answer))
        assert prompt.endswith("?<|end|><|assistant|>")
        assert answer.endswith("<|end|>")
        assert answer.removesuffix("<|end|>") in prompt
        assert np.array_equal(probe.prompt, same.prompt)
    short = make_probes(5, data, tokenizer, attrs.evolve(info, trained_window=128))
    assert all(len(probe.prompt) + len(probe.answer) <= 128 for probe in short)


def test_a_probe_is_right_exactly_when_greedy_decoding_says_the_answer(run):
    model, eos = run.trainer.model.eval(), 5
    prompt = run.prepared.tokenizer.encode("The fox went")
    row = torch.from_numpy(prompt.astype(np.int64))[None]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            best = model(input_ids=row, use_cache=False).logits[0, -1].argmax()
            row = torch.cat([row, best.view(1, 1)], 1)
    said = row[0, -3:].numpy().astype(np.int32)
    wrong = said.copy()
    wrong[1] = eos if said[1] != eos else 4
    found = run_probes(model, [Probe("said", prompt, said), Probe("wrong", prompt, wrong)])
    assert (1.0, 0.0) == (found["said"].right, found["wrong"].right)
    assert (2, 0.5) == (found["all"].n, found["all"].right)
    assert found["wrong"].full > found["said"].full


def test_the_card_says_what_was_measured(run):
    card = (run.folder / "model" / "README.md").read_text(encoding="utf-8")
    for said in ("parameters", "150 steps", "| story |", "| all | 40 |", "names never seen"):
        assert said in card
    figures = json.loads((run.folder / "figures.json").read_text())
    assert 150 == figures["progress"]["step"]
    assert figures["figures"]["samples"]
    assert (run.folder / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def command():
    """Run the command line in this process; return (exit code, what it printed, in one line)."""
    app = typer.Typer()
    app.command()(main)

    def run_command(*options):
        done = CliRunner().invoke(app, ["--preset", "smoke", *map(str, options)])
        return done.exit_code, " ".join(done.output.split())

    return run_command


def test_one_command_trains_pauses_resumes_and_says_where_the_model_is(command, data, tmp_path):
    options = "--data", data[0], "--out", tmp_path, "--no-compile", "--batch", 1
    assert 0 == command(*options, "--prepare")[0]
    assert not (tmp_path / "checkpoint.safetensors").exists()
    code, said = command(*options, "--minutes", 0.2, "--pause-after", 0.005)
    assert (0, True) == (code, "paused; the same command with --resume" in said)
    code, said = command(*options, "--steps", 5, "--resume")
    assert (0, True) == (code, f"the model is in {tmp_path / 'model'}" in said)


def test_the_command_line_names_what_is_wrong(command, tmp_path):
    code, said = command("--data", tmp_path / "missing", "--out", tmp_path)
    assert (2, True) == (code, "error: there is no data at" in said)
    code, said = command("--steps", "0")
    assert (2, True) == (code, "give one above zero" in said)


def test_the_program_starts_by_its_path():
    done = subprocess.run(
        [sys.executable, TRAIN, "--help"], capture_output=True, text=True, check=False
    )
    assert (0, "") == (done.returncode, done.stderr)
    assert "--preset" in done.stdout
