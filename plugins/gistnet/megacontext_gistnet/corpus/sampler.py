"""Windows of tokens drawn at random: a domain by its weight, then a place in its documents.

The order is a function of seed and state alone; a sampler that loads the state of another goes on
exactly as that one would have.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from megacontext_gistnet.corpus.source import DOMAINS
from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from megacontext_gistnet.corpus.source import Domain, Split
    from megacontext_gistnet.corpus.store import TokenStore
    from megacontext_sdk.contracts.arrays import Indices

__all__ = ["WindowSampler"]


@attrs.frozen(eq=False)
class _Shelf:
    """The documents of one domain, one behind the other: indices, and where each begins."""

    documents: Indices  # int64[k]
    begins: Indices  # int64[k + 1]

    @property
    def n_tokens(self) -> int:
        return int(self.begins[-1])


class WindowSampler:
    """Draws windows from a store. Not shared between threads.

    Args:
        store: the tokens.
        mix: weight of each domain; by default its share of the tokens. Domains without a
            document that is long enough give no window.
        seed: of the order.
        split: which side to draw from.
        packed: let a window run on into the next documents of its domain; otherwise it lies
            within one document, and documents shorter than a window give none.
        at_start: share of windows that begin where a document begins; the others begin anywhere.

    Raises:
        ConfigError: the mix names an unknown domain, no weight is positive, or a share is outside
            0..1.
    """

    def __init__(
        self,
        store: TokenStore,
        mix: Mapping[Domain, float] | None = None,
        *,
        seed: int = 0,
        split: Split = "train",
        packed: bool = False,
        at_start: float = 0.0,
    ) -> None:
        if not 0.0 <= at_start <= 1.0:
            message = f"at_start={at_start} is no share; use 0 to 1"
            raise ConfigError(message, field="at_start", value=at_start)
        self._store, self._packed, self._at_start = store, packed, at_start
        self._weights = _weights(store, mix, split)
        self._where = {domain: store.where(split, domain) for domain in self._weights}
        self._shelves: dict[tuple[Domain, int], _Shelf | None] = {}
        self._rng = np.random.Generator(np.random.PCG64(seed))

    def next(self, n: int, length: int) -> Indices:
        """Return the next windows, int64[n, length].

        Raises:
            ConfigError: no document of any domain in the mix is long enough.
        """
        shelves = {d: s for d in self._weights if (s := self._shelf(d, length)) is not None}
        if not shelves:
            raise ConfigError(
                f"no document holds a window of {length} tokens; use longer documents, shorter "
                "windows, or packed=True",
                field="length",
                value=length,
            )
        weights = np.array([self._weights[domain] for domain in shelves])
        drawn = self._rng.choice(len(shelves), size=n, p=weights / weights.sum())
        named = list(shelves.values())
        return np.stack([self._window(named[at], length) for at in drawn])

    def state_dict(self) -> dict[str, str]:
        """Return what `load_state_dict` needs to go on from here; JSON inside."""
        state = json.dumps(self._rng.bit_generator.state)
        return {"store": self._store.fingerprint, "generator": state}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Go on where another sampler of the same store and settings stopped.

        Raises:
            ConfigError: the state is of another store; the windows would be others.
        """
        if state.get("store") != self._store.fingerprint:
            raise ConfigError(
                "the checkpoint was made with other data or another tokenizer; resume with the "
                "same sources, or start anew",
                field="data",
                value=state.get("store"),
            )
        loaded: dict[str, Any] = json.loads(state["generator"])
        self._rng.bit_generator.state = loaded

    def _shelf(self, domain: Domain, length: int) -> _Shelf | None:
        """Return the documents that may open a window of a length, None if there are none."""
        key = domain, length
        if key not in self._shelves:
            sizes = np.diff(self._store.offsets)[self._where[domain]]
            fits = np.ones(len(sizes), np.bool_) if self._packed else sizes >= length
            begins = np.concatenate([[0], np.cumsum(sizes[fits])]).astype(np.int64)
            shelf = _Shelf(self._where[domain][fits], begins)
            self._shelves[key] = shelf if shelf.n_tokens >= length else None
        return self._shelves[key]

    def _window(self, shelf: _Shelf, length: int) -> Indices:
        """Draw a document by its length, then a place in it; packed, any place on the shelf."""
        if self._rng.random() < self._at_start:
            start = int(shelf.begins[self._rng.integers(len(shelf.documents))])
        else:
            start = int(self._rng.integers(shelf.n_tokens))
            if not self._packed:
                at = int(np.searchsorted(shelf.begins, start, "right")) - 1
                first, end = int(shelf.begins[at]), int(shelf.begins[at + 1])
                start = first + int(self._rng.integers(end - first - length + 1))
        return self._read(shelf, start, length)

    def _read(self, shelf: _Shelf, start: int, length: int) -> Indices:
        """Return tokens from a place on the shelf, going around behind its last document."""
        window = np.empty(length, np.int64)
        at = int(np.searchsorted(shelf.begins, start, "right")) - 1
        skip, filled = start - int(shelf.begins[at]), 0
        while filled < length:
            first = int(self._store.offsets[shelf.documents[at]])
            end = int(self._store.offsets[shelf.documents[at] + 1])
            piece = self._store.ids[first + skip : min(end, first + skip + length - filled)]
            window[filled : filled + len(piece)] = piece
            filled += len(piece)
            at, skip = (at + 1) % len(shelf.documents), 0
        return window


def _weights(
    store: TokenStore, mix: Mapping[Domain, float] | None, split: Split
) -> dict[Domain, float]:
    counts = store.counts(split)
    wanted: Mapping[Domain, float] = (
        {one: float(n) for one, n in counts.items()} if mix is None else mix
    )
    strange = sorted(set(wanted) - set(DOMAINS))
    if strange:
        message = f"the mix names {strange[0]!r}; the domains are {', '.join(DOMAINS)}"
        raise ConfigError(message, field="mix", value=dict(wanted))
    weights = {one: float(wanted.get(one, 0.0)) for one in DOMAINS if one in counts}
    if any(weight < 0 for weight in weights.values()) or not sum(weights.values()) > 0:
        raise ConfigError(
            f"the mix gives no domain of the data a positive weight; it has {', '.join(counts)}",
            field="mix",
            value=dict(wanted),
        )
    return {one: weight for one, weight in weights.items() if weight > 0}
