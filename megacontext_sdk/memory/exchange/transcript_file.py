"""Writing a transcript: the messages of a memory as a file of JSON lines, whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megacontext_sdk.contracts.disk import REAL_DISK
from megacontext_sdk.memory.exchange.new_file import NewFile
from megacontext_sdk.messages.transcript import transcript_line
from megacontext_sdk.receipts import Exported

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from megacontext_sdk.contracts.disk import Disk
    from megacontext_sdk.memory.directory.replay import Progress
    from megacontext_sdk.messages.message import Message

__all__ = ["write_transcript"]


def write_transcript(
    messages: Iterable[Message],
    path: Path,
    *,
    n_tokens: int,
    overwrite: bool = False,
    progress: Progress | None = None,
    disk: Disk = REAL_DISK,
) -> Exported:
    """Write messages as JSON lines; a failure leaves nothing behind.

    Forgotten messages and those without a word are left out.

    Args:
        messages: in order; taken one by one.
        path: of the new file.
        n_tokens: length of the history, for progress.
        overwrite: replace a file of this name.
        progress: called with tokens done and tokens in all.
        disk: writes the file.

    Raises:
        ConfigError: the path exists, or is none that can be written.
        QuotaError: a message too long for a line.
        StorageFullError: no space.
    """
    written = tokens = 0
    with NewFile(path, overwrite=overwrite, disk=disk) as file:
        for message in messages:
            line = transcript_line(message)
            if line is not None:
                file.write(line)
                written, tokens = written + 1, tokens + message.span.n_tokens
            if progress is not None:
                progress(message.span.end, n_tokens)
        file.commit()
    return Exported(
        path=str(file.path),
        format="jsonl",
        n_tokens=tokens,
        n_messages=written,
        n_bytes=file.n_bytes,
    )
