"""Where texts come from: files and folders, the domain of each, and who may train on them.

It names files and decides by name; it opens none.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs

from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DOMAINS", "Domain", "Source", "Split", "Style", "TextFile", "domain_of", "is_held_out"]

Domain: TypeAlias = Literal["story", "dialogue", "facts", "code", "text"]
"""Kinds of text that are measured apart."""

Split: TypeAlias = Literal["train", "held-out", "all"]
"""Which documents to read."""

Style: TypeAlias = Literal["auto", "chat", "chat-only"]
"""How conversations are laid out: as plain lines (and stories plainly), or in the chat template."""

DOMAINS: Final[tuple[Domain, ...]] = ("story", "dialogue", "facts", "code", "text")
"""Every domain, in the order of tables."""

_HELD_OUT_ONE_IN = 50
_NAMES: Final[tuple[tuple[str, Domain], ...]] = (
    (r"textbook|wiki|docs|manual", "text"),
    (r"babi|facts", "facts"),
    (r"dialog|chat|conversation|meeting|qmsum|realmem|locomo", "dialogue"),
    (r"code|python|source", "code"),
    (r"book|stor(y|ies)|tale|novel", "story"),
)
_SUFFIXES: Final = (".jsonl", ".jsonl.xz", ".txt", ".md")
_NO_TEXT: Final = re.compile(r"(readme|licen[cs]e|copying|notice|changelog)\b", re.IGNORECASE)
_EVALUATION: Final = re.compile(r"(eval|test|valid|held)([-_.]|$)", re.IGNORECASE)
_PAIR = "conversations"


@attrs.frozen
class Source:
    """A file or a folder of text, and how to read it.

    Attributes:
        path: a folder, searched through and through, or one file: `*.jsonl`, `*.jsonl.xz`, `*.txt`
            or `*.md`.
        domain: of everything in it; by default each file's name decides (`domain_of`).
        style: "chat" lays conversations out in the model's chat template; "chat-only" also leaves
            out what can be no chat, and what is one in every style.
        split: "train" or "held-out" puts whole files on one side; "auto" decides by a hash of each
            document's id, and holds out folders whose names say evaluation ("eval-dev").

    Example:
        >>> Source(Path("notes.txt"), domain="story").split
        'auto'
    """

    path: Path = attrs.field(converter=Path)
    domain: Domain | None = attrs.field(default=None, kw_only=True)
    style: Style = attrs.field(default="auto", kw_only=True)
    split: Literal["auto", "train", "held-out"] = attrs.field(default="auto", kw_only=True)

    def __attrs_post_init__(self) -> None:
        allowed = {
            "domain": (None, *DOMAINS),
            "style": ("auto", "chat", "chat-only"),
            "split": ("auto", "train", "held-out"),
        }
        for name, values in allowed.items():
            value = getattr(self, name)
            if value not in values:
                known = ", ".join(repr(one) for one in values)
                raise ConfigError(
                    f"{name}={value!r} of the source {self.path} is unknown; use one of {known}",
                    field=name,
                    value=value,
                )

    def files(self) -> Iterator[TextFile]:
        """Yield the files of this source in the order of their names.

        Raises:
            ConfigError: there is nothing at the path, or no text in the folder.
        """
        if not self.path.exists():
            raise ConfigError(
                f"there is no data at {self.path}; name a folder or a file of "
                f"{', '.join(_SUFFIXES)}",
                field="data",
                value=str(self.path),
            )
        found = list(_files_under(self.path))
        if not found:
            raise ConfigError(
                f"no text was found in {self.path}; it needs files of {', '.join(_SUFFIXES)}",
                field="data",
                value=str(self.path),
            )
        for path in found:
            yield TextFile(path, self._domain(path), self.style, self._split(path))

    def _domain(self, path: Path) -> Domain:
        return self.domain or domain_of(path)

    def _split(self, path: Path) -> Literal["auto", "train", "held-out"]:
        if self.split != "auto":
            return self.split
        inside = path.relative_to(self.path.parent).parts[:-1]
        return "held-out" if any(_EVALUATION.match(part) for part in inside) else "auto"


@attrs.frozen
class TextFile:
    """One file of a source: where, what kind of text, how to lay it out, on which side."""

    path: Path
    domain: Domain
    style: Style
    split: Literal["auto", "train", "held-out"]

    @property
    def is_pair(self) -> bool:
        """Whether it holds conversations, with questions in a file beside it."""
        return _stem(self.path) == _PAIR

    @property
    def questions(self) -> Path | None:
        """The file of questions beside conversations, if there is one."""
        beside = (self.path.with_name("questions" + suffix) for suffix in _SUFFIXES[:2])
        return next((path for path in beside if path.is_file()), None)

    def holds_out(self, doc_id: str) -> bool:
        """Tell whether a document of this file is held out."""
        return is_held_out(doc_id) if self.split == "auto" else self.split == "held-out"


def domain_of(path: Path) -> Domain:
    """Return the domain a file's name suggests; conversations go by their folder's name.

    Example:
        >>> domain_of(Path("kids_stories.jsonl.xz")), domain_of(Path("babi/conversations.jsonl"))
        ('story', 'facts')
    """
    stem = _stem(path)
    name = path.parent.name if stem == _PAIR else stem
    for pattern, domain in _NAMES:
        if re.search(pattern, name.lower()):
            return domain
    return "dialogue" if stem == _PAIR else "text"


def is_held_out(doc_id: str) -> bool:
    """Tell whether no training may see a document: 2 % of all, by a hash of the id alone."""
    digest = hashlib.sha256(doc_id.encode(errors="replace")).digest()
    return int.from_bytes(digest[:8], "big") % _HELD_OUT_ONE_IN == 0


def _files_under(path: Path) -> Iterator[Path]:
    """Yield text files; beside conversations, the other rows belong to them."""
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        if not file.name.endswith(_SUFFIXES) or not file.is_file() or _NO_TEXT.match(file.name):
            continue
        pairs = [file.with_name(_PAIR + suffix) for suffix in _SUFFIXES[:2]]
        if file in pairs or not any(pair.is_file() for pair in pairs):
            yield file


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]
