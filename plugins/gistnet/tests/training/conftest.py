"""Small bases: a random Llama, and one whose every prediction can be worked out by hand."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from megacontext_gistnet.corpus import is_held_out
from megacontext_gistnet.nets.config import ContextualConfig, GistNetConfig
from megacontext_gistnet.nets.model import new_model
from megacontext_gistnet.training.base import FrozenBase, freeze
from megacontext_gistnet.training.objective import Extras, Objective
from megacontext_gistnet.training.recipe import Layouts, Recipe, Stage, recipe_bytes
from megacontext_gistnet.training.run import Settings, train
from megacontext_gistnet.training.trainer import Limits

VOCAB = 64
SHAPE = {"hidden": 16, "heads": 2}
SHAPES = {
    "gistnet": GistNetConfig(hidden=16, heads=2),
    "contextual": ContextualConfig(n_layers=1, rank=2, pool=16, heads=2, hidden=32),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Two test runs on one machine must not fight for its cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build_llama(**changes):
    """Return a random Llama that uses its context, frozen."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
    return freeze(model)


@pytest.fixture(scope="session")
def llama():
    return build_llama()


class SuccessorBase(nn.Module):
    """Token i is followed by i + 1, whatever stands before: rows are one-hot, the head is not."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, VOCAB)
        self.head = nn.Linear(VOCAB, VOCAB, bias=False)
        self.config = SimpleNamespace()
        self.base_model = lambda inputs_embeds, use_cache: SimpleNamespace(
            last_hidden_state=inputs_embeds
        )
        with torch.no_grad():
            self.embedding.weight.copy_(torch.eye(VOCAB))
            self.head.weight.copy_(20.0 * torch.eye(VOCAB).roll(1, dims=0))
        freeze(self)

    def get_input_embeddings(self):
        return self.embedding

    def get_output_embeddings(self):
        return self.head

    def forward(self, inputs_embeds, use_cache):
        return SimpleNamespace(logits=self.head(inputs_embeds))


def build_objective(module, kind="gistnet", *, trained_window=1024, bos_id=0, recipe=None):
    """Return the loss of a new encoder over a base."""
    model = new_model(kind, module, SHAPES[kind])
    torch.manual_seed(2)
    extras = Extras(model.width, recipe or Recipe(), model.rho)
    return Objective(
        FrozenBase(module),
        model,
        extras,
        trained_window=trained_window,
        bos_id=bos_id,
        autocast=nullcontext,
    )


@pytest.fixture
def objective(llama):
    return build_objective(llama)


def draw_ids(n=2, n_blocks=5, seed=0):
    """Return random windows, int64[n, 32 * n_blocks]."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, VOCAB, (n, 32 * n_blocks)))


def stage_of(name="only", **changes):
    """Return a stage in which everything of LOD1 learns."""
    return Stage(
        **{"name": name, "share": 1.0, "lr": {"head": 1e-2, "lora": 1e-2, "extra": 1e-2}, **changes}
    )


def small_recipe(*stages, **changes):
    """Return a recipe that a test can afford."""
    settings = {
        "stages": stages or (stage_of(),),
        "batch": 2,
        "window_tokens": 160,
        "warmup_steps": 1,
        "validation_windows": 2,
        "mix": {},
        "least_recall_share": 0.0,
        "weight_decay": 0.0,
    }
    return Recipe(**{**settings, **changes})


TAIL = Layouts(tail=1.0, tail_blocks=3, first_raw=0.0, bos_token=0.0, bos_row=0.0)


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory):
    """A tiny model on disk, opened by `hf:<folder>`; its tokens are bytes."""
    testing = pytest.importorskip("megacontext_hf.testing", reason="megacontext-hf is missing")
    folder = tmp_path_factory.mktemp("base")
    testing.build_model("llama", max_position_embeddings=2048).save_pretrained(folder)
    testing.build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A folder of made-up texts, two of them held out by their ids."""
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(3)
    words = ["".join(rng.choice(list("aeioulmnrst"), size=5)) for _ in range(200)]
    names = [f"t{number}" for number in range(400)]
    chosen = [name for name in names if is_held_out(name)][:2]
    chosen += [name for name in names if not is_held_out(name)][:6]
    with (folder / "books.jsonl").open("w") as file:
        for name in chosen:
            text = " ".join(rng.choice(words, size=500))
            file.write(json.dumps({"id": name, "text": text}) + "\n")
    return folder


def build_settings(hf_folder, texts, folder, cache):
    """Return a run of six steps."""
    return Settings(
        model=f"hf:{hf_folder}",
        kind="gistnet",
        data=(texts,),
        out=folder / "run",
        recipe=small_recipe(shape=SHAPE),
        limits=Limits(steps=6, log_every=2, validate_every=3, checkpoint_every=2),
        device="cpu",
        precision="float32",
        cache=cache,
    )


@pytest.fixture(scope="session")
def tokens(tmp_path_factory):
    """Where tokens are made once for all tests."""
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture
def settings(hf_folder, texts, tmp_path, tokens):
    """A run of six steps that was not begun."""
    return build_settings(hf_folder, texts, tmp_path, tokens)


@pytest.fixture(scope="session")
def finished(hf_folder, texts, tmp_path_factory, tokens):
    """The same run, finished: its settings and what it came to. Nobody writes into its folder."""
    settings = build_settings(hf_folder, texts, tmp_path_factory.mktemp("finished"), tokens)
    return settings, train(settings)


def options_of(settings):
    """Return the command line of a run."""
    limits = settings.limits
    recipe = settings.out.with_suffix(".json")
    recipe.write_bytes(recipe_bytes(settings.recipe))
    given = {
        "--model": settings.model,
        "--kind": settings.kind,
        "--data": settings.data[0],
        "--out": settings.out,
        "--recipe": recipe,
        "--steps": limits.steps,
        "--log-every": limits.log_every,
        "--validate-every": limits.validate_every,
        "--checkpoint-every": limits.checkpoint_every,
        "--device": settings.device,
        "--precision": settings.precision,
        "--cache": settings.cache,
    }
    return [str(part) for pair in given.items() for part in pair]
