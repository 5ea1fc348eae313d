"""What a store shows at one moment: sealed tables, the open log and the state they lead to.

A view never changes, so a reader that holds one sees a committed prefix while the writer goes on.
It reads; making the next view is `store`'s and `sealing`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import attrs
import numpy as np

from megacontext_filesystem.segments import Segment
from megacontext_filesystem.tables import BodyTable, GistTable, Table
from megacontext_sdk.contracts.checks import check_interval, check_numbers
from megacontext_sdk.contracts.storage import COMMIT, MESSAGE, GistRows, StoreState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from megacontext_filesystem.log import Log
    from megacontext_filesystem.manifest import Manifest
    from megacontext_filesystem.pending import Pending, Runs
    from megacontext_filesystem.segments import SegmentInfo
    from megacontext_filesystem.tables import MapPool
    from megacontext_sdk.contracts.arrays import Bytes2D, Indices

    Key = tuple[str, int, int]

_Scalar = TypeVar("_Scalar", bound=np.generic)

__all__ = ["View", "make_tables", "sealed_state"]

_TABLES: Mapping[str, type[Table]] = {"body": BodyTable, "gist": GistTable}


def make_tables(
    folder: Path,
    pool: MapPool,
    infos: Iterable[SegmentInfo],
    known: Mapping[Key, Table],
) -> dict[Key, Table]:
    """Return the tables of these segments; what `known` tables have checked stays checked.

    Raises:
        CorruptError: a segment is missing or has another size.
    """
    grouped: dict[Key, list[SegmentInfo]] = {}
    for info in infos:
        grouped.setdefault((info.kind, info.version, info.lod), []).append(info)
    for kind in ("block", "commit", "message", "body"):
        grouped.setdefault((kind, 0, 0), [])
    tables = {}
    for key, group in grouped.items():
        old = known.get(key)
        n_old = len(old.segments) if old is not None else 0
        if old is not None and [one.info for one in old.segments] == group[:n_old]:
            table, rest = old, group[n_old:]
        else:
            table, rest = None, group
        segments = [Segment(folder / info.name, info) for info in rest]
        for segment in segments:
            segment.check_size()
        if table is None:
            table = _TABLES.get(key[0], Table)(segments, pool)
        else:
            for segment in segments:
                table = table.extended(segment)
        tables[key] = table
    return tables


def sealed_state(manifest: Manifest) -> StoreState:
    """Return the state after the newest sealed commit."""
    return StoreState(
        seq=manifest.seq,
        chain=bytes.fromhex(manifest.chain),
        n_tokens=manifest.n_tokens,
        n_blocks=manifest.n_blocks,
        n_messages=manifest.n_messages,
        tail=bytes.fromhex(manifest.tail),
        setting=manifest.setting,
        gist_rows=(),
    )


@attrs.frozen(eq=False)
class View:
    """One moment of a store.

    Attributes:
        state: without gist counts.
        manifest: in force.
        tables: sealed rows by kind, version and lod.
        pending: where the rows of the log are.
        log: open.
        gist_stop: rows of a (version, lod) from this node on are not shown.
    """

    state: StoreState
    manifest: Manifest
    tables: Mapping[Key, Table]
    pending: Pending
    log: Log
    gist_stop: Mapping[tuple[int, int], int] = attrs.field(factory=dict)

    def gist_count(self, key: tuple[int, int]) -> int:
        """Return how many gist rows of a (version, lod) there are."""
        runs, table = self.pending.gists.get(key), self.tables.get(("gist", *key))
        sealed = table.end if table is not None else 0
        count = runs.rows.end if runs is not None else sealed
        return min(count, self.gist_stop.get(key, count))

    def gist_stride(self, key: tuple[int, int]) -> int:
        """Return the bytes of a gist row of a (version, lod), 0 if there is none."""
        runs, table = self.pending.gists.get(key), self.tables.get(("gist", *key))
        if table is not None:
            return table.stride
        return runs.rows.stride if runs is not None else 0

    def full_state(self) -> StoreState:
        """Return the state with its gist counts."""
        keys = {key[1:] for key in list(self.tables) if key[0] == "gist"}
        keys |= set(self.pending.gists)
        counts = ((*key, self.gist_count(key)) for key in sorted(keys))
        rows = tuple(count for count in counts if count[2])
        return attrs.evolve(self.state, gist_rows=rows)

    def _rows(self, table: Table, runs: Runs, ids: Indices) -> Bytes2D:
        """Return rows of which some may be sealed and some in the log."""
        is_late = ids >= runs.first
        if not len(ids):
            return np.empty((0, runs.stride), np.uint8)
        if not is_late.any():
            return table.rows(ids)
        if is_late.all():
            return runs.rows(self.log.data(), ids)
        rows = np.empty((len(ids), runs.stride), np.uint8)
        rows[is_late] = runs.rows(self.log.data(), ids[is_late])
        rows[~is_late] = table.rows(ids[~is_late])
        return rows

    def commits(self, start: int, stop: int) -> NDArray[np.void]:
        """Return COMMIT[n]."""
        check_interval("commit", start, stop, self.state.seq + 1, first=1)
        ids = np.arange(start, stop, dtype=np.int64)
        rows = self._rows(self.tables["commit", 0, 0], self.pending.commits, ids)
        return frozen(rows.reshape(-1).view(COMMIT))

    def messages(self, start: int, stop: int) -> NDArray[np.void]:
        """Return MESSAGE[n]."""
        check_interval("message", start, stop, self.state.n_messages)
        ids = np.arange(start, stop, dtype=np.int64)
        rows = self._rows(self.tables["message", 0, 0], self.pending.messages, ids)
        return frozen(rows.reshape(-1).view(MESSAGE))

    def blocks(self, numbers: Indices) -> Bytes2D:
        """Return uint8[n, block_bytes]."""
        ids = np.asarray(numbers).astype(np.int64)
        check_numbers("block", ids, self.state.n_blocks)
        return frozen(self._rows(self.tables["block", 0, 0], self.pending.blocks, ids))

    def bodies(self, numbers: Indices) -> list[bytes]:
        """Return the bodies asked."""
        ids = np.asarray(numbers).astype(np.int64)
        check_numbers("message", ids, self.state.n_messages)
        floor = self.pending.bodies.first
        table = self.tables["body", 0, 0]
        early = iter(table.read(ids[ids < floor].tolist()) if isinstance(table, BodyTable) else [])
        late = iter(self._late_bodies(ids[ids >= floor].tolist()))
        return [next(early) if number < floor else next(late) for number in ids.tolist()]

    def _late_bodies(self, numbers: list[int]) -> list[bytes]:
        if not numbers:
            return []
        return self.pending.bodies.read(self.log.data().data, numbers)

    def gists(self, version: int, lod: int, nodes: Indices) -> GistRows:
        """Return the gist rows that exist."""
        key = (version, lod)
        wanted = np.asarray(nodes).astype(np.int64)
        count = self.gist_count(key)
        if len(wanted) and wanted.min() >= 0 and wanted.max() < count:
            rows, trust = self._gists(key, wanted)
            present = np.ones(len(wanted), np.bool_)
        else:
            present = (wanted >= 0) & (wanted < count)
            rows = np.zeros((len(wanted), self.gist_stride(key)), np.uint8)
            trust = np.zeros(len(wanted), np.uint8)
            rows[present], trust[present] = self._gists(key, wanted[present])
        return GistRows(rows=frozen(rows), trust=frozen(trust), present=frozen(present))

    def _gists(self, key: tuple[int, int], nodes: Indices) -> tuple[Bytes2D, NDArray[np.uint8]]:
        """Return rows and trust of nodes that exist."""
        table, runs = self.tables.get(("gist", *key)), self.pending.gists.get(key)
        if not len(nodes):
            return np.empty((0, self.gist_stride(key)), np.uint8), np.empty(0, np.uint8)
        if runs is None and isinstance(table, GistTable):
            return table.read(nodes)
        if runs is None:
            raise LookupError(f"there are no gists of version {key[0]}, LOD{key[1]}")
        log = self.log.data()
        is_late = nodes >= runs.rows.first
        if is_late.all() or not isinstance(table, GistTable):
            return runs.rows.rows(log, nodes), runs.trust.rows(log, nodes).reshape(-1)
        rows = np.empty((len(nodes), table.stride), np.uint8)
        trust = np.empty(len(nodes), np.uint8)
        rows[is_late] = runs.rows.rows(log, nodes[is_late])
        trust[is_late] = runs.trust.rows(log, nodes[is_late]).reshape(-1)
        rows[~is_late], trust[~is_late] = table.read(nodes[~is_late])
        return rows, trust


def frozen(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """Return the array itself, read-only from now on."""
    array.flags.writeable = False
    return array
