"""A byte-level BPE tokenizer, learned from the training texts, with its chat template.

Digits stand alone, so that a number is copied digit by digit. It knows nothing of models.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from megacontext_gistnet.corpus.documents import drafts_of
from megacontext_hf.tokenizer import HfTokenizer
from megacontext_sdk.contracts.model import ModelInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from megacontext_gistnet.corpus import Draft
    from megacontext_gistnet.corpus.documents import AnySource
    from reference_model.presets import Preset

__all__ = ["SPECIAL_TOKENS", "describe", "learn_tokenizer", "open_tokenizer"]

SPECIAL_TOKENS: Final = (
    "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>",
)  # fmt: skip
"""Ids 0 to 6: what opens and ends a text, who speaks, what ends a message, and padding."""

CHAT_TEMPLATE: Final = (
    "{{ '<|bos|>' }}{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{{ m['content'] }}"
    "{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_CHARACTERS_PER_SOURCE = 24_000_000
_PIECE_CHARACTERS = 100_000
_PIECE_EVERY = 2  # of a long text, every second piece: more texts for the same time


def learn_tokenizer(sources: Sequence[AnySource], vocab_size: int, folder: Path) -> None:
    """Learn a tokenizer from the training side of some sources and save it.

    Args:
        sources: texts.
        vocab_size: entries, special tokens included.
        folder: where transformers finds it again.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(sources), trainer)
    names = {
        "bos_token": "<|bos|>",
        "eos_token": "<|end|>",  # what ends a reply, as `generate` understands it
        "pad_token": "<|pad|>",
    }
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE, **names
    ).save_pretrained(folder)


def open_tokenizer(folder: Path) -> HfTokenizer:
    """Open a saved tokenizer as memories will use it."""
    loaded = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return HfTokenizer(loaded, len(loaded))


def describe(tokenizer: HfTokenizer, preset: Preset) -> ModelInfo:
    """Return what the corpus must know about the model that is going to be."""
    (bos,) = tokenizer.encode("<|bos|>", special=True)
    (end,) = tokenizer.encode("<|end|>", special=True)
    return ModelInfo(
        name=preset.name,
        fingerprint="",
        tokenizer_fingerprint=tokenizer.fingerprint,
        hidden_size=preset.hidden_size,
        vocab_size=preset.vocab_size,
        n_layers=preset.n_layers,
        trained_window=preset.window,
        rotary_dim=preset.hidden_size // preset.n_heads,
        rope_theta=10_000.0,
        device="cpu",
        dtype="float32",
        bos_id=int(bos),
        eos_ids=(int(end),),
    )


def _texts(sources: Sequence[AnySource]) -> Iterator[str]:
    """Yield training texts in pieces, each source up to its share."""
    for source in sources:
        left = _CHARACTERS_PER_SOURCE
        for draft in drafts_of(source):
            if draft.is_held_out:
                continue
            for piece in islice(_pieces(draft), 0, None, _PIECE_EVERY):
                yield piece
                left -= len(piece)
            if left <= 0:
                break


def _pieces(draft: Draft) -> Iterator[str]:
    if not isinstance(draft.content, str):
        yield "\n".join(turn.text for turn in draft.content)
        return
    for start in range(0, len(draft.content), _PIECE_CHARACTERS):
        yield draft.content[start : start + _PIECE_CHARACTERS]
