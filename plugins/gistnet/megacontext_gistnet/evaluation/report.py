"""The record of one evaluation: all figures, and what it takes to run it again.

It writes JSON that any program can read: no number is rounded, what is not a number is null.
"""

from __future__ import annotations

import json
import math
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import attrs

from megacontext_gistnet.evaluation.adjacent import Boundary
from megacontext_gistnet.evaluation.gates import gates
from megacontext_gistnet.evaluation.run import Skipped
from megacontext_gistnet.evaluation.shape import GistShape
from megacontext_gistnet.evaluation.tables import Section

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from megacontext_gistnet.evaluation.gates import Gate
    from megacontext_gistnet.evaluation.run import Item, Settings
    from megacontext_sdk.contracts.model import ModelInfo

__all__ = ["Report", "versions"]

FORMAT_VERSION = 1
_PACKAGES = ("megacontext-gistnet", "megacontext-sdk", "numpy", "torch", "transformers")


@attrs.define(eq=False, kw_only=True)
class Report:
    """Everything one run found.

    Attributes:
        command: what was typed.
        info: the base.
        settings: how much was measured.
        sink: "none" or "bos".
        encoders: name -> what its weight file says of itself.
        sources: name and digest of every file that was read.
        is_small: the packaged texts were read, which cover few kinds of text.
        sections, shapes, boundaries, skipped: what was measured so far.
    """

    command: str
    info: ModelInfo
    settings: Settings
    sink: str
    encoders: Mapping[str, Mapping[str, str]]
    sources: Sequence[Mapping[str, str]]
    is_small: bool = False
    sections: list[Section] = attrs.Factory(list)
    shapes: list[GistShape] = attrs.Factory(list)
    boundaries: list[Boundary] = attrs.Factory(list)
    skipped: list[Skipped] = attrs.Factory(list)

    def add(self, item: Item) -> None:
        """Keep one more result."""
        if isinstance(item, Section):
            self.sections.append(item)
        elif isinstance(item, Skipped):
            self.skipped.append(item)
        else:
            self.shapes += [one for one in item if isinstance(one, GistShape)]
            self.boundaries += [one for one in item if isinstance(one, Boundary)]

    def section(self, key: str) -> Section | None:
        """Return a table, None if it was not measured."""
        return next((one for one in self.sections if one.key == key), None)

    def gates(self) -> tuple[Gate, ...]:
        """Return the requirements and whether they are met."""
        return gates(self.sections, self.shapes, self.boundaries)

    def to_dict(self) -> dict[str, object]:
        """Return everything as plain values."""
        return {
            "format": FORMAT_VERSION,
            "command": self.command,
            "model": _plain(self.info),
            "settings": _plain(self.settings),
            "sink": self.sink,
            "encoders": {name: dict(facts) for name, facts in self.encoders.items()},
            "data": [dict(one) for one in self.sources],
            "packaged_data_only": self.is_small,
            "versions": versions(),
            "sections": _plain(self.sections),
            "shapes": _plain(self.shapes),
            "boundaries": _plain(self.boundaries),
            "skipped": _plain(self.skipped),
            "gates": _plain(list(self.gates())),
        }

    def write(self, path: Path) -> None:
        """Write the record as JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".new")
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False, ensure_ascii=False)
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(path)


def versions() -> dict[str, str]:
    """Return the versions of what decides the figures."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _plain(value: object) -> object:
    """Turn records into mappings and what is not a number into None, through and through."""
    if attrs.has(type(value)):
        names = [field.name for field in attrs.fields(type(value))]  # type: ignore[arg-type]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
