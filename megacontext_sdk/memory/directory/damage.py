"""What messages about damage tell people to do next. Says it in one place; finds no damage."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["advice"]


def advice(path: Path | str) -> str:
    """Return the sentences that end a message about a damaged memory."""
    return (
        f"Nothing was changed. See what survives: megacontext doctor {path}. Accept it: "
        f'MemorySession.recover("{path}")'
    )
