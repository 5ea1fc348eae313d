"""A tokenizer whose tokens are bytes, plus five markers of a simple chat format.

It learns nothing and needs no file; it is the echo model's, and good for tests.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.contracts.model import Detokenizer, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from megacontext_sdk.contracts.arrays import Ids

__all__ = ["ByteTokenizer"]

_MARKERS = ("<|bos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
_IDS = {marker: 256 + number for number, marker in enumerate(_MARKERS)}
_SPLIT = re.compile("(" + "|".join(map(re.escape, _MARKERS)) + ")")


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as ids 0 to 255, markers behind them. May be shared between threads."""

    vocab_size = 256 + len(_MARKERS)
    bos_id = _IDS["<|bos|>"]
    end_id = _IDS["<|end|>"]

    @property
    def fingerprint(self) -> str:
        """Hex digest of the definition."""
        return hashlib.sha256(repr(_IDS).encode()).hexdigest()

    def encode(self, text: str, *, special: bool = False) -> Ids:
        """Return int32[n]; markers count only with `special`."""
        if not special:
            return np.frombuffer(text.encode(errors="replace"), np.uint8).astype(np.int32)
        parts = [
            np.array([_IDS[part]], np.int32) if part in _IDS else self.encode(part)
            for part in _SPLIT.split(text)
        ]
        return np.concatenate(parts)

    def decode(self, token_ids: Ids, *, special: bool = True) -> str:
        """Return the text of the ids; forgotten ones (-1) give none."""
        ids = [int(token) for token in token_ids if token >= 0]
        if not special:
            return bytes(token for token in ids if token < 256).decode(errors="replace")
        data = b"".join(
            bytes([token]) if token < 256 else _MARKERS[token - 256].encode() for token in ids
        )
        return data.decode(errors="replace")

    def detokenizer(self) -> Detokenizer:
        """Return a fresh incremental detokenizer."""
        return _ByteDetokenizer()

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
    ) -> str | None:
        """Render `<|bos|>`, then `<|role|>content<|end|>` per message; tool results as users."""
        parts = ["<|bos|>"]
        for message in messages:
            role = message["role"]
            marker = f"<|{role}|>"
            parts += [marker if marker in _IDS else "<|user|>", message["content"], "<|end|>"]
        return "".join(parts) + ("<|assistant|>" if add_generation_prompt else "")


class _ByteDetokenizer(Detokenizer):
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(bytes([token_id])) if 0 <= token_id < 256 else ""

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)
