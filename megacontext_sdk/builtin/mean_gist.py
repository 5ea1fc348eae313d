"""The `mean` gist encoder: the average token embedding, scaled to the size of a token row.

`g = rho * m / rms(m)` with `m` the mean of the span's embedding rows and `rho` the mean row RMS of
the embedding table. It needs no training, so it is the baseline, the warm start and the fallback of
every learned encoder. It is not a summary: exact strings come from expansion.

Slots are nested: slot 0 is the span, slot 1 its second half, slots 2 and 3 its quarters 2 and 4.
`aux` is `rms(m)` of the whole span, so that `m = g * rms / rho` can be had back and a parent is the
exact mean of its children's `m`, whatever S is: a half of a parent is 16 whole children.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.contracts.gist import GistEncoder, Gists
from megacontext_sdk.errors import ConfigError
from megacontext_sdk.memory.lod import BLOCK_SIZE

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Floats, Ids
    from megacontext_sdk.contracts.gist import Blocks, GistServices
    from megacontext_sdk.contracts.model import ModelInfo

__all__ = ["MeanGistEncoder", "open_mean"]

_SLOTS = (1, 2, 4)
_QUARTER = BLOCK_SIZE // 4
_CHUNK = 64  # blocks per step: the gathered rows then stay in the cache (10 M tokens/s at d=256)
_TINY = np.float32(1e-30)


class MeanGistEncoder(GistEncoder):
    """Training-free gists; see the module. Deterministic bit for bit, in any batching.

    Args:
        gist_slots: S, one of 1, 2, 4.

    Raises:
        ConfigError: another number of slots.
    """

    name = "mean"
    aux_size = 1

    def __init__(self, gist_slots: int = 1) -> None:
        if gist_slots not in _SLOTS or isinstance(gist_slots, bool):
            message = f"gist_slots must be 1, 2 or 4, got {gist_slots!r}"
            raise ConfigError(message, field="gist_slots", value=gist_slots)
        self.gist_slots = gist_slots
        self._rho: dict[str, np.float32] = {}

    def fingerprint(self, info: ModelInfo) -> str:
        """Return the digest of encoder, slots, block size, base and tokenizer."""
        facts = (
            "mean/1",
            f"S={self.gist_slots}",
            f"K={BLOCK_SIZE}",
            info.fingerprint,
            info.tokenizer_fingerprint,
        )
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()

    def encode_blocks(self, blocks: Blocks, services: GistServices) -> Gists:
        """Encode n blocks into n LOD1 gists; what stands left of them does not matter.

        Raises:
            ConfigError: a partial block, or an id outside the vocabulary.
        """
        token_ids, table = blocks.token_ids, services.embedding_table()
        _check_ids(token_ids, len(table))
        sums = np.empty((len(token_ids), 4, table.shape[1]), np.float32)
        rows = np.empty((min(_CHUNK, len(token_ids)) * BLOCK_SIZE, table.shape[1]), np.float32)
        for start in range(0, len(token_ids), _CHUNK):
            ids = token_ids[start : start + _CHUNK].reshape(-1)
            taken = np.take(table, ids, axis=0, out=rows[: len(ids)], mode="clip")
            _sum_quarters(taken, out=sums[start : start + _CHUNK])
        return self._finish(sums, self._scale(services))

    def encode_gists(self, lod: int, children: Gists, services: GistServices) -> Gists:
        """Encode groups of 32 children into parents.

        Raises:
            ConfigError: the children are no whole sibling groups, or are not finite.
        """
        _check_children(lod, children)
        rho = self._scale(services)
        means = children.rows[:, 0] * (children.aux / rho)
        sums = np.empty((len(means) // BLOCK_SIZE, 4, means.shape[1]), np.float32)
        _sum_quarters(means, out=sums)
        return self._finish(sums, rho)

    def _scale(self, services: GistServices) -> np.float32:
        """Return rho, computed once per base."""
        base = services.info.fingerprint
        if base not in self._rho:
            self._rho[base] = _mean_row_rms(services.embedding_table())
        return self._rho[base]

    def _finish(self, sums: Floats, rho: np.float32) -> Gists:
        """Turn sums over quarters, float32[n, 4, d], into scaled rows and `aux`."""
        second = sums[:, 2] + sums[:, 3]
        means = np.empty((len(sums), self.gist_slots, sums.shape[2]), np.float32)
        means[:, 0] = ((sums[:, 0] + sums[:, 1]) + second) / np.float32(BLOCK_SIZE)
        if self.gist_slots > 1:
            means[:, 1] = second / np.float32(2 * _QUARTER)
        if self.gist_slots > 2:
            means[:, 2] = sums[:, 1] / np.float32(_QUARTER)
            means[:, 3] = sums[:, 3] / np.float32(_QUARTER)
        size = _rms(means)
        means *= (rho / np.maximum(size, _TINY))[..., None]
        return Gists(rows=means, aux=size[:, :1].copy())


def open_mean(argument: str = "", *, gist_slots: int = 1) -> MeanGistEncoder:
    """Make the encoder of `gist="mean"`.

    Raises:
        ConfigError: an argument, of which `mean` takes none, or a bad number of slots.
    """
    if argument:
        message = f'gist="mean:{argument}": mean takes nothing after a colon; say gist="mean"'
        raise ConfigError(message, field="gist", value=argument)
    return MeanGistEncoder(gist_slots)


def _sum_quarters(rows: Floats, out: Floats) -> None:
    """Sum each group of 8 of float32[n * 32, d] rows into `out`, float32[n, 4, d]."""
    np.add.reduce(rows.reshape(-1, 4, _QUARTER, rows.shape[-1]), axis=2, out=out)


def _rms(vectors: Floats) -> Floats:
    """Return the root mean square over the last axis."""
    size: Floats = np.sqrt(np.square(vectors).mean(axis=-1, dtype=np.float32))
    return size


def _mean_row_rms(table: Floats) -> np.float32:
    """Return the mean over rows of their RMS, in slices: the table may be a gigabyte."""
    step = 4096
    total = sum(
        float(_rms(table[at : at + step]).sum(dtype=np.float64))
        for at in range(0, len(table), step)
    )
    return np.float32(total / len(table))


def _check_ids(token_ids: Ids, n_vocab: int) -> None:
    if token_ids.ndim != 2 or token_ids.shape[1] != BLOCK_SIZE:
        message = f"encode_blocks takes whole blocks, int32[n, 32], got shape {token_ids.shape}"
        raise ConfigError(message, field="token_ids", value=token_ids.shape)
    if not token_ids.size or (token_ids.min() >= 0 and token_ids.max() < n_vocab):
        return
    index = int(np.flatnonzero((token_ids < 0) | (token_ids >= n_vocab))[0])
    value = int(token_ids.reshape(-1)[index])
    message = f"token id {value} at index {index} is outside the vocabulary [0, {n_vocab})"
    raise ConfigError(message, field="token_ids", value=value, index=index)


def _check_children(lod: int, children: Gists) -> None:
    n = len(children.rows)
    if n % BLOCK_SIZE or len(children.aux) != n:
        message = f"LOD{lod} gists need whole groups of {BLOCK_SIZE} children, got {n}"
        raise ConfigError(message, field="children", value=n)
    finite = np.isfinite(children.rows[:, 0]).all(axis=-1) & np.isfinite(children.aux).all(axis=-1)
    if not finite.all():
        index = int(np.flatnonzero(~finite)[0])
        message = f"child {index} of the LOD{lod} gists is not finite; rebuild it first"
        raise ConfigError(message, field="children", value="not finite", index=index)
