"""What several commands take, and how they open a memory. No command itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from megacontext_sdk.session import MemorySession

__all__ = ["AsJson", "Memory", "Model", "Rows", "Storage", "open_session", "print_json"]

Memory = Annotated[Path, typer.Argument(help="The memory's directory.", show_default=False)]
Model = Annotated[str | None, typer.Option(help='"reference", "echo" or "hf:<name or folder>".')]
Storage = Annotated[str | None, typer.Option(help="Storage backend.")]
Rows = Annotated[int | None, typer.Option("--w-max", help="Rows of the window.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def open_session(
    path: Path,
    model: str | None,
    storage: str | None,
    *,
    read_only: bool = False,
    w_max: int | None = None,
) -> MemorySession:
    """Open a memory for a command."""
    settings: dict[str, Any] = {} if w_max is None else {"w_max": w_max}
    return MemorySession.open(path, model=model, storage=storage, read_only=read_only, **settings)


def print_json(document: object) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(document, ensure_ascii=False, indent=2))
