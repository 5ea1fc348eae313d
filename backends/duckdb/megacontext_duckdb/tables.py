"""Our four tables: their SQL and the way between rows of the engine and rows of the contract.

No key, no index, no update, no delete. Bodies and ids are uncompressed, so that a raw scan of the
file finds what is in it. The engine's life is `engine`'s, the contract `store`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.contracts.storage import COMMIT, MESSAGE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bytes2D
    from megacontext_sdk.contracts.storage import Batch, GistBatch

__all__ = [
    "BLOCKS",
    "BODIES",
    "COMMITS",
    "CREATE",
    "GISTS",
    "GIST_COUNTS",
    "HEAD",
    "MESSAGES",
    "block_rows",
    "bytes_rows",
    "commit_array",
    "commit_rows",
    "gist_rows",
    "message_array",
    "message_rows",
    "where",
]

_COMMIT_TABLE = """
CREATE TABLE mc_commit (
    seq UBIGINT NOT NULL, ts_us BIGINT NOT NULL, start UBIGINT NOT NULL,
    first_message UBIGINT NOT NULL, setting UBIGINT NOT NULL, n_tokens UINTEGER NOT NULL,
    n_messages UINTEGER NOT NULL, op UTINYINT NOT NULL, key BLOB, chain BLOB NOT NULL, tail BLOB)
"""
_BLOCK_TABLE = """
CREATE TABLE mc_block (
    block UBIGINT NOT NULL, data BLOB NOT NULL USING COMPRESSION uncompressed)
"""
_MESSAGE_TABLE = """
CREATE TABLE mc_message (
    message UBIGINT NOT NULL, start UBIGINT NOT NULL, n_tokens UINTEGER NOT NULL,
    ts_us BIGINT NOT NULL, role UTINYINT NOT NULL, trust UTINYINT NOT NULL,
    flags USMALLINT NOT NULL, body BLOB NOT NULL USING COMPRESSION uncompressed)
"""
_GIST_TABLE = """
CREATE TABLE mc_gist (
    version USMALLINT NOT NULL, lod UTINYINT NOT NULL, node UBIGINT NOT NULL,
    trust UTINYINT NOT NULL, data BLOB NOT NULL USING COMPRESSION uncompressed)
"""
CREATE = (_COMMIT_TABLE, _BLOCK_TABLE, _MESSAGE_TABLE, _GIST_TABLE)

# Cursors do not inherit USE: every name is qualified.
HEAD = (
    "SELECT seq, chain, start + n_tokens, first_message + n_messages, setting, tail "
    "FROM m.mc_commit WHERE seq = (SELECT max(seq) FROM m.mc_commit)"
)
GIST_COUNTS = "SELECT version, lod, count(*) FROM m.mc_gist GROUP BY version, lod ORDER BY ALL"
COMMITS = "SELECT * EXCLUDE (tail) FROM m.mc_commit WHERE seq BETWEEN ? AND ? ORDER BY seq"
MESSAGES = (
    "SELECT * EXCLUDE (body) FROM m.mc_message WHERE message BETWEEN ? AND ? ORDER BY message"
)
BLOCKS = "SELECT block AS id, data FROM m.mc_block t"
BODIES = "SELECT message AS id, body AS data FROM m.mc_message t"
GISTS = "SELECT node AS id, trust, data FROM m.mc_gist t"

_NO_KEY = bytes(16)
_DENSE = 4  # read a range when at least every fourth row of it is wanted
_SHORT = 64


def where(column: str, wanted: NDArray[np.uint64]) -> tuple[str, list[object]]:
    """Return a condition for the rows of ascending, distinct ids, and its parameters.

    A range where the ids lie close, else a join: a literal IN list is 35 times slower.
    """
    low, high = int(wanted[0]), int(wanted[-1])
    if high - low < _DENSE * len(wanted) + _SHORT:
        return f" WHERE t.{column} BETWEEN ? AND ?", [low, high]
    # The bounds let the engine skip row groups before it joins.
    condition = (
        f" JOIN (SELECT unnest(?::UBIGINT[]) AS wanted) i ON t.{column} = i.wanted "
        f"WHERE t.{column} BETWEEN ? AND ?"
    )
    return condition, [wanted.tolist(), low, high]


def commit_rows(batch: Batch) -> Iterable[tuple[object, ...]]:
    """Return the rows of `mc_commit`; the tail goes with the last one."""
    last = len(batch.commits) - 1
    for at, row in enumerate(batch.commits.tolist()):
        *numbers, _pad, key, chain = row
        yield (*numbers, None if key == _NO_KEY else key, chain, batch.tail if at == last else None)


def block_rows(batch: Batch, first: int) -> Iterable[tuple[int, bytes]]:
    """Return the rows of `mc_block`."""
    return _numbered(first, batch.blocks)


def _numbered(first: int, rows: Bytes2D) -> Iterable[tuple[int, bytes]]:
    size, data = rows.shape[1], rows.tobytes()
    for at in range(len(rows)):
        yield first + at, data[at * size : (at + 1) * size]


def message_rows(batch: Batch, first: int) -> Iterable[tuple[object, ...]]:
    """Return the rows of `mc_message`."""
    for at, (row, body) in enumerate(zip(batch.messages.tolist(), batch.bodies, strict=True)):
        start, ts_us, n_tokens, role, trust, flags = row
        yield first + at, start, n_tokens, ts_us, role, trust, flags, body


def gist_rows(batch: GistBatch) -> Iterable[tuple[object, ...]]:
    """Return the rows of `mc_gist`."""
    size, data = batch.rows.shape[1], batch.rows.tobytes()
    for at, (node, trust) in enumerate(
        zip(batch.nodes.tolist(), batch.trust.tolist(), strict=True)
    ):
        yield batch.version, batch.lod, node, trust, data[at * size : (at + 1) * size]


def _fill(found: Mapping[str, NDArray[np.generic]], dtype: np.dtype[np.void]) -> NDArray[np.void]:
    rows = np.zeros(len(next(iter(found.values()))), dtype)
    for name in dtype.names or ():
        if name in found and found[name].dtype != object:
            rows[name] = found[name]
    return rows


def commit_array(found: Mapping[str, NDArray[np.generic]]) -> NDArray[np.void]:
    """Return fetched columns as COMMIT[n]."""
    rows = _fill(found, COMMIT)
    if len(rows):
        keys = found["key"].tolist()  # None where NULL, masked or not
        rows["key"] = np.frombuffer(b"".join(key or _NO_KEY for key in keys), "V16")
        rows["chain"] = np.frombuffer(b"".join(found["chain"].tolist()), "V16")
    rows.flags.writeable = False
    return rows


def message_array(found: Mapping[str, NDArray[np.generic]]) -> NDArray[np.void]:
    """Return fetched columns as MESSAGE[n]."""
    rows = _fill(found, MESSAGE)
    rows.flags.writeable = False
    return rows


def bytes_rows(values: NDArray[np.object_], row_bytes: int) -> Bytes2D:
    """Return byte strings of one length as uint8[n, row_bytes]."""
    return np.frombuffer(b"".join(values.tolist()), np.uint8).reshape(len(values), row_bytes)
