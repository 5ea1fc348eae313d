"""Collects `session.stats()` from the rooms; reads sizes, computes nothing that lasts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.messages.roles import CONTINUES, SETTING
from megacontext_sdk.results import Stats
from megacontext_sdk.snapshots import list_snapshots

if TYPE_CHECKING:
    from pathlib import Path

    from megacontext_sdk.memory.journal import Journal
    from megacontext_sdk.parts import Parts

__all__ = ["collect_stats", "directory_bytes"]

_CHUNK = 65_536


def collect_stats(parts: Parts) -> Stats:
    """Return counts and sizes of a session's memory and working context."""
    state, journal = parts.state, parts.journal
    tree = parts.tree.stats()
    n_bytes = 0 if parts.path is None else directory_bytes(parts.path)
    lods, counts = np.unique(state.wc.entries.lod, return_counts=True)
    window = state.pager if state.has_window else None
    lookups = 0 if window is None else window.cache.hits + window.cache.misses
    return Stats(
        path=None if parts.path is None else str(parts.path),
        storage=parts.storage_name,
        model=parts.wiring.lease.name,
        focus=parts.wiring.providers.focus,
        gist=parts.gist_name,
        n_tokens=parts.tree.n_tokens,
        n_blocks=parts.tree.n_blocks,
        n_messages=_count_messages(journal),
        tail_tokens=len(journal.tail),
        seq=journal.seq,
        nodes=dict(tree.nodes),
        gist_versions=dict(tree.versions),
        gists_reused=parts.gists_reused,
        gists_rebuilt=parts.gists_rebuilt,
        gists_missing=tree.n_missing_gists,
        gists_pending=tree.n_pending_blocks,
        gists_provisional=int(state.provisional().sum()),
        gists_served=dict(tree.served),
        generation=parts.memory.meta.generation,
        snapshots=len(list_snapshots(journal.settings)),
        forgotten_tokens=_count_forgotten(journal),
        rows=state.wc.cost,
        w_max=state.budget.w_max,
        entries=len(state.wc.entries),
        epoch=state.wc.epoch,
        lod_counts=dict(zip(lods.tolist(), counts.tolist(), strict=True)),
        window_rows=0 if window is None else window.n_live,
        stale_rows=0 if window is None else window.stale_rows,
        rebuilds=0 if window is None else window.rebuilds,
        kv_cache_hit_ratio=window.cache.hits / lookups if window is not None and lookups else 0.0,
        bytes_on_disk=n_bytes,
        bytes_per_token=n_bytes / max(1, parts.tree.n_tokens),
    )


def _count_forgotten(journal: Journal) -> int:
    """Add up what the receipts say; tokens are forgotten once."""
    receipts = journal.settings.get("receipts", [])
    kept = receipts if isinstance(receipts, list) else []
    return sum(int(receipt.get("tokens", 0)) for receipt in kept)


def _count_messages(journal: Journal) -> int:
    """Count what people call messages: no settings rows, and a reply in many parts once."""
    total = 0
    for first in range(0, journal.n_messages, _CHUNK):
        rows = journal.messages(first, min(first + _CHUNK, journal.n_messages))
        total += int(((rows["role"] < SETTING) & ((rows["flags"] & CONTINUES) == 0)).sum())
    return total


def directory_bytes(path: Path) -> int:
    """Return the bytes of all files below a directory; files that vanish meanwhile count 0."""
    total = 0
    for file in path.rglob("*"):
        try:
            status = file.lstat()
        except FileNotFoundError:
            continue
        total += status.st_size if file.is_file() else 0
    return total
