"""Which encoder wrote which gist rows: the version table kept in the journal's settings.

A row's version is an index into this list, which only grows. Entry 0 belongs to `mean`, the
provisional encoder, whether or not it is in use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megacontext_sdk.contracts.gist import GistEncoder
    from megacontext_sdk.contracts.model import ModelInfo
    from megacontext_sdk.memory.gist_rows import RowCodec
    from megacontext_sdk.memory.journal import Journal

__all__ = ["EncoderTable"]

_SETTING = "encoders"
_PROVISIONAL = "mean"


class EncoderTable:
    """The encoders of one memory.

    Args:
        journal: holds the table.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    @property
    def entries(self) -> list[dict[str, object]]:
        """The table: `fp`, `name`, `slots`, `dtype`, `aux` by version."""
        stored = self._journal.settings.get(_SETTING, [])
        return [dict(entry) for entry in stored] if isinstance(stored, list) else []

    def find(self, encoder: GistEncoder, codec: RowCodec, info: ModelInfo) -> int | None:
        """Return the version of an encoder, or None if it never wrote here."""
        entries = self.entries
        entry = _entry(encoder, codec, info)
        return entries.index(entry) if entry in entries else None

    def register(self, encoder: GistEncoder, codec: RowCodec, info: ModelInfo) -> int:
        """Return the version of an encoder, entered durably if it is new.

        Raises:
            StorageError: the entry cannot be stored.
        """
        known = self.find(encoder, codec, info)
        if known is not None:
            return known
        entries = self.entries
        if not entries:
            entries.append({"fp": "", "name": _PROVISIONAL, "slots": 0, "dtype": "", "aux": 0})
        entry = _entry(encoder, codec, info)
        if encoder.name == _PROVISIONAL and not entries[0]["fp"]:
            entries[0] = entry
        else:
            entries.append(entry)
        self._journal.update_settings({_SETTING: entries}).wait()
        return entries.index(entry)


def _entry(encoder: GistEncoder, codec: RowCodec, info: ModelInfo) -> dict[str, object]:
    return {
        "fp": encoder.fingerprint(info),
        "name": encoder.name,
        "slots": codec.slots,
        "dtype": codec.dtype,
        "aux": codec.aux,
    }
