"""What a bundle holds, checked whole before any of it is used.

Sizes come first and from tables alone, so that nothing large is read because a stranger says so;
then every commit: its place, its messages, its ids, its bodies and the chain from root to head. It
reads only. A digest shows that bytes are as they were written, this shows that they make sense.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, TypeAlias

import attrs
import msgspec
import numpy as np

from megacontext_sdk.contracts.storage import MESSAGE, NO_SETTING
from megacontext_sdk.errors import ConfigError, CorruptError
from megacontext_sdk.memory.chain import MAX_COMMIT_BYTES, ROLE_SETTING, ROLES
from megacontext_sdk.memory.directory.stretch import Place, stretches
from megacontext_sdk.memory.gist_rows import GIST_DTYPES, RowCodec
from megacontext_sdk.memory.settings import decode_settings
from megacontext_sdk.messages.body import MAX_METADATA_BYTES, check_metadata, decode_body
from megacontext_sdk.messages.roles import CONTINUES, FORGOTTEN, Trust

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from megacontext_sdk.errors import BundleError
    from megacontext_sdk.memory.directory.stretch import Source, Stretch
    from megacontext_sdk.memory.exchange.bundle_reader import Bundle

__all__ = ["EncoderEntry", "check_bundle", "encoder_entries", "kept_gists"]

_PAGE = 8_192
_GIST_CHUNK_BYTES = 4 * 2**20
_MAX_PAYLOAD = MAX_COMMIT_BYTES + 2 * MESSAGE.itemsize  # a body of the full size takes a row too
_MAX_SETTINGS_BYTES = 2**20
_MAX_RECALL_BYTES = 256 * 2**10
_MAX_DEPTH = 8
_MAX_ENCODERS = 2**16
_KNOWN_FLAGS = CONTINUES | FORGOTTEN
_MIN_US = -62_135_596_800 * 10**6  # the years 1 to 9999, which is what a datetime can say
_MAX_US = 253_402_300_800 * 10**6


_Number: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class _Outline(msgspec.Struct, forbid_unknown_fields=True):
    """A body whose inner values are still bytes, so that their size can be looked at."""

    text: str | None = None
    source: str | None = None
    actor: str | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"\x80")
    origin: str | None = None
    recall: msgspec.Raw = msgspec.Raw(b"\x90")


class EncoderEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the table of encoders in the settings."""

    fp: str
    name: str
    slots: int
    dtype: str
    aux: int
    base: str = ""


class _SnapshotEntry(msgspec.Struct, forbid_unknown_fields=True):
    """What the settings say of a snapshot."""

    seq: _Number
    n_tokens: _Number
    n_messages: _Number
    ts_us: int


class _ReceiptEntry(msgspec.Struct):
    """What rooms read of the receipt of a forget."""

    tokens: _Number = 0
    generation: _Number = 0
    uuid: str = ""


class _KnownSettings(msgspec.Struct):
    """The settings that rooms of ours read; what others keep there is theirs to look at."""

    encoders: list[EncoderEntry] = []
    encoder: str = ""
    pins: list[tuple[_Number, _Number]] = []
    snapshots: dict[str, _SnapshotEntry] = {}
    receipts: list[_ReceiptEntry] = []


def check_bundle(bundle: Bundle, vocab_size: int | None) -> None:
    """Check everything in a bundle but its gists.

    Args:
        bundle: an open one.
        vocab_size: ids must be below it; None where they are not going to be used.

    Raises:
        BundleError: the first thing that is wrong, and where.
    """
    checker = _Checker(bundle, vocab_size)
    checker.check_commits()
    checker.check_sizes()
    checker.check_history()


@attrs.define(eq=False)
class _Checker:
    bundle: Bundle
    vocab_size: int | None
    newest_setting: int = NO_SETTING

    # --- tables ---------------------------------------------------------------------------------

    def _pages(self) -> Iterator[NDArray[np.void]]:
        seq = self.bundle.header.seq
        for start in range(1, seq + 1, _PAGE):
            yield self.bundle.read_commits(start, min(start + _PAGE, seq + 1))

    def check_commits(self) -> None:
        """Check that commits are numbered without a gap and tile tokens and messages."""
        header, seq, token, message = self.bundle.header, 1, 0, 0
        for rows in self._pages():
            n_tokens = rows["n_tokens"].astype(np.int64)
            n_messages = rows["n_messages"].astype(np.int64)
            self._refuse_first(
                4 * n_tokens + MESSAGE.itemsize * n_messages > _MAX_PAYLOAD,
                "commits",
                seq - 1,
                "a commit larger than any can be",
                limit=_MAX_PAYLOAD,
            )
            tokens = token + np.cumsum(n_tokens)
            messages = message + np.cumsum(n_messages)
            wrong = (
                (rows["seq"] != np.arange(seq, seq + len(rows), dtype=np.uint64))
                | (rows["start"] != (tokens - n_tokens).astype(np.uint64))
                | (rows["first_message"] != (messages - n_messages).astype(np.uint64))
            )
            self._refuse_first(wrong, "commits", seq - 1, "a commit does not follow the one before")
            outside = (rows["ts_us"] < _MIN_US) | (rows["ts_us"] >= _MAX_US)
            self._refuse_first(outside, "commits", seq - 1, "a time outside the years 1 to 9999")
            seq, token, message = seq + len(rows), int(tokens[-1]), int(messages[-1])
        if (token, message) != (header.n_tokens, header.n_messages):
            raise self.bundle.error(
                f"its commits hold {token} tokens and {message} messages, the header says "
                f"{header.n_tokens} and {header.n_messages}",
                "commits",
            )

    def check_sizes(self) -> None:
        """Check what each commit holds against its limit, from the lengths of bodies alone."""
        for rows in self._pages():
            at = 0
            while at < len(rows):
                # One commit alone may have many messages; of small ones many are taken together.
                ends = np.cumsum(rows["n_messages"][at:].astype(np.int64))
                n = max(1, int(np.searchsorted(ends, 2**18, side="right")))
                self._check_sizes(rows[at : at + n])
                at += n

    def _check_sizes(self, rows: NDArray[np.void]) -> None:
        first = int(rows["first_message"][0])
        stops = (rows["first_message"] + rows["n_messages"]).astype(np.int64) - first
        sizes = self.bundle.body_sizes(first, first + int(stops[-1]))
        sums = np.concatenate([[0], np.cumsum(sizes)])
        bodies = sums[stops] - sums[rows["first_message"].astype(np.int64) - first]
        fixed = 4 * rows["n_tokens"].astype(np.int64) + MESSAGE.itemsize * np.diff(stops, prepend=0)
        self._refuse_first(
            fixed + bodies > _MAX_PAYLOAD,
            "commits",
            int(rows["seq"][0]) - 1,
            "a commit larger than any can be",
            limit=_MAX_PAYLOAD,
        )

    # --- content --------------------------------------------------------------------------------

    def check_history(self) -> None:
        """Check every commit with what it holds, and the chain from root to head."""
        header = self.bundle.header
        place = Place(0, bytes.fromhex(header.root), 0, 0)
        for stretch in stretches(self.bundle, self.bundle.state(), header.token_bytes):
            self._check_messages(stretch)
            self._check_ids(stretch)
            place, what = stretch.check(place)
            if what:
                raise self._error(what, "commits", place.seq, have_seq=place.seq)
            self._check_settings(stretch)
            first = int(stretch.rows["first_message"][0])
            for number, (role, body) in enumerate(
                zip(stretch.messages["role"].tolist(), stretch.bodies, strict=True), first
            ):
                self._check_body(number, role, body)
        if place.chain.hex() != header.chain:
            raise self._error("the chain ends elsewhere than the header says", "commits", None)

    def _check_messages(self, stretch: Stretch) -> None:
        rows = stretch.messages
        is_setting = rows["role"] == ROLE_SETTING
        wrong = (
            (rows["role"] >= len(ROLES))
            | (rows["trust"] > max(Trust))
            | ((rows["flags"] & ~np.uint16(_KNOWN_FLAGS)) != 0)
            | (is_setting & (rows["n_tokens"] > 0))
            | (rows["ts_us"] < _MIN_US)
            | (rows["ts_us"] >= _MAX_US)
        )
        first = int(stretch.rows["first_message"][0])
        self._refuse_first(wrong, "messages", first, "a message says what none can say")

    def _check_ids(self, stretch: Stretch) -> None:
        if self.vocab_size is None:
            return
        wrong = (stretch.ids < -1) | (stretch.ids >= self.vocab_size)
        if wrong.any():
            token = int(stretch.rows["start"][0]) + int(np.argmax(wrong))
            n_blocks = self.bundle.state().n_blocks
            block = token // self.bundle.header.block_size
            raise self.bundle.error(
                f"token {token} is outside the vocabulary of {self.vocab_size}",
                *(("blocks", block) if block < n_blocks else ("tail", None)),
                limit=self.vocab_size,
            )

    def _check_settings(self, stretch: Stretch) -> None:
        """Check that each commit names the newest settings message."""
        first = int(stretch.rows["first_message"][0])
        found = first + np.flatnonzero(stretch.messages["role"] == ROLE_SETTING)
        ends = (stretch.rows["first_message"] + stretch.rows["n_messages"]).astype(np.int64)
        n_before = np.searchsorted(found, ends)
        known = np.concatenate([[self.newest_setting], found.astype(np.uint64)]).astype(np.uint64)
        wrong = stretch.rows["setting"] != known[n_before]
        self._refuse_first(
            wrong, "commits", int(stretch.rows["seq"][0]) - 1, "a commit names other settings"
        )
        self.newest_setting = int(known[-1])

    def _check_body(self, number: int, role: int, body: bytes) -> None:
        try:
            if role == ROLE_SETTING:
                _check_settings_body(body)
            elif body:
                _check_message_body(body)
        except (
            CorruptError,
            ConfigError,
            msgspec.MsgspecError,
            ValueError,
            RecursionError,
        ) as error:
            # Not chained: what a parser stumbled over is content.
            what = f"a body that is not understood ({type(error).__name__})"
            raise self._error(what, "bodies", number) from None

    # --- errors ---------------------------------------------------------------------------------

    def _refuse_first(
        self,
        wrong: NDArray[np.bool_],
        kind: str,
        first: int,
        what: str,
        *,
        limit: int | None = None,
    ) -> None:
        """Refuse the first row that is wrong; row 0 of `wrong` is row `first` of the part."""
        if wrong.any():
            row = first + int(np.argmax(wrong))
            raise self._error(what, kind, row, limit=limit)

    def _error(
        self,
        what: str,
        kind: str,
        row: int | None,
        *,
        limit: int | None = None,
        have_seq: int | None = None,
    ) -> BundleError:
        # Commits are numbered from 1, the rows of every part from its first.
        number = row + 1 if kind == "commits" and row is not None else row
        error = self.bundle.error(what, kind, number, limit=limit)
        error.have_seq = have_seq
        return error


def _check_message_body(body: bytes) -> None:
    """Raise if a body is damaged, or would take far more memory than its bytes."""
    outline = msgspec.msgpack.decode(body, type=_Outline)
    if len(outline.metadata) > MAX_METADATA_BYTES or len(outline.recall) > _MAX_RECALL_BYTES:
        raise ValueError("metadata or recall are too long")
    check_metadata(decode_body(body).metadata)


def _check_settings_body(body: bytes) -> None:
    """Raise if a settings map is none, too large, too deep, or holds what no settings hold."""
    settings = dict(decode_settings(body))
    if len(body) > _MAX_SETTINGS_BYTES or not _is_plain(settings, _MAX_DEPTH):
        raise ValueError("settings are none that can be")
    msgspec.convert(settings, _KnownSettings)


def _is_plain(value: object, levels: int) -> bool:
    """Tell whether a value is made of maps with text as keys, lists, text and finite numbers."""
    if value is None or isinstance(value, str | int | bytes):
        return True
    if isinstance(value, float):
        return math.isfinite(value)
    if not isinstance(value, dict | list) or levels == 0:
        return False
    if isinstance(value, dict):
        keys, inner = value.keys(), value.values()
        return all(isinstance(key, str) for key in keys) and all(
            _is_plain(item, levels - 1) for item in inner
        )
    return all(_is_plain(item, levels - 1) for item in value)


# --- gists -----------------------------------------------------------------------------------


def encoder_entries(settings: Mapping[str, object]) -> list[EncoderEntry]:
    """Return the table of encoders in a settings map; an empty one if it makes no sense."""
    try:
        entries = msgspec.convert(settings.get("encoders", []), list[EncoderEntry])
    except msgspec.ValidationError:
        return []
    return entries[:_MAX_ENCODERS]


def kept_gists(source: Source, entries: Sequence[EncoderEntry], width: int) -> frozenset[int]:
    """Return the versions whose stored rows are what their encoder would have written.

    Gists are a cache: rows of another size, or that are not finite, are left behind and made again.

    Args:
        source: holds them.
        entries: the table of encoders.
        width: d of the model.
    """
    levels: dict[int, list[tuple[int, int]]] = {}
    for version, lod, count in source.state().gist_rows:
        levels.setdefault(version, []).append((lod, count))
    return frozenset(
        version
        for version, counts in levels.items()
        if version < len(entries) and _are_sound(source, version, counts, entries[version], width)
    )


def _are_sound(
    source: Source,
    version: int,
    counts: Sequence[tuple[int, int]],
    entry: EncoderEntry,
    width: int,
) -> bool:
    sane = entry.dtype in GIST_DTYPES and 0 < entry.slots < 2**16 and 0 <= entry.aux < 2**16
    if not sane:
        return False
    try:
        codec = RowCodec(slots=entry.slots, width=width, aux=entry.aux, dtype=entry.dtype)
    except ConfigError:
        return False
    step = max(1, _GIST_CHUNK_BYTES // codec.row_bytes)
    for lod, count in counts:
        for start in range(0, count, step):
            found = source.read_gists(version, lod, np.arange(start, min(start + step, count)))
            if found.rows.shape[1] != codec.row_bytes or int(found.trust.max()) > max(Trust):
                return False
            if not codec.is_finite(codec.decode(found.rows)):
                return False
    return True
