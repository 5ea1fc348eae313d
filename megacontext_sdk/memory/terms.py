"""Query terms of a text, and where long messages are cut for the lexical index.

Knows nothing about scores or SQLite; stemming is done by the index's own tokenizer.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from typing import TypeAlias

from megacontext_sdk.memory.english import IRREGULAR_FORMS, STOP_WORDS
from megacontext_sdk.memory.lod import BLOCK_SIZE, Span

__all__ = ["MAX_TERMS", "PIECE_TOKENS", "Term", "named", "piece_bounds", "query_terms"]

MAX_TERMS = 96
"""Distinct terms of one query; a longer turn counts by its beginning and its end."""

PIECE_TOKENS = 128
"""Messages longer than this are indexed in pieces of about this length."""

_WORD = re.compile(r"[^\W_]+")
_NAME = re.compile(r"(?<=[\w,;:'\")] )[\"'(]?([A-Z][^\W_]+)")

_FORMS = {form: forms for forms in IRREGULAR_FORMS for form in forms}

Term: TypeAlias = tuple[str, ...]
"""Forms of one word."""


def query_terms(text: str, limit: int = MAX_TERMS) -> tuple[Term, ...]:
    """Return the distinct words of a text that mean something, in order of first appearance.

    Words are case-folded runs of letters and digits, the same runs the index's tokenizer sees; so
    no operator or quote of the full-text query language can reach it. Words without content are
    left out unless there are no others. Of more than `limit` words the first and the last halves
    stay, where questions usually stand.

    Returns:
        One tuple per word: its forms, any of which matches.

    Example:
        >>> query_terms('Where did Anna "go" NEAR Oslo?')
        (('anna',), ('go', 'goes', 'went', 'gone'), ('near',), ('oslo',))
    """
    folded = unicodedata.normalize("NFC", text).lower()
    words = tuple(dict.fromkeys(_WORD.findall(folded)))
    words = tuple(word for word in words if word not in STOP_WORDS) or words
    terms = tuple(dict.fromkeys(_FORMS.get(word, (word,)) for word in words))
    if len(terms) <= limit:
        return terms
    half = limit // 2
    return terms[: limit - half] + terms[len(terms) - half :]


def named(text: str) -> frozenset[str]:
    """Return the case-folded words of a text that are written like names.

    A capital inside a sentence marks what the sentence is about; at its start it means nothing.

    Example:
        >>> sorted(named("Where does Anna live? Ask Ben in Oslo."))
        ['anna', 'ben', 'oslo']
    """
    folded = unicodedata.normalize("NFC", text)
    return frozenset(match[1].lower() for match in _NAME.finditer(folded))


def piece_bounds(start: int, end: int) -> list[Span]:
    """Cut the token span of a message into pieces of about 128 tokens at block boundaries.

    A message of at most 128 tokens stays whole. No piece is shorter than a block, except of a
    message that is.
    """
    if end - start <= PIECE_TOKENS:
        return [Span(start, end)]
    first = -(-start // BLOCK_SIZE) * BLOCK_SIZE
    cuts = [cut for cut in range(first, end, PIECE_TOKENS) if cut - start >= BLOCK_SIZE]
    if cuts and end - cuts[-1] < BLOCK_SIZE:
        cuts.pop()
    edges = [start, *cuts, end]
    return [Span(a, b) for a, b in itertools.pairwise(edges)]
