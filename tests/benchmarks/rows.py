"""What int8 gist rows cost a model that reads them, against rows of 16-bit floats.

Held-out text, all but its end shown as LOD1 gists: how much less likely the end becomes for the
reference model, and how far its predictions move. Compares row types, not gists with text.
"""

from __future__ import annotations

import itertools
import json
import lzma
from typing import TYPE_CHECKING

import numpy as np
import torch

from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.contracts.gist import Blocks
from megacontext_sdk.memory.gist_rows import RowCodec
from tests.benchmarks.evidence import DATA
from tests.benchmarks.figures import measured
from tests.benchmarks.timing import bootstrap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megacontext_hf.adapter import HfAdapter
    from tests.benchmarks.figures import Figure
    from tests.benchmarks.workshop import Workshop

__all__ = ["int8_shift", "no_texts"]

_TEXTS = DATA.parent
_KINDS = ("books", "dialogue", "code")
_BLOCKS = 64
_END_TOKENS = 96
_CHARACTERS = 60_000
_PER_TEXT = 20


def no_texts() -> str:
    """Return why there is nothing to measure with, "" if there is."""
    if all((_TEXTS / f"{kind}.jsonl.xz").is_file() for kind in _KINDS):
        return ""
    return "needs the held-out texts beside the repository, ../shared/data/eval-dev"


def int8_shift(workshop: Workshop) -> list[Figure]:
    """Difference in nats per token between int8 and f2 gists, and the distance of predictions."""
    reader = _Reader(workshop.endless)
    table = np.array(
        [
            reader.compare(window)
            for kind in _KINDS
            for window in itertools.islice(reader.windows(kind), workshop.scale.row_windows)
        ]
    )
    shift, kl, same = table.mean(axis=0)
    low, high = bootstrap(table, lambda t: float(t[:, 0].mean()))
    said = (
        f"f2 gists, {len(table)} held-out windows of {_BLOCKS} gists and {_END_TOKENS} tokens: "
        f"[{low:+.5f}, {high:+.5f}] nats per token; KL {kl:.1e} nats; the likeliest token is the "
        f"same in {100 * same:.2f} %; positive: int8 is worse"
    )
    workshop.notes.append(f"int8 gists against f2: {shift:+.5f} nats per token, {said}")
    return [measured("int8_nll_shift", shift, said)]


class _Reader:
    """The reference model over windows of gists and text."""

    def __init__(self, adapter: HfAdapter) -> None:
        self.info = adapter.info
        self._model = adapter._model
        self._tokenizer = adapter.tokenizer
        self._table = adapter._model.get_input_embeddings().weight.detach().numpy()
        self._encoder = MeanGistEncoder()
        width = self._table.shape[1]
        self._codecs = [RowCodec(1, width, 1, dtype) for dtype in ("f2", "i1")]

    def embedding_table(self) -> np.ndarray:
        """Return the embedding rows; the encoder asks for them."""
        return self._table

    def windows(self, kind: str) -> Iterator[np.ndarray]:
        """Yield token ids of windows, a few of each text, drawn by lot."""
        rng = np.random.default_rng(0)
        size = 32 * _BLOCKS + _END_TOKENS
        for text in _texts(kind):
            ids = self._tokenizer.encode(text)
            for _ in range(_PER_TEXT if len(ids) > 2 * size else 0):
                at = int(rng.integers(0, len(ids) - size))
                yield ids[at : at + size]

    def compare(self, ids: np.ndarray) -> tuple[float, float, float]:
        """Return the shift in nats per token, the KL, and the share of equal likeliest tokens."""
        cut = 32 * _BLOCKS
        blocks = Blocks(ids[:cut].reshape(-1, 32), 0, ids[:0])
        gists = self._encoder.encode_blocks(blocks, self)
        end = torch.from_numpy(ids[cut + 1 :].astype(np.int64))
        f2, i1 = (
            self._predict(codec.decode(codec.encode(gists)).rows[:, 0], ids[cut:])
            for codec in self._codecs
        )
        shift = (f2 - i1)[torch.arange(len(end)), end].mean()
        kl = (f2.exp() * (f2 - i1)).sum(dim=-1).mean()
        same = (f2.argmax(dim=-1) == i1.argmax(dim=-1)).double().mean()
        return float(shift), float(kl), float(same)

    def _predict(self, gists: np.ndarray, ids: np.ndarray) -> torch.Tensor:
        rows = np.concatenate([gists, self._table[ids]])
        with torch.inference_mode():
            logits = self._model(inputs_embeds=torch.from_numpy(rows)[None]).logits
        return torch.log_softmax(logits[0, len(gists) : -1].double(), dim=-1)


def _texts(kind: str) -> Iterator[str]:
    """Yield stretches of text of some length, joined from rows."""
    text = ""
    with lzma.open(_TEXTS / f"{kind}.jsonl.xz", "rt", encoding="utf-8") as rows:
        for row in rows:
            text += json.loads(row)["text"] + "\n"
            while len(text) >= _CHARACTERS:
                yield text[:_CHARACTERS]
                text = text[_CHARACTERS:]
