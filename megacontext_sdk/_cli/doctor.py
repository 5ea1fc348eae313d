"""Checks of an installation, each with what to do about it. Changes nothing outside a temp folder.

Models are not loaded: that may take minutes, and opening a memory says what is wrong with them.
"""

from __future__ import annotations

import sqlite3
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import attrs

from megacontext_sdk.catalogue import KINDS
from megacontext_sdk.errors import MegaContextError
from megacontext_sdk.session import MemorySession

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megacontext_sdk.plugins import Plugins

__all__ = ["Check", "examine"]


@attrs.frozen
class Check:
    """One check: what was looked at, whether it is fine, and what was found or is to be done."""

    name: str
    is_fine: bool
    detail: str


def examine(plugins: Plugins) -> tuple[Check, ...]:
    """Run all checks.

    Args:
        plugins: the plugins to look at.
    """
    return (
        Check("python", is_fine=True, detail=sys.version.split()[0]),
        *_packages(),
        _full_text_search(),
        *_providers(plugins),
        *(
            Check(f"plugin {failure.plugin}", is_fine=False, detail=str(failure))
            for failure in plugins.catalogue.failures
        ),
        *_round_trips(plugins),
    )


def _packages() -> Iterator[Check]:
    for name in ("megacontext-sdk", "numpy", "attrs", "msgspec", "pluggy"):
        yield Check(name, is_fine=True, detail=version(name))


def _full_text_search() -> Check:
    try:
        with sqlite3.connect(":memory:") as base:
            base.execute("CREATE VIRTUAL TABLE page USING fts5(text)")
    except sqlite3.Error as error:
        fix = "use a Python whose SQLite has FTS5, such as python.org's or your distribution's"
        return Check("sqlite fts5", is_fine=False, detail=f"{error}; {fix}")
    return Check("sqlite fts5", is_fine=True, detail=sqlite3.sqlite_version)


def _providers(plugins: Plugins) -> Iterator[Check]:
    for kind in KINDS:
        for provider in plugins.catalogue.of_kind(kind):
            name = f"{kind} {provider.spec.name}"
            try:
                provider.load()
            except MegaContextError as error:
                yield Check(name, is_fine=False, detail=str(error))
            else:
                yield Check(name, is_fine=True, detail=provider.owner)


def _round_trips(plugins: Plugins) -> Iterator[Check]:
    """Write and read one small memory per storage, with the echo model."""
    for storage in plugins.catalogue.names("storage"):
        with TemporaryDirectory(prefix="megacontext-doctor-") as folder:
            yield _round_trip(storage, Path(folder) / "doctor.mc", plugins)


def _round_trip(storage: str, path: Path, plugins: Plugins) -> Check:
    name, text = f"memory on {storage}", "The cat of Ada is called Turing."
    place = None if storage == "memory" else path
    try:
        with MemorySession.open(place, model="echo", storage=storage, plugins=plugins) as session:
            session.append(text)
            found = session.search("Turing", 1)
    except (MegaContextError, OSError) as error:
        return Check(name, is_fine=False, detail=f"{type(error).__name__}: {error}")
    if not found or found[0].text != text:
        return Check(name, is_fine=False, detail="what was appended was not found again")
    return Check(name, is_fine=True, detail="appended and found again")
