"""All tokens of some sources in one file, made once and mapped into memory ever after.

A store is a folder `<cache>/<fingerprint>` with the raw ids and an index. The fingerprint covers
the content of every file, how it is read, and the tokenizer, so a stale store is never opened:
other data is another folder. It is written aside and moved into place when it is whole.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs
import msgspec
import numpy as np

from megacontext_gistnet.corpus.documents import WINDOW_TOKENS, Document, read_documents
from megacontext_gistnet.corpus.facts import FactSource, fact_dialogues
from megacontext_gistnet.corpus.source import DOMAINS, Source
from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from megacontext_gistnet.corpus.documents import AnySource
    from megacontext_gistnet.corpus.source import Domain, Split
    from megacontext_sdk.contracts.arrays import Bools, Indices
    from megacontext_sdk.contracts.model import ModelInfo, Tokenizer

    Progress: TypeAlias = Callable[[str, int], None]
    TokenArray: TypeAlias = NDArray[np.uint16] | NDArray[np.uint32]

__all__ = ["TokenStore", "open_store"]

_VERSION: Final = 1  # raise it when the same sources would give other tokens
_TOKENS, _INDEX = "tokens.bin", "index.json"
_REPORT_EVERY = 1_000_000
_SAMPLE = 50


class _Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a store's index file holds; one entry of each list per document."""

    version: int
    fingerprint: str
    dtype: str
    doc_ids: list[str]
    domains: list[str]
    held_out: list[bool]
    lengths: list[int]


@attrs.frozen(eq=False)
class TokenStore:
    """Tokenised documents, read-only. May be shared between threads.

    Attributes:
        ids: uint16[n] or uint32[n], all documents one behind the other, mapped from the disk.
        offsets: int64[m + 1]; document i is `ids[offsets[i]:offsets[i + 1]]`.
        doc_ids: of each document.
        domains: of each document.
        is_held_out: bool[m].
        fingerprint: hex digest of the sources, how they are read, and the tokenizer.
    """

    ids: TokenArray
    offsets: Indices
    doc_ids: tuple[str, ...]
    domains: tuple[Domain, ...]
    is_held_out: Bools
    fingerprint: str

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.doc_ids)

    @property
    def n_tokens(self) -> int:
        """Number of tokens of all documents."""
        return int(self.offsets[-1])

    def document(self, index: int) -> Document:
        """Return one document; its ids are a copy."""
        ids = self.ids[self.offsets[index] : self.offsets[index + 1]].astype(np.int32)
        ids.flags.writeable = False
        held_out = bool(self.is_held_out[index])
        return Document(self.doc_ids[index], self.domains[index], ids, held_out)

    def where(self, split: Split = "all", domain: Domain | None = None) -> Indices:
        """Return the indices of the documents of a side and a domain, int64[k]."""
        chosen = np.ones(len(self), np.bool_)
        if split != "all":
            chosen &= self.is_held_out == (split == "held-out")
        if domain is not None:
            chosen &= np.array([one == domain for one in self.domains], np.bool_)
        return np.flatnonzero(chosen)

    def documents(self, split: Split = "all", domain: Domain | None = None) -> Iterator[Document]:
        """Yield the documents of a side and a domain, in their order."""
        yield from (self.document(int(index)) for index in self.where(split, domain))

    def counts(self, split: Split = "all") -> dict[Domain, int]:
        """Return the number of tokens of each domain that has any."""
        lengths = np.diff(self.offsets)
        found = {one: int(lengths[self.where(split, one)].sum()) for one in DOMAINS}
        return {one: n for one, n in found.items() if n}


def open_store(
    sources: Sequence[AnySource],
    tokenizer: Tokenizer,
    info: ModelInfo,
    cache_dir: Path,
    progress: Progress | None = None,
    *,
    limit_tokens: int | None = None,
    min_tokens: int = WINDOW_TOKENS,
) -> TokenStore:
    """Open the tokens of some sources, made now if they are not there yet.

    Args:
        sources: files, folders, `Source`s, `FactSource`s.
        tokenizer: the model's.
        info: the model's.
        cache_dir: where stores are kept; stores of data that changed since stay there until
            somebody deletes them.
        progress: called with the name of a source and its tokens so far, while one is made.
        limit_tokens: of each source.
        min_tokens: shorter texts are packed; see `read_documents`.

    Raises:
        ConfigError: there is no data, or a row is not what it should be.
    """
    known = [one if isinstance(one, (Source, FactSource)) else Source(one) for one in sources]
    if not known:
        raise ConfigError("no data was named; name a folder or a file", field="data", value=())
    fingerprint = _fingerprint(known, info, (limit_tokens, min_tokens))
    folder = cache_dir / fingerprint[:24]
    store = _read(folder, fingerprint)
    if store is not None:
        return store
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".store-", dir=cache_dir) as aside:
        made = Path(aside) / "store"
        made.mkdir()
        writer = _Writer(made, np.dtype(np.uint16 if info.vocab_size <= 1 << 16 else np.uint32))
        for source in known:
            documents = read_documents(
                source, tokenizer, info, limit_tokens=limit_tokens, min_tokens=min_tokens
            )
            writer.take(documents, _name(source), progress)
        writer.finish(fingerprint)
        _move(made, folder)
    store = _read(folder, fingerprint)
    if store is None or not store.n_tokens:
        raise ConfigError(
            f"the data gave {0 if store is None else store.n_tokens} tokens; name other data, and "
            f"check that {cache_dir} can be written",
            field="data",
            value=[_name(source) for source in known],
        )
    return store


class _Writer:
    """Writes a store's two files."""

    def __init__(self, folder: Path, dtype: np.dtype[np.unsignedinteger]) -> None:
        self._folder, self._dtype = folder, dtype
        self._index = _Index(_VERSION, "", str(dtype), [], [], [], [])

    def take(self, documents: Iterator[Document], name: str, progress: Progress | None) -> None:
        """Append documents."""
        n_tokens = told = 0
        with (self._folder / _TOKENS).open("ab") as file:
            for document in documents:
                file.write(document.token_ids.astype(self._dtype).tobytes())
                self._index.doc_ids.append(document.doc_id)
                self._index.domains.append(document.domain)
                self._index.held_out.append(document.is_held_out)
                self._index.lengths.append(len(document.token_ids))
                n_tokens += len(document.token_ids)
                if progress is not None and n_tokens - told >= _REPORT_EVERY:
                    progress(name, n_tokens)
                    told = n_tokens
        if progress is not None:
            progress(name, n_tokens)

    def finish(self, fingerprint: str) -> None:
        """Write the index."""
        index = msgspec.structs.replace(self._index, fingerprint=fingerprint)
        (self._folder / _INDEX).write_bytes(msgspec.json.encode(index))


def _move(made: Path, folder: Path) -> None:
    """Put a finished store into place; one that another process put there first is as good."""
    try:
        made.rename(folder)
    except OSError:
        if not (folder / _INDEX).is_file():  # half deleted by somebody
            shutil.rmtree(folder)
            made.rename(folder)


def _read(folder: Path, fingerprint: str) -> TokenStore | None:
    """Return the store of a folder, or None where it is missing or damaged."""
    try:
        index = msgspec.json.decode((folder / _INDEX).read_bytes(), type=_Index)
        size = (folder / _TOKENS).stat().st_size
    except (OSError, msgspec.MsgspecError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    dtype = np.dtype(index.dtype)
    offsets = np.concatenate([[0], np.cumsum(index.lengths, dtype=np.int64)]).astype(np.int64)
    if index.fingerprint != fingerprint or size != int(offsets[-1]) * dtype.itemsize:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    empty = np.zeros(0, dtype)
    ids = np.memmap(folder / _TOKENS, dtype, "r") if size else empty
    return TokenStore(
        ids=ids,
        offsets=offsets,
        doc_ids=tuple(index.doc_ids),
        domains=tuple(index.domains),  # type: ignore[arg-type]
        is_held_out=np.array(index.held_out, np.bool_),
        fingerprint=index.fingerprint,
    )


def _fingerprint(
    sources: Sequence[Source | FactSource], info: ModelInfo, settings: tuple[object, ...]
) -> str:
    """Return the digest of everything that decides which tokens a store holds."""
    digest = hashlib.sha256(repr((_VERSION, settings)).encode())
    model = (info.tokenizer_fingerprint, info.bos_id, info.eos_ids, info.vocab_size)
    digest.update(repr(model).encode())
    for source in sources:
        _add(digest, source)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, source: Source | FactSource) -> None:
    if isinstance(source, FactSource):
        facts = (source.n_documents, source.seed, source.max_characters)
        looks = list(fact_dialogues(_SAMPLE, source.seed, ()))  # other wordings, other facts
        digest.update(repr(("facts", facts, len(source.filler), looks)).encode())
        for filler in source.filler:
            _add(digest, filler)
        return
    for file in source.files():
        inside = file.path.relative_to(source.path.parent).as_posix()
        digest.update(repr((inside, file.domain, file.style, file.split)).encode())
        for path in (file.path, file.questions if file.is_pair else None):
            if path is not None:
                digest.update(_content(path))


def _content(path: Path) -> bytes:
    """Return the digest of a file; times and places do not count, so a copy is the same data."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _name(source: Source | FactSource) -> str:
    return "facts" if isinstance(source, FactSource) else source.path.name
