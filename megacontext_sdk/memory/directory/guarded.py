"""A storage in use, behind a guard: what foreign code raises or answers wrongly is a typed error.

Whatever a backend raises outside our tree is wrapped once, in an error that names the plugin and
quotes nothing; rows of another shape than asked never reach the tree. Arrays go in and come out
read-only. What a backend promises beyond shapes (durability, atomicity) is the kit's to test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import numpy as np

from megacontext_sdk.contracts.storage import (
    COMMIT,
    MESSAGE,
    NO_OPTIONS,
    GistRows,
    Storage,
    StoreState,
)
from megacontext_sdk.errors import InvariantError
from megacontext_sdk.memory.directory.paths import translated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bytes2D, Indices
    from megacontext_sdk.contracts.storage import (
        Batch,
        Capabilities,
        GistBatch,
        Header,
        OpenMode,
    )

    Guard = Callable[[], AbstractContextManager[None]]
    Factory = Callable[..., Storage]

__all__ = ["GuardedStorage", "guarded"]

_T = TypeVar("_T")


def guarded(factory: Factory, guard: Guard) -> Factory:
    """Return a factory whose stores are guarded.

    Args:
        factory: makes the backend's store of a data folder and options.
        guard: a context that wraps what is not of our error tree, and names the plugin.
    """

    def make(path: Path, options: Mapping[str, str] = NO_OPTIONS) -> Storage:
        with guard():
            return GuardedStorage(factory(path, options), guard)

    return make


class GuardedStorage(Storage):
    """One store and its guard; same contract, as far as shapes go."""

    def __init__(self, inner: Storage, guard: Guard) -> None:
        super().__init__(inner.path, inner.options)
        self._inner = inner
        self._guard = guard
        self._block_bytes = 0

    def __repr__(self) -> str:
        """Say where, never what."""
        return repr(self._inner)

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        """What the backend declares."""
        return self._inner.capabilities

    def _call(
        self, call: Callable[[], _T], passed: tuple[type[Exception], ...] = (LookupError,)
    ) -> _T:
        """Call the backend; errors of our tree and those of `passed` come through as they are."""
        with self._guard():
            try:
                return call()
            except passed as error:
                # The contract's error for an unknown id; a KeyError is a bug of the backend.
                if isinstance(error, KeyError | IndexError):
                    raise
                unknown: Exception = error
        raise unknown

    def open(self, mode: OpenMode, header: Header) -> None:
        """Open the store."""
        self._block_bytes = header.block_bytes
        with translated(self.path):
            self._call(lambda: self._inner.open(mode, header), (LookupError, OSError))

    def state(self) -> StoreState:
        """Return what is committed."""
        state = self._call(self._inner.state)
        _check("state", isinstance(state, StoreState))
        return state

    def commit(self, batch: Batch, *, sync: bool = True) -> None:
        """Write a batch."""
        closed = attrs.evolve(batch, **_views(batch))
        self._call(lambda: self._inner.commit(closed, sync=sync))

    def put_gists(self, batch: GistBatch) -> None:
        """Accept gist rows."""
        closed = attrs.evolve(batch, **_views(batch))
        self._call(lambda: self._inner.put_gists(closed))

    def read_commits(self, start: int, stop: int) -> NDArray[np.void]:
        """Return COMMIT[n]."""
        rows = self._call(lambda: self._inner.read_commits(start, stop))
        _check("read_commits", _is(rows, COMMIT, (stop - start,)))
        return rows

    def read_blocks(self, blocks: Indices) -> Bytes2D:
        """Return uint8[n, block_bytes]."""
        rows = self._call(lambda: self._inner.read_blocks(blocks))
        _check("read_blocks", _is(rows, np.uint8, (len(blocks), self._block_bytes)))
        return rows

    def read_messages(self, start: int, stop: int) -> NDArray[np.void]:
        """Return MESSAGE[n]."""
        rows = self._call(lambda: self._inner.read_messages(start, stop))
        _check("read_messages", _is(rows, MESSAGE, (stop - start,)))
        return rows

    def read_bodies(self, messages: Indices) -> list[bytes]:
        """Return the bodies asked."""
        bodies = self._call(lambda: self._inner.read_bodies(messages))
        fits = isinstance(bodies, list) and len(bodies) == len(messages)
        _check("read_bodies", fits and all(isinstance(body, bytes) for body in bodies))
        return bodies

    def read_gists(self, version: int, lod: int, nodes: Indices) -> GistRows:
        """Return the gist rows that exist."""
        found = self._call(lambda: self._inner.read_gists(version, lod, nodes))
        _check("read_gists", isinstance(found, GistRows) and _fit(found, len(nodes)))
        return found

    def flush(self) -> None:
        """Make everything accepted durable."""
        self._call(self._inner.flush)

    def close(self) -> None:
        """Release everything."""
        self._call(self._inner.close)

    def clone(self, target: Path, upto_seq: int) -> None:
        """Make a store that shares bytes with this one."""
        self._call(lambda: self._inner.clone(target, upto_seq))


def _is(rows: object, dtype: object, shape: tuple[int, ...]) -> bool:
    return isinstance(rows, np.ndarray) and rows.dtype == dtype and rows.shape == shape


def _fit(found: GistRows, n: int) -> bool:
    rows = found.rows
    return (
        isinstance(rows, np.ndarray)
        and rows.ndim == 2
        and _is(rows, np.uint8, (n, rows.shape[1]))
        and _is(found.trust, np.uint8, (n,))
        and _is(found.present, np.bool_, (n,))
    )


def _check(method: str, fits: bool) -> None:  # noqa: FBT001 - the answer to one question
    if not fits:
        raise InvariantError(
            f"the storage answered {method} with rows of another shape or type than the contract "
            "says; report it to the author of the storage plugin",
            code="storage-shape",
            detail=method,
            epoch=None,
        )


def _views(batch: Batch | GistBatch) -> dict[str, Any]:
    """Return the arrays of a batch so that they cannot be written to: they are the caller's."""
    fields = {field.name: getattr(batch, field.name) for field in attrs.fields(type(batch))}
    arrays = {name: one.view() for name, one in fields.items() if isinstance(one, np.ndarray)}
    for view in arrays.values():
        view.flags.writeable = False
    return arrays
