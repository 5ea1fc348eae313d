"""Documents of tokens, short ones packed together, in the order of their sources.

Held-out and training documents never share a pack, nor do two domains.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_gistnet.corpus.facts import FactSource
from megacontext_gistnet.corpus.reading import read_drafts
from megacontext_gistnet.corpus.rendering import Renderer
from megacontext_gistnet.corpus.source import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from typing import TypeAlias

    from megacontext_gistnet.corpus.draft import Draft
    from megacontext_gistnet.corpus.source import Domain, Split
    from megacontext_sdk.contracts.arrays import Ids
    from megacontext_sdk.contracts.model import ModelInfo, Tokenizer

    AnySource: TypeAlias = Source | FactSource | Path | str

__all__ = ["WINDOW_TOKENS", "Document", "drafts_of", "read_documents", "text_digest"]

WINDOW_TOKENS = 1024
"""Length up to which short texts are packed into one document."""


@attrs.frozen(eq=False)
class Document:
    """One text, or several short ones of the same domain and side, as tokens.

    Attributes:
        doc_id: the id of the text; of the first one, and how many follow ("sd:17+5").
        domain: where its figures count.
        token_ids: int32[n], read-only.
        is_held_out: whether no training may see it.
    """

    doc_id: str
    domain: Domain
    token_ids: Ids
    is_held_out: bool


def read_documents(
    source: AnySource,
    tokenizer: Tokenizer,
    info: ModelInfo,
    *,
    split: Split = "all",
    limit_tokens: int | None = None,
    min_tokens: int = WINDOW_TOKENS,
    without: frozenset[bytes] = frozenset(),
) -> Iterator[Document]:
    """Yield the documents of a source, tokenised, in a fixed order.

    Args:
        source: a file, a folder, a `Source` with more to say, or a `FactSource`.
        tokenizer: the model's.
        info: the model's.
        split: "train" or "held-out" documents only, or "all".
        limit_tokens: stop behind the document that reaches as many tokens.
        min_tokens: texts shorter than this are packed together until they reach it; what is left
            over at the end of a file joins its last pack. 0 packs nothing.
        without: digests of texts to leave out; see `text_digest`.

    Raises:
        ConfigError: there is no data, or a row is not what it should be.
    """
    renderer, n_tokens = Renderer(tokenizer, info), 0
    chosen = (
        draft
        for draft in drafts_of(source)
        if (split == "all" or draft.is_held_out == (split == "held-out"))
        and (not without or text_digest(draft) not in without)
    )
    for document in _packed(chosen, renderer.render, min_tokens):
        yield document
        n_tokens += len(document.token_ids)
        if limit_tokens is not None and n_tokens >= limit_tokens:
            return


def text_digest(draft: Draft) -> bytes:
    """Return 16 bytes that two texts share only if they are the same, word for word."""
    content = draft.content
    parts = [content] if isinstance(content, str) else [f"{t.role}\0{t.text}" for t in content]
    return blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def drafts_of(source: AnySource) -> Iterator[Draft]:
    """Yield the drafts of any kind of source."""
    if isinstance(source, FactSource):
        return source.drafts()
    return read_drafts(source if isinstance(source, Source) else Source(source))


def _packed(
    drafts: Iterable[Draft], render: Callable[[Draft], Ids], min_tokens: int
) -> Iterator[Document]:
    """Pack what is too short; one pack is open for each domain and side."""
    packers: dict[tuple[Domain, bool], _Packer] = {}
    for draft in drafts:
        ids = render(draft)
        if len(ids) >= min_tokens:
            yield _document(draft, [ids])
            continue
        packer = packers.setdefault((draft.domain, draft.is_held_out), _Packer(min_tokens))
        yield from packer.add(draft, ids)
    for packer in packers.values():
        yield from packer.rest()


class _Packer:
    """Collects short texts; the newest full pack waits, so that a rest may join it."""

    def __init__(self, min_tokens: int) -> None:
        self._min_tokens = min_tokens
        self._full: list[tuple[Draft, Ids]] = []
        self._open: list[tuple[Draft, Ids]] = []

    def add(self, draft: Draft, ids: Ids) -> Iterator[Document]:
        """Take a text; yield the pack that no other will join."""
        self._open.append((draft, ids))
        if sum(len(ids) for _, ids in self._open) >= self._min_tokens:
            if self._full:
                yield _joined(self._full)
            self._full, self._open = self._open, []

    def rest(self) -> Iterator[Document]:
        """Yield the last pack."""
        if self._full or self._open:
            yield _joined(self._full + self._open)


def _joined(texts: list[tuple[Draft, Ids]]) -> Document:
    return _document(texts[0][0], [ids for _, ids in texts])


def _document(first: Draft, pieces: list[Ids]) -> Document:
    ids = np.concatenate(pieces).astype(np.int32, copy=False)
    ids.flags.writeable = False
    more = f"+{len(pieces) - 1}" if len(pieces) > 1 else ""
    return Document(f"{first.doc_id}{more}", first.domain, ids, first.is_held_out)
