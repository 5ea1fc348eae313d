"""Our four tables: their SQL and the way between rows of the engine and rows of the contract.

No key, no index, no update, no delete. Bodies and ids are uncompressed, so that a raw scan of the
file finds what is in it. Numbers that rise from row to row are stored as two small columns, since
in blocks of 16 KiB the engine packs columns of 16 bits and leaves wider ones as they are: a row has
the number `page * 2048 + slot`, and reads skip the row groups whose pages they do not want. The
engine's life is `engine`'s, the contract `store`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.contracts.storage import COMMIT, MESSAGE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import duckdb
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
    "HEAD_UP_TO",
    "IN_ORDER",
    "IS_FIRST_LAYOUT",
    "MESSAGES",
    "N_COMMITS",
    "append",
    "block_rows",
    "bytes_rows",
    "commit_array",
    "commit_rows",
    "gist_rows",
    "interval",
    "message_array",
    "message_rows",
    "numbers",
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
    page UINTEGER NOT NULL, slot USMALLINT NOT NULL,
    data BLOB NOT NULL USING COMPRESSION uncompressed)
"""
_MESSAGE_TABLE = """
CREATE TABLE mc_message (
    page UINTEGER NOT NULL, slot USMALLINT NOT NULL,
    start_high UINTEGER NOT NULL, start_low USMALLINT NOT NULL,
    n_tokens_high USMALLINT NOT NULL, n_tokens_low USMALLINT NOT NULL,
    ts_us BIGINT NOT NULL, role UTINYINT NOT NULL, trust UTINYINT NOT NULL,
    flags USMALLINT NOT NULL, body BLOB NOT NULL USING COMPRESSION uncompressed)
"""
_GIST_TABLE = """
CREATE TABLE mc_gist (
    version USMALLINT NOT NULL, lod UTINYINT NOT NULL,
    page UINTEGER NOT NULL, slot USMALLINT NOT NULL, trust UTINYINT NOT NULL,
    data BLOB NOT NULL USING COMPRESSION uncompressed)
"""
CREATE = (_COMMIT_TABLE, _BLOCK_TABLE, _MESSAGE_TABLE, _GIST_TABLE)

# Cursors do not inherit USE: every name is qualified.
HEAD = (
    "SELECT seq, chain, start + n_tokens, first_message + n_messages, setting, tail "
    "FROM m.mc_commit WHERE seq = (SELECT max(seq) FROM m.mc_commit)"
)
HEAD_UP_TO = (
    "SELECT seq, chain, start + n_tokens, first_message + n_messages, setting, tail "
    "FROM m.mc_commit WHERE seq <= ? AND tail IS NOT NULL ORDER BY seq DESC LIMIT 1"
)
N_COMMITS = "SELECT count(*) FROM m.mc_commit"
GIST_COUNTS = "SELECT version, lod, count(*) FROM m.mc_gist GROUP BY version, lod ORDER BY ALL"
COMMITS = "SELECT * EXCLUDE (tail) FROM m.mc_commit WHERE seq BETWEEN ? AND ? ORDER BY seq"
BLOCKS = "SELECT t.page, t.slot, t.data FROM m.mc_block t"
BODIES = "SELECT t.page, t.slot, t.body AS data FROM m.mc_message t"
GISTS = "SELECT t.page, t.slot, t.trust, t.data FROM m.mc_gist t"
MESSAGES = """
SELECT start_high::UBIGINT * 65536 + start_low AS start, n_tokens_high::UINTEGER * 65536
    + n_tokens_low AS n_tokens, ts_us, role, trust, flags
FROM m.mc_message t
"""
IN_ORDER = " ORDER BY t.page, t.slot"
IS_FIRST_LAYOUT = """
SELECT count(*) FROM duckdb_columns()
WHERE database_name = 'm' AND table_name = 'mc_block' AND column_name = 'block'
"""

_PAGE = 2048
_HALF = 2**16
_NO_KEY = bytes(16)
_DENSE = 4  # read a range when at least every fourth row of it is wanted
_SHORT = 64


def where(wanted: NDArray[np.uint64]) -> tuple[str, list[object]]:
    """Return a condition for the rows of ascending, distinct numbers, and its parameters.

    A range where they lie close, else a join: a literal IN list is 35 times slower. The bounds of
    the pages let the engine skip row groups.
    """
    low, high = int(wanted[0]), int(wanted[-1])
    pages: list[object] = [low // _PAGE, high // _PAGE]
    if high - low < _DENSE * len(wanted) + _SHORT:
        return interval(low, high + 1)
    condition = (
        " JOIN (SELECT unnest(?::UINTEGER[]) AS page, unnest(?::USMALLINT[]) AS slot) i "
        "ON t.page = i.page AND t.slot = i.slot WHERE t.page BETWEEN ? AND ?"
    )
    return condition, [(wanted // _PAGE).tolist(), (wanted % _PAGE).tolist(), *pages]


def interval(start: int, stop: int) -> tuple[str, list[object]]:
    """Return a condition for the rows with `start <= number < stop`, and its parameters."""
    # Nothing is before 0: an empty interval still has to come back with its columns.
    low, high = (start, stop - 1) if stop > start else (1, 0)
    condition = (
        f" WHERE t.page BETWEEN ? AND ? AND t.page::UBIGINT * {_PAGE} + t.slot BETWEEN ? AND ?"
    )
    return condition, [low // _PAGE, high // _PAGE, low, high]


def numbers(found: Mapping[str, NDArray[np.generic]]) -> NDArray[np.uint64]:
    """Return the numbers of fetched rows."""
    high: NDArray[np.uint64] = found["page"].astype(np.uint64) * np.uint64(_PAGE)
    return high + found["slot"].astype(np.uint64)


def commit_rows(batch: Batch) -> Iterable[tuple[object, ...]]:
    """Return the rows of `mc_commit`; the tail goes with the last one."""
    last = len(batch.commits) - 1
    for at, row in enumerate(batch.commits.tolist()):
        *numbers, _pad, key, chain = row
        yield (*numbers, None if key == _NO_KEY else key, chain, batch.tail if at == last else None)


def append(
    connection: duckdb.DuckDBPyConnection, table: str, rows: Iterable[Sequence[object]]
) -> None:
    """Append rows; about 200 times faster than `executemany`."""
    with connection.appender(table) as appender:
        appender.append_rows(rows)


def block_rows(batch: Batch, first: int) -> Iterable[tuple[int, int, bytes]]:
    """Return the rows of `mc_block`."""
    size, data = batch.blocks.shape[1], batch.blocks.tobytes()
    for at in range(len(batch.blocks)):
        page, slot = divmod(first + at, _PAGE)
        yield page, slot, data[at * size : (at + 1) * size]


def message_rows(batch: Batch, first: int) -> Iterable[tuple[object, ...]]:
    """Return the rows of `mc_message`."""
    rows = zip(batch.messages.tolist(), batch.bodies, strict=True)
    for number, (row, body) in enumerate(rows, first):
        start, ts_us, n_tokens, role, trust, flags = row
        yield (
            *divmod(number, _PAGE),
            *divmod(start, _HALF),
            *divmod(n_tokens, _HALF),
            ts_us,
            role,
            trust,
            flags,
            body,
        )


def gist_rows(batch: GistBatch) -> Iterable[tuple[object, ...]]:
    """Return the rows of `mc_gist`."""
    size, data = batch.rows.shape[1], batch.rows.tobytes()
    for at, (node, trust) in enumerate(
        zip(batch.nodes.tolist(), batch.trust.tolist(), strict=True)
    ):
        row = data[at * size : (at + 1) * size]
        yield batch.version, batch.lod, node // _PAGE, node % _PAGE, trust, row


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
