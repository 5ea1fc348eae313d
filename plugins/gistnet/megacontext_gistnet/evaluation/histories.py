"""Long histories for the tables over whole memories: single documents, or several in a row.

A book is a history by itself. Dialogues are short, so a history of them is one after the other, as
a memory of many conversations would be. It cuts and joins tokens and reads nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from megacontext_gistnet.corpus.documents import Document
    from megacontext_sdk.contracts.arrays import Indices

__all__ = ["History", "books", "histories"]


@attrs.frozen(eq=False)
class History:
    """A long history.

    Attributes:
        name: of its document, the first one where there are several.
        domain: of its text.
        token_ids: int64[n].
    """

    name: str
    domain: str
    token_ids: Indices


def books(documents: Sequence[Document], n: int, n_tokens: int) -> list[History]:
    """Return up to `n` stories of at least `n_tokens`, the longest first."""
    long = [one for one in documents if one.domain == "story" and len(one.token_ids) >= n_tokens]
    long.sort(key=lambda one: (-len(one.token_ids), one.doc_id))
    return [History(one.doc_id, one.domain, _wide(one)) for one in long[:n]]


def histories(documents: Sequence[Document], n: int, n_tokens: int) -> list[History]:
    """Return up to `n` histories of exactly `n_tokens` of every domain.

    Documents are taken in their order and joined until they are long enough; what is left of the
    last one is not used again, so that no two histories share a document.
    """
    found: list[History] = []
    for domain in dict.fromkeys(one.domain for one in documents):
        own = (one for one in documents if one.domain == domain)
        found += [one for one, _ in zip(_joined(own, domain, n_tokens), range(n), strict=False)]
    return found


def _joined(documents: Iterator[Document], domain: str, n_tokens: int) -> Iterator[History]:
    pieces: list[Indices] = []
    name, length = "", 0
    for one in documents:
        name = name or one.doc_id
        pieces.append(_wide(one))
        length += len(one.token_ids)
        if length >= n_tokens:
            yield History(name, domain, np.concatenate(pieces)[:n_tokens])
            pieces, name, length = [], "", 0


def _wide(document: Document) -> Indices:
    ids: Indices = document.token_ids.astype(np.int64)
    return ids
