"""Forks on disk: a new memory that holds another one up to a commit, and is independent of it.

Their chains agree up to the cut. That the parent remembers its forks is the session's affair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from megacontext_sdk.errors import ConfigError, CorruptError
from megacontext_sdk.memory.directory.making import make_memory, new_uuid
from megacontext_sdk.memory.directory.replay import copy_commits, copy_gists

if TYPE_CHECKING:
    from megacontext_sdk.contracts.storage import Storage
    from megacontext_sdk.memory.directory.manifest import MemoryMeta
    from megacontext_sdk.memory.directory.opened import OpenedMemory

__all__ = ["fork_memory"]


def fork_memory(
    opened: OpenedMemory,
    path: object,
    *,
    at_seq: int | None = None,
    name: str = "",
    uuid: str | None = None,
) -> MemoryMeta:
    """Make a fork of an open memory; bytes are shared where the backend can.

    Args:
        opened: the parent; nothing of it changes.
        path: directory of the fork; must not exist.
        at_seq: last commit of the fork; all of them if absent.
        name: what the caller calls the fork.
        uuid: of the fork, if the parent has noted it already.

    Returns:
        What MEMORY of the fork says: a new uuid, and `parent` with uuid, seq and chain.

    Raises:
        ConfigError: no such commit, or the path cannot hold a new memory.
        StorageError: the fork could not be written; nothing of it is left.
    """
    journal, source = opened.journal, opened.storage
    journal.flush()
    seq = journal.seq if at_seq is None else at_seq
    if not 0 <= seq <= journal.seq:
        raise ConfigError(
            f"there is no commit {seq} to fork at; they run from 1 to {journal.seq}",
            field="at",
            value=seq,
        )
    chain = source.read_commits(seq, seq + 1)["chain"].tobytes() if seq else opened.meta.root
    parent: dict[str, str | int] = {"uuid": opened.meta.uuid, "seq": seq, "chain": chain.hex()}
    meta = msgspec.structs.replace(opened.meta, uuid=uuid or new_uuid(), parent=parent, name=name)
    is_cheap = source.capabilities.cheap_fork and seq > 0

    def fill(target: Storage) -> None:
        if not is_cheap:
            position = copy_commits(
                source, target, root=meta.root, token_bytes=meta.token_bytes, upto_seq=seq
            )
            copy_gists(source, target, n_tokens=position.n_tokens)
        _check_chain(target, seq, chain)

    return make_memory(
        path,
        backend=opened.backend,
        factory=opened.factory,
        meta=meta,
        fill=fill,
        options=opened.options,
        clone_from=source if is_cheap else None,
        clone_upto=seq,
        disk=opened.disk,
    )


def _check_chain(target: Storage, seq: int, chain: bytes) -> None:
    """Check that the fork is what its parent was at the cut."""
    state = target.state()
    if state.seq != seq or (seq and state.chain != chain):
        raise CorruptError(
            f"the fork at commit {seq} came out as another history (commit {state.seq}); check the "
            "memory it comes from: megacontext doctor --scrub",
            path=str(target.path),
            where="fork",
            offset=None,
            have_seq=state.seq,
        )
