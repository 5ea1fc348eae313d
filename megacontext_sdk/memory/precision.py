"""What gists lose first: how many numbers, ids, URLs, code identifiers and negations a block has.

Each token of the vocabulary is classified once, when it is first seen; a block's count is then
array arithmetic. Runs are counted, not tokens: a date spelled in eight digit tokens is few things.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Floats, Ids
    from megacontext_sdk.contracts.model import Tokenizer

__all__ = ["PrecisionTable"]

_UNSEEN, _PLAIN, _GLUE, _NUMBER, _NEGATION, _URL, _CODE = range(7)
_NEGATIONS = frozenset({
    "no", "not", "none", "never", "nor", "neither", "nobody", "nothing", "nowhere",
    "cannot", "without", "n't", "'t", "n\u2019t", "\u2019t",
})  # fmt: skip
_URL_PIECE = re.compile(r"://|https?|www\.?|\.(?:com|org|net|io|html?)\b|@", re.IGNORECASE)
_CODE_PIECE = re.compile(r"\w_|_\w|::|->|\(\)|[a-z][A-Z]")
_GLUE_PIECE = re.compile(r"[./:,\-]")


class PrecisionTable:
    """Counts exact things in blocks of token ids.

    Args:
        tokenizer: gives the text of a token; asked once per token id.
        vocab_size: ids are below this.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._kinds = np.zeros(vocab_size + 1, np.uint8)
        self._kinds[-1] = _PLAIN  # id -1: a forgotten token

    def count(self, token_ids: Ids) -> Floats:
        """Return the number of exact things in each row of int32[n, 32], float32[n]."""
        self._learn(token_ids)
        kinds = self._kinds[token_ids]
        exact = kinds >= _NUMBER
        before = np.full_like(kinds, _PLAIN)
        before[:, 1:] = kinds[:, :-1]
        earlier = np.full_like(kinds, _PLAIN)
        earlier[:, 2:] = kinds[:, :-2]
        goes_on = (before == kinds) | ((before == _GLUE) & (earlier == kinds))
        counts: Floats = (exact & ~goes_on).sum(axis=1).astype(np.float32)
        return counts

    def _learn(self, token_ids: Ids) -> None:
        new = np.unique(token_ids[self._kinds[token_ids] == _UNSEEN])
        for token_id in new.tolist():
            piece = self._tokenizer.decode(np.array([token_id], np.int32))
            self._kinds[token_id] = _kind(piece)


def _kind(piece: str) -> int:
    text = piece.strip()
    if any(letter.isdigit() for letter in text):
        return _NUMBER
    if text.lower() in _NEGATIONS:
        return _NEGATION
    if _URL_PIECE.search(text):
        return _URL
    if _CODE_PIECE.search(text):
        return _CODE
    return _GLUE if _GLUE_PIECE.fullmatch(text) else _PLAIN
