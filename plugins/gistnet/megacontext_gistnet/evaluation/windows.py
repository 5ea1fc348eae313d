"""Windows: pieces of held-out documents, each read as a history of its own.

They are drawn at random places, so that a block grid has no say in what a block holds, and every
domain gives as many as every other. Same documents, numbers and seeds, same windows. A window never
crosses from one document into another.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_gistnet.corpus.source import DOMAINS
from megacontext_gistnet.nets.mean import BLOCK
from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megacontext_gistnet.corpus.documents import Document
    from megacontext_sdk.contracts.arrays import Bools, Indices

__all__ = ["Windows", "sample_windows"]


@attrs.frozen(eq=False)
class Windows:
    """Windows of one length.

    Attributes:
        token_ids: int64[n, T], T a multiple of 32.
        domains: of each window.
        documents: the document each is from.
        seeds: the sampling seed each was drawn with.
    """

    token_ids: Indices
    domains: tuple[str, ...]
    documents: tuple[str, ...]
    seeds: tuple[int, ...]

    def __attrs_post_init__(self) -> None:
        columns = {len(self.token_ids), len(self.domains), len(self.documents), len(self.seeds)}
        if self.token_ids.ndim != 2 or len(columns) > 1 or self.n_tokens % BLOCK:
            message = (
                f"token_ids has shape {self.token_ids.shape}; give whole blocks of {BLOCK}, "
                "and a domain, a document and a seed for every window"
            )
            raise ConfigError(message, field="token_ids", value=self.token_ids.shape)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def n_tokens(self) -> int:
        """T."""
        return int(self.token_ids.shape[1])

    @property
    def known_domains(self) -> tuple[str, ...]:
        """Domains that have windows, in the order of tables."""
        there = set(self.domains)
        return tuple(one for one in DOMAINS if one in there)

    def of(self, domain: str) -> Windows:
        """Return the windows of a domain."""
        return self.where(np.array([one == domain for one in self.domains], dtype=np.bool_))

    def where(self, chosen: Bools) -> Windows:
        """Return some windows, bool[n]."""
        at = np.flatnonzero(chosen)
        return Windows(
            self.token_ids[at],
            tuple(self.domains[i] for i in at),
            tuple(self.documents[i] for i in at),
            tuple(self.seeds[i] for i in at),
        )

    def first(self, n: int) -> Windows:
        """Return `n` windows, spread evenly over the domains."""
        order = sorted(range(len(self)), key=lambda i: self.domains[:i].count(self.domains[i]))
        chosen = np.zeros(len(self), np.bool_)
        chosen[order[:n]] = True
        return self.where(chosen)

    @property
    def fingerprint(self) -> str:
        """Digest of every token and label, to tell whether two runs read the same."""
        digest = hashlib.sha256(np.ascontiguousarray(self.token_ids, "<i8").tobytes())
        for column in (self.domains, self.documents, self.seeds):
            digest.update(repr(column).encode())
        return digest.hexdigest()


def sample_windows(
    documents: Sequence[Document],
    n_per_domain: int,
    *,
    length: int = 512,
    seeds: Sequence[int] = (0,),
) -> Windows:
    """Draw windows, `n_per_domain` for every seed and domain; a longer document gives more.

    A domain gives fewer if its documents do not hold as many that lie apart, and none if all of
    them are shorter than a window.

    Args:
        documents: held-out documents.
        n_per_domain: windows of each domain and seed.
        length: tokens of a window, a multiple of 32.
        seeds: one draw for each.

    Raises:
        ConfigError: not one document is long enough.
    """
    found: list[tuple[Indices, str, str, int]] = []
    for domain in DOMAINS:
        own = [one for one in documents if one.domain == domain and len(one.token_ids) >= length]
        for seed in seeds if own else ():
            found += _drawn(own, n_per_domain, length, seed)
    if not found:
        longest = max((len(one.token_ids) for one in documents), default=0)
        message = (
            f"no held-out document has {length} tokens for a window, the longest has {longest}; "
            "give longer texts"
        )
        raise ConfigError(message, field="data", value=longest)
    ids, domains, names, drawn_by = zip(*found, strict=True)
    return Windows(np.stack(ids), domains, names, drawn_by)


def _drawn(
    documents: Sequence[Document], n: int, length: int, seed: int
) -> list[tuple[Indices, str, str, int]]:
    """Draw windows of one domain that do not overlap; where the first one starts varies."""
    rng = np.random.default_rng([seed, length, len(documents)])
    room = np.array([len(one.token_ids) // length for one in documents])
    slack = np.array([len(one.token_ids) for one in documents]) - room * length
    first = rng.integers(0, slack + 1)
    which = np.repeat(np.arange(len(documents)), room)
    place = np.concatenate([np.arange(one) for one in room])
    chosen = rng.choice(len(which), min(n, len(which)), replace=False)
    drawn = []
    for at in np.sort(chosen):
        one = documents[which[at]]
        start = int(first[which[at]] + place[at] * length)
        ids = one.token_ids[start : start + length].astype(np.int64)
        drawn.append((ids, one.domain, one.doc_id, seed))
    return drawn
