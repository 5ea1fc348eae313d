"""Text of a token stream, one token at a time, without showing half a character.

A token alone has no text: leading spaces and byte pieces depend on the neighbours. So a few of the
newest tokens are decoded with and without the newest one, and the difference is what became final.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megacontext_sdk.contracts.model import Detokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RustTokenizer

__all__ = ["StreamDetokenizer"]

_REPLACEMENT = "\ufffd"


class StreamDetokenizer(Detokenizer):
    """Decodes a sliding window of tokens. Not shared between threads.

    Args:
        tokenizer: decodes.
        special: ids that give no text.
    """

    def __init__(self, tokenizer: RustTokenizer, special: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._before: list[int] = []  # tokens whose text is out, kept as left context
        self._held: list[int] = []  # tokens whose text is not out yet

    def push(self, token_id: int) -> str:
        """Take a token, return the text that became final."""
        if token_id < 0 or token_id in self._special:
            return ""
        self._held.append(token_id)
        text = self._new_text()
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._before, self._held = self._held, []
        return text

    def flush(self) -> str:
        """Return what was held back, with replacement characters for incomplete ones."""
        text = self._new_text() if self._held else ""
        self._before, self._held = [], []
        return text

    def _new_text(self) -> str:
        before = self._decode(self._before)
        return self._decode(self._before + self._held)[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True) if ids else ""
        return text
