"""Chat messages as JSON lines, for people and other tools: one object per line, strictly read.

::

    {
        "role": "user",
        "content": "My cat is called Turing.",
        "source": null,
        "actor": "alice",
        "trust": "user",
        "metadata": {},
        "timestamp": "2026-03-01T12:00:00+00:00",
        "message_id": 17,
    }

Only `role` and `content` are needed. Token ids, gists and settings are not in it: that is what a
bundle is for. A line is checked as an append would be, and refused with its number; nothing is
stored here.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, BinaryIO

import attrs
import msgspec

from megacontext_sdk.errors import BundleError, ConfigError, QuotaError, SessionNotFoundError
from megacontext_sdk.messages.body import MAX_METADATA_BYTES
from megacontext_sdk.messages.content import parse_content
from megacontext_sdk.messages.roles import Trust

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from megacontext_sdk.messages.content import MessageDraft
    from megacontext_sdk.messages.message import Message

__all__ = ["MAX_LINE_BYTES", "read_transcript", "transcript_line"]

MAX_LINE_BYTES = 32 * 2**20
_MAX_METADATA_JSON = 6 * MAX_METADATA_BYTES  # JSON may spell one byte as six
_BOM = b"\xef\xbb\xbf"


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """One line as others may write it; `name` is what chat formats call the actor."""

    role: str
    content: str
    source: str | None = None
    actor: str | None = None
    name: str | None = None
    trust: str | int | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"{}")
    timestamp: str | None = None
    message_id: int | None = None


def transcript_line(message: Message) -> bytes | None:
    """Return the line of a message; None if it was forgotten, or does not say a word.

    Raises:
        QuotaError: the line would be longer than any reader takes.
    """
    if message.is_forgotten or not message.text.strip():
        return None
    line = msgspec.json.encode(
        {
            "role": message.role,
            "content": message.text,
            "source": message.source,
            "actor": message.actor,
            "trust": message.trust.name.lower(),
            "metadata": message.metadata,
            "timestamp": message.timestamp.isoformat(),
            "message_id": message.message_id,
        }
    )
    if len(line) >= MAX_LINE_BYTES:
        raise QuotaError(
            f"message {message.message_id} takes a line of {len(line):,} bytes, at most "
            f"{MAX_LINE_BYTES:,} are possible; export a bundle instead",
            field="format",
            value=len(line),
            quota="line_bytes",
            limit=MAX_LINE_BYTES,
        )
    return line + b"\n"


def read_transcript(path: Path, *, trust: str = "cap") -> Iterator[MessageDraft]:
    """Yield the checked messages of a file, in order; blank lines are passed over.

    Read it to the end once before anything is stored, if half a file must not be.

    Args:
        path: of the file.
        trust: "cap" trusts messages as EXTERNAL at most, "keep" as the file or their role says.

    Raises:
        BundleError: a line that is no message: `part` is "line 17", `offset` its first byte.
        ConfigError: the path is no file.
        SessionNotFoundError: there is nothing at this path.
    """
    cap = Trust.EXTERNAL if trust == "cap" else Trust.SYSTEM
    with _opened(path) as file:
        number, at = 0, 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            place = _Place(str(path), number, at)
            at += len(line)
            if len(line) > MAX_LINE_BYTES:
                raise place.error(
                    f"it is longer than {MAX_LINE_BYTES:,} bytes", limit=MAX_LINE_BYTES
                )
            text = line.removeprefix(_BOM) if number == 1 else line
            if text.strip():
                yield _draft(text, cap, place)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        message = f"there is no file at {path}; check the path"
        raise SessionNotFoundError(message, path=str(path)) from None
    except (OSError, ValueError, TypeError) as error:
        message = (
            f"{path!r:.200} cannot be read ({type(error).__name__}); give a file of JSON lines"
        )
        raise ConfigError(message, field="source", value=type(error).__name__) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        message = f"{path} is not a regular file; give a file of JSON lines"
        raise ConfigError(message, field="source", value=str(path))
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a path is not all that was given
        yield file


class _Place:
    """Where a line is, for errors, which never quote it."""

    def __init__(self, path: str, number: int, offset: int) -> None:
        self._path = path
        self._part = f"line {number}"
        self._offset = offset

    def error(self, what: str, *, limit: int | None = None) -> BundleError:
        return BundleError(
            f"{self._part} of {self._path} is no message: {what}. Nothing of the file was taken; "
            "correct the line or leave it out",
            path=self._path,
            where=self._part,
            part=self._part,
            offset=self._offset,
            limit=limit,
            have_seq=None,
        )


def _draft(text: bytes, cap: Trust, place: _Place) -> MessageDraft:
    """Return the message of a line, checked as an append checks it."""
    try:
        line = msgspec.json.decode(text, type=_Line)
        if len(line.metadata) > _MAX_METADATA_JSON:
            raise place.error("its metadata are too long", limit=_MAX_METADATA_JSON)
        item: dict[str, object] = {
            "role": line.role,
            "content": line.content,
            "source": line.source,
            "name": line.name if line.actor is None else line.actor,
            "trust": line.trust,
            "metadata": msgspec.json.decode(line.metadata),
            "timestamp": None if line.timestamp is None else datetime.fromisoformat(line.timestamp),
        }
        draft = parse_content(item)[0]
    except BundleError:
        raise
    except QuotaError as error:
        raise place.error(f"{error.field} is too long", limit=error.limit) from None
    except ConfigError as error:
        raise place.error(f"{error.field} is none that can be stored") from None
    except msgspec.ValidationError as error:
        # It names fields and types of ours, never a value.
        raise place.error(_reason(error)) from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise place.error(f"it is not understood ({type(error).__name__})") from None
    return attrs.evolve(draft, trust=min(draft.trust, cap))


def _reason(error: msgspec.ValidationError) -> str:
    """Return what a parser said, unless it names a key of the file."""
    said = str(error)
    if "unknown field" in said:
        return f"it has a key that is none of {', '.join(_Line.__struct_fields__)}"
    return said[:1].lower() + said[1:]
