"""Which documents may be measured on: held-out ones, and never what an encoder was trained on.

Training writes into a weight file which files it read and which side of their split
(`trained_on`); the evaluation compares that with the files it is about to measure on. A document
counts as held out by the corpus's own rule, the same one that training obeys.
"""

from __future__ import annotations

import hashlib
import json
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from megacontext_gistnet.corpus.documents import drafts_of, read_documents, text_digest
from megacontext_gistnet.corpus.facts import FactSource
from megacontext_gistnet.corpus.source import Source
from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from megacontext_gistnet.corpus.documents import AnySource, Document
    from megacontext_gistnet.corpus.source import TextFile
    from megacontext_sdk.contracts.model import ModelInfo, Tokenizer

__all__ = [
    "SOURCES_FACT",
    "check_not_trained_on",
    "held_out_sources",
    "packaged_sources",
    "read_held_out",
    "source_facts",
    "texts_of",
    "trained_on",
]

SOURCES_FACT = "sources"
"""Key of a weight file's facts that holds what `trained_on` returned."""

EVALUATION_SEED = 7_411
"""Seed of the made-up fact conversations of the evaluation; nothing trains on it."""

_FACT_DOCUMENTS = 100  # held out; the hash of the corpus holds out one in fifty
_FACT_TOKENS = 120_000  # of each source of facts: about what the made-up ones hold
_LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt")
_NON_COMMERCIAL = ("noncommercial", "non-commercial")


def trained_on(sources: Iterable[AnySource]) -> str:
    """Return what a weight file must say of its training data, as JSON text.

    Args:
        sources: what training read, as it was given to the corpus.
    """
    entries = [
        {"name": name, "digest": digest, "split": split}
        for source in sources
        for name, digest, split in _entries(source)
    ]
    return json.dumps(entries)


def source_facts(sources: Iterable[AnySource]) -> list[dict[str, str]]:
    """Return name and digest of every file of sources, for the record of a run."""
    return [
        {"name": name, "digest": digest}
        for source in sources
        for name, digest, _ in _entries(source)
    ]


def held_out_sources(data: Sequence[Path], whole: Sequence[Path]) -> list[AnySource]:
    """Return sources whose held-out documents can be measured on.

    Folders whose licence says non-commercial are left out; name one itself to read it.

    Args:
        data: folders and files of which the held-out side of the split counts; in folders whose
            names say evaluation ("eval-dev") that is everything.
        whole: folders and files of which everything is held out.

    Raises:
        ConfigError: there is no data at a path.
    """
    found: list[Source] = []
    for path, is_whole in [*((one, False) for one in data), *((one, True) for one in whole)]:
        source = Source(path, split="held-out" if is_whole else "auto")
        found += [_one_file(file) for file in source.files() if _may_be_read(file, path)]
    if not found:
        message = "the folders given hold non-commercial data only; name such a folder itself"
        raise ConfigError(message, field="data", value=[str(one) for one in (*data, *whole)])
    talk = tuple(one for one in found if _domain(one) == "dialogue")
    stories = tuple(one for one in found if _domain(one) == "story")
    if not any(_is_facts(one) for one in found) or not (talk or stories):
        return list(found)
    return [*found, _facts(talk or stories)]


def packaged_sources() -> list[AnySource]:
    """Return what comes with the package: two books held out of all training, made-up facts."""
    with as_file(files("megacontext_sdk.demo") / "books") as folder:
        books = Source(Path(folder), domain="story", split="held-out")
    return [books, _facts((books,))]


def read_held_out(
    sources: Iterable[AnySource],
    tokenizer: Tokenizer,
    info: ModelInfo,
    advance: Callable[[int], None] = lambda _: None,
    without: frozenset[bytes] = frozenset(),
) -> Iterator[Document]:
    """Yield the held-out documents of sources, tokenised; of large sets of facts the first ones.

    Texts whose digest is in `without` are left out.

    Otherwise one templated set of questions and answers would be all of that kind of text.
    """
    for source in sources:
        limit = None if isinstance(source, FactSource) or not _is_facts(source) else _FACT_TOKENS
        yield from read_documents(
            source, tokenizer, info, split="held-out", limit_tokens=limit, without=without
        )
        advance(1)


def texts_of(
    sources: Iterable[AnySource], advance: Callable[[int], None] = lambda _: None
) -> frozenset[bytes]:
    """Return the digests of all texts of sources that training may read."""
    found: set[bytes] = set()
    for source in sources:
        found.update(text_digest(draft) for draft in drafts_of(source) if not draft.is_held_out)
        advance(1)
    return frozenset(found)


def check_not_trained_on(name: str, facts: Mapping[str, str], sources: Iterable[AnySource]) -> None:
    """Refuse an encoder that was trained on what is about to be measured on.

    A weight file that says nothing about its data passes: the run's record says so.

    Args:
        name: of the encoder, for the message.
        facts: what its weight file says.
        sources: what is about to be read.

    Raises:
        ConfigError: a file was trained on whole, or is measured on whole and was trained on.
    """
    trained = {
        str(one.get("digest")): str(one.get("split"))
        for one in json.loads(facts.get(SOURCES_FACT, "[]"))
    }
    for source in sources:
        for file, digest, split in _entries(source):
            if digest in trained and "all" in {split, trained[digest]}:
                message = (
                    f"the encoder {name!r} was trained on {file}, which is to be measured on; give "
                    "held-out data, or an encoder that was not trained on it"
                )
                raise ConfigError(message, field="data", value=file, encoder=name)


def _entries(source: AnySource) -> Iterator[tuple[str, str, str]]:
    """Yield name, digest and side ("train": a part of it, "all") of every file of a source."""
    if isinstance(source, FactSource):
        name = f"made-up facts, seed {source.seed}"
        whole = source.seed == EVALUATION_SEED
        yield name, f"facts:{source.seed}", "all" if whole else "train"
        return
    known = source if isinstance(source, Source) else Source(source)
    for file in known.files():
        for path in (file.path, *([file.questions] if file.is_pair and file.questions else [])):
            side = "train" if file.split == "auto" else "all"
            yield f"{path.parent.name}/{path.name}", _digest(path), side


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _one_file(file: TextFile) -> Source:
    return Source(file.path, domain=file.domain, style=file.style, split=file.split)


def _domain(source: Source) -> str:
    return next(source.files()).domain


def _is_facts(source: Source | Path | str) -> bool:
    return isinstance(source, Source) and _domain(source) == "facts"


def _facts(filler: tuple[Source, ...]) -> FactSource:
    return FactSource(_FACT_DOCUMENTS * 50, filler, seed=EVALUATION_SEED)


def _may_be_read(file: TextFile, given: Path) -> bool:
    folder = file.path.parent
    return given in {file.path, folder} or not _is_non_commercial(folder)


def _is_non_commercial(folder: Path) -> bool:
    for name in _LICENCES:
        licence = folder / name
        if licence.is_file():
            text = licence.read_text(encoding="utf-8", errors="replace").lower()
            return any(word in text for word in _NON_COMMERCIAL)
    return False
