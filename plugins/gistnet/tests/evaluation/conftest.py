"""A base that knows which tokens stand before: everything it predicts can be worked out by hand.

Its embedding is the identity and a token that stands anywhere before is likely next, others are
not. A gist that is the union of its tokens is therefore exactly as good as the raw tokens, so every
table must show a recovery of 1 for it, and less for any gist of the wrong tokens.
"""

from __future__ import annotations

import json
import random
from itertools import pairwise
from types import SimpleNamespace

import attrs
import numpy as np
import pytest
import torch
from torch import nn

from megacontext_gistnet.corpus.documents import Document
from megacontext_gistnet.evaluation.lab import Arm, Lab
from megacontext_gistnet.evaluation.reader import Reader
from megacontext_gistnet.evaluation.windows import Windows
from megacontext_hf.adapter import wrap
from megacontext_hf.testing import build_model, build_tokenizer
from megacontext_sdk.contracts.gist import GistEncoder, Gists
from megacontext_sdk.contracts.model import ModelInfo

VOCAB = 512
STRENGTH = 5.0
BACKGROUND = 12.0  # of a token that never comes, so that one token more hardly costs the others


class PresenceBase(nn.Module):
    """Looks like a causal language model of transformers; predicts what stood before."""

    def __init__(self, successor: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, VOCAB)
        self.head = nn.Linear(VOCAB, VOCAB, bias=False)
        with torch.no_grad():
            self.embedding.weight.copy_(torch.eye(VOCAB))
            self.head.weight.copy_(torch.eye(VOCAB))
        self.successor = successor
        self.positions = []

    def get_input_embeddings(self):
        return self.embedding

    def get_output_embeddings(self):
        return self.head

    def forward(self, inputs_embeds, position_ids, use_cache, logits_to_keep):
        self.positions.append(position_ids[0].tolist())
        if self.successor:  # token i is followed by i + 1
            logits = 20 * inputs_embeds.roll(1, dims=-1)
        else:
            logits = STRENGTH * inputs_embeds.cumsum(dim=1).clamp(0, 1)
            logits[..., 0] = BACKGROUND
        return SimpleNamespace(logits=self.head(logits[:, logits_to_keep]))


class TableAdapter:
    """An adapter with a table and nothing else."""

    def __init__(self, trained_window=1024):
        self.info = ModelInfo(
            name="presence",
            fingerprint="b" * 64,
            tokenizer_fingerprint="c" * 64,
            hidden_size=VOCAB,
            vocab_size=VOCAB,
            n_layers=1,
            trained_window=trained_window,
            rotary_dim=0,
            rope_theta=1e4,
            device="cpu",
            dtype="float32",
            bos_id=0,
            eos_ids=(),
        )

    def embedding_table(self):
        return np.eye(VOCAB, dtype=np.float32)


class UnionEncoder(GistEncoder):
    """A gist is the union of its tokens, or of those of the block `shift` blocks to the left."""

    aux_size = 0
    left_tokens = 0

    def __init__(self, gist_slots=1, shift=0):
        self.name = "union" if not shift else "shifted"
        self.gist_slots = gist_slots
        self.shift = shift

    def fingerprint(self, info):
        return "a" * 64

    def encode_blocks(self, blocks, services):
        ids = np.roll(blocks.token_ids, self.shift, axis=0)
        present = np.eye(VOCAB, dtype=np.float32)[ids].max(axis=1)
        rows = np.zeros((len(ids), self.gist_slots, VOCAB), np.float32)
        rows[:, 0] = present
        return Gists(rows, np.zeros((len(ids), 0), np.float32))

    def encode_gists(self, lod, children, services):
        n = len(children.rows) // 32
        rows = children.rows.reshape(n, 32, self.gist_slots, VOCAB).max(axis=1)
        return Gists(rows, np.zeros((n, 0), np.float32))


def windows_of(n, length, seed=0, domains=("story", "code"), n_documents=None):
    """Return windows whose every block brings tokens of its own, which come again behind it.

    Seven of ten tokens repeat those of the block before; the newest 96 repeat any block's alike.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        own = rng.permutation(np.arange(1, VOCAB))[: length // 32 * 8].reshape(-1, 8)
        told = [rng.choice(own[0], 32)]
        for before, new in pairwise(own[:-3]):
            told.append(np.where(rng.random(32) < 0.7, rng.choice(before, 32), rng.choice(new, 32)))
        old = np.concatenate(told)
        rows.append(np.concatenate([old, rng.choice(np.unique(old), 96)]))
    per = n_documents or n
    return Windows(
        np.stack(rows).astype(np.int64),
        tuple(domains[i % len(domains)] for i in range(n)),
        tuple(f"doc {i % per}" for i in range(n)),
        tuple(i % 2 for i in range(n)),
    )


@attrs.frozen(eq=False)
class Bench:
    """Everything a table needs, over the base that remembers tokens."""

    base: PresenceBase
    lab: Lab


def bench_of(*encoders, trained_window=1024, sink=None):
    base = PresenceBase().eval()
    arms = tuple(Arm(one.name, one.gist_slots, one) for one in encoders)
    adapter = TableAdapter(trained_window)
    return Bench(base, Lab(adapter=adapter, reader=Reader(base, sink=sink), arms=arms))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_bench():
    return bench_of


@pytest.fixture
def make_windows():
    return windows_of


@pytest.fixture
def union():
    return UnionEncoder


@pytest.fixture
def presence():
    return PresenceBase


@pytest.fixture
def documents():
    def make(doc_id, domain, n_tokens, seed=0, held_out=True):
        ids = np.random.default_rng(seed).integers(1, VOCAB, n_tokens).astype(np.int32)
        return Document(doc_id, domain, ids, held_out)

    return make


@pytest.fixture(scope="session")
def tiny():
    """A small random llama of 1,024 positions behind its adapter."""
    model = build_model("llama", max_position_embeddings=1024)
    return wrap(model, build_tokenizer(), trained_window=1024)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The same model as a folder, as `hf:FOLDER` opens it."""
    folder = tmp_path_factory.mktemp("tiny")
    build_model("llama", max_position_embeddings=1024).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A folder of evaluation texts: two books, dialogues, some code."""
    folder = tmp_path_factory.mktemp("data") / "eval-tiny"
    folder.mkdir()
    rng = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "another", "dog", "near", "trees"]

    def text(n):
        return " ".join(rng.choice(words) for _ in range(n))

    rows = {
        "books": [text(2500), text(2400)],
        "dialogue": [f"A: {text(30)}\nB: {text(30)}" for _ in range(60)],
        "code": [f"def f():\n    return '{text(400)}'\n" for _ in range(4)],
    }
    for name, found in rows.items():
        lines = [json.dumps({"id": f"{name}-{i}", "text": one}) for i, one in enumerate(found)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder
