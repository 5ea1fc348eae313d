"""The text of a reply as it grows: incremental detokenisation and stop strings.

Text is final only when no stop string can begin in it any more; tokens are settled only when all
their text is final. The loop takes settled tokens into the memory, so removed text is never
committed. This module knows nothing about windows or the tree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.errors import ConfigError, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megacontext_sdk.contracts.arrays import Ids
    from megacontext_sdk.contracts.model import Tokenizer

__all__ = ["MAX_STOP_CHARACTERS", "ReplyText", "check_stop"]

MAX_STOP_CHARACTERS = 32
"""Longest stop string: its tokens wait in the headroom, which must keep its size."""


def check_stop(stop: str | Sequence[str]) -> tuple[str, ...]:
    """Return stop strings as a tuple.

    Raises:
        ConfigError: an entry that is no text, is empty or is longer than 32 characters.
    """
    if not isinstance(stop, str | list | tuple):
        message = f"stop is a {type(stop).__name__}; give a text or a list of texts"
        raise ConfigError(message, field="stop", value=type(stop).__name__)
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    for text in strings:
        if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_CHARACTERS:
            message = (
                f"stop={shown(text)} is not usable: give texts of 1 to {MAX_STOP_CHARACTERS} "
                "characters"
            )
            raise ConfigError(message, field="stop", value=text)
    return strings


class ReplyText:
    """Collects generated tokens and tells which of their text is final.

    Args:
        tokenizer: of the model that generates.
        stop: texts that end the reply; they and what follows are removed.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = tokenizer.detokenizer()
        self._stop = stop
        self._ids: list[int] = []
        self._ends: list[int] = []
        self._text = ""
        self._final = 0
        self._taken = 0
        self.stopped = False

    @property
    def text(self) -> str:
        """Text that is final."""
        return self._text[: self._final]

    @property
    def n_tokens(self) -> int:
        """Tokens pushed."""
        return len(self._ids)

    @property
    def n_settled(self) -> int:
        """Leading tokens whose text is all final."""
        settled = len(self._ends)
        while settled and self._ends[settled - 1] > self._final:
            settled -= 1
        return settled

    @property
    def n_taken(self) -> int:
        """Tokens handed out by `take`."""
        return self._taken

    def push(self, token_id: int) -> str:
        """Take a token and return the text that became final through it."""
        self._ids.append(token_id)
        self._text += self._detokenizer.push(token_id)
        self._ends.append(len(self._text))
        return self._advance(self._held_back())

    def finish(self) -> str:
        """End the reply and return the rest of its text."""
        if not self.stopped:
            self._text += self._detokenizer.flush()
            if self._ends:
                self._ends[-1] = len(self._text)
            self._find_stop()
        return self._advance(len(self._text))

    def take(self, limit: int) -> tuple[Ids, str]:
        """Hand out settled tokens not handed out before, at most `limit`, and their text."""
        stop = min(self.n_settled, self._taken + limit)
        start, self._taken = self._taken, max(stop, self._taken)
        first = self._ends[start - 1] if start else 0
        last = self._ends[stop - 1] if stop > start else first
        return np.array(self._ids[start:stop], dtype=np.int32), self._text[first:last]

    def _advance(self, final: int) -> str:
        start, self._final = self._final, max(final, self._final)
        return self._text[start : self._final]

    def _held_back(self) -> int:
        """Return how much of the text is final while more may follow."""
        if self._find_stop():
            return len(self._text)
        longest = max((len(text) for text in self._stop), default=0)
        for size in range(min(longest - 1, len(self._text) - self._final), 0, -1):
            suffix = self._text[-size:]
            if any(text.startswith(suffix) for text in self._stop):
                return len(self._text) - size
        return len(self._text)

    def _find_stop(self) -> bool:
        """Cut at the first stop string; a token cut in two gives way to tokens of what is left."""
        found = [at for text in self._stop if (at := self._text.find(text, self._final)) >= 0]
        if not found:
            return False
        self.stopped = True
        cut = min(found)
        whole = sum(end <= cut for end in self._ends)
        whole = max(whole, self._taken)
        start = self._ends[whole - 1] if whole else 0
        rest = self._tokenizer.encode(self._text[start:cut]).tolist() if cut > start else []
        self._text = self._text[:cut]
        self._ids[whole:] = rest
        self._ends[whole:] = [cut] * len(rest)
        return True
