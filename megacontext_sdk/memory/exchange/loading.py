"""Loading: a new memory made of a bundle, or of another memory's directory read without its model.

Everything is checked before the first byte of the new memory is written, and the new memory appears
under its name when it is complete. What comes from elsewhere is trusted as such: unless the caller
says otherwise its messages are EXTERNAL at most, and its settings and gists stay behind.
"""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.contracts.storage import NO_OPTIONS
from megacontext_sdk.errors import (
    ConfigError,
    CorruptError,
    ModelMismatchError,
    SessionNotFoundError,
    shown,
)
from megacontext_sdk.memory.chain import ROLE_SETTING
from megacontext_sdk.memory.directory.making import make_memory, new_uuid
from megacontext_sdk.memory.directory.manifest import MemoryMeta, read_meta
from megacontext_sdk.memory.directory.opened import Fingerprints, now_us
from megacontext_sdk.memory.directory.paths import check_directory, check_location
from megacontext_sdk.memory.directory.replay import append_settings, copy_commits, copy_gists
from megacontext_sdk.memory.directory.stretch import Place, stretches
from megacontext_sdk.memory.directory.vault import open_memory
from megacontext_sdk.memory.exchange.bundle_check import check_bundle, encoder_entries, kept_gists
from megacontext_sdk.memory.exchange.bundle_reader import open_bundle
from megacontext_sdk.memory.exchange.retokenizing import rewrite
from megacontext_sdk.memory.settings import encode_settings
from megacontext_sdk.messages.roles import Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Bytes2D, Indices
    from megacontext_sdk.contracts.storage import GistRows, Storage, StoreState
    from megacontext_sdk.memory.directory.replay import Progress
    from megacontext_sdk.memory.directory.stores import StorageFactory
    from megacontext_sdk.memory.directory.stretch import Source
    from megacontext_sdk.memory.exchange.retokenizing import Retokenizer

__all__ = ["Loader", "load_memory", "open_source"]

_NO_SETTINGS = encode_settings({})
_LEFT_BEHIND = {"forks", "exports"}  # they name places of the other memory, not of this one


def load_memory(
    source: Path,
    *,
    into: Path,
    backend: str,
    factory: StorageFactory,
    fingerprints: Fingerprints,
    vocab_size: int,
    width: int,
    factory_of: Callable[[str], StorageFactory],
    trust: str = "cap",
    retokenizer: Retokenizer | None = None,
    name: str = "",
    options: Mapping[str, str] = NO_OPTIONS,
    clock: Callable[[], int] = now_us,
    progress: Progress | None = None,
) -> MemoryMeta:
    """Make a new memory of a bundle or of another memory; a failure leaves nothing behind.

    Args:
        source: a bundle, or the directory of a memory.
        into: directory of the new memory.
        backend: name of its storage.
        factory: makes its store.
        fingerprints: of the model it will be used with.
        vocab_size: of that model.
        width: of that model's gists.
        factory_of: makes the store of another memory by the name of its storage.
        trust: "cap" lets messages keep at most EXTERNAL and takes no settings and no gists, "keep"
            believes what the source says.
        retokenizer: makes ids anew where the tokenizer is another one; None refuses that.
        name: noted in MEMORY.
        options: for the backend.
        clock: microseconds since 1970.
        progress: called with tokens done and tokens in all.

    Returns:
        What MEMORY of the new memory says.

    Raises:
        BundleError: the bundle is damaged, or breaks its format.
        ConfigError: the target exists, or an argument makes no sense.
        CorruptError: the other memory is damaged.
        FormatVersionError: a newer format.
        ModelMismatchError: another tokenizer, and no `retokenizer`, or messages without text.
        SessionLockedError: the other memory is open for writing.
        SessionNotFoundError: there is nothing at `source`.
        StorageFullError: no space.
    """
    with open_source(source, factory_of) as origin:
        loader = Loader(
            origin,
            backend=backend,
            fingerprints=fingerprints,
            vocab_size=vocab_size,
            width=width,
            trust=trust,
            retokenizer=retokenizer,
            name=name,
            clock=clock,
            progress=progress,
        )
        loader.check()
        return make_memory(
            into,
            backend=backend,
            factory=factory,
            meta=loader.meta,
            fill=loader.fill,
            options=options,
        )


@attrs.frozen(kw_only=True, eq=False)
class Origin:
    """Where a memory comes from.

    Attributes:
        path: of the bundle or directory.
        source: what it holds.
        uuid, root, token_bytes, fingerprints: of the memory.
        check: looks at everything, given the size of the vocabulary or None.
    """

    path: str
    source: Source
    uuid: str
    root: bytes
    token_bytes: int
    fingerprints: Fingerprints
    check: Callable[[int | None], None]


@contextmanager
def open_source(path: Path, factory_of: Callable[[str], StorageFactory]) -> Iterator[Origin]:
    """Open a bundle, or a memory's directory for reading, whatever model it was made with.

    Raises:
        BundleError: a damaged bundle.
        ConfigError: neither of the two.
        CorruptError: a damaged memory.
        SessionLockedError: a memory that is open for writing.
        SessionNotFoundError: there is nothing.
    """
    place = check_location(path)
    if place.is_dir():
        with _directory(place, factory_of) as origin:
            yield origin
        return
    with open_bundle(place) as bundle:
        header = bundle.header
        yield Origin(
            path=str(place),
            source=bundle,
            uuid=header.uuid,
            root=bytes.fromhex(header.root),
            token_bytes=header.token_bytes,
            fingerprints=Fingerprints(header.base_fp, header.tokenizer_fp),
            check=lambda vocab_size: check_bundle(bundle, vocab_size),
        )


@contextmanager
def _directory(path: Path, factory_of: Callable[[str], StorageFactory]) -> Iterator[Origin]:
    check_directory(path)
    meta = read_meta(path)
    if meta is None:
        raise SessionNotFoundError(
            f"there is no memory at {path}; give a bundle or the directory of a memory",
            path=str(path),
        )
    prints = Fingerprints(meta.base_fp, meta.tokenizer_fp)
    opened = open_memory(
        path,
        backend=meta.backend,
        factory=factory_of(meta.backend),
        fingerprints=prints,
        vocab_size=2,  # only a new memory asks
        read_only=True,
        create=False,
    )
    try:
        yield Origin(
            path=str(path),
            source=opened.storage,
            uuid=meta.uuid,
            root=meta.root,
            token_bytes=meta.token_bytes,
            fingerprints=prints,
            check=lambda _vocab_size: _check_chain(opened.storage, meta, str(path)),
        )
    finally:
        opened.close()


def _check_chain(source: Source, meta: MemoryMeta, path: str) -> None:
    """Check the chain from root to head: an open looks at the newest commits only."""
    place = Place(0, meta.root, 0, 0)
    for stretch in stretches(source, source.state(), meta.token_bytes):
        place, what = stretch.check(place)
        if what:
            raise CorruptError(
                f"{path} is damaged: {what}. Nothing was loaded; see what survives with "
                f"megacontext doctor {path}",
                path=path,
                where=what,
                offset=None,
                have_seq=place.seq,
            )


class Loader:
    """Fills a new store from an opened source.

    Args:
        origin: the source.
        backend, fingerprints, vocab_size, width, trust, retokenizer, name, clock, progress: see
            `load_memory`.

    Attributes:
        meta: what MEMORY of the new memory will say.

    Raises:
        ConfigError: an unknown `trust`.
        ModelMismatchError: another tokenizer, and no `retokenizer`.
    """

    def __init__(
        self,
        origin: Origin,
        *,
        backend: str,
        fingerprints: Fingerprints,
        vocab_size: int,
        width: int,
        trust: str = "cap",
        retokenizer: Retokenizer | None = None,
        name: str = "",
        clock: Callable[[], int] = now_us,
        progress: Progress | None = None,
    ) -> None:
        if not isinstance(trust, str) or trust not in {"cap", "keep"}:
            message = f"trust={shown(trust)} is unknown; use 'cap' or 'keep'"
            raise ConfigError(message, field="trust", value=shown(trust))
        self._origin = origin
        self._vocab_size = vocab_size
        self._width = width
        self._cap = Trust.EXTERNAL if trust == "cap" else None
        self._clock = clock
        self._progress = progress
        self._retokenizer: Retokenizer | None = None
        if origin.fingerprints.tokenizer != fingerprints.tokenizer:
            if retokenizer is None:
                raise _other_tokenizer(origin, fingerprints)
            self._retokenizer = retokenizer
        state = origin.source.state()
        self._seq = state.seq
        self._chain = (state.chain if state.seq else origin.root).hex()
        self.meta = MemoryMeta(
            uuid=new_uuid(),
            # The same root lets both chains agree as long as nothing was changed.
            root=origin.root if self._retokenizer is None else secrets.token_bytes(16),
            backend=backend,
            generation=1,
            token_bytes=2 if vocab_size <= 65_535 else 4,
            base_fp=fingerprints.base,
            tokenizer_fp=fingerprints.tokenizer,
            parent={"uuid": origin.uuid, "seq": self._seq, "chain": self._chain},
            name=name,
        )

    def check(self) -> None:
        """Check the source from one end to the other.

        Raises:
            BundleError: the bundle breaks its format.
            CorruptError: the memory is damaged.
        """
        if self._retokenizer is not None:
            self._origin.check(None)
            return
        if self._origin.token_bytes != self.meta.token_bytes:
            raise ConfigError(
                f"{self._origin.path} keeps ids in {self._origin.token_bytes} bytes, a vocabulary "
                f"of {self._vocab_size} needs {self.meta.token_bytes}; load it with its own model",
                field="source",
                value=self._origin.path,
            )
        self._origin.check(self._vocab_size)

    def fill(self, target: Storage) -> None:
        """Write everything into an empty store; the caller flushes it.

        Raises:
            CorruptError: the source changed while it was read.
            ModelMismatchError: messages without text, for another tokenizer.
            StorageError: the target cannot be written.
        """
        if self._retokenizer is None:
            self._copy(target)
            return
        position = rewrite(
            self._origin.source,
            target,
            self._retokenizer,
            path=self._origin.path,
            from_bytes=self._origin.token_bytes,
            meta=self.meta,
            trust_cap=self._cap,
            ts_us=self._clock(),
            progress=self._progress,
        )
        append_settings(
            target,
            position,
            {"loaded_from": self._loaded_from()},
            token_bytes=self.meta.token_bytes,
            ts_us=self._clock(),
        )

    def _copy(self, target: Storage) -> None:
        source = self._origin.source if self._cap is None else _Guest(self._origin.source)
        position = copy_commits(
            source,
            target,
            root=self.meta.root,
            token_bytes=self.meta.token_bytes,
            trust_cap=self._cap,
            progress=self._progress,
        )
        if self._cap is None and position.chain.hex() != self._chain:
            raise CorruptError(
                f"{self._origin.path} changed while it was loaded. Nothing was kept; load it when "
                "nobody writes to it",
                path=self._origin.path,
                where="chain",
                offset=None,
                have_seq=None,
            )
        settings = {k: v for k, v in position.settings.items() if k not in _LEFT_BEHIND}
        settings["loaded_from"] = self._loaded_from()
        position = append_settings(
            target,
            position,
            settings,
            token_bytes=self.meta.token_bytes,
            ts_us=self._clock(),
        )
        # Gists are numbers that go into a model and that nobody can read: nothing shows that a
        # stranger's were made of this text, so they are taken over only from who is believed.
        if self._cap is None and self._origin.fingerprints.base == self.meta.base_fp:
            versions = kept_gists(source, encoder_entries(settings), self._width)
            copy_gists(source, target, n_tokens=position.n_tokens, versions=versions)

    def _loaded_from(self) -> dict[str, object]:
        state = self._origin.source.state()
        return {
            "uuid": self._origin.uuid,
            "seq": self._seq,
            "chain": self._chain,
            "n_tokens": state.n_tokens,
            "n_messages": state.n_messages,
            "is_capped": self._cap is not None,
            "is_retokenized": self._retokenizer is not None,
        }


def _other_tokenizer(origin: Origin, given: Fingerprints) -> ModelMismatchError:
    stored = origin.fingerprints.tokenizer
    return ModelMismatchError(
        f"{origin.path} was written with tokenizer {stored[:12]}, the model given has "
        f"{given.tokenizer[:12]}; load it with its own model, or make its ids anew from its text "
        "with retokenize=True",
        kind="tokenizer",
        stored=stored,
        given=given.tokenizer,
    )


class _Guest:
    """A source whose settings say nothing.

    Settings steer a session (what is pinned, which forks are told to forget), so those of a
    stranger do not come along, not even in the history, where a rollback would find them.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.body_sizes = getattr(source, "body_sizes", None)

    def state(self) -> StoreState:
        return self._source.state()

    def read_commits(self, start: int, stop: int) -> NDArray[np.void]:
        return self._source.read_commits(start, stop)

    def read_blocks(self, blocks: Indices) -> Bytes2D:
        return self._source.read_blocks(blocks)

    def read_messages(self, start: int, stop: int) -> NDArray[np.void]:
        return self._source.read_messages(start, stop)

    def read_gists(self, version: int, lod: int, nodes: Indices) -> GistRows:
        return self._source.read_gists(version, lod, nodes)

    def read_bodies(self, messages: Indices) -> list[bytes]:
        bodies = self._source.read_bodies(messages)
        if not bodies:
            return bodies
        first = int(messages.min())
        rows = self._source.read_messages(first, int(messages.max()) + 1)
        settings = np.flatnonzero(rows["role"][messages - first] == ROLE_SETTING)
        for at in settings.tolist():
            bodies[at] = _NO_SETTINGS
        return bodies
