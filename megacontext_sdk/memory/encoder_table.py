"""Which encoder wrote which gist rows: the version table kept in the journal's settings.

A row's version is an index into this list, which only grows. Entry 0 belongs to `mean`, the
provisional encoder, whether or not it is in use. An encoder is known by what its rows depend on;
the base is noted beside that, since rows of different bases lie in different spaces.
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
_NOBODY = {"fp": "", "name": _PROVISIONAL, "slots": 0, "dtype": "", "aux": 0}
_IDENTITY = ("fp", "name", "slots", "dtype", "aux")


class EncoderTable:
    """The encoders of one memory.

    Args:
        journal: holds the table.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    @property
    def entries(self) -> list[dict[str, object]]:
        """The table: `fp`, `name`, `slots`, `dtype`, `aux` and, if noted, `base` by version."""
        stored = self._journal.settings.get(_SETTING, [])
        return [dict(entry) for entry in stored] if isinstance(stored, list) else []

    def find(self, encoder: GistEncoder, codec: RowCodec, info: ModelInfo) -> int | None:
        """Return the version of an encoder, or None if it never wrote here."""
        entry = _entry(encoder, codec, info)
        for version, known in enumerate(self.entries):
            if all(known.get(key) == entry[key] for key in _IDENTITY):
                return version
        return None

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
            entries.append(dict(_NOBODY))
        entry = _entry(encoder, codec, info)
        if encoder.name == _PROVISIONAL and not entries[0]["fp"]:
            entries[0] = entry
        else:
            entries.append(entry)
        self._journal.update_settings({_SETTING: entries}).wait()
        return entries.index(entry)

    def others(self, fingerprint: str) -> list[tuple[int, str]]:
        """Return version and name of every entry that is another encoder's."""
        return [
            (version, str(entry.get("name", "")))
            for version, entry in enumerate(self.entries)
            if entry.get("fp") != fingerprint
        ]


def _entry(encoder: GistEncoder, codec: RowCodec, info: ModelInfo) -> dict[str, object]:
    return {
        "fp": encoder.fingerprint(info),
        "name": encoder.name,
        "slots": codec.slots,
        "dtype": codec.dtype,
        "aux": codec.aux,
        "base": info.fingerprint,
    }
